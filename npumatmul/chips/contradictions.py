"""Cells of the capability table that each can be and cannot be so together: nothing may be computed by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npumatmul.chips.table import Capabilities, TypeCapabilities

__all__ = ["contradiction"]

#: What cells of a chip can be at most: more is no chip.
_MOST_DOMAINS, _LARGEST_ALIGNMENT, _SMALLEST_DOMAIN = 256, 1 << 20, 1 << 20


def contradiction(table: Capabilities) -> str | None:
    """What contradicts itself in a table; None where nothing does.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from npumatmul.chips.table import capabilities
    >>> table = capabilities("rk3588", probed=False)
    >>> contradiction(table)
    >>> contradiction(replace(table, row_multiple=replace(table.row_multiple, value=3)))
    'row_multiple 3 is no power of two'
    """
    return next(_of_chip(table), None) or next(
        (
            f"{mm_type.name}: {problem}"
            for mm_type, row in table.types.items()
            if row.supported.value
            for problem in _of_type(row, table.row_multiple.value)
        ),
        None,
    )


def _of_chip(table: Capabilities) -> Iterator[str]:
    for name in ("row_multiple", "slice_alignment"):
        value = getattr(table, name).value
        if value & (value - 1):
            yield f"{name} {value} is no power of two"
    if any(mask >> table.cores.value for mask in table.core_masks.value):
        yield f"core_masks name other cores than the {table.cores.value} that there are"
    if table.slice_alignment.value > _LARGEST_ALIGNMENT:
        yield f"slice_alignment {table.slice_alignment.value} is above {_LARGEST_ALIGNMENT}"
    if table.iommu_domains.value > _MOST_DOMAINS:
        yield f"iommu_domains {table.iommu_domains.value} are more than {_MOST_DOMAINS}"
    if table.domain_bytes.value < _SMALLEST_DOMAIN:
        yield f"domain_bytes {table.domain_bytes.value} are fewer than {_SMALLEST_DOMAIN}"


def _of_type(row: TypeCapabilities, row_multiple: int) -> Iterator[str]:
    for extent in ("k", "n"):
        multiple = getattr(row, f"{extent}_multiple").value
        for name in (f"{extent}_max", f"{extent}_limit"):
            value = getattr(row, name).value
            if value is not None and value < multiple:
                yield f"{name} {value} is below {extent}_multiple {multiple}"
    for name in ("m_max", "m_limit"):
        value = getattr(row, name).value
        if value is not None and value < row_multiple:
            yield f"{name} {value} is below row_multiple {row_multiple}"
    k_multiple, n_multiple = row.k_multiple.value, row.n_multiple.value
    tile = row.b_tile.value
    pairs = [
        ("a_group", row.a_group.value, "k_multiple", k_multiple),
        ("c_group", row.c_group.value, "n_multiple", n_multiple),
    ]
    if tile is not None:
        pairs += [("b_tile", tile[0], "n_multiple", n_multiple), ("b_tile", tile[1], "k_multiple", k_multiple)]
    for name, part, of, whole in pairs:
        if part is not None and whole % part:
            yield f"{name} {part} does not divide {of} {whole}"
    for name, sizes in (("k_segment", (row.k_segment.value,)), ("group_sizes", row.group_sizes.value)):
        for size in sizes:
            if size is not None and (size < 1 or size % k_multiple):
                yield f"{name} {size} is no multiple of k_multiple {k_multiple}"
    if row.ac_native.value and (row.a_group.value is None or row.c_group.value is None):
        yield "ac_native needs a_group and c_group"
    if row.b_native.value and tile is None:
        yield "b_native needs b_tile"
