"""The page of a run, as far as its text tells. `make check-page` looks at it in a browser."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_bench_record import MACHINE, RECORD
from test_bench_reports import BATCHES, RUN
from typer.testing import CliRunner

from npumatmul.bench import Record, Row
from npumatmul.bench.page import as_html
from npumatmul.cli.app import app

HOSTILE = "\"><img src=http://example.invalid/x><script>x()</script>&amp;$\\frac{$\x1b[2J'"


class Reader(HTMLParser):
    """Elements with their attributes and text, and that each one that is opened is closed."""

    EMPTY = frozenset({"meta", "link", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> list[str]:
        return [data for name, data in self.texts if name == tag]


@pytest.mark.parametrize("record", [BATCHES, RECORD, Record(MACHINE, [])])
def test_a_page_refers_to_nothing_outside_itself(record: Record) -> None:
    page = Reader(as_html(record))
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in page.elements}
    (policy,) = [each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"url\(|@import", " ".join(page.text("style")))


def test_a_page_can_be_read_by_those_who_do_not_see_it() -> None:
    page = Reader(as_html(Record(MACHINE, RUN.rows[:6])))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("img")) == 5
    for each in page.all("img"):
        assert len(each["alt"] or "") > 40
    assert all(each.get("scope") in ("row", "col") for each in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 1
    targets = {attributes.get("id") for _, attributes in page.elements}
    assert {str(each["href"])[1:] for each in page.all("a")} <= targets
    assert [level for level, _ in page.elements if level in ("h1", "h2", "h3")] == ["h1", *["h2"] * 4]


def test_what_the_times_are_is_said_first() -> None:
    page = Reader(as_html(RECORD))
    assert "a CPU that simulates rk3588" in " ".join(page.text("p"))
    measured = Reader(as_html(replace(RECORD, machine=replace(MACHINE, simulated=False))))
    assert "measured on the NPU of rk3588" in " ".join(measured.text("p"))
    assert "simulates" not in " ".join(measured.text("p"))


def test_every_cell_and_every_fact_is_there() -> None:
    page = Reader(as_html(RECORD))
    assert {"int8 1x64x32", "bytes=4096"} <= set(page.text("th"))
    assert {"2.0", "20..45", "padded"} <= set(page.text("td"))
    assert "padded: int8 1x64x32" in page.text("li")
    assert "npu 1000 MHz (performance)" in page.text("dd")
    assert "int8" in page.text("dd")  # what was asked for


def test_names_that_are_markup_or_formulas_do_nothing() -> None:
    rows: list[Row] = [replace(row, case={**row.case, "type": HOSTILE}, marks=(HOSTILE,)) for row in RUN.rows[:6]]
    machine = replace(MACHINE, chip=HOSTILE, cpu=HOSTILE, governors={"npu": HOSTILE})
    page = Reader(as_html(Record(machine, rows, {"shapes": HOSTILE})))
    assert "script" not in {tag for tag, _ in page.elements}
    assert {str(each["src"]).partition(":")[0] for each in page.all("img")} == {"data"}
    assert HOSTILE in page.text("dd")


def test_the_command_saves_a_page(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    given = ["--device", "sim", "--types", "int8", "--shapes", "1x64x32", "--repetitions", "1", "--html", str(path)]
    done = CliRunner().invoke(app, ["bench", "matmul", *given], catch_exceptions=False)
    assert done.exit_code == 0
    assert "int8 1x64x32" in Reader(path.read_text()).text("th")
