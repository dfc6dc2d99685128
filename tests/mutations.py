"""Changes of JSON and of bytes that a test tries one after the other, the same ones every time."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

from long_tests import amount

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, 7, 16, 33, -1, 64, 127, 1 << 20, 1 << 31, 1 << 40, 1 << 63, 1 << 70, 0.5, -1.0,
    1e300, float("inf"), float("nan"), "", "x", "w8a8", "w4a8_g32", "INT4_INT4_INT16", "../../etc", "é" * 300, [], [0],
    [[]], [0, 1, 2], [32, 33], {}, {"k": 1}, [[0, 32, 32], [32, 32, 32]], [1 << 40] * 3,
)  # fmt: skip


def changed_json(content: Any, count: int, seed: int = 0) -> Iterator[Any]:
    """Copies of a JSON value with one to three changes each: values are others, missing, repeated, exchanged."""
    rng = random.Random(seed)
    for _ in range(amount(count)):
        changed = copy.deepcopy(content)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            _change(changed, rng)
        yield changed


def _change(content: Any, rng: random.Random) -> None:
    places = list(_places(content))
    if not places:
        return
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.6:
        holder[key] = copy.deepcopy(rng.choice(VALUES))  # the next change may go into it
    elif kind < 0.7:
        del holder[key]
    elif kind < 0.8 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] += rng.choice((-32, -2, -1, 1, 2, 32))
    elif kind < 0.9 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        other, at = rng.choice(places)
        if at in other if isinstance(other, dict) else at < len(other):
            holder[key] = copy.deepcopy(other[at])


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        yield content, key
        yield from _places(value)


def changed_bytes(whole: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Copies of bytes with flipped bits, other bytes, pieces that are cut out, moved or put in, and ends cut off."""
    rng = random.Random(seed)
    for _ in range(amount(count)):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at, size = rng.randrange(len(data) or 1), rng.choice((1, 1, 2, 4, 8, 64))
            kind = rng.randrange(6)
            if kind == 0 and data:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at : at + size] = rng.randbytes(size)
            elif kind == 2:
                del data[at : at + size]
            elif kind == 3:
                data[at:at] = data[:size] if rng.random() < 0.5 else rng.randbytes(size)
            elif kind == 4:
                data[at : at + size] = rng.choice((b"\xff", b"\x00", b"[", b'"')) * size
            else:
                del data[rng.randrange(len(data) or 1) :]
        yield bytes(data)
