"""Checksums: zlib's values, however they are found."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from npumatmul.host.checksums import array_checksum, checksum_sets, crc32_by


@pytest.mark.parametrize("index", range(len(checksum_sets())), ids=checksum_sets())
def test_every_way_gives_zlibs_value(index: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, 70_000, np.uint8)
    for start, stop in ((0, 0), (1, 2), (3, 18), (5, 69), (0, 64), (7, 270), (1, 1029), (0, 70_000)):
        part, half = data[start:stop], (start + stop) // 2
        assert crc32_by(index, part) == zlib.crc32(part.tobytes())
        assert crc32_by(index, data[half:stop], crc32_by(index, data[start:half])) == zlib.crc32(part.tobytes())


def test_arrays_of_any_strides_have_the_checksum_of_their_elements() -> None:
    array = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    for each in (array, array.T, array[::3, ::-2], array[0, 0], array[:0]):
        assert array_checksum(each) == zlib.crc32(each.tobytes())
        assert array_checksum(each, 77) == zlib.crc32(each.tobytes(), 77)


def test_a_way_that_this_machine_does_not_have() -> None:
    with pytest.raises(ValueError, match=f"no way number {len(checksum_sets())}, only scalar"):
        crc32_by(len(checksum_sets()), np.zeros(1, np.uint8))
