"""What planning takes of the capability table: a chip with its native layouts, and the limits of its matmul types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from npumatmul.chips.cells import Cell
from npumatmul.chips.native_rows import NativeRows
from npumatmul.chips.probe_file import ProbeResults
from npumatmul.chips.rows import (
    M_MAX,
    NEWEST_RUNTIME,
    ROWS,
    NativeTiles,
)
from npumatmul.chips.table import (
    Capabilities,
    TypeCapabilities,
    broken_extents,
    build,
    build_type,
    capabilities,
)
from npumatmul.chips.timing import TIMINGS, TimingModel, find_timing
from npumatmul.chips.types import MatmulType
from npumatmul.errors import DeviceError
from npumatmul.rknn.socs import meant, plain_name
from npumatmul.rknn.version import RuntimeVersion

__all__ = ["CHIPS", "Chip", "MemoryLimits", "TypeLimits", "chip", "chip_here"]


@dataclass(frozen=True)
class TypeLimits:
    """Limits of one matmul type on one chip, in elements.

    Attributes
    ----------
    k_multiple, n_multiple : int
        K and N have to be multiples of these.
    k_max, n_max : int
        Largest K and N that are given to one context. K above it is summed on the host, N is split.
    native_rows : NativeRows or None
        Largest M with native A and C by K and N, where more kill the process.
    m_max : int
        Largest M that is given to one context. No source states a limit (Q10): this is the library's choice, which
        bounds the buffers for A and C.
    avoid : tuple of int
        Extents of K and N that are known to abort the process inside the vendor's library (`Problem.extents`).
    provenance : str
        Where the figures come from.
    """

    k_multiple: int
    n_multiple: int
    k_max: int
    n_max: int
    native_rows: NativeRows | None = None
    provenance: str = ""
    m_max: int = M_MAX.value
    avoid: tuple[int, ...] = ()

    @classmethod
    def of(cls, row: TypeCapabilities, avoid: tuple[int, ...] = ()) -> TypeLimits:
        """Limits out of the table's cells."""
        cells: dict[str, Cell[int]] = {
            "K multiple": row.k_multiple, "N multiple": row.n_multiple, "K": row.k_max, "N": row.n_max,
        }  # fmt: skip
        said = "; ".join(f"{name}: {cell.source} ({cell.provenance.value})" for name, cell in cells.items())
        return cls(
            row.k_multiple.value,
            row.n_multiple.value,
            row.k_max.value,
            row.n_max.value,
            row.native_rows.value,
            said,
            row.m_max.value,
            avoid,
        )

    def most_rows(self, k: int, n: int, native: bool) -> int:
        """Largest M that is given to a context with this K and N, A and C native or not; 0: none is safe.

        Examples
        --------
        >>> int4 = chip("rk3588").type_limits(MatmulType.INT4_INT4_INT16)
        >>> int4.most_rows(4096, 64, native=True), int4.most_rows(4096, 64, native=False)
        (64, 512)
        """
        if not native or self.native_rows is None:
            return self.m_max
        return min(self.m_max, self.native_rows.most(k, n))


@dataclass(frozen=True)
class MemoryLimits:
    """Limits on contexts and memory of one process.

    Attributes
    ----------
    contexts : int or None
        Contexts that one process can have; None: as many as there are descriptors and memory for.
    context_descriptors : int
        File descriptors that each context holds.
    domain_bytes : int
        Usable bytes of one IOMMU domain.
    domains : int
        IOMMU domains, numbered from 0.
    slice_alignment : int
        Bytes that offsets of slices (`rknn_create_mem_from_fd`) are multiples of.
    provenance : str
        Where the figures come from.
    """

    contexts: int | None
    context_descriptors: int
    domain_bytes: int
    domains: int
    slice_alignment: int
    provenance: str


@dataclass(frozen=True)
class Chip:
    """One chip, as planning takes it from the table.

    Attributes
    ----------
    soc : str
        Name, such as ``"rk3588"``.
    cores : int
        NPU cores (facts 8).
    native : NativeTiles
        Native layout.
    limits : mapping of MatmulType to TypeLimits
        The supported types (facts 3.2) under `runtime`.
    memory : MemoryLimits
        Limits per process.
    int4_log_level : int
        Highest RKNN_LOG_LEVEL at which creating int4 is known not to kill the process.
    runtime : RuntimeVersion
        The version that the chip is looked at under; the newest that is known, where none was named.
    probed : ProbeResults or None
        What was found on this machine; it overrides the table for the runtime that it was found under.
    timings : mapping of str to TimingModel
        The constants that its time is modelled by, under its name; empty where nothing is known.
    """

    soc: str
    cores: int
    native: NativeTiles
    limits: Mapping[MatmulType, TypeLimits]
    memory: MemoryLimits
    int4_log_level: int
    runtime: RuntimeVersion = NEWEST_RUNTIME
    probed: ProbeResults | None = None
    timings: Mapping[str, TimingModel] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, table: Capabilities, timing: TimingModel | None = None) -> Chip:
        """Chip out of the table, with the constants that its time is modelled by; by default those that are known."""
        timing = TIMINGS.get(table.soc) if timing is None else timing
        limits = {
            t: TypeLimits.of(row, broken_extents(table.soc, t, table.runtime))
            for t, row in table.types.items()
            if row.supported.value
        }
        memory = MemoryLimits(
            table.contexts.value,
            table.context_descriptors.value,
            table.domain_bytes.value,
            table.iommu_domains.value,
            table.slice_alignment.value,
            f"{table.contexts.source}; {table.domain_bytes.source}",
        )
        return cls(
            table.soc,
            table.cores.value,
            table.native_tiles(),
            limits,
            memory,
            table.int4_log_level.value,
            table.runtime,
            table.probed,
            {} if timing is None else {table.soc: timing},
        )

    @property
    def has_core_mask(self) -> bool:
        """Whether a context can be bound to a core; the call fails on single-core chips (facts 8)."""
        return self.cores > 1

    def type_row(self, mm_type: MatmulType, runtime: RuntimeVersion | None = None) -> TypeCapabilities:
        """A type's cells of the table, with what was found on this machine if it was found under this runtime."""
        runtime = runtime or self.runtime
        fits = self.probed is not None and self.probed.runtime == runtime
        return build_type(self.soc, mm_type, runtime, self.probed if fits else None)

    def b_tile(self, mm_type: MatmulType) -> tuple[int, int]:
        """Rows (along N) and columns (along K) of a tile of native B; mixed types follow A's type (facts 4.5).

        Raises
        ------
        DeviceError
            If no source documents it.

        Examples
        --------
        >>> chip("rk3576").b_tile(MatmulType.FLOAT16_INT4_FLOAT32)
        (16, 32)
        """
        tile = self.type_row(mm_type).b_tile
        if tile.value is None:
            raise DeviceError(f"the native layout of B of {mm_type.name} on {self.soc} is not known ({tile.source})")
        return tile.value

    def type_limits(self, mm_type: MatmulType, runtime: RuntimeVersion = NEWEST_RUNTIME) -> TypeLimits:
        """Limits of a matmul type under a runtime version.

        Raises
        ------
        DeviceError
            If the chip or the runtime does not have that type.

        Examples
        --------
        >>> chip("rk3588").type_limits(MatmulType.INT8_INT8_INT32).k_max
        8192
        """
        if runtime == self.runtime and mm_type in self.limits:
            return self.limits[mm_type]
        row = self.type_row(mm_type, runtime)
        if row.supported.value:
            return TypeLimits.of(row, broken_extents(self.soc, mm_type, runtime))
        if mm_type in CHIPS[self.soc].limits:
            raise DeviceError(f"{self.soc}: matmul type {mm_type.name} {row.supported.source}; this is {runtime}")
        raise DeviceError(
            f"{self.soc} has no matmul type {mm_type.name} ({row.supported.source}); "
            f"it has {', '.join(t.name for t in self.limits)}"
        )


#: Every chip with the matmul API (facts 3.1), by name, as the sources have it.
CHIPS: Mapping[str, Chip] = {soc: Chip.of(build(soc, NEWEST_RUNTIME)) for soc in ROWS}


def chip(soc: str) -> Chip:
    """A chip as the sources have it.

    Raises
    ------
    DeviceError
        If the chip is not in the table.

    Examples
    --------
    >>> chip("rk3588").cores
    3
    """
    found = CHIPS.get(plain_name(soc)) if isinstance(soc, str) else None
    if found is None:
        raise DeviceError(f"chip {soc!r} is not known; known are {', '.join(CHIPS)}{meant(str(soc))}")
    return found


def chip_here(soc: str, runtime: RuntimeVersion, simulated: bool = False) -> Chip:
    """A chip with what was found and fitted on this machine, under this runtime: what a device plans with.

    Raises
    ------
    DeviceError
        If the chip is not in the table.

    Examples
    --------
    >>> chip_here("rk3588", RuntimeVersion(2, 3, 2), simulated=True).soc
    'rk3588'
    """
    return Chip.of(capabilities(soc, runtime, simulated=simulated), find_timing(soc, simulated))
