"""What a context is asked for: type, shape, layouts, quantization, core and domain, and whether that makes sense."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from npumatmul.chips import Chip, TypeLimits
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.device.buffer import LARGEST_BUFFER
from npumatmul.errors import DeviceError
from npumatmul.rknn import MatmulInfo, MatmulLayout, QuantType

__all__ = ["ASYMMETRIC", "PER_CHANNEL", "PER_GROUP", "ContextSpec"]

PER_CHANNEL = (QuantType.PER_CHANNEL_SYM, QuantType.PER_CHANNEL_ASYM)
PER_GROUP = (QuantType.PER_GROUP_SYM, QuantType.PER_GROUP_ASYM)
ASYMMETRIC = (QuantType.PER_LAYER_ASYM, QuantType.PER_CHANNEL_ASYM, QuantType.PER_GROUP_ASYM)


@dataclass(frozen=True)
class ContextSpec:
    """What makes two contexts the same; `Device.context` describes the fields.

    Attributes
    ----------
    mm_type : MatmulType
    m, k, n : int
    b_layout, ac_layout : MatmulLayout
    b_quant, ac_quant : QuantType
    group_size : int
    core : int or None
    domain : int
    scales : tuple of (float, float, float), optional
        Those of A, B and C that the runtime is given when the context is made, one per matrix; without, what it
        assumes by itself (1). They are part of what makes two contexts the same: whether they may be changed between
        runs is not documented.
    """

    mm_type: MatmulType
    m: int
    k: int
    n: int
    b_layout: MatmulLayout = MatmulLayout.NORM
    ac_layout: MatmulLayout = MatmulLayout.NORM
    b_quant: QuantType = QuantType.PER_LAYER_SYM
    ac_quant: QuantType = QuantType.PER_LAYER_SYM
    group_size: int = 0
    core: int | None = None
    domain: int = 0
    scales: tuple[float, float, float] | None = None
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # computed once: specs are looked up on every matmul, and hashing enumerations is slow
        values = (self.mm_type, self.m, self.k, self.n, self.b_layout, self.ac_layout, self.core, self.domain)
        object.__setattr__(self, "_hash", hash((*values, self.scales)))

    @classmethod
    def of(
        cls,
        mm_type: MatmulType,
        shape: tuple[int, int, int],
        layouts: tuple[int, int],
        quants: tuple[int, int],
        group_size: int,
        core: int | None,
        domain: int,
    ) -> ContextSpec:
        """A spec of what a user gave: numbers of any integer type, enumerations also as numbers.

        Raises
        ------
        TypeError, ValueError
            If one of them is none.
        """
        if not isinstance(mm_type, MatmulType):
            raise TypeError(f"mm_type has to be a MatmulType, such as MatmulType.INT8_INT8_INT32, not {mm_type!r}")
        m, k, n = map(operator.index, shape)
        return cls(
            mm_type,
            m,
            k,
            n,
            MatmulLayout(layouts[0]),
            MatmulLayout(layouts[1]),
            QuantType(quants[0]),
            QuantType(quants[1]),
            operator.index(group_size),
            None if core is None else operator.index(core),
            operator.index(domain),
        )

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        layouts = f"B {self.b_layout.name.lower()}, A and C {self.ac_layout.name.lower()}"
        return f"{self.mm_type.name} {self.m}x{self.k}x{self.n}, {layouts}"

    def info(self) -> MatmulInfo:
        """The C struct, in the language of runtime 2.3.2."""
        return MatmulInfo(
            M=self.m,
            K=self.k,
            N=self.n,
            type=self.mm_type.code,
            B_layout=self.b_layout,
            B_quant_type=self.b_quant,
            AC_layout=self.ac_layout,
            AC_quant_type=self.ac_quant,
            iommu_domain_id=self.domain,
            group_size=self.group_size,
        )

    def check_log_level(self, chip: Chip, environment: Mapping[str, str]) -> None:
        """Refuse int4 at a level of the runtime's log at which creating it kills the process.

        Raises
        ------
        DeviceError
            If RKNN_LOG_LEVEL is such a level.
        """
        if ElementType.INT4 not in (self.mm_type.a, self.mm_type.b):
            return
        level = re.match(r"\s*\+?(\d{1,9})", environment.get("RKNN_LOG_LEVEL", ""))  # as C's atoi reads it
        if level is not None and int(level[1]) > chip.int4_log_level:
            raise DeviceError(
                f"RKNN_LOG_LEVEL is {level[1]}: above {chip.int4_log_level}, creating a matmul with int4 kills the "
                f"process inside the vendor's library (facts 15). Start the program with {chip.int4_log_level} or less "
                "or without the variable; or use a scheme without int4"
            )

    def check(self, chip: Chip, limits: TypeLimits, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Refuse what would crash a runtime, or be cut to another value on its way into the C struct.

        Raises
        ------
        ValueError
            If a field makes no sense.
        """
        for m, k, n in shapes:
            if not (0 < m < 2**31 and 0 < k < 2**31 and 0 < n < 2**31):
                raise ValueError(f"M, K and N must be positive and fit int32, not {(m, k, n)}")
            mm_type = self.mm_type
            largest = max(mm_type.a.nbytes(m * k), mm_type.b.nbytes(k * n), mm_type.c.nbytes(m * n))
            if largest > LARGEST_BUFFER:
                raise ValueError(f"{(m, k, n)} makes a tensor of {largest} bytes; the C API ends at {LARGEST_BUFFER}")
            broken = {k, n} & set(limits.avoid)
            if broken:
                raise ValueError(
                    f"{(m, k, n)}: {mm_type.name} with a K or N of {broken.pop()} is reported to abort the process "
                    "inside the vendor's library; split it otherwise"
                )
            if self.ac_layout is not MatmulLayout.NATIVE:
                continue
            multiple = chip.native.row_multiple
            if m > 1 and m % multiple:
                raise ValueError(
                    f"M = {m}: with native A and C, M has to be 1 or a multiple of {multiple}, other M were recorded "
                    "to go wrong (facts 14); pad the rows"
                )
            if limits.native_rows is not None and m > (most := limits.native_rows.most(k, n)):
                instead = f"split M into parts of at most {most}" if most else f"split K, {k} is too deep"
                raise ValueError(
                    f"{(m, k, n)}: {mm_type.name} with native A and C is known to be safe with at most {most} rows for "
                    f"this K and N; with more the vendor's rknn_matmul_create kills the process (facts 15). Either "
                    f"{instead}, or take A and C in normal layout"
                )
        if self.ac_layout not in (MatmulLayout.NORM, MatmulLayout.NATIVE):
            raise ValueError(f"A and C can be in layout NORM or NATIVE, not {self.ac_layout.name}")
        if self.ac_quant not in (QuantType.PER_LAYER_SYM, QuantType.PER_LAYER_ASYM):
            raise ValueError(f"A and C have scales per layer only, not {self.ac_quant.name} (facts 5.1)")
        if self.b_quant in PER_GROUP:
            if not 0 < self.group_size < 2**15 or any(k % self.group_size for _, k, _ in shapes):
                raise ValueError(f"group_size {self.group_size} does not divide K; documented is 32 (Q2)")
        elif self.group_size:
            raise ValueError(f"group_size {self.group_size} is of use with a per-group b_quant only")
        if self.core is not None and not 0 <= self.core < chip.cores:
            raise ValueError(f"core {self.core}: {chip.soc} has cores 0 to {chip.cores - 1}")
        domains = chip.memory.domains
        if not 0 <= self.domain < domains:
            raise ValueError(f"domain {self.domain}: IOMMU domains are 0 to {domains - 1}")
