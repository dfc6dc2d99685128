"""What the vendor's static matmul demo does and prints, for the same arguments (facts 10).

Boards are compared by its lines, so `npumatmul bench demo` prints them too: one matmul of random data in a loop, the
wall time of each `rknn_matmul_run`, the tensors, and whether the result is right. Two things differ on purpose: sums
of integers are checked exactly, where the vendor's CPU reference adds up in float32, and int8 results may be off by
one, as their rounding is not documented.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.device.buffer import Buffer, TensorAttr
from npumatmul.device.context import MatmulContext
from npumatmul.device.device import Device
from npumatmul.device.spec import PER_CHANNEL, PER_GROUP
from npumatmul.errors import RknnError
from npumatmul.rknn import CoreMask, MatmulLayout, QuantType

__all__ = ["DemoRequest", "parse_demo", "run_demo"]

#: Elements along K that share a scale (facts 10.2).
GROUP_SIZE = 32

#: How the demo quantizes B (facts 10.2); type 6, 12 and 15 are refused by it and follow their relatives here.
_B_QUANT = {
    MatmulType.FLOAT16_INT8_FLOAT32: QuantType.PER_CHANNEL_SYM,
    MatmulType.FLOAT16_INT8_FLOAT16: QuantType.PER_CHANNEL_SYM,
    MatmulType.FLOAT16_INT4_FLOAT32: QuantType.PER_CHANNEL_SYM,
    MatmulType.FLOAT16_INT4_FLOAT16: QuantType.PER_GROUP_SYM,
    MatmulType.INT8_INT8_FLOAT32: QuantType.PER_GROUP_SYM,
    MatmulType.INT8_INT4_INT32: QuantType.PER_CHANNEL_SYM,
    MatmulType.FLOAT16_INT4_BFLOAT16: QuantType.PER_CHANNEL_SYM,
    MatmulType.INT8_INT4_FLOAT16: QuantType.PER_CHANNEL_SYM,
}
_FLOATS = (ElementType.FLOAT16, ElementType.FLOAT32, ElementType.BFLOAT16)
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
Say = Callable[[str], Any]


@dataclass(frozen=True)
class DemoRequest:
    """The arguments of the demo, with its defaults.

    Attributes
    ----------
    mm_type : MatmulType
    m, k, n : int
    b_layout, ac_layout : MatmulLayout
    loops : int
        Runs.
    core_mask : int
        0 for any core.
    print_tensors : bool
    domain : int
        IOMMU domain.
    """

    mm_type: MatmulType
    m: int
    k: int
    n: int
    b_layout: MatmulLayout = MatmulLayout.NORM
    ac_layout: MatmulLayout = MatmulLayout.NORM
    loops: int = 10
    core_mask: int = 0
    print_tensors: bool = True
    domain: int = 0


def parse_demo(arguments: Sequence[str]) -> DemoRequest:
    """The demo's own notation: ``type M,K,N [B_layout] [AC_layout] [loop] [core_mask] [print] [iommu]``.

    Parameters
    ----------
    arguments : sequence of str

    Returns
    -------
    DemoRequest

    Raises
    ------
    ValueError
        If there are too few or too many, or one makes no sense; the message shows it.

    Examples
    --------
    >>> parse_demo(["2", "4,64,32", "1", "1", "100"]).loops
    100
    """
    names = ("B_layout", "AC_layout", "loop", "core_mask", "print", "iommu")
    if not 2 <= len(arguments) <= 2 + len(names):
        optional = " ".join(f"[{name}]" for name in names)
        raise ValueError(f"demo: the arguments are: type M,K,N {optional}; {len(arguments)} were given")
    number = _number("type", arguments[0])
    found = next((mm_type for mm_type in MatmulType if mm_type.code == number), None)
    if found is None:
        raise ValueError(
            f"demo: {number} is no matmul type; there are {', '.join(str(int(t.code)) for t in MatmulType)}"
        )
    shape = [_number("M,K,N", part) for part in arguments[1].split(",")]
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"demo: M,K,N has to be three positive numbers, not {arguments[1]!r}")
    given = [_number(name, text) for name, text in zip(names, arguments[2:], strict=False)]
    b_layout, ac_layout, loops, core_mask, shown, domain = given + [0, 0, 10, 0, 1, 0][len(given) :]
    for name, value, largest in (("B_layout", b_layout, 2), ("AC_layout", ac_layout, 1)):
        if value > largest:
            raise ValueError(f"demo: {name} is {value}; it can be 0 to {largest}")
    if loops < 1:
        raise ValueError("demo: loop has to be at least 1")
    m, k, n = shape
    layouts = MatmulLayout(b_layout), MatmulLayout(ac_layout)
    return DemoRequest(found, m, k, n, *layouts, loops, core_mask, bool(shown), domain)


def run_demo(device: Device, request: DemoRequest, say: Say = print, seed: int | None = None) -> bool:
    """Run the demo.

    Parameters
    ----------
    device : Device
    request : DemoRequest
    say : callable
        Gets each line.
    seed : int, optional
        Of the random data.

    Returns
    -------
    bool
        Whether the result is right.

    Raises
    ------
    ValueError, NpuError
        As `Device.context` does, where chip or runtime cannot do it.

    Examples
    --------
    >>> with Device("sim:rk3588") as device:
    ...     run_demo(device, parse_demo(["2", "4,64,32", "1", "1", "1", "0", "0"]), lambda line: None)
    True
    """
    name = f"RKNN_{request.mm_type.code.name}"
    say(
        f"MatMul matmul_type = {name}, M = {request.m}, K = {request.k}, N = {request.n}, "
        f"B_layout = {request.b_layout:d}, AC_layout = {request.ac_layout:d}, loop_count = {request.loops}, "
        f"core_mask = {request.core_mask}, iommu_domain_id = {request.domain}"
    )
    b_quant = _B_QUANT.get(request.mm_type, QuantType.PER_LAYER_SYM)
    context = device.context(
        request.mm_type,
        request.m,
        request.k,
        request.n,
        b_layout=request.b_layout,
        ac_layout=request.ac_layout,
        b_quant=b_quant,
        group_size=GROUP_SIZE if b_quant in PER_GROUP else 0,
        domain=request.domain,
    )
    with context, ExitStack() as buffers:
        attrs = context.a, context.b, context.c
        say("input/output tensor attribute:")
        for attr in attrs:
            dims = ", ".join(map(str, attr.dims))
            say(f"  name={attr.name}, dims=({dims}), size={attr.size}, type={_ELEMENT_NAMES[attr.element]}")
        if request.core_mask:
            _set_core_mask(device, context, request.core_mask)
        scale = _set_scales(context, request, b_quant)
        a_buffer, b_buffer, c_buffer = (
            buffers.enter_context(device.buffer(attr.size, domain=request.domain)) for attr in attrs
        )
        rng = np.random.default_rng(seed)
        a, b = (_random(rng, request.mm_type, attr) for attr in attrs[:2])
        a_buffer.put(context.a, a)
        b_buffer.put(context.b, b)
        context.bind(a=a_buffer, b=b_buffer, c=c_buffer)
        _run(device, context, request.loops, say)
        c = c_buffer.get(context.c)
        if request.print_tensors:
            say("matmul tensors:")
            for attr, buffer in zip(attrs, (a_buffer, b_buffer, c_buffer), strict=True):
                _show(attr, buffer, say)
    correct = _is_correct(request.mm_type, a, b, c, scale)
    say(
        f"{request.mm_type.code.name} matmul result is {'correct' if correct else 'wrong'} "
        f"M x K x N is {request.m} x {request.k} x {request.n} "
        f"AC_layout is {request.ac_layout:d} B_layout is {request.b_layout:d}"
    )
    return correct


def _number(name: str, text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError as error:
        raise ValueError(f"demo: {name} has to be a whole number, not {text!r}") from error
    if not 0 <= value < 2**31:
        raise ValueError(f"demo: {name} is {value}, outside of 0 to 2**31 - 1")
    return value


def _set_core_mask(device: Device, context: MatmulContext, mask: int) -> None:
    """Chips of one core refuse every mask and run all the same; the demo ignores that from 2.3.0 on (facts 8)."""
    try:
        device.runtime.matmul_set_core_mask(context.handle, CoreMask(mask))
    except RknnError:
        if device.chip.has_core_mask:
            raise


def _set_scales(context: MatmulContext, request: DemoRequest, b_quant: QuantType) -> float:
    """Give the demo's scales (facts 10.2); returns the factor from integer sums to the expected C."""
    if request.mm_type is MatmulType.INT8_INT8_INT8:
        for tensor, scale in (("A", 0.2), ("B", 0.1), ("C", 0.8)):
            context.set_quant_params(tensor, [scale])
        return 0.2 * 0.1 / 0.8
    if b_quant in PER_GROUP:
        context.set_quant_params("B", np.full((request.k // GROUP_SIZE, request.n), 0.0001))
        return 0.0001
    if b_quant in PER_CHANNEL and request.mm_type.c in _FLOATS:  # the sums of type 11 stay integers
        context.set_quant_params("B", np.full(request.n, 0.1))
        return 0.1
    return 1.0


def _random(rng: np.random.Generator, mm_type: MatmulType, attr: TensorAttr) -> NDArray[Any]:
    """Data of the demo's ranges (facts 10.2); of type 3 small enough for int8 results."""
    values: NDArray[Any]
    if attr.element in _FLOATS:
        values = rng.uniform(-1, 1, attr.shape)
    elif attr.element is ElementType.INT4:
        values = rng.integers(-8, 8, attr.shape, dtype=np.int8)
    else:
        largest = 10 if mm_type.c is ElementType.INT8 else 127
        values = rng.integers(-largest, largest + 1, attr.shape, dtype=np.int8)
    return values.astype(attr.dtype)


def _run(device: Device, context: MatmulContext, loops: int, say: Say) -> None:
    context.run()  # binds; as in the demo, that is not timed
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
        if times:
            average = sum(times) // len(times)
            say(f"Average Time = {average / 1000:.2f}ms, Average FPS = {_per_second(average):.2f}")


def _per_second(microseconds: int) -> float:
    return 1e6 / microseconds if microseconds else 0.0


def _show(attr: TensorAttr, buffer: Buffer, say: Say) -> None:
    """The tensor as it stands in memory, in lines of its last dimension."""
    say(f"  {attr.name}{'' if len(attr.dims) == 2 else '_native'}:")
    if attr.element is ElementType.INT4:
        pairs = buffer.array[: attr.size]
        halves = (pairs & 15, pairs >> 4)
        low, high = halves if attr.known_layout.int4_low_first else halves[::-1]
        values = (np.stack((low, high), axis=-1).reshape(-1).astype(np.int8) ^ 8) - 8
    else:
        values = buffer.array[: attr.size].view(attr.dtype)
    pattern = "%5.2f " if attr.element in _FLOATS else "%6d " if attr.element is ElementType.INT32 else "%4d "
    for line in values.reshape(-1, attr.dims[-1]):
        say("".join(pattern % value for value in line.tolist()))


def _is_correct(mm_type: MatmulType, a: NDArray[Any], b: NDArray[Any], c: NDArray[Any], scale: float) -> bool:
    x, y, got = (matrix.astype(np.float64) for matrix in (a, b, c))
    expected = x @ y * scale
    if mm_type.c is ElementType.INT8:
        return bool((np.abs(got - np.clip(expected, -128, 127)) <= 1).all())
    if mm_type.c not in _FLOATS:
        return bool((got == expected).all())
    norms = float(np.linalg.norm(got) * np.linalg.norm(expected))
    return norms > 0 and float((got * expected).sum()) / norms >= 0.9999
