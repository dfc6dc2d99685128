"""What a packed weight can do besides being multiplied with: being unpacked, saved, pickled, and staying as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.device import Device
from npumatmul.errors import ClosedError

__all__ = ["PackedBase"]


class PackedBase:
    """Base of `PackedWeight`.

    Its attributes are set once, ``_stored`` as the last one; arrays among them become read-only.
    """

    device: Device

    @property
    def closed(self) -> bool:
        """Whether the memory was given back."""
        raise NotImplementedError

    def unpack(self, *, transformed: bool = False) -> NDArray[Any]:
        """The values that are stored, as a plain array of shape (K, N).

        Parameters
        ----------
        transformed : bool
            Of a weight with an `input_transform`: the values as they are stored, for activations that were transformed.
            By default the transform is undone, in float32.

        Returns
        -------
        ndarray
            int8, uint8 or int4 where the scheme takes integers as they are. Else float32: the stored float16 exactly,
            or ``(q - zero_point) * scale`` of quantized values.

        Raises
        ------
        ClosedError
            If weight or device are closed.

        Examples
        --------
        >>> import npumatmul as npu
        >>> npu.pack(np.array([[0.1, 100], [-0.2, 50]], np.float32), "w8a8").unpack().round(3)
        array([[  0.101, 100.   ],
               [ -0.2  ,  50.394]], dtype=float32)
        """
        from npumatmul.ops.packed.unpack import unpacked

        return unpacked(self, transformed)  # type: ignore[arg-type]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it into a file of its own, for `load_packed`; see `save_packed`, which writes several into one."""
        from npumatmul.ops.packed.files.api import save_packed

        save_packed(self, path)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickled with its tiles as bytes; unpickling puts them onto the current device, if its layout is the same."""
        from npumatmul.ops.packed.files.tensors import described, unpickled

        with self.device.lock:
            if self.closed:
                raise ClosedError("a packed weight that is closed cannot be pickled")
            content, arrays = described(self)  # type: ignore[arg-type]
            return unpickled, (content, {name: array.copy() for name, array in arrays.items()})

    def __setattr__(self, name: str, value: object) -> None:
        if "_stored" in self.__dict__:  # the last one that is set
            raise AttributeError(f"a PackedWeight is immutable: {name!r} cannot be set; pack another one")
        if isinstance(value, np.ndarray):
            frozen = value.view()
            frozen.flags.writeable = False
            value = frozen
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a PackedWeight is immutable: {name!r} cannot be deleted")

    def __rmatmul__(self, a: ArrayLike) -> Any:
        """``a @ packed``."""
        from npumatmul.ops.matmul import matmul

        return matmul(a, self)  # type: ignore[arg-type]

    def __matmul__(self, b: ArrayLike | PackedBase) -> Any:
        """``packed @ b``: `unpack` as left operand, of shape (K, N) with `b` of (..., N, P).

        The values are read back on every call and multiplied as a plain array of their dtype would be; to use a weight
        from this side again and again, pack its transpose: ``(b.T @ pack(w.T)).T``.
        """
        from npumatmul.ops.matmul import matmul

        return matmul(self, b)  # type: ignore[arg-type]

    # numpy arrays leave ``array @ packed`` to __rmatmul__
    __array_ufunc__ = None
