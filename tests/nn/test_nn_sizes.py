"""Sizes that are truth values are refused, by every layer and wherever one is asked for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from npumatmul import nn

#: What a layer is made with, as far as its parameters have no defaults.
GIVEN: dict[str, Any] = {
    "out_features": {"q_proj": 8},
    "kernel_size": 3,
    "top_k": 2,
    "heads": 2,
    "attention": None,
    "mlp": None,
    "activation": "silu",
}
#: Made by others, or of results.
NOT_LAYERS = {"AttentionPlan", "BroughtProduct", "LoadResult"}


def sizes() -> Iterator[tuple[type[Any], str]]:
    for name in nn.__all__:
        kind = getattr(nn, name)
        if inspect.isclass(kind) and not issubclass(kind, Exception) and name not in NOT_LAYERS:
            for parameter in inspect.signature(kind).parameters.values():
                if re.match(r"int\b", str(parameter.annotation)):
                    yield kind, parameter.name


@pytest.mark.parametrize(("kind", "name"), list(sizes()), ids=lambda each: getattr(each, "__name__", each))
def test_a_truth_value_is_no_size(kind: type[Any], name: str) -> None:
    given = {}
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.default is parameter.empty:
            given[parameter.name] = GIVEN.get(parameter.name, 8)
    for value in (True, np.True_):
        with pytest.raises(ValueError, match=f"{name} is {value!r}|limit is {value!r}"):
            kind(**{**given, name: value})


def test_sizes_are_found() -> None:
    found = {kind.__name__ for kind, _ in sizes()}
    assert {"Linear", "LinearGroup", "Attention", "RoPE", "KVCache", "Router", "MixtureOfExperts", "Residency"} <= found


def test_other_places_that_ask_for_a_size() -> None:
    rows = np.ones((1, 2, 4), np.float32)
    with pytest.raises(ValueError, match="window is True; it has to be an integer"):
        nn.scaled_dot_product_attention(rows, rows, rows, window=True)
    cache = nn.KVCache(1, 1, 4)
    cache.update(0, np.ones((1, 1, 1, 4), np.float32), np.ones((1, 1, 1, 4), np.float32))
    with pytest.raises(ValueError, match="count is True"):
        cache.trim(True)
    with pytest.raises(ValueError, match=r"query_growth is 4; it has to be \(beta, length\)"):
        nn.Attention(8, 2, query_growth=4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="LinearGroup: out_features has the size of each layer by its name"):
        nn.LinearGroup(8, 4)  # type: ignore[arg-type]
