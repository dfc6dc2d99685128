"""What questions are asked with: a runtime, and matmul contexts that are driven call by call.

Packing here is a few lines of numpy of its own, so that layouts other than the documented ones can be tried.
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npumatmul.chips import Capabilities, TypeCapabilities
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.errors import RknnError
from npumatmul.rknn import (
    MatmulInfo,
    MatmulIoAttr,
    MatmulLayout,
    MatmulTensorAttr,
    MemSyncMode,
    QuantParams,
    QuantType,
    Runtime,
    RuntimeVersion,
)

__all__ = ["Context", "Instrument", "Matrix", "decode", "encode", "from_groups", "to_groups", "to_tiles"]

Matrix = NDArray[Any]
Bytes = NDArray[np.uint8]
QUANT_TYPES = {
    "layer": QuantType.PER_LAYER_SYM,
    "layer asym": QuantType.PER_LAYER_ASYM,
    "channel": QuantType.PER_CHANNEL_SYM,
    "channel asym": QuantType.PER_CHANNEL_ASYM,
    "group": QuantType.PER_GROUP_SYM,
    "group asym": QuantType.PER_GROUP_ASYM,
}
NORMAL, NATIVE, TRANSPOSED = MatmulLayout.NORM, MatmulLayout.NATIVE, MatmulLayout.TP_NORM


def encode(values: Matrix, element: ElementType, even_nibble: str = "low") -> Bytes:
    """Bytes of values in the order given; `even_nibble` says which half of a byte holds the first of two int4.

    Examples
    --------
    >>> encode(np.array([1, -1]), ElementType.INT4).tolist()
    [241]
    """
    flat = np.ascontiguousarray(values).ravel()
    if element is not ElementType.INT4:
        data: Bytes = flat.astype(element.dtype).view(np.uint8)
        return data
    nibbles = np.bitwise_and(flat.astype(np.int8).view(np.uint8), np.uint8(15))
    first, second = nibbles[0::2], nibbles[1::2]
    low, high = (first, second) if even_nibble == "low" else (second, first)
    packed: Bytes = (low + 16 * high).astype(np.uint8)
    return packed


def decode(data: Bytes, element: ElementType) -> Matrix:
    """Values out of bytes; of floats, float64."""
    values = np.ascontiguousarray(data).view(element.dtype)
    if element.dtype.kind == "f" or element.dtype == ml_dtypes.bfloat16:
        return values.astype(np.float64)
    return values.astype(np.int64)


def to_groups(matrix: Matrix, group: int, rows: int | None = None) -> Matrix:
    """Native A or C: (M, K) as [K/g, rows, g]; `rows` above M are zeros."""
    m, k = matrix.shape
    padded = np.zeros((rows or m, -(-k // group) * group), matrix.dtype)
    padded[:m, :k] = matrix
    grouped: Matrix = padded.reshape(padded.shape[0], -1, group).transpose(1, 0, 2).ravel()
    return grouped


def from_groups(values: Matrix, m: int, n: int, group: int, rows: int | None = None) -> Matrix:
    laid = rows or m
    columns = -(-n // group) * group
    grouped = values[: laid * columns].reshape(-1, laid, group)
    matrix: Matrix = grouped.transpose(1, 0, 2).reshape(laid, -1)[:m, :n]
    return matrix


def to_tiles(b: Matrix, tile: tuple[int, int]) -> Matrix:
    """Native B, one segment: (K, N) as [N/n, K/k, n, k]."""
    tile_n, tile_k = tile
    k, n = b.shape
    padded = np.zeros((-(-n // tile_n) * tile_n, -(-k // tile_k) * tile_k), b.dtype)
    padded[:n, :k] = b.T
    tiles: Matrix = padded.reshape(padded.shape[0] // tile_n, tile_n, -1, tile_k).transpose(0, 2, 1, 3).ravel()
    return tiles


class Context:
    """A matmul context with a buffer for each of A, B and C. Made by `Instrument.context`."""

    def __init__(
        self, instrument: Instrument, handle: int, io_attr: MatmulIoAttr, info: MatmulInfo, mm_type: MatmulType
    ) -> None:
        self.instrument, self.handle, self.io_attr, self.mm_type = instrument, handle, io_attr, mm_type
        self.m, self.k, self.n = info.M, info.K, info.N
        self.b_layout, self.ac_layout = MatmulLayout(info.B_layout), MatmulLayout(info.AC_layout)
        self.row = instrument.table.types[mm_type]
        self.memories: dict[str, Any] = {}
        self.shapes: list[tuple[int, int, int]] = []
        self.io_attrs: list[MatmulIoAttr] = []

    def choose(self, index: int) -> None:
        """Choose one of the shapes of a dynamic context."""
        self.instrument.runtime.matmul_set_dynamic_shape(self.handle, self.shapes[index])
        self.m, self.k, self.n = self.shapes[index]
        self.io_attr = self.io_attrs[index]

    def attr(self, name: str) -> MatmulTensorAttr:
        """Attributes of A, B or C."""
        attr: MatmulTensorAttr = getattr(self.io_attr, name)
        return attr

    def allocate(self, name: str, nbytes: int | None = None) -> Any:
        """Give A, B or C a buffer of its own; by default of the attribute's size."""
        self.memories[name] = self.instrument.runtime.create_mem(self.handle, nbytes or self.attr(name).size)
        return self.memories[name]

    def allocate_all(self) -> None:
        """Buffers for A, B and C, with room for rows rounded up (facts 14: native A and C may be strided so)."""
        m = max([self.m, *(shape[0] for shape in self.shapes)])
        rounded = -(-m // self.row_step) * self.row_step
        for name in "ABC":
            sizes = [getattr(io_attr, name).size for io_attr in self.io_attrs] or [self.attr(name).size]
            nbytes = max(sizes)
            self.allocate(name, nbytes if name == "B" else -(-nbytes // m) * rounded)

    @property
    def row_step(self) -> int:
        """What rows of native A and C may be rounded up to."""
        return self.instrument.table.row_multiple.value

    def view(self, name: str) -> Bytes:
        """The CPU's view of a buffer."""
        return view_of(self.memories[name])

    def write(self, name: str, data: Bytes, sync: bool = True) -> None:
        """Put bytes into a buffer and, by default, write the cache back."""
        view = self.view(name)
        if data.nbytes > view.nbytes:
            raise ValueError(f"{name}: {data.nbytes} bytes for a buffer of {view.nbytes}")
        view[: data.nbytes] = data
        if sync:
            self.instrument.sync(self.handle, self.memories[name], MemSyncMode.TO_DEVICE)

    def bind(self, names: str = "ABC") -> None:
        """Set the buffers of these matrices."""
        for name in names:
            self.instrument.runtime.matmul_set_io_mem(self.handle, self.memories[name], self.attr(name))

    def run(self) -> None:
        self.instrument.runtime.matmul_run(self.handle)

    def packed_a(self, a: Matrix, rows: int | None = None) -> Bytes:
        """A in the context's layout; `rows` strides a native one."""
        group = self.row.a_group.value
        values = to_groups(a, group, rows) if self.ac_layout == NATIVE and group else a
        return self.instrument.encode(values, self.mm_type.a)

    def packed_b(self, b: Matrix, tile: tuple[int, int] | None = None) -> Bytes:
        """B in the context's layout; `tile` is another than the documented one."""
        if self.b_layout == NATIVE:
            tile = tile or self.row.b_tile.value
            if tile is None:  # not documented: what the runtime says
                dims = self.attr("B").shape
                tile = (dims[2], dims[3])
            return self.instrument.encode(to_tiles(b, tile), self.mm_type.b)
        return self.instrument.encode(b.T if self.b_layout == TRANSPOSED else b, self.mm_type.b)

    def result(self, sync: bool = True, rows: int | None = None) -> Matrix:
        """C as (M, N)."""
        if sync:
            self.instrument.sync(self.handle, self.memories["C"], MemSyncMode.FROM_DEVICE)
        values = decode(self.view("C"), self.mm_type.c)
        group = self.row.c_group.value
        if self.ac_layout == NATIVE and group:
            return from_groups(values, self.m, self.n, group, rows)
        return values[: self.m * self.n].reshape(self.m, self.n)

    def product(self, a: Matrix, b: Matrix, rows: int | None = None) -> Matrix:
        """Allocate what is missing, write A and B, bind, run, read C."""
        if not self.memories:
            self.allocate_all()
        self.write("A", self.packed_a(a, rows))
        self.write("B", self.packed_b(b))
        self.bind()
        self.run()
        return self.result(rows=rows)

    def set_scales(self, name: str, scales: Sequence[float], zero_points: Sequence[int] | None = None) -> None:
        floats = (C.c_float * len(scales))(*scales)
        zeros = (C.c_int32 * len(scales))(*(zero_points or [0] * len(scales)))
        self.instrument.runtime.matmul_set_quant_params(
            self.handle, QuantParams(name.encode(), floats, len(scales), zeros, len(scales))
        )

    def free(self) -> None:
        for memory in self.memories.values():
            self.instrument.runtime.destroy_mem(self.handle, memory)
        self.memories.clear()


def view_of(memory: Any) -> Bytes:
    """The CPU's view of a `rknn_tensor_mem`."""
    content = memory.contents
    address = content.virt_addr + content.offset
    return np.frombuffer((C.c_uint8 * content.size).from_address(address), np.uint8)


class Instrument:
    """What a question's function is given.

    Attributes
    ----------
    runtime : Runtime
        The 1:1 binding.
    soc : str
    version : RuntimeVersion
    table : Capabilities
        What the sources say, without earlier probes.
    everything : bool
        Whether what may crash or hang is tried, too.
    quick : bool
        Whether to be content with fewer sizes and repetitions.
    """

    def __init__(
        self,
        runtime: Runtime,
        table: Capabilities,
        *,
        everything: bool = False,
        quick: bool = False,
        on_step: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.runtime = runtime
        self.table = table
        self.soc = table.soc
        self.version: RuntimeVersion = table.runtime
        self.everything = everything
        self.quick = quick
        self._on_step = on_step
        self.random = np.random.default_rng(20240815)

    def step(self, text: str) -> None:
        """Say what is tried now: after a crash it is known where."""
        self._on_step(text)

    def row(self, mm_type: MatmulType) -> TypeCapabilities:
        """The table's row of a type."""
        return self.table.types[mm_type]

    def supported(self, *wanted: MatmulType) -> list[MatmulType]:
        """Those of the types that the chip has."""
        return [mm_type for mm_type in wanted if self.row(mm_type).supported.value]

    def encode(self, values: Matrix, element: ElementType) -> Bytes:
        """Bytes of values as this runtime orders them."""
        return encode(values, element, self.table.int4_even_nibble.value)

    def sync(self, handle: int, memory: Any, mode: MemSyncMode) -> None:
        """Cache maintenance, where the runtime has it."""
        if self.table.mem_sync.value:
            self.runtime.mem_sync(handle, memory, mode)

    @contextmanager
    def context(
        self,
        mm_type: MatmulType,
        m: int,
        k: int,
        n: int,
        *,
        b: MatmulLayout = NATIVE,
        ac: MatmulLayout = NORMAL,
        quant: str = "layer",
        group: int = 0,
        domain: int = 0,
        shapes: list[tuple[int, int, int]] | None = None,
    ) -> Iterator[Context]:
        """A context that is destroyed at the end, its buffers before it (facts 11.5).

        With `shapes` it is a dynamic one, of which the first shape is chosen.
        """
        info = MatmulInfo(
            M=m,
            K=k,
            N=n,
            type=mm_type.code,
            B_layout=b,
            B_quant_type=QUANT_TYPES[quant],
            AC_layout=ac,
            iommu_domain_id=domain,
            group_size=group,
        )
        with ExitStack() as stack:
            if shapes is None:
                handle, io_attr = self.runtime.matmul_create(info)
                stack.callback(self.runtime.matmul_destroy, handle)
                made = Context(self, handle, io_attr, info, mm_type)
            else:
                handle, io_attrs = self.runtime.matmul_create_dynamic_shape(info, shapes)
                stack.callback(self.runtime.matmul_destroy, handle)
                made = Context(self, handle, io_attrs[0], info, mm_type)
                made.shapes, made.io_attrs = shapes, io_attrs
                made.choose(0)
            stack.callback(made.free)
            yield made

    def operands(self, mm_type: MatmulType, m: int, k: int, n: int) -> tuple[Matrix, Matrix, Matrix]:
        """A and B of small integers, and their product, which every C holds exactly."""
        low, high = (-3, 4)
        a = self.random.integers(low, high, (m, k))
        if mm_type.c not in (ElementType.FLOAT32, ElementType.INT32):
            keep = np.zeros((m, k), bool)
            for line in keep:
                line[self.random.choice(k, min(8, k), replace=False)] = True
            a = np.where(keep, a, 0)
        b = self.random.integers(low, high, (k, n))
        return a, b, (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)

    def verdict(self, mm_type: MatmulType, m: int, k: int, n: int, **options: Any) -> str:
        """Whether a product comes out: ``"right"``, ``"wrong"``, ``"zeros"`` or ``"refused (<code>)"``."""
        a, b, expected = self.operands(mm_type, m, k, n)
        try:
            with self.context(mm_type, m, k, n, **options) as context:
                found = context.product(a, b)
        except RknnError as error:
            return f"refused ({error.code})"
        return judge(found, expected)

    def accepted(self, mm_type: MatmulType, m: int, k: int, n: int, **options: Any) -> bool:
        """Whether create takes it; nothing is run."""
        try:
            with self.context(mm_type, m, k, n, **options):
                return True
        except RknnError:
            return False


def judge(found: Matrix, expected: Matrix) -> str:
    """``"right"``, ``"zeros"`` or ``"wrong"``."""
    if np.array_equal(found, expected):
        return "right"
    return "wrong" if np.any(found) else "zeros"
