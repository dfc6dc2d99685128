"""English prose that ships with Debian, fetched by apt: what quantized models are calibrated and evaluated on."""

from __future__ import annotations

import gzip
import re
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

__all__ = ["TEXTS", "prose"]

#: Shorter paragraphs are headings, menus and the like.
FEWEST_CHARACTERS = 200

#: Name of a text: package, and where its files are.
TEXTS = {
    "anarchism": ("anarchism", "usr/share/doc/anarchism/html/sec*.html"),
    "handbook": ("debian-handbook", "usr/share/doc/debian-handbook/html/en-US/*.html"),
    "austen": ("r-cran-janeaustenr", "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"),
    "jargon": ("jargon-text", "usr/share/doc/jargon-text/jargon.txt.gz"),
}


def prose(name: str, folder: Path) -> tuple[str, str]:
    """Return a text and what it is.

    Parameters
    ----------
    name : str
        One of `TEXTS`.
    folder : pathlib.Path
        Where packages are kept; what is there is not fetched again.

    Returns
    -------
    text : str
        Paragraphs, with an empty line between them.
    source : str
        Package and version.

    Raises
    ------
    RuntimeError
        If apt cannot fetch the package.
    """
    package, pattern = TEXTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(f"{package}_*.deb")):
        try:
            subprocess.run(
                ["apt-get", "download", "-q", package], cwd=folder, check=True, capture_output=True, text=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            said = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
            raise RuntimeError(
                f"apt-get could not fetch the Debian package {package} (run apt-get update, or give texts of your own "
                f"with --evaluation and --calibration): {said}"
            ) from error
    deb = sorted(folder.glob(f"{package}_*.deb"))[-1]
    target = folder / deb.stem
    if not target.is_dir():
        subprocess.run(["dpkg-deb", "-x", deb, target], check=True)
    files = sorted(target.glob(pattern))
    paragraphs = [p for file in files for p in _paragraphs(file) if len(p) >= FEWEST_CHARACTERS]
    return "\n\n".join(dict.fromkeys(paragraphs)), " ".join(deb.stem.split("_")[:2])


def _paragraphs(file: Path) -> list[str]:
    if file.suffix == ".html":
        reader = _Paragraphs()
        reader.feed(file.read_text("utf-8", "replace"))
        reader.flush()
        return reader.found
    if file.suffix == ".rdb":
        lines = "\n".join(_strings_of_r(file.read_bytes()))
    else:
        lines = gzip.decompress(file.read_bytes()).decode("utf-8", "replace")
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", lines)]


class _Paragraphs(HTMLParser):
    """Collects what stands between tags that begin or end a block."""

    BLOCKS = frozenset(["p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "blockquote", "td", "div", "pre", "br"])
    SKIPPED = frozenset(["script", "style", "head", "pre"])

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._current: list[str] = []
        self._skipping = 0

    def flush(self) -> None:
        text = " ".join("".join(self._current).split())
        self._current.clear()
        if text:
            self.found.append(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._skipping += tag in self.SKIPPED
        if tag in self.BLOCKS:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        self._skipping = max(0, self._skipping - (tag in self.SKIPPED))
        if tag in self.BLOCKS:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._current.append(data)


def _strings_of_r(data: bytes) -> list[str]:
    """Strings of an R database: chunks of a length and a zlib stream, each an R object in XDR."""
    found, start = [], 0
    while start < len(data):
        unpacker = zlib.decompressobj()
        chunk = unpacker.decompress(data[start + 4 :])
        start = len(data) - len(unpacker.unused_data)
        for match in re.finditer(rb"\x00\x04\x00\x09(.{4})", chunk, re.DOTALL):
            (length,) = struct.unpack(">I", match[1])
            found.append(chunk[match.end() : match.end() + length].decode("utf-8", "replace"))
    return found
