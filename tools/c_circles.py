"""Find circles between the C files of native/: which file uses what another one defines, and so back to itself.

    python3 tools/c_circles.py

Only text is looked at. What a file defines for others begins in the first column, is not `static` and has a prefix of
the project's or the vendor's; a file uses what it names anywhere else but in comments and strings.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

NATIVE = Path(__file__).resolve().parent.parent / "native"
FOLDERS = ("kernels", "layers", "executor", "program", "simulator")

_NO_CODE = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)
_DIRECTIVE = re.compile(r"^#(?:\\\n|[^\n])*", re.MULTILINE)
#: A declaration in the first column up to its name, and what follows: parameters and a body, or a value.
_DEFINITION = re.compile(
    r"^(?!static\b|extern\b)[A-Za-z_](?:(?!\bstatic\b)[\w \t*])*?\b(?P<name>(?:npumm|sim|rknn)_\w+)\s*"
    r"(?:\([^;{}]*\)\s*\{|(?:\[[^\]]*\]\s*)?=)",
    re.MULTILINE,
)
_NAME = re.compile(r"\b[A-Za-z_]\w*\b")


def without_comments(text: str) -> str:
    """C code without comments, strings and characters."""
    return _NO_CODE.sub(" ", text)


def definitions(text: str) -> set[str]:
    """Names that a file defines for others."""
    code = _DIRECTIVE.sub("", without_comments(text))
    return {match["name"] for match in _DEFINITION.finditer(code)}


def uses(files: Mapping[str, str]) -> dict[str, set[str]]:
    """Which files each file uses, by their names; `files` are their texts."""
    owners: dict[str, str] = {}
    for file, text in files.items():
        owners.update(dict.fromkeys(definitions(text), file))
    found: dict[str, set[str]] = {}
    for file, text in files.items():
        names = set(_NAME.findall(without_comments(text)))
        found[file] = {owners[name] for name in names & owners.keys()} - {file}
    return found


def circles(edges: Mapping[str, Iterable[str]]) -> Iterator[list[str]]:
    """One circle through each group of files that reach each other, as a path that ends where it begins."""
    reachable = {file: _reachable(edges, file) for file in edges}
    seen: set[str] = set()
    for file in sorted(edges):
        if file not in seen and file in reachable[file]:
            seen |= {other for other in reachable[file] if file in reachable[other]}
            yield _path(edges, file)


def _reachable(edges: Mapping[str, Iterable[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting.extend(edges[file])
    return found


def _path(edges: Mapping[str, Iterable[str]], start: str) -> list[str]:
    """The shortest way from a file to itself."""
    paths = [[start]]
    for path in paths:
        for file in sorted(edges[path[-1]]):
            if file == start:
                return [*path, start]
            if not any(file in other for other in paths):
                paths.append([*path, file])
    raise AssertionError(f"{start} is on no circle")


def main() -> None:
    """Print every circle; end with 1 where there is one."""
    problems = []
    for folder in FOLDERS:
        files = {file.name: file.read_text() for file in sorted((NATIVE / folder).glob("*.c"))}
        problems += [f"native/{folder}: {' -> '.join(circle)}" for circle in circles(uses(files))]
    if problems:
        sys.exit("circles between C files:\n" + "\n".join(problems))
    print("no circles between C files")


if __name__ == "__main__":
    main()
