"""What the vendor's demo of dynamic shapes does and prints, for the same arguments (facts 6 and 10).

Several shapes pass through one context, one after the other: each is selected, filled, bound, run in a loop and
checked. As in `demo`, sums of integers are checked exactly, and int8 results may be off by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from npumatmul.bench.demo_steps import (
    B_QUANT,
    GROUP_SIZE,
    Say,
    is_correct,
    options_of,
    random_values,
    say_attributes,
    say_verdict,
    set_core_mask,
    set_scales,
    shape_of,
    show_tensors,
    timed_runs,
    type_of,
)
from npumatmul.chips.types import MatmulType
from npumatmul.device.buffer import Buffer
from npumatmul.device.context import DynamicMatmulContext
from npumatmul.device.device import Device
from npumatmul.device.spec import PER_GROUP
from npumatmul.rknn import MatmulLayout, QuantType

__all__ = ["DynshapeRequest", "parse_dynshape_demo", "run_dynshape_demo"]

#: More than any use of dynamic shapes has; how many a context takes is not documented (facts 6).
_MOST_SHAPES = 64
_RULE = "-" * 40


@dataclass(frozen=True)
class DynshapeRequest:
    """The arguments of the demo, with its defaults.

    Attributes
    ----------
    mm_type : MatmulType
    shapes : tuple of (int, int, int)
        (M, K, N) each.
    b_layout, ac_layout : MatmulLayout
    loops : int
        Runs of each shape.
    core_mask : int
        0 for any core.
    print_tensors : bool
    """

    mm_type: MatmulType
    shapes: tuple[tuple[int, int, int], ...]
    b_layout: MatmulLayout = MatmulLayout.NORM
    ac_layout: MatmulLayout = MatmulLayout.NORM
    loops: int = 10
    core_mask: int = 0
    print_tensors: bool = True

    @property
    def b_quant(self) -> QuantType:
        """How the demo quantizes B: as the static one, but type 7 per group (facts 10.2)."""
        if self.mm_type is MatmulType.FLOAT16_INT4_FLOAT32:
            return QuantType.PER_GROUP_SYM
        return B_QUANT.get(self.mm_type, QuantType.PER_LAYER_SYM)


def parse_dynshape_demo(arguments: Sequence[str]) -> DynshapeRequest:
    """The demo's own notation: ``type M1,K1,N1#M2,K2,N2#... [B_layout] [AC_layout] [loop] [core_mask] [print]``.

    Parameters
    ----------
    arguments : sequence of str

    Returns
    -------
    DynshapeRequest

    Raises
    ------
    ValueError
        If there are too few or too many, or one makes no sense; the message shows it.

    Examples
    --------
    >>> parse_dynshape_demo(["2", "4,64,32#8,64,32", "1"]).shapes
    ((4, 64, 32), (8, 64, 32))
    """
    defaults = {"B_layout": 0, "AC_layout": 0, "loop": 10, "core_mask": 0, "print": 1}
    if not 2 <= len(arguments) <= 2 + len(defaults):
        optional = " ".join(f"[{name}]" for name in defaults)
        raise ValueError(
            f"dynshape-demo: the arguments are: type M1,K1,N1#M2,K2,N2#... {optional}; {len(arguments)} were given"
        )
    mm_type = type_of(arguments[0])
    parts = arguments[1].split("#")
    if len(parts) > _MOST_SHAPES:
        raise ValueError(f"dynshape-demo: {len(parts)} shapes; at most {_MOST_SHAPES} are taken")
    shapes = tuple(map(shape_of, parts))
    b_layout, ac_layout, loops, core_mask, shown = options_of(arguments[2:], defaults)
    if b_layout != MatmulLayout.TP_NORM and len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(
            f"dynshape-demo: K and N may differ with B_layout 2 only (B is transposed for each shape), not in "
            f"{arguments[1]!r} with B_layout {b_layout}"
        )
    if len(set(shapes)) < len(shapes):
        raise ValueError(f"dynshape-demo: a shape is given twice in {arguments[1]!r}")
    layouts = MatmulLayout(b_layout), MatmulLayout(ac_layout)
    return DynshapeRequest(mm_type, shapes, *layouts, loops, core_mask, bool(shown))


def run_dynshape_demo(device: Device, request: DynshapeRequest, say: Say = print, seed: int | None = None) -> bool:
    """Run the demo; it ends with the first shape whose result is wrong.

    Parameters
    ----------
    device : Device
    request : DynshapeRequest
    say : callable
        Gets each line.
    seed : int, optional
        Of the random data.

    Returns
    -------
    bool
        Whether all results are right.

    Raises
    ------
    ValueError, NpuError
        As `Device.dynamic_context` does, where chip or runtime cannot do it.

    Examples
    --------
    >>> with Device("sim:rk3588") as device:
    ...     request = parse_dynshape_demo(["2", "4,64,32#8,64,32", "1", "1", "1", "0", "0"])
    ...     run_dynshape_demo(device, request, lambda line: None)
    True
    """
    named = "#".join(",".join(map(str, shape)) for shape in request.shapes)
    say(
        f"MatMul matmul_type = RKNN_{request.mm_type.code.name}, MKNs = {named}, "
        f"B_layout = {request.b_layout:d}, AC_layout = {request.ac_layout:d}, loop_count = {request.loops}, "
        f"core_mask = {request.core_mask}"
    )
    b_quant, rng = request.b_quant, np.random.default_rng(seed)
    context = device.dynamic_context(
        request.mm_type,
        request.shapes,
        b_layout=request.b_layout,
        ac_layout=request.ac_layout,
        b_quant=b_quant,
        group_size=GROUP_SIZE if b_quant in PER_GROUP else 0,
    )
    with context, ExitStack() as held:
        for shape in request.shapes:
            say(_RULE)
            context.select(*shape)
            say_attributes(context, say)
        say(_RULE)
        if request.core_mask:
            set_core_mask(device, context, request.core_mask)
        k, n = (max(shape[i] for shape in request.shapes) for i in (1, 2))
        scale = set_scales(context, request.mm_type, b_quant, k, n, 0.1)
        buffers = [held.enter_context(device.buffer(size)) for size in context.largest]
        return all(_multiply(device, context, request, shape, buffers, scale, rng, say) for shape in request.shapes)


def _multiply(
    device: Device,
    context: DynamicMatmulContext,
    request: DynshapeRequest,
    shape: tuple[int, int, int],
    buffers: list[Buffer],
    scale: float,
    rng: np.random.Generator,
    say: Say,
) -> bool:
    context.select(*shape)
    say("current shape: M = {}, K = {}, N = {}".format(*shape))
    say_attributes(context, say)
    a_buffer, b_buffer, c_buffer = buffers
    a, b = (random_values(rng, request.mm_type, attr) for attr in (context.a, context.b))
    a_buffer.put(context.a, a)
    b_buffer.put(context.b, b)
    context.bind(a=a_buffer, b=b_buffer, c=c_buffer)
    timed_runs(device, context, request.loops, say, average=False)
    c = c_buffer.get(context.c)
    if request.print_tensors:
        show_tensors(context, buffers, say)
    right = is_correct(request.mm_type, a, b, c, scale)
    say_verdict(request.mm_type, shape, (request.b_layout, request.ac_layout), right, say)
    return right
