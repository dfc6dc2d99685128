"""A run as one HTML page that needs nothing else: no scripts, no fonts, no pictures from elsewhere.

Its policy forbids a browser to fetch anything, so that a page that somebody sent tells nobody that it was read.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape

from npumatmul.bench.plots import Plot, picture, plots
from npumatmul.bench.record import Record, Row
from npumatmul.bench.tables import Table, facts, tables
from npumatmul.chips.timing import TIMINGS, TimingModel

__all__ = ["as_html"]

#: Drawings that are longer than this are pictures of dots instead.
_SVG_BYTES = 1 << 19

_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #55606e; --line: #d9dee5; --paper: #ffffff; --back: #f4f6f8;
  --accent: #005a8f; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, main, footer { max-width: 82rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.25rem 0 .75rem; }
header p, footer { color: var(--soft); }
header p { margin: 0 0 1rem; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 0; padding: 0; }
a { color: var(--accent); text-underline-offset: .15em; }
a:focus-visible, .scroll:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.note { background: #fff6e0; border-left: .3rem solid #b36b00; border-radius: .25rem; padding: .6rem .9rem;
  margin: 1rem 0; }
.note.measured { background: #e6f4ec; border-color: #1d7a46; }
.note.marked { background: #fdeceb; border-color: #b3261e; }
.note ul { margin: .25rem 0 0; padding-left: 1.25rem; }
.glance { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem; margin: 0; }
.glance div, figure, .scroll, dl.facts { background: var(--paper); border: 1px solid var(--line);
  border-radius: .5rem; }
.glance div { padding: .75rem 1rem; display: flex; flex-direction: column; }
.glance dt { color: var(--soft); font-size: .875rem; }
.glance dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.glance dd.of { font-size: .875rem; font-weight: 400; color: var(--soft); overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(34rem, 100%), 1fr)); gap: 1rem;
  align-items: start; }
figure { margin: 0; padding: .75rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .875rem; margin-top: .5rem; }
.scroll { overflow: auto; max-height: 36rem; }
.scroll + .scroll { margin-top: 1rem; }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem; font-variant-numeric: tabular-nums;
  white-space: nowrap; width: 100%; }
caption { text-align: left; padding: .6rem .75rem; color: var(--soft); white-space: normal; }
th, td { padding: .3rem .75rem; text-align: right; border-top: 1px solid var(--line); }
th[scope=row], th:first-child { text-align: left; font-weight: 600; position: sticky; left: 0;
  background: var(--paper); }
thead th { position: sticky; top: 0; background: #e9edf2; border-top: 0; z-index: 1; }
thead th:first-child { background: #e9edf2; z-index: 2; }
tbody tr:nth-child(even) td, tbody tr:nth-child(even) th { background: #f8f9fb; }
.modelled { font-style: italic; color: var(--soft); }
dl.facts { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: .25rem 1.25rem; padding: .9rem 1rem;
  margin: 0; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
footer { padding: 2rem 1.25rem; font-size: .875rem; }
@media print { body { background: none; } .scroll { max-height: none; overflow: visible; } nav { display: none; } }
"""


def as_html(record: Record, timings: Mapping[str, TimingModel] = TIMINGS) -> str:
    """Write a run as a page: what stands out, plots, tables, the machine, and what was asked for.

    Parameters
    ----------
    record : Record
    timings : mapping of str to TimingModel
        By chip; their roofs are drawn.

    Returns
    -------
    str
        HTML that refers to nothing outside itself.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed: it belongs to the extra ``bench``.
    """
    machine = record.machine
    what = record.rows[0].what if record.rows else ""
    title = f"npumatmul bench {what}: {machine.chip}"
    drawings, found = plots(record, timings), tables(record)
    sections = {
        "At a glance": _glance(record),
        "Plots": f'<div class="plots">\n{"".join(map(_figure, drawings))}</div>\n' if drawings else "",
        "Tables": "".join(map(_table, found)),
        "Machine": _facts(facts(machine)),
        "What was asked for": _facts({name: str(value) for name, value in record.settings.items()}),
    }
    sections = {name: text for name, text in sections.items() if text}
    links = "".join(f'<li><a href="#{_id(name)}">{name}</a></li>\n' for name in sections)
    body = "".join(
        f'<section aria-labelledby="{_id(name)}">\n<h2 id="{_id(name)}">{name}</h2>\n{text}</section>\n'
        for name, text in sections.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f"<header>\n<h1>{escape(title)}</h1>\n<p>{escape(f'{machine.timed_on}, {machine.time}')}</p>\n"
        f'<nav aria-label="Sections"><ul>\n{links}</ul></nav>\n</header>\n<main>\n{_note(record)}{_marked(record.rows)}'
        f"{body}</main>\n<footer>Written by npumatmul {escape(machine.npumatmul)}.</footer>\n</body>\n</html>\n"
    )


def _note(record: Record) -> str:
    """What the times are, before anything else."""
    machine = record.machine
    if not machine.simulated:
        text = f"Times were measured on the NPU of {machine.chip}. What is called modelled was not measured."
        return f'<p class="note measured">{escape(text)}</p>\n'
    runs = f" ({machine.simulated_runs})" if machine.simulated_runs else ""
    text = (
        f"Times were measured on a CPU that simulates {machine.chip}{runs}: they show what the host's side costs, and "
        "nothing about a chip. What is called modelled is of the chip, and was not measured."
    )
    return f'<p class="note">{escape(text)}</p>\n'


def _marked(rows: Iterable[Row]) -> str:
    marked: dict[str, list[str]] = {}
    for row in rows:
        for mark in row.marks:
            marked.setdefault(mark, []).append(row.label)
    if not marked:
        return ""
    items = "".join(
        f"<li>{escape(mark)}: {escape(', '.join(labels[:8]))}"
        f"{f' and {len(labels) - 8} more' if len(labels) > 8 else ''}</li>\n"
        for mark, labels in marked.items()
    )
    return (
        f'<div class="note marked"><strong>To know before these times are believed</strong>\n<ul>\n{items}</ul></div>\n'
    )


def _glance(record: Record) -> str:
    measured = [row for row in record.rows if row.what == record.rows[0].what]
    cards = [("cases", str(len(measured)), "measured")]
    for name, what, unit in (
        ("gops", "highest rate", "GOPS"),
        ("gb_per_s", "highest bandwidth", "GB/s"),
        ("tokens_per_second", "most tokens a second", "t/s"),
    ):
        numbers = [
            (value, row)
            for row in record.rows
            if isinstance(value := row.figures.get(name), (int, float)) and not isinstance(value, bool)
        ]
        if numbers:
            value, row = max(numbers, key=lambda pair: pair[0])
            cards.append((f"{what}, measured", f"{value:,.1f} {unit}", row.label))
    ratios = [row.modelled["run"] for row in record.rows if "run" in row.modelled]
    if ratios:
        cards.append(
            ("shortest and longest run, modelled", f"{_us(min(ratios))} to {_us(max(ratios))}", record.machine.chip)
        )
    text = "".join(
        f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd class="of">{escape(of)}</dd></div>\n'
        for name, value, of in cards
    )
    return f'<dl class="glance">\n{text}</dl>\n'


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs"


def _figure(plot: Plot) -> str:
    data, kind = picture(plot, "svg"), "svg+xml"
    if len(data) > _SVG_BYTES:
        data, kind = picture(plot, "png"), "png"
    width, height = (round(96 * side) for side in plot.figure.get_size_inches())
    source = base64.b64encode(data).decode()
    return (
        f'<figure>\n<img src="data:image/{kind};base64,{source}" width="{width}" height="{height}" '
        f'alt="{escape(f"{plot.title}. {plot.text}")}">\n<figcaption>{escape(plot.text)}</figcaption>\n</figure>\n'
    )


def _table(table: Table) -> str:
    classes = [' class="modelled"' if heading.startswith("modelled") else "" for heading in table.columns]
    head = "".join(
        f'<th scope="col"{each}>{escape(heading)}</th>' for heading, each in zip(table.columns, classes, strict=True)
    )
    lines = []
    for name, *cells in zip(*table.columns.values(), strict=True):
        rest = "".join(f"<td{each}>{escape(cell)}</td>" for cell, each in zip(cells, classes[1:], strict=True))
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{rest}</tr>\n')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="Table of {escape(table.what)}">\n<table>\n'
        f"<caption>{escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>\n"
        "</table>\n</div>\n"
    )


def _facts(told: Mapping[str, str]) -> str:
    if not told:
        return ""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in told.items())
    return f'<dl class="facts">\n{items}</dl>\n'


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")
