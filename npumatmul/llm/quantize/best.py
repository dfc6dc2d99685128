"""The best recipe known for each scheme: what `docs/quality.md` measured."""

from __future__ import annotations

import dataclasses

from npumatmul.llm.quantize.recipe import GGUF_SCHEME, LayerRecipe, Recipe, parse_scheme
from npumatmul.quant.params import Granularity

__all__ = ["best_recipe"]

_FULL = LayerRecipe(transform="balance+hadamard", centre=True, rounding="gptq", clip_search=True, act_order=True)


def best_recipe(scheme: str, *, head: str | None = None, seed: int = 0) -> Recipe:
    """Return the recipe that lost least of a model's quality of all that were tried.

    Parameters
    ----------
    scheme : str
        See `parse_scheme`.
    head : str, optional
        Another scheme for the output matrix, which has a fifth of a small model's weights.
    seed : int
        Of random signs.

    Returns
    -------
    Recipe
        It needs a calibration text, unless weights are float16.

    Raises
    ------
    ValueError
        If there is no such scheme.

    Examples
    --------
    >>> from npumatmul.llm.quantize import best_recipe
    >>> recipe = best_recipe("w4a8", head="w8a8")
    >>> recipe.default.transform, recipe.default.symmetric, recipe.for_layer("head").scheme
    ('balance+hadamard', False, 'w8a8')
    """
    layers = {} if head is None else {"head": dataclasses.asdict(_best_layer(head))}
    return Recipe(_best_layer(scheme), layers, seed)


def _best_layer(scheme: str) -> LayerRecipe:
    parts = parse_scheme(scheme)
    if scheme == GGUF_SCHEME:
        return LayerRecipe(scheme)
    if parts.weight_bits == 16:
        return LayerRecipe(scheme)
    rounding = "nearest" if parts.granularity is Granularity.LAYER else "gptq"  # which needs more scales than one
    recipe = dataclasses.replace(_FULL, scheme=scheme, rounding=rounding, symmetric=parts.weight_bits > 4)
    if parts.granularity is Granularity.GROUP and parts.activation_bits < 16 and not scheme.endswith("_agroup"):
        recipe = dataclasses.replace(recipe, scheme=f"{scheme}_agroup")  # groups are runs of their own anyway
    if parts.activation_bits == 4:
        recipe = dataclasses.replace(recipe, symmetric_activations=False, activation_clip=0.8)
    return recipe
