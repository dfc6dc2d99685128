"""What the vendor's two matmul demos have in common (facts 10): arguments, data, lines, and the check of results."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.device.buffer import Buffer, TensorAttr
from npumatmul.device.context import DynamicMatmulContext, MatmulContext
from npumatmul.device.device import Device
from npumatmul.device.spec import PER_CHANNEL, PER_GROUP
from npumatmul.errors import RknnError
from npumatmul.rknn import CoreMask, MatmulLayout, QuantType

__all__ = [
    "B_QUANT",
    "GROUP_SIZE",
    "Say",
    "is_correct",
    "options_of",
    "random_values",
    "say_attributes",
    "say_verdict",
    "set_core_mask",
    "set_scales",
    "shape_of",
    "show_tensors",
    "timed_runs",
    "type_of",
    "whole_number",
]

Context: TypeAlias = MatmulContext | DynamicMatmulContext
Say: TypeAlias = Callable[[str], Any]
#: Elements along K that share a scale (facts 10.2).
GROUP_SIZE = 32

#: How the demo quantizes B (facts 10.2); type 6, 12 and 15 are refused by it and follow their relatives here.
B_QUANT = {
    MatmulType.FLOAT16_INT8_FLOAT32: QuantType.PER_CHANNEL_SYM,
    MatmulType.FLOAT16_INT8_FLOAT16: QuantType.PER_CHANNEL_SYM,
    MatmulType.FLOAT16_INT4_FLOAT32: QuantType.PER_CHANNEL_SYM,
    MatmulType.FLOAT16_INT4_FLOAT16: QuantType.PER_GROUP_SYM,
    MatmulType.INT8_INT8_FLOAT32: QuantType.PER_GROUP_SYM,
    MatmulType.INT8_INT4_INT32: QuantType.PER_CHANNEL_SYM,
    MatmulType.FLOAT16_INT4_BFLOAT16: QuantType.PER_CHANNEL_SYM,
    MatmulType.INT8_INT4_FLOAT16: QuantType.PER_CHANNEL_SYM,
}
FLOATS = (ElementType.FLOAT16, ElementType.FLOAT32, ElementType.BFLOAT16)
#: `get_type_string` of the vendor's header (facts 1.4).
_ELEMENT_NAMES = {
    ElementType.FLOAT32: "FP32",
    ElementType.FLOAT16: "FP16",
    ElementType.BFLOAT16: "BF16",
    ElementType.INT32: "INT32",
    ElementType.INT16: "INT16",
    ElementType.INT8: "INT8",
    ElementType.INT4: "INT4",
}


def type_of(text: str) -> MatmulType:
    """The matmul type of a number.

    Raises
    ------
    ValueError
        If it is none.
    """
    number = whole_number("type", text)
    found = next((mm_type for mm_type in MatmulType if mm_type.code == number), None)
    if found is None:
        raise ValueError(
            f"demo: {number} is no matmul type; there are {', '.join(str(int(t.code)) for t in MatmulType)}"
        )
    return found


def options_of(texts: Sequence[str], defaults: Mapping[str, int]) -> list[int]:
    """Values of the arguments that may be left out, in their order.

    Raises
    ------
    ValueError
        If one makes no sense.
    """
    given = {name: whole_number(name, text) for name, text in zip(defaults, texts, strict=False)}
    options = {**defaults, **given}
    for name, largest in (("B_layout", 2), ("AC_layout", 1)):
        if options[name] > largest:
            raise ValueError(f"demo: {name} is {options[name]}; it can be 0 to {largest}")
    if options["loop"] < 1:
        raise ValueError("demo: loop has to be at least 1")
    return list(options.values())


def shape_of(text: str) -> tuple[int, int, int]:
    """M, K, N.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    shape = [whole_number("M,K,N", part) for part in text.split(",")]
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"demo: M,K,N has to be three positive numbers, not {text!r}")
    return shape[0], shape[1], shape[2]


def whole_number(name: str, text: str) -> int:
    """A number of the command line.

    Raises
    ------
    ValueError
        If it is none that an int32 holds.
    """
    try:
        value = int(text, 0)
    except ValueError as error:
        raise ValueError(f"demo: {name} has to be a whole number, not {text!r}") from error
    if not 0 <= value < 2**31:
        raise ValueError(f"demo: {name} is {value}, outside of 0 to 2**31 - 1")
    return value


def set_core_mask(device: Device, context: Context, mask: int) -> None:
    """Chips of one core refuse every mask and run all the same; the demo ignores that from 2.3.0 on (facts 8)."""
    try:
        device.runtime.matmul_set_core_mask(context.handle, CoreMask(mask))
    except RknnError:
        if device.chip.has_core_mask:
            raise


def set_scales(context: Context, mm_type: MatmulType, b_quant: QuantType, k: int, n: int, group_scale: float) -> float:
    """Give the demos' scales (facts 10.2), for the largest K and N; returns the factor from sums to the expected C."""
    if mm_type is MatmulType.INT8_INT8_INT8:
        for tensor, scale in (("A", 0.2), ("B", 0.1), ("C", 0.8)):
            context.set_quant_params(tensor, [scale])
        return 0.2 * 0.1 / 0.8
    if b_quant in PER_GROUP:
        context.set_quant_params("B", np.full((k // GROUP_SIZE, n), group_scale))
        return group_scale
    if b_quant in PER_CHANNEL and mm_type.c in FLOATS:  # the sums of type 11 stay integers
        context.set_quant_params("B", np.full(n, 0.1))
        return 0.1
    return 1.0


def random_values(rng: np.random.Generator, mm_type: MatmulType, attr: TensorAttr) -> NDArray[Any]:
    """Data of the demo's ranges (facts 10.2); of type 3 small enough for int8 results."""
    values: NDArray[Any]
    if attr.element in FLOATS:
        values = rng.uniform(-1, 1, attr.shape)
    elif attr.element is ElementType.INT4:
        values = rng.integers(-8, 8, attr.shape, dtype=np.int8)
    else:
        largest = 10 if mm_type.c is ElementType.INT8 else 127
        values = rng.integers(-largest, largest + 1, attr.shape, dtype=np.int8)
    return values.astype(attr.dtype)


def timed_runs(device: Device, context: Context, loops: int, say: Say, *, average: bool) -> None:
    """Run, and say what each run takes; at the end the average, which the second demo leaves out."""
    context.run()  # binds; as in the demos, that is not timed
    runtime, handle = device.runtime, context.handle
    say("Begin perf ...")
    times: list[int] = []
    try:
        for index in range(loops):
            start = time.perf_counter_ns()
            runtime.matmul_run(handle)
            times.append((time.perf_counter_ns() - start) // 1000)
            say(f"{index:4d}: Elapse Time = {times[-1] / 1000:.2f}ms, FPS = {_per_second(times[-1]):.2f}")
    finally:  # an interrupt leaves the average of the runs before it
        if times and average:
            mean = sum(times) // len(times)
            say(f"Average Time = {mean / 1000:.2f}ms, Average FPS = {_per_second(mean):.2f}")


def _per_second(microseconds: int) -> float:
    return 1e6 / microseconds if microseconds else 0.0


def say_attributes(context: Context, say: Say) -> None:
    """Shapes, sizes and elements of A, B and C."""
    say("input/output tensor attribute:")
    for attr in (context.a, context.b, context.c):
        dims = ", ".join(map(str, attr.dims))
        say(f"  name={attr.name}, dims=({dims}), size={attr.size}, type={_ELEMENT_NAMES[attr.element]}")


def show_tensors(context: Context, buffers: Sequence[Buffer], say: Say) -> None:
    """A, B and C as they stand in memory, in lines of their last dimension."""
    say("matmul tensors:")
    for attr, buffer in zip((context.a, context.b, context.c), buffers, strict=True):
        say(f"  {attr.name}{'' if len(attr.dims) == 2 else '_native'}:")
        if attr.element is ElementType.INT4:
            pairs = buffer.array[: attr.size]
            halves = (pairs & 15, pairs >> 4)
            low, high = halves if attr.known_layout.int4_low_first else halves[::-1]
            values = (np.stack((low, high), axis=-1).reshape(-1).astype(np.int8) ^ 8) - 8
        else:
            values = buffer.array[: attr.size].view(attr.dtype)
        pattern = "%5.2f " if attr.element in FLOATS else "%6d " if attr.element is ElementType.INT32 else "%4d "
        for line in values.reshape(-1, attr.dims[-1]):
            say("".join(pattern % value for value in line.tolist()))


def say_verdict(
    mm_type: MatmulType, shape: tuple[int, int, int], layouts: tuple[MatmulLayout, MatmulLayout], right: bool, say: Say
) -> None:
    """Whether the result is right; layouts are those of B, and of A and C."""
    say(
        f"{mm_type.code.name} matmul result is {'correct' if right else 'wrong'} "
        f"M x K x N is {' x '.join(map(str, shape))} AC_layout is {layouts[1]:d} B_layout is {layouts[0]:d}"
    )


def is_correct(mm_type: MatmulType, a: NDArray[Any], b: NDArray[Any], c: NDArray[Any], scale: float) -> bool:
    """Integers are exact, int8 results off by one at most, and floats point the same way, as the demos check them."""
    x, y, got = (matrix.astype(np.float64) for matrix in (a, b, c))
    expected = x @ y * scale
    if mm_type.c is ElementType.INT8:
        return bool((np.abs(got - np.clip(expected, -128, 127)) <= 1).all())
    if mm_type.c not in FLOATS:
        return bool((got == expected).all())
    norms = float(np.linalg.norm(got) * np.linalg.norm(expected))
    return norms > 0 and float((got * expected).sum()) / norms >= 0.9999
