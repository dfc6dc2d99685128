"""The notation of numbers and shapes on the command line."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from npumatmul.files.reading import read_text, shown

__all__ = ["LLM_LAYERS", "SQUARES", "parse_numbers", "parse_shapes"]

#: (K, N) of linear layers: SmolLM2-135M, TinyLlama-1.1B, Llama-2-7B, as far as one context takes them.
LLM_LAYERS = ((576, 576), (576, 1536), (1536, 576), (2048, 2048), (2048, 256), (2048, 4096), (4096, 4096))
SQUARES = (64, 128, 256, 512, 1024, 2048)
#: Extents beyond any memory, and more shapes or numbers than anybody waits for.
_LARGEST, _MOST = 1 << 31, 100_000
_RANGE = re.compile(r"(\d+)-(\d+)(?:([+*])(\d+))?")
_NOTATION = (
    "'M,K,N', 'MxKxN' or 'K,N', each a number or a range (64-512*2, 64-512+64), or llm, square, the name of a model, "
    "or the path of a .csv file"
)


def parse_numbers(text: str, option: str = "numbers") -> list[int]:
    """Numbers of at least 1, separated by commas; ``a-b+step`` and ``a-b*factor`` are ranges that may reach b.

    Parameters
    ----------
    text : str
    option : str
        For messages.

    Raises
    ------
    ValueError
        If it is anything else; the message shows the part that is.

    Examples
    --------
    >>> parse_numbers("1,8-64*2,100-300+100,4-6")
    [1, 8, 16, 32, 64, 100, 200, 300, 4, 5, 6]
    """
    numbers = [number for part in text.split(",") for number in _numbers(part, option)]
    return list(dict.fromkeys(numbers))


def parse_shapes(text: str, rows: Sequence[int] = (1, 8, 64, 256)) -> list[tuple[int, int, int]]:
    """Shapes from the notation of the command line.

    Parameters
    ----------
    text : str
        The path of a CSV file with the columns M, K, N, such as `as_csv` writes. Or parts that are separated by
        semicolons: ``"M,K,N"``, or ``"K,N"`` to be combined with `rows`, also written ``"MxKxN"`` as tables print it;
        each extent may be a range, as `parse_numbers` has them, and then all combinations are meant. Or ``"llm"`` or
        ``"square"``, or the name of a model (`npumatmul.llm.modelled.published.SHAPES`), whose linear layers are meant.
    rows : sequence of int
        Values of M where the notation gives none.

    Returns
    -------
    list of (M, K, N)
        Each once.

    Raises
    ------
    ValueError
        If the notation is wrong; the message shows the part that is.
    OSError
        If a CSV file cannot be read.

    Examples
    --------
    >>> parse_shapes("64,32;128,32", rows=(1, 4))
    [(1, 64, 32), (4, 64, 32), (1, 128, 32), (4, 128, 32)]
    >>> parse_shapes("1x576x512-2048*2")
    [(1, 576, 512), (1, 576, 1024), (1, 576, 2048)]
    >>> parse_shapes("SmolLM2-135M", rows=(1,))
    [(1, 576, 960), (1, 576, 576), (1, 576, 3072), (1, 1536, 576), (1, 576, 49152)]
    """
    if text.endswith(".csv"):
        return _from_csv(Path(text))
    shapes: dict[tuple[int, int, int], None] = {}
    for part in text.split(";"):
        for shape in _of_part(part.strip(), rows):
            shapes[shape] = None
            if len(shapes) > _MOST:
                raise ValueError(f"shapes: there are more than {_MOST}, which nobody waits for")
    return list(shapes)


def _of_part(part: str, rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    if part == "square":
        yield from ((size, size, size) for size in SQUARES)
        return
    layers = LLM_LAYERS if part == "llm" else _layers_of_model(part)
    if layers is not None:
        yield from ((m, k, n) for (k, n), m in itertools.product(layers, rows))
        return
    extents = part.lower().replace("x", ",").split(",")
    if not all(re.match(r"\s*[\d-]", extent) for extent in extents):
        raise ValueError(f"shapes: {shown(part)} is none of what shapes can be: {_NOTATION}{_meant(part)}")
    if len(extents) not in (2, 3):
        raise ValueError(f"shapes: {shown(part)} is neither M,K,N nor K,N")
    given = [_numbers(extent, "shapes") for extent in extents]
    if len(given) == 3:
        yield from ((m, k, n) for m, k, n in itertools.product(*given))
    else:
        yield from ((m, k, n) for k, n, m in itertools.product(*given, rows))


def _layers_of_model(name: str) -> list[tuple[int, int]] | None:
    """(K, N) of the linear layers of a model that is known by name; None of any other text."""
    from npumatmul.llm.modelled.published import SHAPES

    found = {known.lower(): known for known in SHAPES}.get(name.lower())
    return None if found is None else list(dict.fromkeys((each.k, each.n) for each in SHAPES[found].whole))


def _meant(name: str) -> str:
    import difflib

    from npumatmul.llm.modelled.published import SHAPES

    names = {known.lower(): known for known in SHAPES} | {"llm": "llm", "square": "square"}
    near = difflib.get_close_matches(name.lower(), names, n=2)
    return f"; did you mean {' or '.join(names[each] for each in near)}?" if near else ""


def _numbers(part: str, option: str) -> list[int]:
    text = part.strip()
    found = _RANGE.fullmatch(text)
    if found is None:
        try:
            numbers = [int(text)]
        except ValueError:
            raise ValueError(
                f"{option}: {shown(part)} is neither a number nor a range such as 8-64*2 or 64-512+64"
            ) from None
    else:
        numbers = _range(int(found[1]), int(found[2]), found[3] or "+", int(found[4] or 1), text, option)
    if not 1 <= min(numbers) <= max(numbers) <= _LARGEST:
        raise ValueError(f"{option}: {shown(part)} has a value below 1 or above {_LARGEST}")
    return numbers


def _range(first: int, last: int, sign: str, step: int, text: str, option: str) -> list[int]:
    if first > last:
        raise ValueError(f"{option}: the range {shown(text)} begins behind its end")
    if first < 1 or step < (1 if sign == "+" else 2):
        raise ValueError(f"{option}: the range {shown(text)} does not get on: it begins at 1 or more, and grows")
    numbers: list[int] = []
    while first <= last:
        numbers.append(first)
        first = first + step if sign == "+" else first * step
        if len(numbers) > _MOST:
            raise ValueError(f"{option}: the range {shown(text)} has more than {_MOST} numbers")
    return numbers


def _from_csv(path: Path) -> list[tuple[int, int, int]]:
    try:
        lines = read_text(path).splitlines(keepends=True)
        if len(lines) > _MOST:
            raise ValueError(f"it has {len(lines)} lines; at most {_MOST} are measured")
        reader = csv.DictReader(lines)
        columns = {name.strip().upper(): name for name in reader.fieldnames or ()}
        missing = [name for name in "MKN" if name not in columns]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        shapes = []
        for row in reader:
            m, k, n = (_numbers(str(row[columns[name]]), f"line {reader.line_num}, {name}")[0] for name in "MKN")
            shapes.append((m, k, n))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"shapes: {path}: {error}") from error
    return list(dict.fromkeys(shapes))
