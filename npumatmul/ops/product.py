"""A product with one packed weight: all that follows from shapes and dtypes, worked out once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.buffer import Buffer
from npumatmul.host.activation import Activation
from npumatmul.host.epilogue import ELEMENTS, Epilogue
from npumatmul.ops.array.multiply import ArrayProduct
from npumatmul.ops.finish import Finish
from npumatmul.ops.operands import UINT8_SHIFT, check_activation, native_order, shifted
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.results import Out, as_rows, checked_out, in_place
from npumatmul.ops.settings import CURRENT, Processor
from npumatmul.ops.shapes import Shapes
from npumatmul.planning.on_cpu import suits_cpu
from npumatmul.planning.product import plan_matmul
from npumatmul.running.deferred import DeferredResult
from npumatmul.running.on_cpu import CpuProgram
from npumatmul.running.program import Program
from npumatmul.running.stored import StoredWeight
from npumatmul.running.where import on_cores

__all__ = ["Product", "finish_rows", "remember"]

#: Products that a weight remembers.
_REMEMBERED = 32
_empty, _ndarray = np.empty, np.ndarray
_F32, _U8, _I8, _I32 = (np.dtype(each) for each in (np.float32, np.uint8, np.int8, np.int32))


class Product:
    """What is multiplied with a packed weight, and what comes of it.

    It holds what is in device memory, but not the weight itself, which may be dropped.

    Parameters
    ----------
    packed : PackedWeight
    shapes : Shapes
        Of the product: one matrix on the right.
    left : numpy.dtype
        Of the left operand.
    dtype : numpy.dtype
        Of the result.
    processor : {"npu", "cpu", "auto"}
        Who multiplies.
    cores : tuple of int, optional
        The NPU's cores that it may run on; all of the weight by default.

    Attributes
    ----------
    shapes, dtype, cores
    follows : str or None
        The processor of the scope that it was made in, for it is another one in another; None where the weight says it.
    on_cpu : bool
        Whether the CPU multiplies.
    device : Device
    stored : StoredWeight or None
        None where there is nothing to multiply.
    program : Program or None
        The same.
    reads : numpy.dtype
        What rows are cast to for the executor.
    input_transform
        Of the weight.
    reads_rows : bool
        Whether the executor reads rows of the left operand as they stand.
    as_it_stands : bool
        Whether there is also nothing to be done to the result but by the executor: both are matrices.

    Raises
    ------
    TypeError
        If the weight's scheme does not take the dtype.
    ValueError
        If the chip lacks one of the cores, or the weight may not run on them.
    """

    def __init__(
        self,
        packed: PackedWeight,
        shapes: Shapes,
        left: np.dtype[Any],
        dtype: np.dtype[Any],
        processor: Processor = "npu",
        cores: tuple[int, ...] | None = None,
    ) -> None:
        self.shapes, self.dtype, self.cores = shapes, dtype, cores
        self.follows = None if packed.processor else processor
        self.device, self.stored, self._scheme = packed.device, packed.stored, packed.scheme
        self._rows, self._matrix = (shapes.rows, shapes.k), (shapes.rows, shapes.n)
        self._columns = (shapes.n,)
        self._flat = shapes.result == self._matrix
        own = left.newbyteorder("=")
        unsigned = own == _U8 and packed.column_sums is not None
        taken = _I8 if unsigned else own
        check_activation(taken, packed.scheme, f"b is packed as {packed.scheme.name!r}")
        activation = packed.activations[taken]
        steps: list[Callable[[NDArray[Any]], NDArray[Any]]] = []
        if not left.isnative:
            steps.append(native_order)
        if unsigned:
            steps.append(shifted)
            activation = _with_zero(activation, -UINT8_SHIFT)
        self.input_transform = transform = packed.input_transform
        self._left = left
        #: Once it was asked for: what `with_arrays` gives.
        self.of_arrays: ArrayProduct | None = None
        if transform is not None and taken == _I8:
            raise TypeError("matmul: b has an input transform, which codes cannot go through; give a as floats")
        if transform is not None and activation.transform is None:
            steps += [_as_float32, transform.activation]
        #: What is done to rows before they are of the type that the executor reads, but for a cast.
        self._steps = steps
        self._activation, self.reads = activation, activation.read_as
        self.reads_rows = not steps and self.reads == left
        self._unsigned = unsigned or packed.zero_point != 0
        self._chains = not steps and not self._unsigned
        self._floats = dtype in ELEMENTS
        self._any_value = packed.scheme.takes_any_value
        if cores is not None:
            _check_cores(cores, packed)
        result = packed.scheme.result_params
        self._result_scale = None if result is None else float(result.scale)
        self.on_cpu = self.stored is not None and _is_cpus(self.stored, processor, shapes.rows, cores)
        self.as_it_stands = self.reads_rows and self._flat and not shapes.empty
        #: Programs by the result's dtype; none where there is nothing to multiply.
        self._programs: dict[np.dtype[Any], Program] = {}
        self.program = None if shapes.empty else self._program_for(dtype)

    @classmethod
    def of(cls, packed: PackedWeight, shapes: Shapes, left: np.dtype[Any], dtype: np.dtype[Any]) -> Product:
        """The product; the same one again where it was asked for before."""
        scope = CURRENT.get()
        processor, cores = packed.processor or scope.processor, scope.cores
        key = shapes, left, dtype, processor, cores
        found: Product | None = packed.products.get(key)
        return found or remember(packed, key, cls(packed, shapes, left, dtype, processor, cores))

    def _program_for(self, dtype: np.dtype[Any]) -> Program:
        found = self._programs.get(dtype)
        if found is None:
            assert self.stored is not None  # or there is nothing to multiply
            how = self._activation, dtype, self._result_scale, self.cores
            kind = CpuProgram if self.on_cpu else Program
            found = self._programs[dtype] = kind(self.stored, self.shapes.rows, *how)
        return found

    def fitted(self, epilogue: Epilogue | None, bias: ArrayLike | None) -> tuple[Epilogue | None, ArrayLike | None]:
        """Epilogue and bias as they were given to `matmul`, checked, with arrays as `compute` takes them."""
        own = None if epilogue is None else epilogue.bias
        given: Any = own if bias is None else bias
        if (  # every product with an epilogue comes here: there are no calls that can be spared
            self._floats
            and (bias is None or own is None)
            and (
                given is None or (type(given) is _ndarray and given.shape == self._columns and given.dtype in ELEMENTS)
            )
            and (
                epilogue is None
                or (epilogue.multiply is None and epilogue.residual is None)
                or (self._fits(epilogue.multiply) and self._fits(epilogue.residual))
            )
        ):
            return epilogue, bias
        finish = Finish.of(self._scheme.result, self.dtype, epilogue, bias, self.shapes)
        return finish.at((), self.dtype, self.shapes.n), finish.integer_bias

    def _fits(self, matrix: Any) -> bool:
        """Whether the executor's epilogue can read a matrix as it stands; None, where there is none, fits."""
        if matrix is None:
            return True
        fits = self._flat and type(matrix) is _ndarray and matrix.shape == self._matrix
        return bool(fits and matrix.dtype in ELEMENTS)

    def compute(
        self,
        a: NDArray[Any] | DeferredResult,
        out: Out = None,
        epilogue: Epilogue | None = None,
        bias: ArrayLike | None = None,
        *,
        owned: bool = False,
        buffers: tuple[Buffer, ...] = (),
    ) -> NDArray[Any]:
        """Multiply, as `matmul` does.

        Parameters
        ----------
        a : ndarray or DeferredResult
            Of the shape and dtype that the product is for; a deferred result only where `takes_deferred` says so.
        out : ndarray, optional
        epilogue, bias : optional
            As `fitted` gives them; a bias of int32 is for int32 results.
        owned : bool
            Whether nobody else knows `out`, so that it may change even if a row turns out to be unfit.
        buffers : tuple of Buffer
            In which `a` stands, if `reads_rows`; nobody may close them meanwhile.

        Returns
        -------
        ndarray
            `out`, or a new one.
        """
        if out is not None:
            return self._compute_into(a, out, epilogue, bias, owned)
        program = self.program
        place: NDArray[Any] = _empty(self._matrix, self.dtype)
        if (
            program is not None
            and self.as_it_stands
            and epilogue is None
            and bias is None
            and type(a) is _ndarray
            and a.flags.c_contiguous
        ):
            program.run(None, a, place, buffers)
        elif program is None or (bias is not None and not self._floats):
            self._add(a, place, epilogue, bias, fresh=True)
        else:
            rows = a if self.reads_rows and a.shape == self._rows else self._read(a)
            program.multiply(rows, place, epilogue, bias, fresh=True, buffers=buffers)
        return place if self._flat else place.reshape(self.shapes.result)

    def _compute_into(
        self,
        a: NDArray[Any] | DeferredResult,
        out: Out,
        epilogue: Epilogue | None,
        bias: ArrayLike | None,
        owned: bool,
    ) -> NDArray[Any]:
        place = checked_out(out, self.shapes.result, self.dtype, self.shapes.core)
        assert place is not None
        rows = None
        # rows may turn out to be unfit when others are done, and then `out` must not have changed
        if owned or self._any_value:
            read = [each for each in (a, bias, *_read(epilogue)) if isinstance(each, np.ndarray)]
            direct = in_place(place, self.shapes.full, self.dtype, *read)
            rows = None if direct is None else as_rows(direct)
        if rows is None:
            place[...] = self.compute(a, None, epilogue, bias)
            return place
        if isinstance(a, np.ndarray) and np.may_share_memory(a, rows):
            a = a.copy()
        self._add(a, rows, epilogue, bias)
        return place

    def _add(
        self,
        a: NDArray[Any] | DeferredResult,
        place: NDArray[Any],
        epilogue: Epilogue | None,
        bias: ArrayLike | None,
        *,
        fresh: bool = False,
    ) -> None:
        """As `into`; a bias of integers is added afterwards."""
        if self._floats or bias is None:
            self.into(a, place, epilogue, bias, fresh=fresh)
        else:
            self.into(a, place, epilogue, fresh=fresh)
            place += np.asarray(bias)

    def into(
        self,
        a: NDArray[Any] | DeferredResult,
        place: NDArray[Any],
        epilogue: Epilogue | None = None,
        bias: ArrayLike | None = None,
        *,
        fresh: bool = False,
    ) -> None:
        """Multiply rows, and store the result as it comes: where a row is unfit, others may stand there already.

        Parameters
        ----------
        a : ndarray or DeferredResult
            A deferred result only where `takes_deferred` says so.
        place : ndarray, shape (rows, N)
            Its rows contiguous, of `dtype`, or of another type of floats where that is float32. It shares no memory
            with `a`.
        epilogue, bias : optional
        fresh : bool
            Whether nobody else knows `place` yet.
        """
        if self.program is None:
            self.device.check_usable()
            steps = epilogue if bias is None else replace(epilogue or Epilogue(), bias=bias, dtype=place.dtype)
            finish_rows(np.zeros(self._matrix, self._scheme.result), place, steps)
        else:
            rows = self._read(a)
            self._program_for(place.dtype).multiply(rows, place, epilogue, bias, fresh=fresh)

    def _read(self, a: NDArray[Any] | DeferredResult) -> Any:
        """Rows as the executor reads them; a deferred result goes as it is."""
        if isinstance(a, DeferredResult):
            return a
        rows = a.reshape(self._rows)
        for step in self._steps:
            rows = step(rows)
        return rows.astype(self.reads, copy=False)

    def recorded(self, out: Out) -> Program | None:
        """What can make the same product again of other rows, for a recorder; None where more than it is needed."""
        alone = self.reads_rows and self._floats and out is None
        return self.program if alone else None

    def with_arrays(self) -> ArrayProduct:
        """The same of an `NpuArray`, which gives another one."""
        found = self.of_arrays
        if found is None:
            found = self.of_arrays = ArrayProduct(self, self._left)
        return found

    # ---- results that are deferred ---------------------------------------------------------------------------------

    @property
    def takes_deferred(self) -> bool:
        """Whether rows are taken as they stand in C: nothing is to be done to them but by the executor."""
        return self._chains and self.program is not None

    def defer(self, a: NDArray[Any] | DeferredResult, epilogue: Epilogue | None = None) -> DeferredResult | None:
        """Multiply, but leave the result where the NPU does, until it is read or multiplied further.

        Parameters
        ----------
        a : ndarray or DeferredResult
        epilogue : Epilogue, optional

        Returns
        -------
        DeferredResult or None
            None, and nothing happened, where the result has to be stored at once: an operand is uint8, the epilogue
            reads matrices that could change until then, sums are int32, which no product reads, or there is no room.
        """
        reads = any(each is not None for each in _read(epilogue))
        if self.program is None or reads or self._unsigned or self.dtype == _I32:
            return None
        return self.program.defer(self._read(a), epilogue)


def _check_cores(cores: tuple[int, ...], packed: PackedWeight) -> None:
    """Products of a scope run on its cores: the chip has them, and the weight was not stored for others."""
    has, own = packed.device.chip.cores, None if packed.stored is None else packed.stored.where.cores
    if cores[-1] >= has:
        raise ValueError(f"config: cores are {cores}; {packed.device.name} has {has}, counted from 0")
    if own is not None and not set(cores) <= set(own):
        raise ValueError(f"config: cores are {cores}; this weight was stored for cores {own} and runs on no others")


def _is_cpus(stored: StoredWeight, processor: Processor, rows: int, cores: tuple[int, ...] | None) -> bool:
    """Whether the CPU multiplies; by itself as was decided when the weight was stored, or as the model says."""
    if processor != "auto" or stored.in_host_memory:
        return processor == "cpu" or stored.in_host_memory
    if stored.where.decides:
        return stored.where.computed_by(rows) == "cpu"
    plan = stored.plan if cores is None else on_cores(stored.plan, len(cores))
    return suits_cpu(plan_matmul(rows, plan, images=stored.images, timings=stored.device.chip.timings))


def remember(packed: PackedWeight, key: Hashable, product: Product) -> Product:
    """Have a weight know a product by a key; the one that it has known longest may go for it."""
    products = packed.products
    products[key] = product
    while len(products) > _REMEMBERED:
        products.pop(next(iter(list(products))), None)
    return product


def finish_rows(sums: NDArray[Any], out: NDArray[Any], epilogue: Epilogue | None) -> None:
    """Finish sums that stand in memory of their own in `out`, in a second pass."""
    if epilogue is not None:
        epilogue.apply(sums, out)
        return
    with np.errstate(over="ignore"):  # beyond float16's range a rounded result is an infinity, as in numpy
        np.copyto(out, sums, casting="same_kind")


def _read(epilogue: Epilogue | None) -> tuple[Any, ...]:
    """Matrices that an epilogue reads."""
    return () if epilogue is None else (epilogue.multiply, epilogue.residual)


def _as_float32(a: NDArray[Any]) -> NDArray[np.float32]:
    return a.astype(np.float32, copy=False)


@lru_cache(maxsize=16)
def _with_zero(activation: Activation, zero: int) -> Activation:
    return replace(activation, static_zero=zero)
