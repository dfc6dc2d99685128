"""What an execution of a product reads, and how its result is made: by the way that suits operands and `out`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.host.epilogue import Epilogue
from npumatmul.ops.array.array import NpuArray, empty, unread
from npumatmul.ops.array.multiply import is_stored_at_once
from npumatmul.ops.array.products import host, involves_npu_arrays
from npumatmul.ops.finish import Finish
from npumatmul.ops.foreign import OWN, check_kept, check_masks, handed_out, holds_masks
from npumatmul.ops.product import Product, finish_rows
from npumatmul.ops.results import Out, as_rows, checked_out, in_place
from npumatmul.ops.settings import CURRENT
from npumatmul.ops.shapes import Shapes
from npumatmul.ops.weights import Weights
from npumatmul.quant.schemes import Scheme

__all__ = ["Execution"]

_current = CURRENT.get


class Execution:
    """Operands of a `Matmul`; replaced as a whole, so that executions under way keep theirs.

    Parameters
    ----------
    given : (object, object)
        What the user gave.
    a : ndarray or NpuArray
        One that nobody read yet is looked at when it is needed.
    weights : Weights
    finish : Finish
    shapes : Shapes
    scheme : Scheme
    device : Device

    Attributes
    ----------
    given, a, weights, finish
    product : Product or None
        With the one matrix of the right operand, once it is packed and was multiplied.
    """

    def __init__(
        self,
        given: tuple[Any, Any],
        a: NDArray[Any] | NpuArray,
        weights: Weights,
        finish: Finish,
        shapes: Shapes,
        scheme: Scheme,
        device: Device,
    ) -> None:
        self.given, self.weights, self.finish = given, weights, finish
        self.a: Any = a
        self._shapes, self._scheme, self._device, self._dtype = shapes, scheme, device, finish.dtype
        self._on_npu = involves_npu_arrays(*given)
        others = not (type(given[0]) in OWN and type(given[1]) in OWN)
        #: Whether both operands are neither NpuArrays nor of another class, which may make the result of its own.
        self._plain = not (self._on_npu or others)
        self._masked = others and holds_masks(given)
        self.product: Product | None = None
        self._epilogue: Epilogue | None = None

    def with_weights(self, weights: Weights) -> Execution:
        """The same with another right operand of the same kind."""
        return Execution(self.given, self.a, weights, self.finish, self._shapes, self._scheme, self._device)

    def multiply(self, out: Any, *, cache: bool = True) -> Any:
        """The product, as `Matmul.execute` gives it.

        Parameters
        ----------
        out : ndarray or NpuArray, optional
        cache : bool
            Whether what is packed for it stays on the NPU.
        """
        place = out[0] if isinstance(out, tuple) and len(out) == 1 else out
        product, finish = self.product, self.finish
        if (
            product is not None
            and self._plain
            and product.follows in (None, (scope := _current()).processor)
            and product.cores == scope.cores
            and (place is None or type(place) is np.ndarray)
        ):
            epilogue = None if finish.epilogue is None else self._fitted()  # there is nothing to look at any more
            return product.compute(self.a, place, epilogue, finish.integer_bias)
        if self._masked:
            check_masks("matmul", self.given, place)
        if isinstance(place, NpuArray):
            if self._by_array(cache, place) is None:
                self._store(place.numpy(), cache)
            return place
        if place is None and self._on_npu and self._shapes.result:
            return self._as_npu_array(cache)
        result = handed_out(np.matmul, self._store(place, cache), self.given, place)
        if self._masked:
            check_kept("matmul", self.given, result)
        return result

    def _fitted(self) -> Epilogue | None:
        """The epilogue for all rows of the product; operands are seen as they are now."""
        if self._epilogue is not None:
            return self._epilogue
        epilogue = self.finish.at((), self._dtype, self._shapes.n)
        if len(self._shapes.full) == 2:  # else operands may have to be copied
            self._epilogue = epilogue
        return epilogue

    def _as_npu_array(self, cache: bool) -> NpuArray:
        """The product as an array, whose values stay where the NPU leaves them if that goes."""
        shapes = self._shapes
        by_array = self._by_array(cache)
        if by_array is not None:
            return by_array
        single = shapes.matrices == 1 and not shapes.empty
        if is_stored_at_once(shapes.result, self._dtype) or (single and self._product(cache).on_cpu):
            return unread(self._store(None, cache), shapes.result, self._device)
        if single and self.finish.integer_bias is None:
            product = self._product(cache)
            deferred = product.defer(self._left_now(product), self._fitted())
            if deferred is not None:
                if not cache:
                    self.weights.drop(next(shapes.indices()))
                return unread(deferred, shapes.result, self._device)
        made = empty(shapes.result, self._dtype, device=self._device)
        self._store(made.numpy(), cache, owned=True)
        return made

    def _by_array(self, cache: bool, out: NpuArray | None = None) -> NpuArray | None:
        """The product of an NpuArray that goes on as it is: in place, or deferred; None where that does not go."""
        shapes, a = self._shapes, self.given[0]
        if not isinstance(a, NpuArray) or shapes.matrices != 1 or shapes.empty or self.finish.integer_bias is not None:
            return None
        a._check_usable()
        made = self._product(cache).with_arrays().multiply(a, self._fitted(), None, out)
        if made is not None and not cache:
            self.weights.drop(next(shapes.indices()))
        return made

    def _store(self, out: Out, cache: bool, *, owned: bool = False) -> NDArray[Any]:
        """The product in an array: the one that is given, of which nobody else knows yet where it is `owned`."""
        shapes, finish = self._shapes, self.finish
        if shapes.empty or shapes.matrices > 1:
            return self._stacked(checked_out(out, shapes.result, self._dtype, shapes.core), cache, owned)
        product = self._product(cache)
        result = product.compute(self._left_now(product), out, self._fitted(), finish.integer_bias, owned=owned)
        if not cache:
            self.weights.drop(next(shapes.indices()))
        return result

    def _product(self, cache: bool) -> Product:
        """The product with the one matrix of the right operand."""
        product = self.product
        scope = _current()
        if product is None or product.follows not in (None, scope.processor) or product.cores != scope.cores:
            (index,) = self._shapes.indices()
            product = Product.of(self.weights.at(index), self._shapes, self.a.dtype, self._dtype)
            if cache:
                self.product = product
        return product

    def _left_now(self, product: Product) -> Any:
        """The left operand: as it stands in C, if nobody read it yet and the product takes it so."""
        a = self.a
        if not isinstance(a, NpuArray):
            return a
        deferred = a.deferred
        rows = (self._shapes.rows, self._shapes.k)
        if deferred is not None and deferred.shape == rows and product.takes_deferred:
            return deferred
        return np.asarray(host(a))

    def _stacked(self, out: NDArray[Any] | None, cache: bool, owned: bool) -> NDArray[Any]:
        """The product of a stack of matrices, one after the other, or of nothing."""
        shapes, finish = self._shapes, self.finish
        self._device.check_usable()
        left = np.asarray(host(self.a))
        direct = None
        # rows may turn out to be unfit when others are done, and then `out` must not have changed
        if owned or self._scheme.takes_any_value:
            direct = in_place(out, shapes.full, self._dtype, *finish.read, finish.bias, left)
        result: NDArray[Any] = np.empty(shapes.full, self._dtype) if direct is None else direct
        for index, where, a in () if 0 in shapes.full else shapes.rows_of(left):
            place = result[where]
            rows = as_rows(place)
            target = np.empty((shapes.rows, shapes.n), result.dtype) if rows is None else rows
            epilogue = finish.at(where, result.dtype, shapes.n)
            if shapes.k == 0:
                finish_rows(np.zeros(target.shape, self._scheme.result), target, epilogue)
            else:
                of_one = Shapes.of(a.shape, (shapes.k, shapes.n))
                Product.of(self.weights.at(index), of_one, a.dtype, result.dtype).into(a, target, epilogue)
            if rows is None:
                place[...] = target.reshape(place.shape)
            if not cache:
                self.weights.drop(index)
        if finish.integer_bias is not None:
            result += finish.integer_bias
        result = result.reshape(shapes.result)
        if out is not None and not np.may_share_memory(out, result):
            np.copyto(out, result, casting="same_kind")
        return result if out is None else out
