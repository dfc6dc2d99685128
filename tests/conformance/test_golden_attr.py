"""Every recorded answer of a vendor runtime 1.6.0 (tests/golden) against the simulator's library of that version."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import ask
from recorded_rows import RECORDED, safe_rows

GOLDEN = Path(__file__).parent.parent / "golden"

FIELDS = ("soc", "type", "M", "K", "N", "B_layout", "AC_layout")


def recorded_cases() -> list[dict[str, Any]]:
    with gzip.open(GOLDEN / "attr_v1.6.0.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def known_difference(case: dict[str, Any]) -> str | None:
    """Why the simulator answers otherwise on purpose; docs/simulator.md has the list for users."""
    if case["ret"] == 0 and case["type"] == 10 and case["AC_layout"] and case["M"] * case["K"] > 262144:
        # The recorded runtime died inside create for most such shapes, not for these few. The simulator refuses all.
        return "int4 with native A and C and M * K > 262144 is refused"
    return None


def test_every_recorded_create(simulators: Path) -> None:
    cases = recorded_cases()
    requests = [{"do": "create", **{name: case[name] for name in FIELDS}} for case in cases]
    answers = ask(simulators / "libnpumm_sim_1.6.0.so", requests)
    wrong, different = [], []
    for case, answer in zip(cases, answers, strict=True):
        same = answer["ret"] == case["ret"]
        same = same and all(answer.get(name) == case.get(name) for name in "ABC")
        same = same and answer["log"][:1] == ([case["log"]] if case["ret"] else [])
        if known_difference(case):
            assert not same, f"no difference any more: {case}"
            assert answer["ret"] == -1, case
            different.append((case["M"], case["K"], case["N"]))
        elif not same:
            wrong.append((case, answer))
    assert not wrong, f"{len(wrong)} of {len(cases)} differ, the first: {wrong[:3]}"
    assert len(cases) == 10471
    assert sorted(different) == [(8192, 64, 64), (8192, 64, 64), (8193, 512, 128), (8193, 4096, 64), (8193, 4096, 64)]


# ---- int4 with native A and C: how many rows create survived ---------------------------------------------------------


@pytest.mark.parametrize("version", ["1.6.0", "2.3.2"])
def test_int4_rows_that_are_recorded_as_safe_and_no_others(simulators: Path, version: str) -> None:
    assert len(RECORDED) == 1845
    between = [(k, n) for k in range(32, 10368, 32) for n in (64, 320, 704, 3072, 8192, 8256, 152064)]
    rows = {at: safe_rows(*at) for at in sorted({*RECORDED, *between})}
    assert all(rows[at] == m for at, m in RECORDED.items())
    if version == "1.6.0":
        rows = {(k, n): m for (k, n), m in rows.items() if k <= 10304}  # its largest K
    asked = [(m, k, n) for (k, n), most in rows.items() for m in (most, most + 1) if m]
    native = {"do": "create", "soc": "rk3588", "type": 10, "B_layout": 1, "AC_layout": 1}
    answers = ask(simulators / f"libnpumm_sim_{version}.so", [{**native, "M": m, "K": k, "N": n} for m, k, n in asked])
    for (m, k, n), answer in zip(asked, answers, strict=True):
        assert answer["ret"] == (0 if m <= rows[k, n] else -1), (m, k, n)
        assert bool(answer["log"]) == (m > rows[k, n])


PACKED = np.load(GOLDEN / "pack_b_v1.6.0.npz")
KEYS = sorted(key.removesuffix("_normal") for key in PACKED.files if key.endswith("_normal"))


def shape_of(key: str) -> tuple[str, int, int, int]:
    """``rk3588_t2_K96_N160`` as its parts."""
    soc, number, k, n = key.split("_")
    return soc, int(number[1:]), int(k[1:]), int(n[1:])


def swap_nibbles(data: np.ndarray) -> np.ndarray:
    return ((data << 4) | (data >> 4)).astype(np.uint8)


def identity(number: int, k: int) -> np.ndarray:
    """A as bytes, such that C is B: K x K ones on the diagonal."""
    if number == 1:
        return np.eye(k, dtype=np.float16).view(np.uint8).ravel()
    ones = np.eye(k, dtype=np.uint8).ravel()
    return ones if number == 2 else (ones[0::2] << 4 | ones[1::2]).astype(np.uint8)  # even element high in 1.6.0


def values_of(number: int, normal: np.ndarray) -> np.ndarray:
    """B's numbers from its bytes, in the type of C."""
    if number == 1:
        return normal.view(np.float16).astype(np.float32)
    if number == 2:
        return normal.view(np.int8).astype(np.int32)
    pairs = np.stack([normal >> 4, normal & 15], axis=-1).ravel().astype(np.int16)
    return ((pairs ^ 8) - 8).astype(np.int16)


@pytest.mark.parametrize("key", KEYS)
def test_recorded_native_b_multiplies_as_the_normal_one(simulators: Path, key: str) -> None:
    """Identity times the recorded packed bytes, as a native B, gives the numbers of the recorded normal B."""
    soc, number, k, n = shape_of(key)
    normal, packed = (PACKED[f"{key}_{form}"].view(np.uint8).ravel() for form in ("normal", "packed"))
    if number == 1:  # the bytes are random: without their top exponent bit the halves are finite
        normal, packed = ((form.view(np.uint16) & 0xBFFF).view(np.uint8) for form in (normal, packed))
    expected = values_of(number, normal)
    request = {"do": "multiply", "soc": soc, "type": number, "M": k, "K": k, "N": n, "AC_layout": 0}
    request["a"] = identity(number, k).tobytes().hex()
    native, plain = ask(
        simulators / "libnpumm_sim_1.6.0.so",
        [
            {**request, "B_layout": 1, "b": packed.tobytes().hex()},
            {**request, "B_layout": 0, "b": normal.tobytes().hex()},
        ],
    )
    for answer in (native, plain):
        assert answer["ret"] == 0
        product = np.frombuffer(bytes.fromhex(answer["c"]), expected.dtype)
        np.testing.assert_array_equal(product, expected)


@pytest.mark.parametrize("key", KEYS)
def test_packing_helper_gives_the_recorded_bytes(simulators: Path, key: str) -> None:
    """1.6.0 has no helper; that of 2.3.2 packs alike but for the order of nibbles (facts 4.6)."""
    soc, number, k, n = shape_of(key)
    normal, packed = (PACKED[f"{key}_{form}"].view(np.uint8).ravel() for form in ("normal", "packed"))
    given = swap_nibbles(normal) if number == 10 else normal
    (answer,) = ask(
        simulators / "libnpumm_sim_2.3.2.so",
        [{"do": "pack", "soc": soc, "type": number, "K": k, "N": n, "b": given.tobytes().hex()}],
    )
    assert answer["ret"] == 0
    result = np.frombuffer(bytes.fromhex(answer["packed"]), np.uint8)
    np.testing.assert_array_equal(swap_nibbles(result) if number == 10 else result, packed)
