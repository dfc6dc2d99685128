"""Operands of other classes: what numpy's function of the same name does with them is what ours does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import npumatmul as npu
from npumatmul.quant import round_weight

FUNCTIONS = ("matmul", "dot", "vdot", "inner", "outer", "vecdot", "matvec", "vecmat", "tensordot", "einsum")
FUNCTIONS = tuple(name for name in FUNCTIONS if hasattr(np, name))
SQUARE = np.arange(9, dtype=np.float32).reshape(3, 3)


@pytest.fixture(scope="module")
def device() -> Iterator[npu.Device]:
    """One for all: how a chip multiplies changes nothing here."""
    with npu.Device("sim:rk3588") as opened:
        yield opened


class Units(np.ndarray):
    """A subclass that carries something along."""

    def __array_finalize__(self, other: Any) -> None:
        self.unit = getattr(other, "unit", None)


class Humble(np.ndarray):
    __array_priority__ = -1.0


class Proud(np.ndarray):
    __array_priority__ = 30.0


class Wrapping(np.ndarray):
    """Wraps results and remembers how it was asked to."""

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        function, given, position = context
        return "wrapped", array is self, function.__name__, [type(x).__name__ for x in given], position, return_scalar


class Duck:
    """No ndarray, but it is read as one and wraps results."""

    def __init__(self, values: np.ndarray, priority: float | None = None) -> None:
        self.values = values
        if priority is not None:
            self.__array_priority__ = priority

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return "duck", array.shape, context[0].__name__, return_scalar


class OldDuck(Duck):
    def __array_wrap__(self, array: Any) -> Any:  # type: ignore[override]
        return "old duck", array.shape


def units(values: np.ndarray) -> Any:
    made = values.view(Units)
    made.unit = "m"
    return made


CLASSES: dict[str, Any] = {
    "plain": lambda x: x,
    "list": lambda x: x.tolist(),
    "matrix": np.matrix,
    "units": units,
    "humble": lambda x: x.view(Humble),
    "proud": lambda x: x.view(Proud),
    "wrapping": lambda x: x.view(Wrapping),
    "unmasked": np.ma.masked_array,
    "masked": lambda x: np.ma.masked_array(x, mask=x > 6),
    "duck": Duck,
    "proud duck": lambda x: Duck(x, 40.0),
    "humble duck": lambda x: Duck(x, -3.0),
    "old duck": OldDuck,
}


def called(module: Any, name: str, *operands: Any) -> Any:
    function = getattr(module, name)
    if name == "tensordot":
        return function(*operands, axes=1)
    return function("ij,jk->ik", *operands) if name == "einsum" else function(*operands)


def seen(result: Any) -> Any:
    """All that there is to see of a result."""
    if isinstance(result, tuple):
        return result
    mask = np.ma.getmaskarray(result).tolist() if isinstance(result, np.ma.MaskedArray) else None
    return type(result), result.shape, getattr(result, "unit", None), mask, np.asarray(result).tolist()


def outcome(module: Any, name: str, *operands: Any) -> Any:
    try:
        return seen(called(module, name, *operands))
    except (ValueError, TypeError) as error:
        return type(error)


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_class_beside_every_other_as_numpy_has_them(device: npu.Device, name: str) -> None:
    rows = np.ones(3, np.float32)
    with npu.use_device(device), npu.config(fallback="numpy"):  # lists are of float64
        for left, make_left in CLASSES.items():
            for right, make_right in CLASSES.items():
                if name == "vdot" and "matrix" in (left, right):
                    continue  # numpy takes a matrix for its first row there; ours reads all of its elements
                a, b = make_left(SQUARE), make_right(SQUARE)
                if name == "matvec" and right not in ("matrix", "masked"):
                    b = make_right(rows)
                if name == "vecmat" and left not in ("matrix", "masked"):
                    a = make_left(rows)
                theirs, ours = outcome(np, name, a, b), outcome(npu, name, a, b)
                if "masked" in (left, right) and loses_the_mask(theirs):
                    assert ours is TypeError, (left, right)
                else:
                    assert ours == theirs, (left, right)


def loses_the_mask(theirs: Any) -> bool:
    if isinstance(theirs, type):
        return False
    return theirs[0] in ("wrapped", "duck", "old duck") or not (theirs[3] and np.any(theirs[3]))


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_vdot_reads_all_elements_of_a_matrix(device: npu.Device) -> None:
    assert npu.vdot(np.matrix(SQUARE), SQUARE, device=device) == np.vdot(SQUARE, SQUARE)


def test_memmaps(device: npu.Device, tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "values", np.float32, "w+", shape=(3, 3))
    mapped[:] = SQUARE
    for name in FUNCTIONS:
        with npu.use_device(device):
            assert outcome(npu, name, mapped, SQUARE) == outcome(np, name, mapped, SQUARE)


@pytest.mark.parametrize("name", [name for name in ("matmul", "vecdot", "matvec", "vecmat") if hasattr(np, name)])
@pytest.mark.parametrize("kind", ["plain", "units", "wrapping", "proud", "unmasked"])
def test_out_of_any_class_and_of_more_dimensions(device: npu.Device, name: str, kind: str) -> None:
    operands = {"matmul": (SQUARE, SQUARE), "vecdot": (SQUARE, SQUARE), "matvec": (SQUARE, SQUARE[0]),
                "vecmat": (SQUARE[0], SQUARE)}[name]  # fmt: skip
    shape = np.shape(getattr(np, name)(*operands))
    for place in (shape, (1, *shape), (2, 4, *shape), shape[:-1], (*shape[:-1], 1), (*shape[1:], 5), (3, *shape[1:])):
        for wrap in (lambda out: out, lambda out: (out,)):
            results, outs = [], []
            for module in (np, npu):
                out = CLASSES[kind](np.full(place, -1, np.float32))
                try:
                    with npu.use_device(device):
                        result = getattr(module, name)(*operands, out=wrap(out))
                    results.append("out" if result is out else result)
                except ValueError as error:
                    results.append(type(error))
                outs.append(np.asarray(out).tolist())
            assert results[0] == results[1], place
            assert outs[0] == outs[1], place


def test_wrong_places(device: npu.Device) -> None:
    out = np.empty((3, 3), np.float32)
    for name in ("matmul", "vecdot", "matvec", "vecmat", "dot", "outer"):
        for wrong in ((), (out, out), [out], Duck(out), "out"):
            if not hasattr(np, name):
                continue
            errors = []
            for module in (np, npu):
                with npu.use_device(device), pytest.raises((TypeError, ValueError)) as caught:
                    getattr(module, name)(SQUARE, SQUARE, out=wrong)
                errors.append(caught.type)
            if name != "outer":  # which numpy finds another mistake in
                assert errors[0] is errors[1], (name, wrong)
    assert npu.matmul(SQUARE, SQUARE, out=(None,), device=device).tolist() == (SQUARE @ SQUARE).tolist()


def test_larger_places_of_planned_and_packed_products(device: npu.Device) -> None:
    expected = np.broadcast_to(SQUARE @ SQUARE, (2, 3, 3))
    with npu.pack(SQUARE, device=device) as packed, npu.Matmul(SQUARE, packed) as product:
        for call in (
            lambda out: npu.matmul(SQUARE, packed, out),
            lambda out: npu.matmul(SQUARE, packed, out=(out,)),
            product.execute,
            lambda out: product.submit(out).result(),
            lambda out: npu.matmul_async(SQUARE, packed, out).result(),
            lambda out: np.matmul(SQUARE, packed, out=out),
        ):
            for _ in range(2):  # the second is prepared
                out = np.zeros((2, 3, 3), np.float32)
                assert call(out) is out
                np.testing.assert_array_equal(out, expected)
        array = npu.zeros((2, 3, 3), device=device)
        assert npu.matmul(SQUARE, packed, array) is array
        np.testing.assert_array_equal(array, expected)
        with pytest.raises(ValueError, match=r"out has shape|out is an array of shape"):
            product.execute(np.zeros((3, 3, 2), np.float32))


def test_masks_are_kept_or_missed(device: npu.Device) -> None:
    masked = np.ma.masked_array(SQUARE, mask=SQUARE > 6)
    plain = np.zeros((3, 3), np.float32)
    array = npu.asarray(SQUARE, device=device)
    for call in (
        lambda: npu.dot(masked[1:], SQUARE[:, :2], device=device),  # numpy's has nothing masked
        lambda: npu.outer(masked, SQUARE, device=device),
        lambda: npu.matmul(masked, SQUARE, out=plain, device=device),
        lambda: npu.dot(masked, SQUARE, plain, device=device),
        lambda: npu.matmul(array, masked),
        lambda: np.matmul(array, masked),
        lambda: npu.matmul(SQUARE, SQUARE, bias=masked[2], device=device),
        lambda: npu.matmul(SQUARE, SQUARE, epilogue=npu.Epilogue(residual=masked), device=device),
        lambda: npu.Matmul(SQUARE, masked, device=device).execute(plain),
        lambda: npu.pack(masked, device=device),
        lambda: npu.asarray(masked, device=device),
    ):
        with pytest.raises(TypeError, match=r"mask.*filled\(0\)"):
            call()
    assert not plain.any()
    into = np.ma.zeros((3, 3), np.float32)
    assert npu.matmul(masked, SQUARE, out=into, device=device) is into
    assert into.mask.tolist() == np.matmul(masked, SQUARE).mask.tolist()
    with npu.Matmul(masked, SQUARE, device=device) as product:
        assert seen(product.execute()) == seen(np.matmul(masked, SQUARE))
    unmasked = np.ma.masked_array(SQUARE)
    assert npu.pack(unmasked, device=device).unpack().tolist() == SQUARE.tolist()


class Length(np.ndarray):
    """Decides itself what ufuncs and functions mean: units multiply, as in pint, astropy and unyt."""

    unit: str | None = None

    def __array_finalize__(self, other: Any) -> None:
        self.unit = getattr(other, "unit", None)

    def _of(self, function: Any, inputs: Any, options: Any) -> Any:
        held = [x.view(np.ndarray) if isinstance(x, Length) else x for x in inputs]
        result = np.asarray(function(*held, **options)).view(Length)
        result.unit = "*".join(str(x.unit) for x in inputs if isinstance(x, Length))
        return result

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return self._of(getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return self._of(function, args, options)


class Lazy:
    """No ndarray at all: keeps what was asked of it, as dask does."""

    def __init__(self, *asked: Any) -> None:
        self.asked = asked

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return Lazy(ufunc.__name__, method, len(inputs), sorted(options))

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return Lazy(function.__name__, len(args), sorted(options))


class Refusing:
    __array_ufunc__ = None

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return SQUARE


class Declining:
    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        return NotImplemented

    def __array_function__(self, *_: Any, **__: Any) -> Any:
        return NotImplemented


@pytest.mark.parametrize("name", FUNCTIONS)
def test_classes_that_decide_are_asked(device: npu.Device, name: str) -> None:
    length = SQUARE.view(Length)
    length.unit = "m"
    with npu.use_device(device):
        for a, b in ((length, SQUARE), (SQUARE, length), (length, length)):
            if name == "einsum":
                continue  # Length does not look into its arguments there
            assert outcome(npu, name, a, b) == outcome(np, name, a, b)
        for a, b in ((Lazy(), SQUARE), (SQUARE.tolist(), Lazy()), (length, Lazy()), (Lazy(), length)):
            ours, theirs = called(npu, name, a, b), called(np, name, a, b)
            assert type(ours) is type(theirs)
            assert getattr(ours, "asked", None) == getattr(theirs, "asked", None)
        for a, b in ((Declining(), SQUARE), (SQUARE, Declining()), (Declining(), Declining())):
            assert outcome(npu, name, a, b) is outcome(np, name, a, b) is TypeError
        if name in ("matmul", "vecdot", "matvec", "vecmat"):
            assert outcome(npu, name, SQUARE, Refusing()) is outcome(np, name, SQUARE, Refusing()) is TypeError


def test_classes_that_decide_beside_what_is_ours(device: npu.Device) -> None:
    length = SQUARE.view(Length)
    length.unit = "m"
    with npu.pack(SQUARE, device=device) as packed:
        for call in (lambda: npu.matmul(length, packed), lambda: length @ packed, lambda: np.dot(length, packed),
                     lambda: np.matmul(packed, length), lambda: npu.dot(packed, length)):  # fmt: skip
            runs = device.stats().run_calls
            result = call()
            assert (type(result), result.unit) == (Length, "m")
            assert result.tolist() == (SQUARE @ SQUARE).tolist()
            assert device.stats().run_calls > runs  # what it holds is multiplied on the NPU
    array = npu.asarray(SQUARE, device=device)
    for call in (lambda: npu.matmul(array, Lazy()), lambda: array @ Lazy(), lambda: npu.dot(Lazy(), array)):
        assert isinstance(call(), Lazy)
    for option in ({"scheme": "w8a8"}, {"precision": "high"}, {"bias": SQUARE[0]}, {"device": device}):
        with pytest.raises(
            TypeError, match=rf"Length decides by its __array_ufunc__.* nothing of {next(iter(option))}"
        ):
            npu.matmul(length, SQUARE, **option)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"knows nothing of npumatmul\.Matmul; give numpy\.asarray"):
        npu.Matmul(length, SQUARE)
    with pytest.raises(TypeError, match="nothing of bias"):
        npu.linear(length, SQUARE, SQUARE[0])


class Blocks:
    """Parts of an array, computed when they are asked for; declines what it does not know, as dask does."""

    def __init__(self, parts: list[Any], shape: tuple[int, ...], dtype: Any, splits_k: bool = False) -> None:
        self.parts, self.shape, self.dtype, self.splits_k = parts, shape, np.dtype(dtype), splits_k
        self.ndim = len(shape)

    @classmethod
    def of(cls, array: np.ndarray, rows: int, splits_k: bool = False) -> Blocks:
        starts = range(0, len(array), rows)
        parts = [lambda start=start: array[start : start + rows] for start in starts]
        return cls(parts, array.shape, array.dtype, splits_k)

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        return tuple((n,) for n in self.shape)

    def rechunk(self, sizes: dict[int, int]) -> Blocks:
        assert sizes == {self.ndim - 1: -1}
        return Blocks(self.parts, self.shape, self.dtype)

    def map_blocks(self, function: Any, *, dtype: Any, meta: Any, chunks: Any, name: str, **options: Any) -> Blocks:
        assert not self.splits_k, "blocks have to span K"
        assert meta.dtype == dtype
        made = Blocks([lambda part=part: function(part(), **options) for part in self.parts],
                      (*self.shape[:-1], *chunks[-1]), dtype)  # fmt: skip
        assert made.ndim == len(chunks)
        return made

    def compute(self) -> np.ndarray:
        return np.concatenate([part() for part in self.parts])

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return NotImplemented

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return NotImplemented

    def __matmul__(self, other: Any) -> Any:
        return np.matmul(self, other)


@pytest.mark.parametrize("kind", ["packed", "array"])
def test_blocks_are_multiplied_when_they_are_computed(device: npu.Device, kind: str) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(-5, 5, (10, 32)).astype(np.float32), rng.integers(-5, 5, (32, 8)).astype(np.float32)
    ours = npu.pack(w, device=device) if kind == "packed" else npu.asarray(w, device=device)
    with npu.use_device(device):
        for splits_k in (False, True):
            blocks = Blocks.of(x, 4, splits_k)
            for product in (npu.matmul(blocks, ours), blocks @ ours, np.matmul(blocks, ours), npu.linear(blocks, ours)):
                assert type(product) is Blocks
                assert (product.shape, product.dtype) == ((10, 8), np.float32)
                runs = device.stats().run_calls
                computed = product.compute()
                assert type(computed) is np.ndarray
                np.testing.assert_array_equal(computed, x @ w)
                assert device.stats().run_calls >= runs + 3  # the blocks, and nothing before
        assert npu.matmul(Blocks.of(x.reshape(5, 2, 32), 2), ours).compute().shape == (5, 2, 8)
        with pytest.raises(ValueError, match="K"):
            npu.matmul(Blocks.of(x[:, :31], 4), ours)
        with pytest.raises(TypeError, match="float64"):
            npu.matmul(Blocks.of(x.astype(np.float64), 4), ours)
        for call in (lambda: npu.dot(blocks, ours), lambda: np.dot(blocks, ours), lambda: ours @ blocks,
                     lambda: npu.einsum("mk,kn->mn", blocks, ours), lambda: np.tensordot(blocks, ours, 1)):  # fmt: skip
            with pytest.raises(
                TypeError, match=r"Blocks decides .* knows nothing of (PackedWeight|NpuArray); give x\.compute\(\)"
            ):
                call()


class Stumbling:
    """Takes for granted that others have what ndarrays have."""

    def todense(self) -> np.ndarray:
        return SQUARE

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return inputs[1].strange

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return args[1].strange


class Sparse:
    """Nothing that numpy knows, as scipy's matrices."""

    def toarray(self) -> np.ndarray:
        return SQUARE


def test_classes_that_cannot_be_multiplied_say_what_to_write(device: npu.Device) -> None:
    with npu.pack(SQUARE, device=device) as packed:
        for function in (npu.matmul, npu.dot):
            for ours in (packed, npu.asarray(SQUARE, device=device)):
                with pytest.raises(TypeError, match=r"knows nothing of (PackedWeight|NpuArray); give x\.todense\(\)"):
                    function(Stumbling(), ours)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match=r"an array of numbers is needed: x\.toarray\(\)"):
                function(Sparse(), packed)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):  # between others it is theirs to say
        npu.matmul(Stumbling(), SQUARE)  # type: ignore[arg-type]
    for call in (npu.asarray, npu.pack):
        with pytest.raises(TypeError, match=r"x\.toarray\(\)"):
            call(Sparse(), device=device)  # type: ignore[operator]
        length = SQUARE.view(Length)
        with pytest.raises(TypeError, match=r"Length, which the result would not be"):
            call(length, device=device)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"masked arrays take operands of other shapes in no product.*filled"):
        npu.matmul(np.ma.masked_array(SQUARE[:2]), SQUARE, device=device)


class Measured:
    """Hands attributes of its values on, as pint does, and says that units are lost where it becomes an array."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__array"):
            raise AttributeError(name)
        return getattr(self._values, name)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("the unit would be lost")


def test_objects_are_not_read_past_what_they_say(device: npu.Device) -> None:
    measured = Measured(SQUARE)
    for call in (npu.asarray, npu.pack, lambda x, device: npu.matmul(x, SQUARE, device=device),
                 lambda x, device: npu.matmul(SQUARE, SQUARE, bias=x, device=device)):  # fmt: skip
        with pytest.raises(TypeError, match="the unit would be lost"):
            call(measured, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_tensors_of_pytorch(device: npu.Device, dtype: torch.dtype) -> None:
    tensor = torch.arange(9).reshape(3, 3).to(dtype)
    expected = (SQUARE @ SQUARE).tolist()
    with npu.pack(tensor, device=device) as packed:
        for result in (npu.matmul(tensor, packed), tensor @ packed, npu.matmul(tensor, tensor, device=device),
                       npu.Matmul(tensor, packed).execute(), npu.linear(tensor, packed)):  # fmt: skip
            assert isinstance(result, torch.Tensor)
            assert result.tolist() == expected
        assert npu.dot(tensor, packed).tolist() == npu.einsum("ij,jk", tensor, packed).tolist() == expected
    if dtype is torch.bfloat16:
        biased = npu.linear(tensor, tensor, bias=torch.ones(3, dtype=dtype), transposed=False, device=device)
        assert biased.tolist() == (SQUARE @ SQUARE + 1).tolist()
        narrow = npu.matmul(tensor, tensor, dtype=ml_dtypes.bfloat16, device=device)
        assert narrow.dtype == ml_dtypes.bfloat16


def test_packed_weights_in_numpys_functions(device: npu.Device) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    w = np.arange(6, dtype=np.float32).reshape(3, 2)
    array = npu.asarray(x, device=device)
    with npu.pack(w, device=device) as packed:
        for ours, theirs in (
            (np.matmul(x, packed), x @ w),
            (x @ packed, x @ w),
            (np.dot(x, packed), x @ w),
            (np.dot(x[0], packed), x[0] @ w),
            (np.dot(np.float32(2), packed), 2 * w),
            (np.dot(packed, np.float32(2)), 2 * w),
            (np.inner(w.T, packed.T), w.T @ w),
            (np.tensordot(x, packed, 1), x @ w),
            (np.tensordot(packed, x, axes=(0, 1)), np.tensordot(w, x, axes=(0, 1))),
            (np.einsum("ij,jk->ik", x, packed), x @ w),
            (np.einsum("jk,ij->ki", packed, x), (x @ w).T),
            (np.einsum("ij,kj->ik", w.T, packed.T), w.T @ w),
            (np.vdot(w, packed), np.vdot(w, w)),
            (np.outer(x, packed), np.outer(x, w)),
            (packed @ packed.T, w @ w.T),
            (x @ packed @ packed.T, x @ w @ w.T),
            (np.matmul(array, packed), x @ w),
            (array @ packed, x @ w),
        ):
            np.testing.assert_array_equal(ours, theirs)
        assert (np.shape(packed), np.ndim(packed), np.size(packed)) == ((3, 2), 2, 6)
        assert (packed.shape, packed.ndim, packed.size, len(packed), packed.dtype) == ((3, 2), 2, 6, 3, np.float32)
        for refused in (
            lambda: np.asarray(packed),
            lambda: x.dot(packed),
            lambda: x + packed,
            lambda: array * packed,
            lambda: np.mean(packed),
            lambda: np.add.reduce(packed),
            lambda: np.concatenate([x, packed.T, packed]),
        ):
            with pytest.raises(TypeError, match=r"p\.unpack\(\)"):
                refused()
        for wrong in ("sim:rk3576", "sim:rk3562"):
            for call in (npu.matmul, npu.dot, npu.linear, npu.matmul_async, npu.Matmul, npu.tensordot):
                options = {"axes": 1} if call is npu.tensordot else {}
                with pytest.raises(ValueError, match="b is packed on"):
                    call(x, packed, device=wrong, **options)  # type: ignore[operator]
        np.testing.assert_array_equal(npu.matmul(x, packed, device=device), x @ w)
    for dtype in (np.int8, np.uint8, ml_dtypes.int4):
        with npu.pack(np.zeros((3, 2), dtype), device=device) as integers:
            assert integers.dtype == integers.unpack().dtype == dtype


def test_matrices_in_place(device: npu.Device) -> None:
    """``x @= p`` keeps the array."""
    with npu.pack(SQUARE, device=device) as packed:
        for other in (packed, npu.asarray(SQUARE, device=device)):
            for values in (SQUARE, SQUARE[0], np.stack([SQUARE] * 2)):
                x = same = values.copy()
                x @= other
                assert x is same
                np.testing.assert_array_equal(x, values @ SQUARE)


@pytest.mark.parametrize("integer", [np.int64, np.int8, np.intp, np.uint16])
def test_axes_are_any_integers(device: npu.Device, integer: Any) -> None:
    a, b = np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.arange(12, dtype=np.float32).reshape(3, 4)
    for given in ((integer(1), integer(0)), ([integer(1), integer(2)], [integer(0), integer(1)]), np.array([[1], [0]]),
                  np.array([1, 0], integer), ((1, 2), (integer(0), 1)), (np.array([1, 2]), range(2))):  # fmt: skip
        expected = np.tensordot(a, b, axes=given)  # type: ignore[arg-type]
        np.testing.assert_array_equal(npu.tensordot(a, b, axes=given, device=device), expected)
        array = npu.asarray(a, device=device)
        np.testing.assert_array_equal(np.tensordot(array, b, axes=given), expected)  # type: ignore[arg-type]
    for count in (integer(2), np.array(2, integer)):
        x = a.transpose(0, 1, 2)
        np.testing.assert_array_equal(npu.tensordot(x, b, count, device=device), np.tensordot(x, b, int(count)))
    np.testing.assert_array_equal(npu.vecdot(b, b, axis=integer(0), device=device), np.einsum("ij,ij->j", b, b))
    labels = [np.array(each, integer) for each in ([0, 1, 2], [1, 2], [0])]
    np.testing.assert_array_equal(
        npu.einsum(a, labels[0], b, labels[1], labels[2], device=device), np.einsum("ijk,jk->i", a, b)
    )


def test_options_are_any_integers() -> None:
    options = npu.MatmulOptions(cores=np.int64(2), rows=[np.int8(4)], buckets=np.array([1, 64]))  # type: ignore[arg-type]
    assert options == npu.MatmulOptions(cores=2, rows=(4,), buckets=(1, 64))
    assert all(type(each) is int for each in (options.cores, *options.rows, *options.buckets))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.ones(3, 3).to_sparse(), r"to_dense\(\)"),
        (torch.ones(3, 3, device="meta"), "meta"),
        ([[1], [1, 2]], "shape"),
    ],
    ids=["sparse", "without values", "ragged"],
)
def test_what_cannot_become_an_ndarray_is_named_with_what_its_class_says(
    device: npu.Device, given: Any, said: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"matmul: a cannot become an ndarray: .*{said}"):
        npu.matmul(given, SQUARE, device=device)
    with pytest.raises((TypeError, ValueError), match=f"round_weight: the array cannot become an ndarray: .*{said}"):
        round_weight(given, bits=8)
