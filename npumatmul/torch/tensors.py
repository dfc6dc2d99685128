"""Tensors as arrays and back, without copies, and tensors whose values are packed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map

__all__ = ["FLOATS", "PackedTensor", "array_of", "tensor_of"]

#: What rows can consist of.
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def array_of(x: torch.Tensor) -> NDArray[Any]:
    """A tensor of `FLOATS` as an array of the same memory.

    Raises
    ------
    TypeError
        If it has another dtype, or is not in the host's memory.
    """
    if x.device.type != "cpu":
        raise TypeError(f"the NPU's host takes tensors on the CPU; this one is on {x.device}: use x.cpu()")
    if x.dtype not in FLOATS:
        raise TypeError(
            f"the NPU multiplies float32, float16 and bfloat16, not {str(x.dtype).removeprefix('torch.')}; say what is "
            "to become of it by x.float(), or give offload a filter_fn that leaves this module out"
        )
    x = x.detach().resolve_conj().resolve_neg()
    if x.dtype == torch.bfloat16:
        return x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    made: NDArray[Any] = x.numpy()
    return made


def tensor_of(x: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    """An array as a tensor of a dtype, of the same memory where it has that dtype."""
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16).to(dtype)
    return torch.from_numpy(x).to(dtype)


class PackedTensor(torch.Tensor):
    """A weight of an offloaded module as other code sees it: shape and dtype are there, values are unpacked on use.

    It stays what it was when the module is given another weight, and it can be read only.

    Parameters
    ----------
    unpack : callable
        Makes values of `held`.
    held : object
        What holds the packed weight.
    source : object
        Modules of the same source can take `held` as it is.
    shape : sequence of int
    dtype : torch.dtype
    """

    _unpack: Callable[[Any], torch.Tensor]
    held: Any
    source: Any
    _is_hf_initialized: bool

    @staticmethod
    def __new__(
        cls: type[PackedTensor], unpack: Callable[[Any], torch.Tensor], held: Any, source: Any, shape: Any,
        dtype: torch.dtype,
    ) -> PackedTensor:  # fmt: skip
        make: Any = torch.Tensor._make_wrapper_subclass
        made: PackedTensor = make(cls, tuple(shape), dtype=dtype, device="cpu")
        made._unpack, made.held, made.source = unpack, held, source
        made._is_param = True  # for isinstance(weight, torch.nn.Parameter)
        made._is_hf_initialized = True  # transformers is not to draw its values
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedTensor({tuple(self.shape)}, dtype={self.dtype}, on the NPU)"

    def unpacked(self) -> torch.Tensor:
        """The values, as they are stored."""
        return self._unpack(self.held).to(self.dtype)

    def numpy(self, *, force: bool = False) -> NDArray[Any]:
        """The values, as of `torch.Tensor`."""
        made: NDArray[Any] = self.unpacked().numpy(force=force)
        return made

    def tolist(self) -> Any:
        """The same as numbers."""
        return self.unpacked().tolist()

    @property
    def data(self) -> torch.Tensor:
        """The values; other ones cannot be put into their place."""
        return self.unpacked()

    @data.setter
    def data(self, values: torch.Tensor) -> None:
        raise _read_only(self)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute with the values."""
        for argument, value in zip(function._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, PackedTensor):
                raise _read_only(value)

        def values(each: Any) -> Any:
            return each.unpacked() if isinstance(each, PackedTensor) else each

        return function(*tree_map(values, args), **tree_map(values, kwargs or {}))


def _read_only(weight: PackedTensor) -> RuntimeError:
    return RuntimeError(
        f"a weight of shape {tuple(weight.shape)} is on the NPU and cannot be changed in place; assign a new one to "
        "its module (module.weight = values), or use load_state_dict"
    )
