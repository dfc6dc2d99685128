"""What the vendor's static matmul demo does and prints, for the same arguments (facts 10).

Boards are compared by its lines, so `npumatmul bench demo` prints them too: one matmul of random data in a loop, the
wall time of each `rknn_matmul_run`, the tensors, and whether the result is right. Two things differ on purpose: sums
of integers are checked exactly, where the vendor's CPU reference adds up in float32, and int8 results may be off by
one, as their rounding is not documented.
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
from npumatmul.device.device import Device
from npumatmul.device.spec import PER_GROUP
from npumatmul.rknn import MatmulLayout, QuantType

__all__ = ["DemoRequest", "parse_demo", "run_demo"]


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
    defaults = {"B_layout": 0, "AC_layout": 0, "loop": 10, "core_mask": 0, "print": 1, "iommu": 0}
    if not 2 <= len(arguments) <= 2 + len(defaults):
        optional = " ".join(f"[{name}]" for name in defaults)
        raise ValueError(f"demo: the arguments are: type M,K,N {optional}; {len(arguments)} were given")
    mm_type, shape = type_of(arguments[0]), shape_of(arguments[1])
    b_layout, ac_layout, loops, core_mask, shown, domain = options_of(arguments[2:], defaults)
    layouts = MatmulLayout(b_layout), MatmulLayout(ac_layout)
    return DemoRequest(mm_type, *shape, *layouts, loops, core_mask, bool(shown), domain)


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
    b_quant = B_QUANT.get(request.mm_type, QuantType.PER_LAYER_SYM)
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
        say_attributes(context, say)
        if request.core_mask:
            set_core_mask(device, context, request.core_mask)
        scale = set_scales(context, request.mm_type, b_quant, request.k, request.n, 0.0001)
        held = [buffers.enter_context(device.buffer(attr.size, domain=request.domain)) for attr in attrs]
        a_buffer, b_buffer, c_buffer = held
        rng = np.random.default_rng(seed)
        a, b = (random_values(rng, request.mm_type, attr) for attr in attrs[:2])
        a_buffer.put(context.a, a)
        b_buffer.put(context.b, b)
        context.bind(a=a_buffer, b=b_buffer, c=c_buffer)
        timed_runs(device, context, request.loops, say, average=True)
        c = c_buffer.get(context.c)
        if request.print_tensors:
            show_tensors(context, held, say)
    correct = is_correct(request.mm_type, a, b, c, scale)
    layouts = request.b_layout, request.ac_layout
    say_verdict(request.mm_type, (request.m, request.k, request.n), layouts, correct, say)
    return correct
