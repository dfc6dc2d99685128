"""How far each offloaded layer is from what it was, on inputs that a model really meets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from npumatmul.torch.calibrating import calls_of, run
from npumatmul.torch.modules import NpuModule

__all__ = ["LayerError", "analyze"]


@dataclass(frozen=True)
class LayerError:
    """The error of one layer.

    Attributes
    ----------
    name : str
    scheme : str
    sqnr : float
        Signal to noise in decibels, of the layer alone: both versions are given what the original met.
    cosine : float
        Of all results as one vector.
    largest : float
        Largest error as a share of the largest result.
    """

    name: str
    scheme: str
    sqnr: float
    cosine: float
    largest: float


def analyze(model: nn.Module, original: nn.Module, example_inputs: Any) -> list[LayerError]:
    """Compare each offloaded layer with the original one, on what comes into it there.

    Parameters
    ----------
    model : torch.nn.Module
        What `offload` changed.
    original : torch.nn.Module
        The same before, such as a ``copy.deepcopy``.
    example_inputs : tuple, mapping or list of those
        Calls of the model.

    Returns
    -------
    list of LayerError
        The worst first. Layers that the examples do not come by are not among them.

    Raises
    ------
    ValueError
        If nothing is offloaded, or `original` has no such module.

    Examples
    --------
    >>> import copy
    >>> import torch
    >>> from npumatmul.torch import analyze, offload
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    >>> original = copy.deepcopy(model)
    >>> _ = offload(model, "w16a16")
    >>> all(each.sqnr > 50 for each in analyze(model, original, torch.randn(9, 64)))
    True
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, NpuModule)}
    if not layers:
        raise ValueError("analyze: nothing of the model is offloaded")
    for name in layers:
        try:
            original.get_submodule(name)
        except AttributeError:
            raise ValueError(f"analyze: the original has no module {name!r}") from None
    sums = {name: [0.0, 0.0, 0.0, 0.0, 0.0, 0.0] for name in layers}

    def compare(name: str, given: Any, expected: torch.Tensor) -> None:
        with torch.inference_mode():
            y = layers[name](*given).to(torch.float64)
        e = expected.to(torch.float64)
        found = sums[name]
        off = y - e
        for i, value in enumerate(
            (float((e * e).sum()), float((off * off).sum()), float((y * e).sum()), float((y * y).sum()))
        ):
            found[i] += value
        found[4] = max(found[4], float(off.abs().max()) if off.numel() else 0.0)
        found[5] = max(found[5], float(e.abs().max()) if e.numel() else 0.0)

    handles = []
    for name in layers:

        def hook(module: Any, given: Any, result: Any, name: str = name) -> None:
            compare(name, given, result)

        handles.append(original.get_submodule(name).register_forward_hook(hook))
    try:
        for call in calls_of(example_inputs, None, None):
            run(original, call)
    finally:
        for handle in handles:
            handle.remove()
    made = []
    for name, (signal, noise, both, own, off, most) in sums.items():
        if signal:
            sqnr = math.inf if noise == 0 else 10 * math.log10(signal / noise)
            cosine = both / math.sqrt(signal * own) if own else 0.0
            made.append(LayerError(name, layers[name].scheme, sqnr, cosine, off / most))
    return sorted(made, key=lambda each: each.sqnr)
