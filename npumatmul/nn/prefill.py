"""Whether products of attention go through the NPU, and how many keys at once: by modelled time.

Attention multiplies what no weight is: keys and values are packed for each call, scores come back to the CPU for the
softmax and go to the NPU again. So it pays for many queries of long heads only. The chip's part is modelled, the CPU's
is measured on the machine that it runs on. The depth of products with values is the number of keys in a block, and
float16 of large depth is slow on these chips: that, too, the model knows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips.layout import round_up
from npumatmul.chips.limits import Chip
from npumatmul.chips.timing import Estimate
from npumatmul.chips.types import MatmulType
from npumatmul.device.device import Device
from npumatmul.errors import DeviceError
from npumatmul.nn.module import check_number, check_size
from npumatmul.nn.product import Float32
from npumatmul.ops import matmul
from npumatmul.planning.product import plan_matmul, plan_weight
from npumatmul.quant.routes import route_for
from npumatmul.quant.schemes import Scheme
from npumatmul.rknn.version import RuntimeVersion

__all__ = ["AttentionPlan", "AttentionPlans", "NpuProducts", "plan_attention"]

#: Keys of a block: depths at which float16 products do not collapse yet (`npumatmul.chips.timing`); scores have room.
_BLOCKS = (256, 512, 1024, 2048)
#: The last block is taken to be a multiple of so many keys.
_REST = 64
#: A value of B is read as float32 and written as float16 when it is packed; A's and C's passes are in the plans.
_PACKED_BYTES = 6
_MEASURED = (256, 128, 512)
_TIMES = 5
_REMEMBERED = 1024
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class AttentionPlan:
    """Modelled time of the products of one attention, on the NPU and on the CPU; both have the same softmax.

    Attributes
    ----------
    keys : int
        Keys of a block.
    npu : Estimate or None
        None where nobody has measured the chip.
    cpu_seconds : float

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> host = {"cpu_flops": 5e10, "pack_seconds": 3e-4}
    >>> plan_attention((1, 32, 512, 128), (1, 8, 2048, 128), chip("rk3588"), **host).pays
    True
    >>> plan_attention((1, 32, 1, 128), (1, 8, 2048, 128), chip("rk3588"), **host).pays
    False
    """

    keys: int
    npu: Estimate | None
    cpu_seconds: float

    @property
    def pays(self) -> bool:
        """Whether the NPU would be faster even if the model errs as much as it does nine times in ten."""
        return self.npu is not None and self.npu.high < self.cpu_seconds

    def __str__(self) -> str:
        on_npu = "not modelled" if self.npu is None else f"{self.npu}, by blocks of {self.keys} keys"
        return f"products of attention: NPU {on_npu}; CPU {self.cpu_seconds * 1e3:.2f} ms"


def plan_attention(
    q: Sequence[int],
    k: Sequence[int],
    chip: Chip,
    runtime: RuntimeVersion | None = None,
    *,
    cpu_flops: float,
    pack_seconds: float,
) -> AttentionPlan:
    """Compare the products of an attention on a chip's NPU with those on its CPU.

    Parameters
    ----------
    q, k : sequence of int
        Shapes of queries (..., H, T, D) and of keys (..., G, S, D); values are taken to be as wide as keys.
    chip : Chip
    runtime : RuntimeVersion, optional
        The chip's newest by default.
    cpu_flops : float
        Operations per second (two per multiply-accumulate) of float32 products on the CPU.
    pack_seconds : float
        What it takes to pack a small operand, multiply by it and give its memory back, all in software.

    Raises
    ------
    ValueError
        If one of these is not positive.
    """
    return AttentionPlans(chip, runtime).plan(q, k, cpu_flops=cpu_flops, pack_seconds=pack_seconds)


class AttentionPlans:
    """Plans for one chip; modelled times are kept. A device has one of these, and its lock is not needed.

    Parameters
    ----------
    chip : Chip
    runtime : RuntimeVersion, optional
    """

    def __init__(self, chip: Chip, runtime: RuntimeVersion | None = None) -> None:
        self._chip, self._runtime = chip, chip.runtime if runtime is None else runtime
        try:
            self._type: MatmulType | None = route_for(Scheme.parse("w16a16"), chip, self._runtime).mm_type
        except DeviceError:  # the chip, or its runtime, has no products of float16
            self._type = None
        self._products: dict[tuple[int, int, int], Estimate | None] = {}
        self._heads: dict[tuple[int, int, int, float], tuple[int, Estimate | None]] = {}
        self._measured: tuple[float, float] | None = None

    @classmethod
    def of(cls, device: Device) -> AttentionPlans:
        """Those of a device."""
        return device.attached(cls, lambda device: cls(device.chip, device.runtime_version))

    @property
    def known(self) -> bool:
        """Whether there is a model of the chip's float16 products."""
        model = self._chip.timings.get(self._chip.soc)
        return self._type is not None and model is not None and model.knows(self._type)

    def close(self) -> None:
        """There is nothing to be given back."""

    def measured(self, device: Device) -> tuple[float, float]:
        """`cpu_flops` and `pack_seconds` of this machine, measured once."""
        if self._measured is None:
            self._measured = cpu_flops(), pack_seconds(device)
        return self._measured

    def plan(self, q: Sequence[int], k: Sequence[int], *, cpu_flops: float, pack_seconds: float) -> AttentionPlan:
        """As `plan_attention`."""
        check_number("plan_attention", cpu_flops=cpu_flops, pack_seconds=pack_seconds)
        if cpu_flops <= 0 or pack_seconds <= 0:
            raise ValueError(
                f"plan_attention: cpu_flops is {cpu_flops} and pack_seconds {pack_seconds}; both are positive"
            )
        *lead, heads, t, dim = q
        kv_heads, s = k[-3], k[-2]
        check_size("plan_attention", heads=heads, t=t, dim=dim, kv_heads=kv_heads, s=s)
        rows, products = heads // kv_heads * t, math.prod(lead) * kv_heads
        keys, one = self._fastest(rows, s, dim, pack_seconds)
        cpu = 4.0 * products * rows * s * dim / cpu_flops
        estimate = None if one is None else Estimate(products * one.seconds, products * one.low, products * one.high)
        return AttentionPlan(keys, estimate, cpu)

    def _fastest(self, rows: int, s: int, dim: int, pack_seconds: float) -> tuple[int, Estimate | None]:
        """Keys of a block, and the time of one head of keys with them."""
        key = rows, s, dim, pack_seconds
        known = self._heads.get(key)
        if known is not None:
            return known
        found: tuple[int, Estimate | None] = _BLOCKS[1], None
        for keys in _BLOCKS:
            total = self._in_blocks(rows, s, dim, keys)
            if total is not None:
                software = 2 * -(-s // keys) * pack_seconds
                total += Estimate(software, software, software)
                if found[1] is None or total.seconds < found[1].seconds:
                    found = keys, total
        return _kept(self._heads, key, found)

    def _in_blocks(self, rows: int, s: int, dim: int, keys: int) -> Estimate | None:
        total = Estimate(0.0, 0.0, 0.0)
        whole, rest = divmod(s, keys)
        rest = round_up(rest, _REST)  # so that a prompt that grows is not planned anew for each of its parts
        for count, size in ((whole, keys), (min(rest, 1), rest)):
            if count:
                for depth, width in ((dim, size), (size, dim)):
                    each = self._product(rows, depth, width)
                    if each is None:
                        return None
                    total += Estimate(count * each.seconds, count * each.low, count * each.high)
        return total

    def _product(self, m: int, k: int, n: int) -> Estimate | None:
        """Modelled time of packing a float B of (K, N) and multiplying `m` rows with it."""
        if (m, k, n) in self._products:
            return self._products[m, k, n]
        chip = self._chip
        model = chip.timings.get(chip.soc)
        estimate = None
        if self._type is not None and model is not None and model.knows(self._type):
            plan = plan_matmul(m, plan_weight(k, n, self._type, chip, self._runtime), timings=chip.timings)
            if plan.modelled is not None:
                packing = Estimate.within(k * n * _PACKED_BYTES / model.host_bandwidth, model.within)
                estimate = plan.modelled.estimate + packing
        return _kept(self._products, (m, k, n), estimate)


def _kept(known: dict[_Key, _Value], key: _Key, value: _Value) -> _Value:
    known[key] = value
    while len(known) > _REMEMBERED:
        known.pop(next(iter(list(known))), None)
    return value


def cpu_flops() -> float:
    """Operations per second of numpy's float32 products on this machine: a few milliseconds."""
    m, k, n = _MEASURED
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    return 2.0 * m * k * n / _shortest(lambda: a @ b)


def pack_seconds(device: Device) -> float:
    """What packing, multiplying by and giving back a small operand takes on this machine."""
    a, b = np.ones((1, 32), np.float32), np.ones((32, 32), np.float32)
    return _shortest(lambda: matmul(a, b, device=device))


def _shortest(work: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(_TIMES):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return max(best, 1e-9)


class NpuProducts:
    """Products of attention on a device, as float16 with sums in float32.

    Attributes
    ----------
    keys : int
        Keys of a block.
    """

    def __init__(self, device: Device, keys: int) -> None:
        self._device, self.keys = device, keys

    @classmethod
    def of(cls, device: Device, q: Sequence[int], k: Sequence[int], always: bool = True) -> NpuProducts | None:
        """Products of such queries and keys; None where they would be slower than on the CPU, unless `always`."""
        plans = AttentionPlans.of(device)
        if not (always or plans.known):
            return None
        flops, seconds = plans.measured(device)
        plan = plans.plan(q, k, cpu_flops=flops, pack_seconds=seconds)
        return cls(device, plan.keys) if always or plan.pays else None

    def multiply(self, a: NDArray[Any], b: NDArray[Any]) -> Float32:
        """As `numpy.matmul`."""
        product: Float32 = matmul(a, b, device=self._device)
        return product
