"""What comes into the linear layers of a model when it is called with examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from npumatmul.llm.quantize.calibration import MOMENT_BYTES, LayerStatistics

__all__ = ["calls_of", "collect", "observed", "run"]


def collect(
    model: nn.Module, names: Sequence[str], example_inputs: Any, example_text: Any, tokenizer: Any
) -> dict[str, LayerStatistics]:
    """Statistics of what comes into layers; none without examples. Second moments are kept for some layers at a time.

    Raises
    ------
    ValueError, TypeError
        If examples are none.
    """
    calls = calls_of(example_inputs, example_text, tokenizer)
    if not calls:
        return {}
    found: dict[str, LayerStatistics] = {}
    part: list[str] = []
    size = 0
    widths = {name: _width(model.get_submodule(name)) for name in names}
    for name in [*names, None]:
        more = 0 if name is None else 4 * widths[name] ** 2
        if part and (name is None or size + more > MOMENT_BYTES):
            statistics = {each: LayerStatistics(widths[each]) for each in part}

            def see(name: str, x: torch.Tensor, statistics: dict[str, LayerStatistics] = statistics) -> None:
                statistics[name].add(x.detach().to(torch.float32).reshape(-1, x.shape[-1]).numpy())

            with observed(model, part, see):
                for call in calls:
                    run(model, call)
            found.update({each: seen for each, seen in statistics.items() if seen.rows})
            part, size = [], 0
        if name is not None:
            part.append(name)
            size += more
    if names and not found:
        raise ValueError("offload: the examples bring no rows to any of the linear layers that are to be offloaded")
    return found


def calls_of(example_inputs: Any, example_text: Any, tokenizer: Any) -> list[Any]:
    """Calls of a model, each a tuple or a mapping."""
    calls: list[Any] = []
    if example_inputs is not None:
        several = isinstance(example_inputs, list)
        for each in example_inputs if several else [example_inputs]:
            calls.append(each if isinstance(each, tuple | Mapping) else (each,))
    if example_text is not None:
        if tokenizer is None:
            raise ValueError("offload: example_text needs a tokenizer; give the one of the model")
        for text in [example_text] if isinstance(example_text, str) else example_text:
            calls.append(tokenizer(text, return_tensors="pt"))
    return calls


def run(model: nn.Module, call: Any) -> Any:
    """Call a model, without gradients and as it is evaluated."""
    training = [each for each in model.modules() if each.training]
    model.eval()
    try:
        with torch.inference_mode():
            return model(**call) if isinstance(call, Mapping) else model(*call)
    finally:
        for module in training:
            module.training = True


class observed:  # noqa: N801 - a context manager
    """Have what comes into some modules seen, as long as the context lasts."""

    def __init__(self, model: nn.Module, names: Sequence[str], see: Any) -> None:
        self._model, self._names, self._see = model, names, see
        self._handles: list[Any] = []

    def __enter__(self) -> observed:
        for name in self._names:

            def hook(module: Any, given: Any, name: str = name) -> None:
                self._see(name, given[0])

            self._handles.append(self._model.get_submodule(name).register_forward_pre_hook(hook))
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._handles:
            each.remove()


def _width(module: Any) -> int:
    return int(module.in_features if hasattr(module, "in_features") else module.nx)
