"""`npumatmul cache`: the packed models that are kept on disk."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Annotated

import typer

from npumatmul.cli.tables import Column, print_table
from npumatmul.cli.terminal import results, say
from npumatmul.files.sizes import parsed_size, size_in_words

if TYPE_CHECKING:
    from npumatmul.llm.packed_cache import PackedCache

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    help="The packed models that are kept on disk, so that a second load is quick.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _cache() -> PackedCache:
    from npumatmul.llm.packed_cache import PackedCache  # here, since it needs the extra `llm`

    return PackedCache()


@app.callback()
def cache_command(
    context: typer.Context,
    limit: Annotated[
        str | None,
        typer.Option(
            help="Most bytes of all entries from now on, such as 5GB; 'usual': 20 GB, or half of a fuller disk."
        ),
    ] = None,
) -> None:
    """List the packed models that are kept on disk, or set how many bytes they may have."""
    if limit is not None:
        _set_limit(limit)
    elif context.invoked_subcommand is None:
        list_command()


@app.command("list", short_help="List them, those used last first.")
def list_command(as_json: JsonOption = False) -> None:
    """List packed models, those that were used last first."""
    cache = _cache()
    entries = [(each, each.label()) for each in cache.entries()]
    if as_json:
        content = {
            "folder": str(cache.folder),
            "limit": cache.limit(),
            "entries": [
                {
                    "key": each.key,
                    "bytes": each.nbytes,
                    "used": each.used,
                    **{name: label.get(name) for name in ("model", "path", "scheme", "soc", "runtime")},
                }
                for each, label in entries
            ],
        }
        typer.echo(json.dumps(content, indent=1))
        return
    if entries:
        columns = [
            Column("model", [label.get("model", "damaged") for _, label in entries], left=True),
            Column("scheme", [label.get("scheme", "") for _, label in entries], left=True),
            Column("chip", [label.get("soc", "") for _, label in entries], left=True),
            Column("MB", [f"{each.nbytes / 1e6:.1f}" for each, _ in entries]),
            Column("used last", [_when(each.used) for each, _ in entries], left=True),
        ]
        print_table(results(), "", Column("entry", [each.key for each, _ in entries], left=True), columns)
    said = f"{size_in_words(cache.nbytes())} of at most {size_in_words(cache.limit())}" if entries else "empty"
    say(f"{cache.folder}: {said}")


@app.command("remove", short_help="Remove some.")
def remove_command(
    keys: Annotated[list[str], typer.Argument(metavar="ENTRY...", help="As listed, or how they begin.")],
) -> None:
    """Remove entries."""
    cache = _cache()
    entries = cache.entries()
    chosen = []
    for key in keys:
        found = [each for each in entries if each.key.startswith(key)]
        if len(found) != 1:
            raise ValueError(f"{'nothing' if not found else f'{len(found)} entries'} in {cache.folder}: {key}...")
        chosen += found
    for each in chosen:
        cache.remove(each.key)


@app.command("clear", short_help="Remove all.")
def clear_command() -> None:
    """Remove all entries."""
    cache = _cache()
    say(f"{cache.folder}: {size_in_words(cache.clear())} freed")


@app.command("where", short_help="Print the folder.")
def where_command() -> None:
    """Print the folder in which they are kept."""
    typer.echo(_cache().folder)


def _set_limit(text: str) -> None:
    from npumatmul.llm.packed_cache import set_limit

    set_limit(None if text == "usual" else parsed_size(text))
    cache = _cache()
    for each in cache.prune():
        say(f"removed {each.key}, {size_in_words(each.nbytes)}")
    say(f"{cache.folder}: at most {size_in_words(cache.limit())}{' as usual' if text == 'usual' else ''}")


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
