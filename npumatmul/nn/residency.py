"""`Residency`: packed weights of which only some are on the device at a time; the others are brought in by use."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from npumatmul.errors import ClosedError, NpuMemoryError
from npumatmul.files.uncopied import Uncopied
from npumatmul.nn.product import Float32, Product
from npumatmul.ops import PackedWeight
from npumatmul.ops.packed.files.api import load_packed, save_packed
from npumatmul.ops.packed.files.tensors import described, restored
from npumatmul.running.where import Where, storing

__all__ = ["BroughtProduct", "Residency"]


def _remove(folder: Path | None, pid: int) -> None:
    if folder is not None and os.getpid() == pid:  # a forked child has the names of its parent's files
        shutil.rmtree(folder, ignore_errors=True)


def _there(where: Where, bring: Callable[[], PackedWeight]) -> PackedWeight:
    """A weight that is stored as it was before: for the same cores and rows."""
    with storing(where):
        return bring()


class Residency(Uncopied):
    """Keeps packed weights off the device, and brings them in when they are multiplied with.

    For experts, of which a model has more than its tokens pass. What was used longest ago gives way; tiles are moved
    byte for byte, so that results do not depend on what is where.

    Parameters
    ----------
    limit : int
        Bytes of these weights on the device at a time.
    folder : str or os.PathLike, optional
        Where weights wait, in files that `close` removes; by default they wait in memory of the host.

    Attributes
    ----------
    limit : int
    brought, found : int
        How many times a weight was brought in, and how many times it was there already.

    Raises
    ------
    ValueError
        If `limit` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> from npumatmul import nn
    >>> weights = [npu.pack(np.full((64, 32), value, np.float32)) for value in (1, 2, 3)]
    >>> residency = nn.Residency(limit=2 * weights[0].nbytes)
    >>> products = [residency.keep(nn.PackedProduct(weight)) for weight in weights]
    >>> x = np.ones((1, 64), np.float32)
    >>> [float(products[i](x)[0, 0]) for i in (0, 1, 0, 2, 0)]
    [64.0, 128.0, 64.0, 192.0, 64.0]
    >>> residency.brought, residency.found
    (3, 2)
    """

    def __init__(self, limit: int, folder: str | os.PathLike[str] | None = None) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"Residency: limit is {limit!r}; it has to be a number of bytes, 1 or more")
        self.limit = limit
        self.brought = self.found = 0
        self._folder = None if folder is None else Path(tempfile.mkdtemp(prefix="experts-", dir=os.fspath(folder)))
        self._cleanup = weakref.finalize(self, _remove, self._folder, os.getpid())
        self._kept: list[tuple[int, Callable[[], PackedWeight]]] = []  # bytes, and what brings them in
        self._here: OrderedDict[int, PackedWeight] = OrderedDict()  # those that were used last are at the end
        self._closed = False
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Residency: {len(self._here)} of {len(self._kept)} weights, {self.nbytes} of {self.limit} bytes>"

    @property
    def nbytes(self) -> int:
        """Bytes on the device now: counted, so that an interrupt between two steps makes no difference."""
        return sum(weight.nbytes for weight in tuple(self._here.values()))

    @property
    def waiting(self) -> int:
        """Bytes of all weights, in the host's memory or in files."""
        return sum(size for size, _ in tuple(self._kept))

    def keep(self, product: Any) -> BroughtProduct:
        """Take a product's weight off the device.

        Parameters
        ----------
        product : Product
            Its attribute `weight` is a `PackedWeight`, which is closed; the product cannot be used any more.

        Returns
        -------
        BroughtProduct
            What takes its place.

        Raises
        ------
        TypeError
            If it has no such weight.
        ValueError
            If the weight alone is larger than the limit.
        ClosedError
            If this or the weight is closed.
        OSError
            If a file cannot be written.
        """
        weight = getattr(product, "weight", None)
        if not isinstance(weight, PackedWeight):
            raise TypeError(f"Residency.keep: a {type(product).__name__} has no packed weight")
        if weight.nbytes > self.limit:
            raise ValueError(
                f"Residency: a weight of {weight.nbytes} bytes is larger than the limit, {self.limit}; give more"
            )
        with self._lock:
            self._check_open()
            self._kept.append((weight.nbytes, self._apart(weight)))
            number = len(self._kept) - 1
            weight.close()
            return BroughtProduct(self, number, product)

    def use(self, number: int, use: Callable[[PackedWeight], Float32]) -> Float32:
        """Call a function with a weight, which stays on the device until it returns.

        Parameters
        ----------
        number : int
            Of the weight, in the order in which they came.
        use : callable

        Raises
        ------
        ClosedError
            If this is closed.
        npumatmul.errors.NpuMemoryError
            If it does not fit, although no other one is left there.
        npumatmul.errors.PackedFileError, OSError
            If its file was changed or removed.
        """
        with self._lock:
            self._check_open()
            weight = self._here.get(number)
            if weight is not None:
                self._here.move_to_end(number)
                self.found += 1
            else:
                weight = self._brought(number)
            return use(weight)

    def close(self) -> None:
        """Give up all weights, on the device and elsewhere. Closing twice is allowed."""
        with self._lock:
            while self._here:
                self._give_up_one()
            self._kept.clear()
            self._closed = True
            self._cleanup()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the Residency of these weights is closed")

    def _brought(self, number: int) -> PackedWeight:
        size, bring = self._kept[number]
        while self._here and self.nbytes + size > self.limit:
            self._give_up_one()
        while True:
            try:
                weight = bring()
                break
            except NpuMemoryError:  # others need the memory: less than the limit has to do
                if not self._here:
                    raise
                self._give_up_one()
        self._here[number] = weight
        self.brought += 1
        return weight

    def _give_up_one(self) -> None:
        _, weight = self._here.popitem(last=False)
        weight.close()

    def _apart(self, weight: PackedWeight) -> Callable[[], PackedWeight]:
        """What brings a weight in again."""
        device = weight.device
        where = Where() if weight.stored is None else weight.stored.where
        if self._folder is not None:
            path = self._folder / f"{len(self._kept)}.safetensors"
            save_packed(weight, path)
            return lambda: _there(where, lambda: load_packed(path, device=device))
        with device.lock:
            content, views = described(weight)
            arrays = {name: np.array(values) for name, values in views.items()}
        of = "a weight in the host's memory"
        return lambda: _there(where, lambda: restored(content, arrays.__getitem__, device, of))


class BroughtProduct:
    """A `Product` whose weight is on the device while it is used, and as long after that as there is room.

    `Residency.keep` makes it.

    Parameters
    ----------
    residency : Residency
    number : int
        Of the weight.
    product : Product
        What it is like; its weight is not used.

    Attributes
    ----------
    shape : tuple of int
        ``(K, N)``.
    residency : Residency
    """

    #: It may be called again for the same rows.
    recordable: ClassVar[bool] = False

    def __init__(self, residency: Residency, number: int, product: Any) -> None:
        self.residency = residency
        self.shape: tuple[int, int] = product.shape
        self._number, self._like = number, product

    def __repr__(self) -> str:
        return f"BroughtProduct({self.shape}, {self.residency!r})"

    def __call__(self, x: Float32) -> Float32:
        """Multiply ``(M, K)`` to ``(M, N)``."""
        return self.residency.use(self._number, lambda weight: self._with(weight)(x))

    def unpack(self) -> Float32:
        """The values of the weight as they are stored, ``(N, K)``."""
        return self.residency.use(self._number, lambda weight: np.asarray(weight.unpack().T, np.float32))

    def _with(self, weight: PackedWeight) -> Product:
        made: Any = copy.copy(self._like)
        made.weight = weight
        product: Product = made
        return product
