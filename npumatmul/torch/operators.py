"""Operators of PyTorch that multiply on the NPU: what compilers and exporters see of offloaded modules.

A weight is named by a number, which belongs to this process: a compiled or exported program works in it, as long as
the module lives.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["convolve", "experts", "linear", "lookup", "register"]

_numbers = itertools.count(1)
_modules: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def register(what: Any) -> int:
    """Give a number to what multiplies: an object with a method ``multiply``. It is not kept alive."""
    number = next(_numbers)
    _modules[number] = what
    return number


def lookup(number: int) -> Any:
    """What a number was given to.

    Raises
    ------
    RuntimeError
        If it is gone.
    """
    try:
        return _modules[number]
    except KeyError:
        raise RuntimeError(
            f"npumatmul: weight {number} is gone, or belongs to another process; a compiled or exported program needs "
            "the offloaded module that it was made of"
        ) from None


@torch.library.custom_op("npumatmul::linear", mutates_args=(), device_types="cpu")
def linear(x: torch.Tensor, weight: int, out_features: int) -> torch.Tensor:
    """Multiply rows ``(..., K)`` by a weight, and add its bias: ``(..., out_features)`` of the dtype of `x`."""
    made: torch.Tensor = lookup(weight).multiply(x)
    return made


@linear.register_fake
def _(x: torch.Tensor, weight: int, out_features: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


@torch.library.custom_op("npumatmul::convolve", mutates_args=(), device_types="cpu")
def convolve(
    x: torch.Tensor,
    weight: int,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Convolve ``(B, C, *spatial)`` with a weight of a shape; `padding` is empty for results as large as the input."""
    made: torch.Tensor = lookup(weight).multiply(x)
    return made


@convolve.register_fake
def _(
    x: torch.Tensor,
    weight: int,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> torch.Tensor:
    channels = shape[1] * groups if transposed else shape[0]
    if not padding:
        return x.new_empty((*x.shape[: -len(stride) - 1], channels, *x.shape[-len(stride) :]))
    sizes = []
    for i, size in enumerate(x.shape[-len(stride) :]):
        reach = dilation[i] * (shape[2 + i] - 1)
        if transposed:
            sizes.append((size - 1) * stride[i] - 2 * padding[i] + reach + output_padding[i] + 1)
        else:
            sizes.append((size + 2 * padding[i] - reach - 1) // stride[i] + 1)
    return x.new_empty((*x.shape[: -len(stride) - 1], channels, *sizes))


@torch.library.custom_op("npumatmul::experts", mutates_args=(), device_types="cpu")
def experts(x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, weight: int) -> torch.Tensor:
    """Add up what the chosen experts make of each row: ``(T, hidden)``."""
    made: torch.Tensor = lookup(weight).multiply(x, chosen, shares)
    return made


@experts.register_fake
def _(x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, weight: int) -> torch.Tensor:
    return torch.empty_like(x)


def _frozen(context: Any, *gradients: Any) -> Any:
    raise RuntimeError(
        "npumatmul: weights on the NPU are frozen, and no gradient goes through them; wrap the call in "
        "torch.inference_mode(), or train the module before offload"
    )


for _operator in (linear, convolve, experts):
    _operator.register_autograd(_frozen)
