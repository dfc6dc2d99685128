"""The capability table as one object: what a chip can do under a runtime version, each cell with its source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from npumatmul.chips import rows
from npumatmul.chips.cells import Cell, Provenance, broken, documented, observed, unsettled
from npumatmul.chips.contradictions import contradiction
from npumatmul.chips.native_rows import RECORDED, NativeRows
from npumatmul.chips.probe_file import AS_RECORDED, ProbeResults, find_probe_results
from npumatmul.chips.rows import NEWEST_RUNTIME, OLDEST_RUNTIME, ROWS, ChipRow, NativeTiles, Problem
from npumatmul.chips.text import as_text
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.errors import DeviceError
from npumatmul.rknn.differences import type_since
from npumatmul.rknn.socs import meant, plain_name
from npumatmul.rknn.version import RuntimeVersion

__all__ = ["Capabilities", "TypeCapabilities", "broken_extents", "build", "build_type", "capabilities"]

_V160, _V200, _V210, _V220 = (RuntimeVersion(*v) for v in ((1, 6, 0), (2, 0, 0), (2, 1, 0), (2, 2, 0)))
_V221 = RuntimeVersion(2, 2, 1)


@dataclass(frozen=True)
class TypeCapabilities:
    """What one matmul type can do; sizes in elements.

    Attributes
    ----------
    supported : Cell of bool
    k_multiple, n_multiple : Cell of int
        K and N have to be multiples of these.
    k_max, n_max, m_max : Cell of int
        Largest extents that the library gives to one context.
    k_limit, n_limit, m_limit : Cell of int or None
        Largest extents that create accepts; None: no limit is known.
    native_rows : Cell of NativeRows or None
        Largest M with native A and C by K and N, where more kill the process; None: no such limit is known.
    k_segment : Cell of int or None
        A native B that is deeper is stored in segments of this depth.
    ac_normal, ac_native : Cell of bool
        Whether A and C, together, can be row-major and native.
    b_normal, b_native, b_transposed : Cell of bool
        Whether B can be row-major [K, N], native, row-major [N, K] (TP_NORM).
    a_group, c_group : Cell of int or None
        Columns per group of native A and C; None: not documented.
    b_tile : Cell of (int, int) or None
        Rows (along N) and columns (along K) of a tile of native B.
    per_layer, per_channel, per_group : Cell of bool
        Scales of B that work: one; one per column; one per `group_sizes` rows and column.
    group_sizes : Cell of tuple of int
        Group sizes that are known to work.
    asymmetric, group_asymmetric : Cell of bool
        Whether B can have zero points other than 0; the same for scales per group.
    overflow : Cell of str or None
        What becomes of sums that C is too narrow for: ``"saturate"`` or ``"wrap"``; None: not known.
    scales_apply : Cell of bool or None
        Whether quantization parameters change a C that is a plain sum; None: not known, or C is not a plain sum.
    """

    supported: Cell[bool]
    k_multiple: Cell[int]
    n_multiple: Cell[int]
    k_max: Cell[int]
    n_max: Cell[int]
    m_max: Cell[int]
    k_limit: Cell[int | None]
    n_limit: Cell[int | None]
    m_limit: Cell[int | None]
    native_rows: Cell[NativeRows | None]
    k_segment: Cell[int | None]
    ac_normal: Cell[bool]
    ac_native: Cell[bool]
    b_normal: Cell[bool]
    b_native: Cell[bool]
    b_transposed: Cell[bool]
    a_group: Cell[int | None]
    b_tile: Cell[tuple[int, int] | None]
    c_group: Cell[int | None]
    per_layer: Cell[bool]
    per_channel: Cell[bool]
    per_group: Cell[bool]
    group_sizes: Cell[tuple[int, ...]]
    asymmetric: Cell[bool]
    group_asymmetric: Cell[bool]
    overflow: Cell[str | None]
    scales_apply: Cell[bool | None]


@dataclass(frozen=True)
class Capabilities:
    """What one chip can do under one runtime version.

    Attributes
    ----------
    soc : str
    runtime : RuntimeVersion
    cores : Cell of int
        NPU cores.
    core_masks : Cell of tuple of int
        Values that a context can be bound with; empty where there is nothing to choose.
    row_multiple : Cell of int
        With native A and C, M is 1 or a multiple of this.
    contexts : Cell of int or None
        Contexts that one process can have; None: as many as there are descriptors and memory for.
    context_descriptors : Cell of int
        File descriptors that each context holds.
    iommu_domains : Cell of int
        Domains, numbered from 0.
    domain_bytes : Cell of int
        Usable bytes of one domain.
    slice_alignment : Cell of int
        Bytes that offsets of slices (`rknn_create_mem_from_fd`) are multiples of.
    mem_sync, quant_params, dynamic_shapes : Cell of bool
        Whether the runtime has these functions.
    dynamic_kn : Cell of bool
        Whether the shapes of a dynamic context may differ in K and N.
    int4_even_nibble : Cell of str
        ``"low"`` or ``"high"``: which half of a byte holds the even one of two int4.
    int4_log_level : Cell of int
        Highest RKNN_LOG_LEVEL at which creating a matmul with int4 is known not to kill the process.
    helper_int4 : Cell of str or None
        ``"packed"`` or ``"one per byte"``: what the helper that packs B takes as int4; None: not known.
    group_order : Cell of str or None
        Index of a group's scale: ``"g*N+n"`` or ``"n*(K/G)+g"``; None: not known.
    types : mapping of MatmulType to TypeCapabilities
        All thirteen, supported or not.
    problems : tuple of Problem
        Known-broken paths and shapes that concern this chip and runtime.
    probed : ProbeResults or None
        What was found on this machine, where that was taken in.

    Examples
    --------
    >>> table = capabilities("rk3588", probed=False)
    >>> print(table.types[MatmulType.INT8_INT8_INT32].k_max)
    8192 (documented: no segments up to it: facts 4.4)
    >>> table.types[MatmulType.INT8_INT8_INT32].per_channel.provenance.value
    'reported broken'
    """

    soc: str
    runtime: RuntimeVersion
    cores: Cell[int]
    core_masks: Cell[tuple[int, ...]]
    row_multiple: Cell[int]
    contexts: Cell[int | None]
    context_descriptors: Cell[int]
    iommu_domains: Cell[int]
    domain_bytes: Cell[int]
    slice_alignment: Cell[int]
    mem_sync: Cell[bool]
    quant_params: Cell[bool]
    dynamic_shapes: Cell[bool]
    dynamic_kn: Cell[bool]
    int4_even_nibble: Cell[str]
    int4_log_level: Cell[int]
    helper_int4: Cell[str | None]
    group_order: Cell[str | None]
    types: Mapping[MatmulType, TypeCapabilities]
    problems: tuple[Problem, ...]
    probed: ProbeResults | None = None

    def cells(self) -> Iterator[tuple[str, Cell[Any]]]:
        """Every cell with its name: that of the chip's field, or ``<matmul type>.<field>``."""
        for name in CHIP_CELLS:
            yield name, getattr(self, name)
        for mm_type, row in self.types.items():
            for name in TYPE_CELLS:
                yield f"{mm_type.name}.{name}", getattr(row, name)

    def native_tiles(self) -> NativeTiles:
        """Native layouts by element type, as homogeneous types have them."""
        base = ROWS[self.soc].native
        a, b, c = dict(base.a), dict(base.b), dict(base.c)
        for mm_type, row in self.types.items():
            probed_cell = Provenance.PROBED
            if row.a_group.provenance is probed_cell and row.a_group.value is not None:
                a[mm_type.a] = row.a_group.value
            if row.b_tile.provenance is probed_cell and row.b_tile.value is not None and mm_type.a is mm_type.b:
                b[mm_type.b] = row.b_tile.value
            if row.c_group.provenance is probed_cell and row.c_group.value is not None:
                c[mm_type.c] = row.c_group.value
        return NativeTiles(a, b, c, self.row_multiple.value)

    def to_dict(self) -> dict[str, Any]:
        """The table as what JSON can hold."""

        def shown(cell: Cell[Any]) -> dict[str, Any]:
            value = cell.value
            if isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, NativeRows):
                value = value.to_dict()
            return {"value": value, "provenance": cell.provenance.value, "source": cell.source}

        return {
            "soc": self.soc,
            "runtime": str(self.runtime),
            **{name: shown(getattr(self, name)) for name in CHIP_CELLS},
            "types": {
                mm_type.name: {"number": int(mm_type.code), **{n: shown(getattr(row, n)) for n in TYPE_CELLS}}
                for mm_type, row in self.types.items()
            },
            "problems": [
                {
                    "what": problem.what,
                    "provenance": Provenance.BROKEN.value,
                    "source": problem.source,
                    "types": [mm_type.name for mm_type in problem.types],
                    "extents": list(problem.extents),
                }
                for problem in self.problems
            ],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def __str__(self) -> str:
        return as_text(self, CHIP_CELLS)


CHIP_CELLS = tuple(
    field.name for field in fields(Capabilities) if field.name not in ("soc", "runtime", "types", "problems", "probed")
)
TYPE_CELLS = tuple(field.name for field in fields(TypeCapabilities))


def capabilities(
    soc: str, runtime: RuntimeVersion | str = NEWEST_RUNTIME, *, probed: bool = True, simulated: bool = False
) -> Capabilities:
    """What a chip can do under a runtime version.

    Parameters
    ----------
    soc : str
        Such as ``"rk3588"``.
    runtime : RuntimeVersion or str, optional
        Version of `librknnrt.so`; by default the newest that is known. A string names one that is known; a newer one is
        taken as a `RuntimeVersion`, as a library reports it (`Device.runtime_version`), and as the newest known.
    probed : bool, optional
        Whether what `npumatmul probe` found on this machine overrides the table.
    simulated : bool, optional
        Whether that is the simulator's file instead of the board's.

    Returns
    -------
    Capabilities

    Raises
    ------
    DeviceError
        If the chip is not in the table, or the version is none, or not known.

    Examples
    --------
    >>> capabilities("rk3576", "2.3.0").types[MatmulType.FLOAT16_INT4_FLOAT32].b_tile.value
    (16, 32)
    """
    if isinstance(runtime, str):
        version = RuntimeVersion.parse(runtime)
        if version is None:
            raise DeviceError(f"{runtime!r} is no runtime version; write it like 2.3.2")
        if not OLDEST_RUNTIME <= version <= NEWEST_RUNTIME:
            raise DeviceError(
                f"nothing is known of runtime {version}; versions from {OLDEST_RUNTIME} to {NEWEST_RUNTIME} are known. "
                "What is assumed of another one is shown where a library reports it: on its board, without naming it"
            )
        runtime = version
    soc = plain_name(soc) if isinstance(soc, str) else soc
    _row(soc)  # before a file is looked for under that name
    if not probed:
        return build(soc, runtime)

    def contradicts(results: ProbeResults) -> str | None:
        return contradiction(build(soc, runtime, results))

    return build(soc, runtime, find_probe_results(soc, runtime, simulated, contradiction=contradicts))


def build(soc: str, runtime: RuntimeVersion, results: ProbeResults | None = None) -> Capabilities:
    """The table of a chip and a version, with given probe results or none.

    Raises
    ------
    DeviceError
        If the chip is not in the table.
    """
    row = _row(soc)
    cells = _chip(row, runtime)
    if results is not None:
        cells.update({name: _probed(*found) for name, found in results.cells.items() if "." not in name})
    return Capabilities(
        soc=soc,
        runtime=runtime,
        types={mm_type: build_type(soc, mm_type, runtime, results) for mm_type in MatmulType},
        problems=tuple(problem for problem in rows.PROBLEMS if problem.concerns(soc, runtime)),
        probed=results,
        **cells,
    )


def build_type(
    soc: str, mm_type: MatmulType, runtime: RuntimeVersion, results: ProbeResults | None = None
) -> TypeCapabilities:
    """One type's part of `build`."""
    row = _known_type(soc, mm_type, runtime)
    if results is None:
        return row
    mine = mm_type.name + "."
    found = {name[len(mine) :]: _probed(*cell) for name, cell in results.cells.items() if name.startswith(mine)}
    if "native_rows" in found:
        rows_here = found["native_rows"]
        found["native_rows"] = replace(rows_here, value=_native_rows(rows_here.value))
    return _consistent(replace(row, **found))


def broken_extents(soc: str, mm_type: MatmulType, runtime: RuntimeVersion) -> tuple[int, ...]:
    """K and N that are known to abort the process inside the runtime."""
    return tuple(
        extent
        for problem in rows.PROBLEMS
        if problem.concerns(soc, runtime) and (not problem.types or mm_type in problem.types)
        for extent in problem.extents
    )


def _row(soc: str) -> ChipRow:
    if not isinstance(soc, str) or soc not in ROWS:
        raise DeviceError(f"chip {soc!r} is not known; known are {', '.join(ROWS)}{meant(str(soc))}")
    return ROWS[soc]


def _native_rows(value: Any) -> NativeRows | None:
    """Out of a probe file."""
    return RECORDED if value == AS_RECORDED else None if value is None else NativeRows.of(value)


def _probed(value: Any, source: str) -> Cell[Any]:
    return Cell(tuple(value) if isinstance(value, list) else value, Provenance.PROBED, source)


def _chip(row: ChipRow, runtime: RuntimeVersion) -> dict[str, Any]:
    """The cells of the chip as a whole."""
    single = tuple(1 << core for core in range(row.cores)) if row.cores > 1 else ()
    masks: Cell[tuple[int, ...]] = documented((), "single core: the call returns -1: facts 8")
    if row.cores > 1:
        masks = broken((0, *single), "combined masks are documented and refused in the field: D12, Q19")
    has_domains = runtime >= _V200
    high = runtime < _V200
    return {
        "cores": documented(row.cores, "guide 5.3: facts 8"),
        "core_masks": masks,
        "row_multiple": (
            observed(row.native.row_multiple, "recorded on runtime 1.6.0: facts 14")
            if runtime < _V200
            else unsettled(row.native.row_multiple, "recorded on 1.6.0, one report of M = 5 right on 2.3: Q10")
        ),
        "contexts": rows.CONTEXTS,
        "context_descriptors": rows.CONTEXT_DESCRIPTORS,
        "iommu_domains": rows.DOMAINS if has_domains else documented(1, "domains since 2.0.0b0: facts 7.4"),
        "domain_bytes": rows.DOMAIN_BYTES,
        "slice_alignment": rows.SLICE_ALIGNMENT,
        "mem_sync": documented(runtime >= _V160, "since 1.6.0: facts 1.5"),
        "quant_params": documented(has_domains, "since 2.0.0b0: facts 1.5"),
        "dynamic_shapes": documented(has_domains, "since 2.0.0b0: facts 1.5"),
        "dynamic_kn": unsettled(False, "header: only M; API reference: M, K and N: D16, Q26"),
        "int4_even_nibble": (
            observed("high", "recorded on 1.6.0: D28, facts 14")
            if high
            else observed("low", "demos since 2.0.0b0, a backend on rk3588: D28, facts 4.6")
        ),
        "int4_log_level": rows.int4_log_level(row.soc, runtime),
        "helper_int4": unsettled(None, "demos pass pairs, others one per byte: Q3, facts 4.6"),
        "group_order": unsettled(None, "a demo's loop suggests g*N+n: Q1"),
    }


def _supported(row: ChipRow, mm_type: MatmulType, runtime: RuntimeVersion) -> Cell[bool]:
    if runtime < row.since:
        return documented(False, f"{row.soc} needs runtime {row.since} or later: facts 0")
    cell = row.types.get(mm_type) or rows.OPEN_TYPES.get(mm_type) or rows.ABSENT
    since = type_since(mm_type.code)
    if cell.value and runtime < since:
        return documented(False, f"needs runtime {since} or later: facts 1.4")
    return cell


@cache
def _known_type(soc: str, mm_type: MatmulType, runtime: RuntimeVersion) -> TypeCapabilities:
    """What the sources say of a type; asked for each weight that is loaded."""
    return _type(_row(soc), mm_type, runtime)


def _type(row: ChipRow, mm_type: MatmulType, runtime: RuntimeVersion) -> TypeCapabilities:
    sizes = row.sizes.get(mm_type.a)
    if sizes is None:  # int4 A on chips that have none: what int8 has, until somebody probes it
        like = row.sizes[ElementType.INT8]
        sizes = rows.Sizes(
            *(
                unsettled(cell.value, "as int8: Q12")
                for cell in (like.k_multiple, like.n_multiple, like.k_max, like.n_max)
            )
        )
    n_multiple = sizes.n_multiple
    if mm_type.b is ElementType.INT4 and mm_type.a is not ElementType.INT4:
        n_multiple = documented(rows.N_OF_INT4, "header asks for it with an int4 B: facts 3.4")
    k_limit = _k_limit(row, mm_type, runtime)
    k_max = sizes.k_max
    if k_limit.value is not None and k_limit.value < k_max.value:
        k_max = Cell(k_limit.value, k_limit.provenance, k_limit.source)
    quiet = runtime < _V200  # no limit of N or M was met in recordings of 1.6.0
    none_met = observed(None, "none met on 1.6.0 up to 152064 (N) and 65536 (M): facts 14")
    segment: Cell[int | None] = documented(None, "not mentioned for this chip: facts 4.4")
    if row.k_segment is not None:
        segment = documented(row.k_segment, "guide 3.5.4.1, header: facts 4.4, Q4")
        if quiet:
            segment = observed(None, "1.6.0 has no segments: facts 14")
    return TypeCapabilities(
        supported=_supported(row, mm_type, runtime),
        k_multiple=sizes.k_multiple,
        n_multiple=n_multiple,
        k_max=k_max,
        n_max=sizes.n_max,
        m_max=rows.M_MAX,
        k_limit=k_limit,
        n_limit=none_met if quiet else rows.N_LIMIT,
        m_limit=none_met if quiet else unsettled(None, "no source states one: Q10"),
        native_rows=rows.native_rows(row.soc, mm_type, runtime),
        k_segment=segment,
        **_layouts(row, mm_type, runtime),
        **_scales(row, mm_type, runtime),
    )


def _k_limit(row: ChipRow, mm_type: MatmulType, runtime: RuntimeVersion) -> Cell[int | None]:
    if runtime < _V160:
        return rows.K_LIMIT_1_5_2.get(mm_type.a, row.k_limit_1_6_0)
    return row.k_limit_1_6_0 if runtime < _V200 else row.k_limit


def _layouts(row: ChipRow, mm_type: MatmulType, runtime: RuntimeVersion) -> dict[str, Any]:
    open_c = unsettled(None, f"no source documents a native C of {mm_type.c.label}: Q6")
    table = "guide 3-12: facts 4.2"
    a_group: Cell[int | None] = unsettled(None, f"no source documents a native A of {mm_type.a.label}")
    if mm_type.a in row.native.a:
        a_group = documented(row.native.a[mm_type.a], table)
    c_group: Cell[int | None] = open_c
    if mm_type.c in row.native.c:
        c_group = documented(row.native.c[mm_type.c], table)
    native = a_group.value is not None and c_group.value is not None
    b_tile: Cell[tuple[int, int] | None] = unsettled(None, f"no source documents it for {mm_type.name}")
    if mm_type is MatmulType.INT8_INT4_FLOAT16:
        b_tile = unsettled(None, "two rules of the guide disagree: D17, Q12")
    elif mm_type.a in row.native.b:
        mixed = mm_type.a is not mm_type.b
        b_tile = documented(row.native.b[mm_type.a], "guide 3.5.4 note: facts 4.5" if mixed else table)
    normal: Cell[bool] = documented(True, "guide 3.5.4")
    if row.soc == "rk3588" and _V220 <= runtime < _V221:
        normal = broken(False, "results all zero with normal layouts: rknn-toolkit2#154, facts 11.4")
    transposed: Cell[bool] = documented(row.transposed_b, "guide 3.5.4.1, garbled: D19")
    if runtime < _V210:
        transposed = unsettled(False, "in headers since 2.1.0, a changelog says 2.0.0b19: facts 1.4")
    return {
        "ac_normal": normal,
        "ac_native": documented(True, table) if native else unsettled(False, "native A or C is not documented: Q6"),
        "b_normal": normal,
        "b_native": documented(True, table) if b_tile.value else unsettled(False, b_tile.source),
        "b_transposed": transposed,
        "a_group": a_group,
        "b_tile": b_tile,
        "c_group": c_group,
    }


def _scales(row: ChipRow, mm_type: MatmulType, runtime: RuntimeVersion) -> dict[str, Any]:
    integer_b = mm_type.b in (ElementType.INT8, ElementType.INT4)
    plain_sum = mm_type.c in (ElementType.INT32, ElementType.INT16)
    none = documented(False, "B is not of integers")
    per_layer: Cell[bool] = documented(True, "guide 3.5.3") if integer_b else none
    per_channel = row.per_channel.get(mm_type, unsettled(False, "no source offers it for the type: D13"))
    per_group = row.per_group.get(mm_type, unsettled(False, "no source offers it for the type: D15"))
    asymmetric: Cell[bool] = documented(True, "guide 3.5.3; D14")
    if not integer_b:
        per_channel, per_group, asymmetric = none, none, none
    if runtime < _V200:
        per_layer = per_channel = per_group = asymmetric = documented(False, "quant params since 2.0.0b0: facts 1.5")
    elif runtime < _V210:
        per_group = documented(False, "groups since 2.1.0: facts 1.5")
    overflow: Cell[str | None] = documented(None, "C is as wide as the sums")
    if mm_type.c in (ElementType.INT16, ElementType.INT8):
        overflow = unsettled(None, "Q20")
    applied: Cell[bool | None] = documented(None, "C is not a plain sum")
    if plain_sum:
        applied = unsettled(None, "the demo takes C as the plain sum: Q21")
    return {
        "per_layer": per_layer,
        "per_channel": per_channel,
        "per_group": per_group,
        "group_sizes": documented((32,) if per_group.value else (), "demos use 32: Q2"),
        "asymmetric": asymmetric,
        "group_asymmetric": unsettled(False, "the release note says symmetric only: D15, Q2"),
        "overflow": overflow,
        "scales_apply": applied,
    }


def _consistent(row: TypeCapabilities) -> TypeCapabilities:
    """What the library gives to a context, within limits that were found here."""
    for extent in ("k", "n"):
        largest, limit = getattr(row, f"{extent}_max"), getattr(row, f"{extent}_limit")
        multiple = getattr(row, f"{extent}_multiple").value
        if limit.provenance is Provenance.PROBED and limit.value is not None and limit.value < largest.value:
            row = replace(row, **{f"{extent}_max": replace(limit, value=limit.value // multiple * multiple)})
    return row
