"""`load`: from a file or folder to a model that answers."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from npumatmul.chips.rows import M_MAX
from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.llm.arguments import check_flags, check_progress
from npumatmul.llm.counts import count_from_one
from npumatmul.llm.encoder_model import load_encoder_model
from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.files.paths import model_path
from npumatmul.llm.fitting import LayerShape
from npumatmul.llm.language_model import Model
from npumatmul.llm.loading import load_from, load_source, numpy_pack
from npumatmul.llm.models.decoder import PREFILL_CHUNK, layer_names
from npumatmul.llm.models.encoder import Encoder
from npumatmul.llm.models.encoders import encoder_architecture, encoder_config_of
from npumatmul.llm.models.part import part_of
from npumatmul.llm.models.registry import config_of
from npumatmul.llm.models.weights import LayerTensors, Progress, layer_tensors
from npumatmul.llm.models.whisper import Whisper, speech_layer_names
from npumatmul.llm.models.whisper_config import is_speech, whisper_config_of
from npumatmul.llm.npu import NpuQuantizedLinear, npu_layers, npu_pack
from npumatmul.llm.packed_cache import PackedCache
from npumatmul.llm.packing import Packing, packing
from npumatmul.llm.placing import Placing, layer_shapes
from npumatmul.llm.policy import Policy, check_patterns
from npumatmul.llm.quantize import (
    LayerRecipe,
    Recipe,
    cost_of,
    is_quantized,
    load_quantized,
    parse_scheme,
    quantize_layer,
    quick_recipe,
)
from npumatmul.llm.quantize.layer import QuantizedLayer
from npumatmul.llm.quantize.packed_layer import PackedLayer, stored_scheme
from npumatmul.llm.quantize.quantized_model import QuantizedModel, layer_of_recipe, quantize_model
from npumatmul.llm.quantize.recipe import GGUF_SCHEME
from npumatmul.llm.speech_model import load_speech_model
from npumatmul.nn.product import Float32, Product, named
from npumatmul.nn.residency import Residency
from npumatmul.quant.routes import route_for

__all__ = ["DEFAULT_SCHEME", "FLOAT32", "Packer", "load", "rounded_again"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

DEFAULT_SCHEME = "w8a8"
FLOAT32 = "float32"
"""Where a scheme is asked for: computed by numpy in float32."""


def load(
    path: str | os.PathLike[str],
    scheme: str = DEFAULT_SCHEME,
    *,
    policy: Policy | Mapping[str, str] | None = None,
    device: Device | str | None = None,
    context: int | None = None,
    cache: bool = True,
    expert_memory: int | None = None,
    expert_folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a language model, an encoder that makes embeddings or scores of texts, or a model of speech.

    Weights are read, quantized and put onto the device one after another, so no more than one of them is in memory as
    floats. Where activations are quantized a Hadamard rotation comes first, which costs next to nothing and makes w8a8
    lose a ninth of what it would (docs/quality.md).

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file (of a split model, any part), a folder as Hugging Face has it, or a file that
        ``npumatmul quantize`` wrote.
    scheme : str, default "w8a8"
        How weights of layers are stored and multiplied (docs/schemes.md): ``"w8a8"`` suits the NPU, ``"w16a16"`` is
        slower and closer, ``"gguf"`` takes blocks of a GGUF file over as they are, ``"float32"`` computes with numpy
        and needs no NPU. Weights of 4 bits are warned of. A quantized file is taken as it is.
    policy : Policy, or mapping of str to str, optional
        Which layers the NPU computes and in which phase, how much of its memory they may take, a part of the model
        (docs/offloading.md). A mapping has other schemes for some layers, by patterns of their names (``blk.<i>.qkv``,
        ``.attn_out``, ``.gate_up``, ``.down``, and ``head``; ``*`` and ``?`` as in file names); later patterns win.
        ``{"head": "float32"}`` leaves the output matrix to numpy.
    device : Device or str, optional
        The current device by default.
    context : int, optional
        Longest sequence, in tokens; by default, and at most, the model's own.
    cache : bool, default True
        Whether packed weights are kept on disk, so that the next load need not make them again (``npumatmul cache``).
    expert_memory : int, optional
        Of a mixture of experts: bytes of experts on the device at a time. The others wait in the host's memory, and are
        brought in when tokens choose them (`Model.experts` counts); by default all of them are on the device.
    expert_folder : str or os.PathLike, optional
        Where experts wait instead, in files that `Model.close` removes; with `expert_memory`.
    progress : callable, optional
        Called before each matrix and at the end with (matrices done, matrices in all, name).

    Returns
    -------
    Model
        Close it, or use it in a ``with`` block. Of a folder that holds an encoder, an `EncoderModel`;
        of one that holds a Whisper, a `SpeechModel`.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is nothing of this name, or no folder of that of `expert_folder`.
    npumatmul.errors.ModelError
        If it is damaged, or of an architecture or a tokenizer that is not supported.
    npumatmul.errors.NpuMemoryError
        If it does not fit.
    ValueError
        If there is no such scheme, a pattern matches no layer, or a limit has no room for any.

    Examples
    --------
    >>> import npumatmul.llm
    >>> with npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), device="sim:rk3588") as model:
    ...     answer = model.chat([{"role": "user", "content": "Name the capital of Japan."}])
    ...     print("".join(piece.text for piece in answer))
    The capital of Japan is Tokyo.
    """
    if not isinstance(scheme, str):
        raise TypeError(f"load: scheme is the name of one, not {type(scheme).__name__}")
    if policy is not None and not isinstance(policy, (Policy, Mapping)):
        raise TypeError(
            'load: policy is a Policy, or a mapping from patterns to schemes, such as {"head": "w16a16"}, '
            f"not {type(policy).__name__}"
        )
    check_flags("load", cache=cache)
    check_progress("load", progress)
    if expert_folder is not None and expert_memory is None:
        raise ValueError("load: expert_folder is where experts beyond expert_memory wait; give both")
    chosen = policy if isinstance(policy, Policy) else None
    if chosen is not None and expert_memory is not None:
        raise ValueError(
            "load: expert_memory and a Policy both say where experts are; by a policy those that have no room in NPU "
            "memory stand in ordinary memory, and the CPU computes them"
        )
    plan = _Plan(scheme, dict((policy if chosen is None else chosen.schemes) or {}))  # type: ignore[arg-type]
    path = model_path(path, "load")
    if context is not None:
        context = count_from_one(context, "context", "load")
    waiting = None if expert_memory is None else _Waiting.checked(expert_memory, expert_folder)
    if is_quantized(path):
        return _quantized(path, plan, chosen, device, context, waiting, progress)
    if scheme == GGUF_SCHEME:
        return _blocks(path, plan, chosen, device, context, waiting, cache, progress)
    target = None if plan.schemes == {FLOAT32} else current_device(device)
    layers = None if chosen is None else chosen.layers
    with contextlib.ExitStack() as undo, open_source(path) as source:
        plan.check_chip(target)
        _check_part(source, layers)
        experts = None if waiting is None else waiting.experts(source, target, undo)
        note = rounded_again(source, scheme)
        if note is not None:
            logger.info("%s", note)

        def loaded(build: _Built) -> Model:
            if is_speech(source):
                build.check(speech_layer_names(whisper_config_of(source)))
                made: Model = load_speech_model(
                    source, build, scheme=scheme, device=target, context=context, progress=progress, placing=placing
                )
            elif encoder_architecture(source) is None:
                model = load_source(source, build, context_length=context, progress=progress, layers=layers)
                made = Model(model, scheme=scheme, device=target, experts=experts, placing=placing)
            else:
                build.check(layer_names(encoder_config_of(source).n_layers)[:-1])
                made = load_encoder_model(
                    source, build, scheme=scheme, device=target, context=context, progress=progress, placing=placing
                )
            if placing is not None:
                placing.done()
            undo.pop_all()
            return made

        placing = None
        if target is None:
            if chosen is not None:
                _check_numpys(chosen)
            return loaded(_Built(plan, None, None, None, None))
        if chosen is not None:
            whole = is_speech(source) or encoder_architecture(source) is not None  # texts and windows at once
            rows = M_MAX.value if whole else PREFILL_CHUNK
            placing = Placing(chosen, target, _shapes(source, plan, chosen), rows)
            undo.callback(placing.undo)
        kept = PackedCache() if cache else None
        with packing(source, plan.how(layers), Packer(plan.of, target), device=target, cache=kept) as pack:
            return loaded(_Built(plan, target, pack, experts, placing))


def _shapes(source: ModelSource, plan: _Plan, policy: Policy) -> list[LayerShape]:
    """The layers of a model, or of a part of it, before anything of them is read."""
    if is_speech(source):
        return layer_shapes(Whisper(whisper_config_of(source)).linear_shapes(), plan.of)
    if encoder_architecture(source) is not None:
        modules = Encoder(encoder_config_of(source)).linear_modules()
        return layer_shapes({name: each.product_shape[::-1] for name, each in modules.items()}, plan.of)
    decoder = part_of(config_of(source), policy.layers)
    tensors = layer_tensors(source, layers=policy.layers)
    return layer_shapes({name: each.shape for name, each in tensors.items()}, plan.of, decoder)


def _check_part(source: ModelSource, layers: tuple[int, int] | None) -> None:
    """Refuse a part of what is no decoder."""
    if layers is not None and (is_speech(source) or encoder_architecture(source) is not None):
        kind = "a model of speech" if is_speech(source) else "an encoder"
        raise ValueError(f"load: layers are a part of a decoder, and {source.name} is {kind}")


def _check_numpys(policy: Policy) -> None:
    """Refuse what a policy says of an NPU that computes nothing."""
    if replace(policy, layers=None, schemes={}) != Policy():
        raise ValueError("load: scheme 'float32' is computed by numpy; of a policy only layers and schemes go with it")


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """How much memory experts have on the device, and where the others wait."""

    memory: int
    folder: str | os.PathLike[str] | None

    @classmethod
    def checked(cls, memory: int, folder: str | os.PathLike[str] | None) -> _Waiting:
        """One of arguments of `load`, before a model is read for nothing."""
        if folder is not None and not os.path.isdir(folder):
            raise NotADirectoryError(
                f"load: expert_folder is {os.fspath(folder)!r}, and there is no such folder; make it or name one"
            )
        return cls(count_from_one(memory, "expert_memory", "load"), folder)

    def experts(self, source: ModelSource, target: Device | None, undo: contextlib.ExitStack) -> Residency:
        """Where experts of a model are kept; `undo` closes it.

        Raises
        ------
        ValueError
            If it has none, or they are not on a device.
        """
        decodes = not is_speech(source) and encoder_architecture(source) is None
        if not decodes or not any(config_of(source).expert_counts):
            raise ValueError(f"load: expert_memory is for mixtures of experts, and {source.name} has no experts")
        if target is None:
            raise ValueError("load: expert_memory is about memory of the device, and numpy computes all layers")
        found = Residency(self.memory, self.folder)
        undo.callback(found.close)
        return found


def _kept(product: Product, name: str, experts: Residency | None) -> Product:
    """A product by its layer's name, off the device if it is an expert's and these wait elsewhere."""
    named(product, name)
    return product if experts is None or ".expert." not in name else experts.keep(product)


def rounded_again(source: ModelSource, scheme: str) -> str | None:
    """What people should know whose file holds blocks of few bits already, as a sentence; None if there is nothing.

    Parameters
    ----------
    source : ModelSource
        The open model.
    scheme : str
        How it is to be stored.

    Returns
    -------
    str or None
        That another rounding follows.
    """
    if source.kind != "gguf" or scheme in (GGUF_SCHEME, FLOAT32) or parse_scheme(scheme).weight_bits == 16:
        return None
    names = [name for name in source.weights if len(source.weights.shape(name)) == 2]
    blocks = sorted({kind for name in names if "Q" in (kind := source.weights.stored_as(name))})
    if not blocks:
        return None
    return (
        f"{source.path.name} stores weights as {' and '.join(blocks)}; {scheme} rounds them a second time. "
        "Scheme gguf takes Q4_0, Q4_1 and Q8_0 over as they are."
    )


class Packer:
    """Quantizes weights as `quick_recipe` says and puts them onto a device: what `load` packs by.

    Parameters
    ----------
    scheme : str or callable
        Of all layers, or from the name of a layer to its scheme.
    device : Device
        Where they are put.
    """

    def __init__(self, scheme: str | Callable[[str], str], device: Device) -> None:
        self._scheme, self._device = scheme, device

    def __call__(self, weight: Float32, name: str) -> Product:
        """Make the product of a layer of its weight ``(N, K)``."""
        scheme = self._scheme if isinstance(self._scheme, str) else self._scheme(name)
        recipe = quick_recipe(scheme)
        if recipe.parts.weight_bits == 16:
            return npu_pack(scheme, self._device)(weight, name)
        return NpuQuantizedLinear.of_layer(quantize_layer(weight, recipe, name=name), self._device)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which scheme each layer has."""

    scheme: str
    policy: Mapping[str, str]

    def __post_init__(self) -> None:
        for pattern in self.policy:
            if not isinstance(pattern, str):
                raise TypeError(f"load: policy has patterns of the names of layers, not {type(pattern).__name__}")
        for each in self.schemes:
            if not isinstance(each, str):
                raise TypeError(f"load: policy gives schemes by their names, not {type(each).__name__}")
            if each != FLOAT32:
                parse_scheme(each)
        if GGUF_SCHEME in self.policy.values():
            raise ValueError("load: policy cannot choose 'gguf', which is a scheme for all layers")
        if self.policy and self.scheme == GGUF_SCHEME:
            raise ValueError("load: scheme 'gguf' takes a file over as it is; it goes with no policy")

    @property
    def schemes(self) -> set[str]:
        """All that occur."""
        return {self.scheme, *self.policy.values()}

    def check_chip(self, device: Device | None) -> None:
        """Refuse schemes that the device does not compute; then say what those cost that it does."""
        packed = sorted(self.schemes - {FLOAT32})
        for each in packed:
            if device is not None:
                route_for(parse_scheme(each), device.chip, device.runtime_version)
        for each in packed:
            cost = cost_of(each)
            if cost is not None:
                logger.warning("%s", cost)

    def of(self, name: str) -> str:
        """The scheme of a layer."""
        found = self.scheme
        for pattern, scheme in self.policy.items():
            if fnmatchcase(name, pattern):
                found = scheme
        return found

    def check_patterns(self, names: Sequence[str]) -> None:
        """Refuse patterns that no layer has a name for: what they were to do would be missed silently."""
        check_patterns(self.policy, names, "policy")

    def how(self, layers: tuple[int, int] | None = None) -> dict[str, object]:
        """All that packed weights depend on, as JSON, and which there are."""
        recipes = {each: dataclasses.asdict(quick_recipe(each)) for each in sorted(self.schemes) if each != FLOAT32}
        part = {} if layers is None else {"layers": list(layers)}
        return {"scheme": self.scheme, "policy": list(self.policy.items()), "recipes": recipes, **part}


class _Built:
    """Makes products: those of numpy itself, all others by what packs for the device."""

    def __init__(
        self,
        plan: _Plan,
        device: Device | None,
        pack: Packing | None,
        experts: Residency | None,
        placing: Placing | None,
    ) -> None:
        self._plan, self._device, self._pack, self._experts, self._placing = plan, device, pack, experts, placing

    def check(self, names: Sequence[str]) -> None:
        """Look at the plan when the layers are known, before anything is read."""
        self._plan.check_patterns(names)

    def ready(self, name: str) -> Product | None:
        """The product of a layer, if nobody has to read its weight."""
        if self._pack is None or self._plan.of(name) == FLOAT32:
            return None
        pack = self._pack
        found = self._put(name, lambda: pack.ready(name))
        return None if found is None else _kept(found, name, self._experts)

    def __call__(self, weight: Float32, name: str) -> Product:
        """Make the product of a layer."""
        if self._pack is None or self._plan.of(name) == FLOAT32:
            return numpy_pack(weight, name)
        pack = self._pack
        return _kept(self._put(name, lambda: pack(weight, name)), name, self._experts)

    def _put(self, name: str, make: Callable[[], _T]) -> _T:
        return make() if self._placing is None else self._placing.put(name, make)


def _quantized(
    path: str | os.PathLike[str],
    plan: _Plan,
    policy: Policy | None,
    device: Device | str | None,
    context: int | None,
    waiting: _Waiting | None,
    progress: Progress | None,
) -> Model:
    """Load what `npumatmul quantize` wrote."""
    if plan.schemes != {DEFAULT_SCHEME} or plan.policy:
        raise ValueError(f"load: {path} is quantized already and takes no scheme or policy with schemes")
    return _of_layers(load_quantized(path), "as it was quantized", policy, device, context, waiting, progress)


def _of_layers(
    quantized: QuantizedModel,
    scheme: str,
    policy: Policy | None,
    device: Device | str | None,
    context: int | None,
    waiting: _Waiting | None,
    progress: Progress | None,
) -> Model:
    """Load layers that are quantized already."""
    target = current_device(device)
    upload, placing = npu_layers(target), None
    with contextlib.ExitStack() as undo:
        experts = None if waiting is None else waiting.experts(GGUFSource.of(quantized.rest), target, undo)
        put: Callable[[str, Callable[[], Product]], Product] = lambda name, make: make()  # noqa: E731
        if policy is not None:
            if policy.layers is not None:
                raise ValueError("load: layers of a policy are a part of a model that was not quantized yet")
            layers = quantized.layers
            shapes = {name: layer.shape for name, layer in layers.items()}
            placing = Placing(policy, target, layer_shapes(shapes, lambda name: stored_scheme(layers[name])))
            undo.callback(placing.undo)
            put = placing.put

        def make(layer: QuantizedLayer | PackedLayer, name: str) -> Product:
            return _kept(put(name, lambda: upload(layer, name)), name, experts)

        loaded = quantized.load(make, context_length=context, progress=progress)
        if placing is not None:
            placing.done()
        undo.pop_all()
    return Model(loaded, scheme=scheme, device=target, experts=experts, placing=placing)


def _blocks(
    path: str | os.PathLike[str],
    plan: _Plan,
    policy: Policy | None,
    device: Device | str | None,
    context: int | None,
    waiting: _Waiting | None,
    cache: bool,
    progress: Progress | None,
) -> Model:
    """Load a GGUF file whose blocks are taken over, layer by layer where no policy has to see all of them first."""
    target = current_device(device)
    recipe = LayerRecipe(plan.scheme)
    others: list[str] = []
    how, kept = {"scheme": plan.scheme, "recipe": dataclasses.asdict(recipe)}, PackedCache() if cache else None
    with contextlib.ExitStack() as undo, open_source(path) as source:
        if not isinstance(source, GGUFSource):
            raise ValueError(f"load: scheme 'gguf' takes over blocks of a GGUF file, and {path} is a folder")
        if policy is not None:
            quantized = quantize_model(Path(source.path), Recipe(recipe), progress=progress)
            return _of_layers(quantized, plan.scheme, policy, device, context, waiting, progress)
        experts = None if waiting is None else waiting.experts(source, target, undo)

        def linear(tensors: LayerTensors) -> Product:
            name, product = tensors.name, pack.ready(tensors.name)
            if product is None:
                layer = layer_of_recipe(source, tensors, recipe, None)
                others.extend([] if layer.recipe.scheme == plan.scheme else [name])
                product = pack.add(NpuQuantizedLinear.of_layer(layer, target), name)
            return _kept(product, name, experts)

        with packing(source, how, numpy_pack, device=target, cache=kept) as pack:
            loaded = load_from(source, linear, context_length=context, progress=progress)
        undo.pop_all()
    if others:
        logger.info(
            "%d layers, such as %r, are stored in types whose blocks cannot be taken over; they are w8a8 instead",
            len(others),
            others[0],
        )
    return Model(loaded, scheme=plan.scheme, device=target, experts=experts)
