"""What the documents show is true: programs run, commands are ones that there are, and nothing public is left out."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import typer.main

import npumatmul as npu
from npumatmul.cli.app import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(str(file.relative_to(ROOT)) for file in [*ROOT.glob("*.md"), *ROOT.glob("[de]*/**/*.md")])
#: What a page has in ``python`` blocks, or for its other blocks in a comment; a comment before a block excuses it.
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.*?) -->\n)?^(?:<!--|```)python\n(?P<program>.*?)^(?:-->|```)$",
    re.DOTALL | re.MULTILINE,
)


def programs(name: str) -> list[str]:
    """The Python of a document that is to be run."""
    return [found["program"] for found in BLOCK.finditer((ROOT / name).read_text()) if not found["reason"]]


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if programs(name)])
def test_python_programs_run(
    fresh_device: npu.Device,
    name: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All blocks of a document, one after the other as a reader would type them."""
    monkeypatch.chdir(tmp_path)  # for what they save
    names: dict[str, object] = {}
    with npu.use_device(fresh_device):
        for block in programs(name):
            exec(compile(block, name, "exec"), names)
    assert fresh_device.stats().run_calls > 0


def test_every_python_block_is_one_that_is_run_or_excused() -> None:
    """No other spelling of a block hides from the test above."""
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        blocks = re.findall(r"^\s*(?:```|~~~)\s*(?:py\w*|>>>)", text, re.MULTILINE | re.IGNORECASE)
        found = [match for match in BLOCK.finditer(text) if match[0].count("```python\n")]
        assert len(found) == len(blocks), name
        assert not re.search(r"^\s*>>> ", text, re.MULTILINE), f"{name}: write programs as python blocks"


# ---- commands ------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``npumatmul ...`` in blocks of shell commands."""
    for name in DOCUMENTS:
        for block in re.findall(r"^```sh\n(.*?)^```$", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
                lexer.whitespace_split = True
                words = list(lexer)
                for start, word in enumerate(words):
                    rest = words[start + 1 :]
                    ends = [index for index, each in enumerate(rest) if each in ("|", "&&", ">", "2>", ";")]
                    if word == "npumatmul" and "import" not in words[:start]:
                        yield f"{name}: {line}", rest[: min([*ends, len(rest)])]


@pytest.mark.parametrize("words", [pytest.param(words, id=" ".join(words)) for _, words in commands()])
def test_commands_are_ones_that_there_are(words: list[str]) -> None:
    """Every command and option exists and has what it needs; the files that are named need not."""
    command: Any = typer.main.get_command(app)
    names, rest = ["npumatmul"], list(words)
    while hasattr(command, "commands"):
        if command.invoke_without_command and (not rest or rest[0].startswith("-")):
            break
        assert rest[:1], f"{words} names no command"
        assert rest[0] in command.commands, f"{' '.join(names)} has no command {rest[0]!r}"
        command, names, rest = command.commands[rest[0]], [*names, rest[0]], rest[1:]
    problem = ""
    try:
        command.make_context(" ".join(names), rest)
    except Exception as error:
        problem = str(error) or repr(error)
    assert not problem or re.search(r"file .* does not exist", problem, re.IGNORECASE), f"{words}: {problem}"


def test_readme_lists_every_document() -> None:
    listed = set(re.findall(r"^- `(docs/[\w.]+)`: \S", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert listed == {f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")}


# ---- names ---------------------------------------------------------------------------------------------------------


def listed_texts() -> dict[str, list[tuple[str, str]]]:
    """The names of docs/api.md with what is said of them, by module."""
    sections = re.split(r"^## (.+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)[1:]
    rows = [re.findall(r"^\| `(\w+)` \| (\S.*) \|$", text, re.MULTILINE) for text in sections[1::2]]
    return dict(zip(sections[::2], rows, strict=True))


def listed_names() -> dict[str, list[str]]:
    return {module: [name for name, _ in rows] for module, rows in listed_texts().items()}


@pytest.mark.parametrize("module", sorted(name for name in listed_names() if name.startswith("npumatmul")))
def test_every_public_name_is_documented(module: str) -> None:
    """The list and the modules' ``__all__`` agree, and the texts are the docstrings' of what has one of its own."""
    public = importlib.import_module(module)
    listed = listed_names()[module]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(public.__all__), "add the name to docs/api.md, or to __all__"
    for name, text in listed_texts()[module]:
        found = getattr(public, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            summary = " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split()).replace("|", r"\|")
            assert summary, f"{module}.{name} has no docstring"
            assert summary.startswith(text.rstrip(".")), f"docs/api.md says something else of {module}.{name}"


@pytest.mark.parametrize("module", sorted(name for name in listed_names() if name.startswith("npumatmul")))
def test_every_method_and_property_of_public_classes_is_documented(module: str) -> None:
    """Internals may go without, so this is not the linter's: what counts is from where a name can be reached."""
    public = importlib.import_module(module)
    bare = [
        f"{module}.{name}.{member}"
        for name in listed_names()[module]
        if inspect.isclass(found := getattr(public, name))
        for base in found.__mro__
        if base.__module__.startswith("npumatmul")
        for member, value in vars(base).items()
        if not member.startswith("_") and (inspect.isroutine(value) or isinstance(value, property | cached_property))
        if not inspect.getdoc(getattr(found, member))
    ]
    assert not bare


def test_tab_completion_shows_the_public_api_only() -> None:
    assert set(dir(npu)) == {*listed_names()["npumatmul"], "__version__"}


def test_every_environment_variable_is_documented() -> None:
    package = Path(inspect.getfile(npu)).parent
    read = {
        name
        for file in package.rglob("*.py")
        for name in re.findall(r"\bNPUMATMUL_[A-Z_]*[A-Z]\b", file.read_text())
        if not name.startswith("NPUMATMUL_SIM")
    }
    assert read == {name for name in listed_names()["Environment variables"] if name.startswith("NPUMATMUL_")}
