"""The right operand of a product: packed matrices, made when they are first asked for."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any
from weakref import ref

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.ops.operands import check_activation, native_order
from npumatmul.ops.packed.pack import pack_columns
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.settings import settings
from npumatmul.ops.shapes import Shapes, npu_kind
from npumatmul.planning.choices import consulting
from npumatmul.quant.schemes import SCHEMES, Scheme, named, scheme_for
from npumatmul.rknn import discover
from npumatmul.running.autotune import tuning_cache

__all__ = ["Weights", "check_device", "chosen_scheme", "packed_scheme"]

#: What ``precision="high"`` is called among the schemes.
HIGH = "w16a16_high"

_F16, _I8 = np.dtype(np.float16), np.dtype(np.int8)
_I4: np.dtype[Any] = np.dtype(ml_dtypes.int4)


def chosen_scheme(a: np.dtype[Any], b: np.dtype[Any], scheme: Scheme | str | None, precision: str | None) -> Scheme:
    """How plain operands, whose kinds agree, are represented.

    Parameters
    ----------
    a, b : numpy.dtype
    scheme, precision
        As given to `matmul`.

    Returns
    -------
    Scheme
        Integers, and two float16, are multiplied exactly and need no ``precision="high"``.

    Raises
    ------
    ValueError
        If there is no such scheme or precision, or both are given.
    TypeError
        If the scheme does not take the dtypes.

    Examples
    --------
    >>> chosen_scheme(np.dtype(np.float32), np.dtype(np.float16), None, "high").name
    'w16a16_high'
    """
    a, b = a.newbyteorder("="), b.newbyteorder("=")
    check_precision(precision)
    if precision is not None and scheme is not None:
        raise ValueError(f"matmul: scheme={scheme!r} and precision={precision!r} contradict each other; give one")
    kind = npu_kind(a)
    if precision is not None and kind == "float" and not a == b == _F16:
        return SCHEMES[HIGH]
    if scheme is None and kind == "integer" and _I4 in (a, b) and a != b:
        return SCHEMES["int8"]  # int4 stays int4 only where both are
    chosen = scheme_for(_I8 if b == np.uint8 else b, scheme, "matmul")
    if scheme is not None:
        check_activation(_I8 if a == np.uint8 else a, chosen, f"scheme is {chosen.name!r}")
    return chosen


def packed_scheme(b: PackedWeight, a: np.dtype[Any], scheme: Scheme | str | None, precision: str | None) -> Scheme:
    """Scheme of a packed weight, checked against what else is asked for.

    Parameters
    ----------
    b : PackedWeight
    a : numpy.dtype
        Of the left operand.
    scheme, precision
        As given to `matmul`.

    Raises
    ------
    ValueError
        If they ask for another scheme.
    TypeError
        If the scheme does not take the dtype.
    """
    own = b.scheme
    check_precision(precision)
    if scheme is not None and scheme not in (own, own.name):
        asked = named(scheme, "matmul")
        raise ValueError(f"matmul: scheme is {asked.name!r}, but b is packed as {own.name!r}; leave scheme out")
    if precision is not None and not (own.high or own.integers):
        raise ValueError(
            f"matmul: precision is {precision!r}, but b is packed as {own.name!r}; pack it as {HIGH!r}, or give b as a "
            "plain array"
        )
    if a != np.uint8 or b.column_sums is None:
        check_activation(a.newbyteorder("="), own, f"b is packed as {own.name!r}")
    return own


def check_device(b: PackedWeight, device: Device | str | None) -> None:
    """Raise `ValueError` if the device that is asked for is not the weight's."""
    if device is None or device is b.device or device == b.device.name:
        return
    if isinstance(device, str):
        found = discover(device)
        same = (found.device, found.library) == (b.device.name, b.device.runtime.path)
    else:
        same = not isinstance(device, Device)  # which is another mistake, with a message of its own
        current_device(device)
    if not same:
        asked = device if isinstance(device, str) else device.name
        raise ValueError(
            f"matmul: device is {asked!r}, but b is packed on {b.device.name!r}; leave device out, or pack b there"
        )


def check_precision(precision: str | None) -> None:
    """Raise `ValueError` unless there is such a precision."""
    if precision not in (None, "high"):
        raise ValueError(f"matmul: precision is {precision!r}; it can be 'high' or None")


class Hold:
    """Somebody uses weights, until it is `over` or gone."""

    over = False


def _goes_on(held: ref[Hold]) -> bool:
    hold = held()
    return hold is not None and not hold.over


class Weights:
    """The matrices of a right operand, packed one by one.

    Parameters
    ----------
    b : ndarray or PackedWeight
        A plain one is referenced until its last matrix is packed.
    a_dtype : numpy.dtype
        Of the left operand.
    scheme : Scheme
        As from `chosen_scheme`.
    shapes : Shapes
    device : Device
    tuned : bool, optional
        Whether they are cut as `Matmul.autotune` found best on this machine; by default as settings say.
    wishes : mapping, optional
        How they are to be cut: arguments of `plan_weight`.
    """

    def __init__(
        self,
        b: NDArray[Any] | PackedWeight,
        a_dtype: np.dtype[Any],
        scheme: Scheme,
        shapes: Shapes,
        device: Device,
        tuned: bool | None = None,
        wishes: Mapping[str, Any] | None = None,
    ) -> None:
        self._tuned = settings().tuned if tuned is None else tuned
        self._wishes = wishes
        self.given = b if isinstance(b, PackedWeight) else None
        self._source = None if isinstance(b, PackedWeight) else shapes.matrices_of(b)
        self._a_dtype, self._scheme, self._device = a_dtype, scheme, device
        self._lock = threading.RLock()  # a signal's handler may come back here
        self._counting = threading.RLock()  # a lock of its own: packing takes long
        self._users: list[ref[Hold]] = []
        self._ended = False
        self._packed: dict[tuple[int, ...], PackedWeight] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of NPU memory of what is packed now."""
        if self.given is not None:
            return self.given.nbytes
        return sum(packed.nbytes for packed in list(self._packed.values()))

    def at(self, index: tuple[int, ...]) -> PackedWeight:
        """The matrix at an index of the stack; packed on first use."""
        if self.given is not None:
            return self.given
        with self._lock:
            packed = self._packed.get(index)
            if packed is None:
                assert self._source is not None
                packed = self._packed[index] = self._pack(self._source[index].T)
            return packed

    def _pack(self, w: NDArray[Any]) -> PackedWeight:
        w = native_order(w)
        if w.dtype == _I4 and self._scheme == SCHEMES["int8"]:
            w = w.astype(np.int8)
        with consulting(tuning_cache(self._device) if self._tuned else None, self._wishes):
            return pack_columns(w, self._scheme, self._device, column_sums=self._a_dtype == np.uint8)

    def drop(self, index: tuple[int, ...]) -> None:
        """Give the memory of one matrix back, unless it was packed by the user."""
        if self.given is None:
            with self._lock:
                packed = self._packed.pop(index, None)
            if packed is not None:
                packed.close()

    def hold(self, hold: Hold) -> None:
        """Put `end` off until `let_go` is called, or nobody has it any more."""
        with self._counting:
            self._users.append(ref(hold))

    def let_go(self, hold: Hold) -> None:
        """Take one back; one that never came, too."""
        hold.over = True
        with self._counting:
            if ref(hold) in self._users:
                self._users.remove(ref(hold))
            last = self._ended and not any(map(_goes_on, self._users))
        if last:
            self.close()

    def end(self) -> None:
        """Give the memory of all matrices back that were not packed by the user, as soon as nobody uses them."""
        with self._counting:
            self._ended = True
            unused = not any(map(_goes_on, self._users))
        if unused:
            self.close()

    def close(self) -> None:
        """Give the memory of all matrices back that were not packed by the user."""
        for index in list(self._packed):
            self.drop(index)
