"""Recipes: what to do to each layer of a model, as values that JSON can hold."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from npumatmul.files.reading import parse_json, read_text, shown
from npumatmul.quant.params import Granularity
from npumatmul.quant.schemes import Scheme

__all__ = ["LayerRecipe", "Recipe", "parse_scheme"]

GGUF_SCHEME = "gguf"
"""The scheme that takes over the blocks of the file."""

MAX_PATTERNS, MAX_REFINE = 1000, 100
"""Patterns of layers, of which models in use have a few hundred; rounds of refinement."""
TRANSFORMS = ("none", "hadamard", "smooth", "smooth+hadamard", "balance", "balance+hadamard")
ROUNDINGS = ("nearest", "gptq")


def parse_scheme(name: str) -> Scheme:
    """Read the name of a scheme for the layers of a model.

    Parameters
    ----------
    name : str
        As `npumatmul.quant.schemes` has them, activations quantized per token, or token and group: ``w8a8``,
        ``w4a8_g128``, ``w4a8_g32_agroup``, ...; or ``gguf``, with groups of 32 and int8 activations, which have a scale
        per token and group. Fields of `LayerRecipe`, not the name, ask for zero points.

    Returns
    -------
    Scheme
        Its parts.

    Raises
    ------
    ValueError
        If it is not the name of a scheme, or of one that models do not take.

    Examples
    --------
    >>> from npumatmul.llm.quantize import parse_scheme
    >>> parse_scheme("w4a8_g128").group_size
    128
    """
    if name == GGUF_SCHEME:
        return Scheme(8, 8, Granularity.GROUP, 32, activation_granularity=Granularity.GROUP)
    try:
        scheme = Scheme.parse(name)
    except ValueError as error:
        raise ValueError(f"{error} (models have 'gguf', too, and 'float32' where they run on numpy)") from None
    if scheme.integers:
        raise ValueError(f"scheme {name!r} takes integers, and the weights of a model are floats; did you mean "
                         f"'w{scheme.weight_bits}a8', which quantizes them?")  # fmt: skip
    if scheme.high or scheme.static:
        raise ValueError(f"scheme {name!r} is not one for recipes: floats are taken, activations quantized per token")
    if not (scheme.symmetric and scheme.activation_symmetric):
        raise ValueError(
            f'scheme {name!r}: recipes ask for zero points with "symmetric": false and "symmetric_activations": false'
        )
    return scheme


@dataclass(frozen=True)
class LayerRecipe:
    """What to do to one layer.

    Attributes
    ----------
    scheme : str
        See `parse_scheme`; not ``auto``.
    transform : str
        Of activations and weight, without effect on their exact product: ``none``, ``hadamard`` (randomized),
        ``smooth`` (SmoothQuant: scales move from activations to the weight), ``balance`` (the same by root mean
        squares instead of maxima, which is what suits a Hadamard transform that follows; docs/quality.md derives it),
        ``smooth+hadamard`` or ``balance+hadamard``. All but ``none`` and ``hadamard`` need calibration.
    centre : bool
        Whether the mean of each input feature over the calibration text is subtracted from activations before all
        else. Its product with the float weight is added to results as a bias, so the exact product stays what it is.
    smooth_strength : float
        How much of the activations' range moves to the weight, 0 to 1.
    rounding : str
        ``nearest`` or ``gptq`` (needs calibration).
    symmetric : bool
        Whether codes of the weight have no zero points. Zero points are corrected on the host, exactly.
    symmetric_activations : bool
        Whether quantized activations have no zero points. Otherwise each token has one, and its codes, one more than
        in the symmetric case, cover its smallest and largest value; corrected on the host, exactly.
    clip_search : bool
        Whether to search for weight scales below the largest magnitude that lose less.
    act_order : bool
        Whether GPTQ begins with the columns of the largest activations.
    correction : float
        How far GPTQ makes up for errors of the layers before, 0 to 1; where the model is quantized in sequence.
    refine : int
        Rounds of coordinate descent after GPTQ; each takes about as long as GPTQ itself.
    activation_clip : float
        Largest quantized activation as a share of the largest of its token (and smallest, where activations are not
        symmetric), above 0 and at most 1.

    Raises
    ------
    ValueError
        If a value is not one of these.
    """

    scheme: str = "w8a8"
    transform: str = "none"
    smooth_strength: float = 0.5
    centre: bool = False
    rounding: str = "nearest"
    symmetric: bool = True
    symmetric_activations: bool = True
    clip_search: bool = False
    act_order: bool = False
    correction: float = 0.0
    refine: int = 0
    activation_clip: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        parse_scheme(self.scheme)
        for name, value, known in (
            ("transform", self.transform, TRANSFORMS),
            ("rounding", self.rounding, ROUNDINGS),
        ):
            if value not in known:
                raise ValueError(f"recipe: {name} is {value!r}; it must be one of {', '.join(known)}")
        if not 0 < self.activation_clip <= 1:
            raise ValueError(f"recipe: activation_clip is {self.activation_clip}; it must be above 0 and at most 1")
        if not 0 <= self.smooth_strength <= 1:
            raise ValueError(f"recipe: smooth_strength is {self.smooth_strength}; it must be from 0 to 1")
        if not 0 <= self.correction <= 1:
            raise ValueError(f"recipe: correction is {self.correction}; it must be from 0 to 1")
        if not 0 <= self.refine <= MAX_REFINE:
            raise ValueError(f"recipe: refine is {self.refine}; it must be from 0 to {MAX_REFINE}")
        if self.rounding == "gptq" and self.parts.granularity is Granularity.LAYER:
            raise ValueError(f"recipe: gptq needs a scale per channel or group, {self.scheme} has one per layer")
        if self.scheme == GGUF_SCHEME and (self.transform != "none" or self.rounding != "nearest" or self.clip_search):
            raise ValueError("recipe: scheme 'gguf' takes blocks over as they are: no gptq, clip_search or transform")

    @property
    def parts(self) -> Scheme:
        """What the name of the scheme says."""
        return parse_scheme(self.scheme)

    @property
    def needs_calibration(self) -> bool:
        """Whether activations have to be seen before the weight can be quantized."""
        moves = "smooth" in self.transform or "balance" in self.transform
        return self.parts.weight_bits < 16 and (self.rounding == "gptq" or moves or self.centre)

    def without_calibration(self) -> LayerRecipe:
        """What is left of it where nothing was seen of activations: the same scheme, rounded to nearest."""
        if not self.needs_calibration:
            return self
        transform = "hadamard" if "hadamard" in self.transform else "none"
        return dataclasses.replace(
            self, transform=transform, centre=False, rounding="nearest", act_order=False, correction=0.0, refine=0
        )


@dataclass(frozen=True)
class Recipe:
    """What to do to every layer of a model.

    Attributes
    ----------
    default : LayerRecipe
        For layers that no pattern matches.
    layers : mapping of str to mapping
        By pattern of layer names (``*`` and ``?``, see `fnmatch`), the fields of `LayerRecipe` that differ. All
        patterns that match are applied in their order, so that later ones win.
    seed : int
        Of random signs in transforms.
    sequential : bool
        Whether each layer is calibrated on what it sees once those before it are quantized, rather than on the
        activations of the float model.

    Raises
    ------
    ValueError
        If a field or a value is not known.

    Examples
    --------
    >>> from npumatmul.llm.quantize import LayerRecipe, Recipe
    >>> recipe = Recipe(LayerRecipe("w4a8"), {"head": {"scheme": "w8a8"}, "blk.*.down": {"transform": "hadamard"}})
    >>> recipe.for_layer("head").scheme, recipe.for_layer("blk.3.down").transform, recipe.for_layer("blk.3.qkv").scheme
    ('w8a8', 'hadamard', 'w4a8')
    >>> Recipe.from_json(recipe.to_json()) == recipe
    True
    """

    default: LayerRecipe = LayerRecipe()
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0
    sequential: bool = False

    def __post_init__(self) -> None:
        """Check every override."""
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 63:
            raise ValueError(f"recipe: the seed is {shown(self.seed)}; it must be a whole number from 0 to 2**63 - 1")
        if not isinstance(self.sequential, bool):
            raise ValueError(f"recipe: sequential is {self.sequential!r}; it must be true or false")
        if len(self.layers) > MAX_PATTERNS:
            raise ValueError(f"recipe: {len(self.layers)} patterns of layers; at most {MAX_PATTERNS} are accepted")
        known = [each.name for each in dataclasses.fields(LayerRecipe)]
        for pattern, changes in self.layers.items():
            unknown = [name for name in changes if name not in known]
            if unknown:
                raise ValueError(f"recipe: layers {pattern!r} set {unknown[0]!r}; there are {', '.join(known)}")
            self.for_layer(pattern)

    def for_layer(self, name: str) -> LayerRecipe:
        """What to do to one layer.

        Parameters
        ----------
        name : str
            Such as ``blk.3.qkv``; see `npumatmul.llm.models.decoder.layer_names`.

        Returns
        -------
        LayerRecipe
            The default with the changes of all patterns that match.
        """
        changes: dict[str, Any] = {}
        for pattern, each in self.layers.items():
            if name == pattern or fnmatchcase(name, pattern):
                changes.update(each)
        return _checked(LayerRecipe, {**dataclasses.asdict(self.default), **changes})

    def as_dict(self) -> dict[str, Any]:
        """The recipe as values that JSON can hold.

        Returns
        -------
        dict
            The fields of the default, ``layers``, ``seed`` and ``sequential``.
        """
        layers = {pattern: dict(changes) for pattern, changes in self.layers.items()}
        own = {"seed": self.seed, "sequential": self.sequential}
        return {**dataclasses.asdict(self.default), "layers": layers, **own}

    def to_json(self) -> str:
        """The recipe as JSON; `from_json` reads it.

        Returns
        -------
        str
            JSON, indented.
        """
        return json.dumps(self.as_dict(), indent=1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Make a recipe of values as `as_dict` gives them; what is missing has its default.

        Parameters
        ----------
        values : mapping
            Fields.

        Returns
        -------
        Recipe
            The recipe.

        Raises
        ------
        ValueError
            If a field or a value is not known.
        """
        rest = dict(values)
        layers, seed, sequential = rest.pop("layers", {}), rest.pop("seed", 0), rest.pop("sequential", False)
        if not isinstance(layers, Mapping) or not all(isinstance(each, Mapping) for each in layers.values()):
            raise ValueError("recipe: 'layers' maps patterns of layer names to fields that differ")
        return cls(_checked(LayerRecipe, rest), layers, seed, sequential)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read a recipe from JSON.

        Parameters
        ----------
        text : str
            A JSON object.

        Returns
        -------
        Recipe
            The recipe.

        Raises
        ------
        ValueError
            If it is not JSON, or a field or a value is not known.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise ValueError(f"recipe: this is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"recipe: a JSON object is needed, this is a {type(values).__name__}")
        return cls.from_dict(values)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe from a JSON file.

        Parameters
        ----------
        path : str or os.PathLike
            The file.

        Returns
        -------
        Recipe
            The recipe.

        Raises
        ------
        OSError
            If it cannot be read.
        ValueError
            As for `from_json`; the message names the file.
        """
        try:
            return cls.from_json(read_text(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _checked(kind: type[LayerRecipe], values: Mapping[str, Any]) -> LayerRecipe:
    """Make a layer's recipe of values whose types nobody has looked at."""
    defaults = kind()
    for name, value in values.items():
        if not hasattr(defaults, name):
            known = ", ".join(each.name for each in dataclasses.fields(kind))
            raise ValueError(f"recipe: there is no field {shown(name)}; there are {known}, layers, seed, sequential")
        wanted = type(getattr(defaults, name))
        right = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
        if not right or (isinstance(value, bool) and wanted is not bool):
            raise ValueError(f"recipe: {name} is {shown(value)}; a {wanted.__name__} is needed")
    return kind(**values)
