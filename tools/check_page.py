"""Look at the page of `npumatmul bench ... --html` in a real browser: Chromium of Debian's package, headless.

    python tools/check_page.py                 checks; the pictures are left in build/
    python tools/check_page.py --page FILE     checks a page that is there

Pictures load, nothing is fetched, the console stays silent, text has enough contrast, nothing is wider than a
telephone, and names of cases that somebody made up do nothing.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import packages
from browser import Browser
from matplotlib.image import imread

from npumatmul.bench import Record, read_record
from npumatmul.bench.page import as_html

BUILD = Path(__file__).parent.parent / "build"
NEEDED = {"chromium": "chromium", "/usr/share/fonts/truetype/*/*.ttf": "fonts-dejavu-core"}
#: What is measured for the page.
MATMUL = (
    "bench", "matmul", "--device", "sim:rk3588", "--types", "fp16,int8", "--shapes", "64,64;64,128;128,64;128,128",
    "--rows", "1,4,16", "--cores", "1", "--repetitions", "3",
)  # fmt: skip
#: What would be seen in the list of requests, or change the title, if it got into the page as it is.
HOSTILE = '"><img src="http://127.0.0.1:9/x"><script>document.title = "taken"</script>&lt;\' onerror="x()"'

#: Elements with text whose contrast with what is behind them is below 4.5 : 1 (WCAG 2, AA).
CONTRAST = """
(() => {
  const rgb = text => text.match(/[0-9.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = colour.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const node of document.body.querySelectorAll('*')) {
    if (![...node.childNodes].some(each => each.nodeType === 3 && each.data.trim())) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(node.tagName + ' ' + node.textContent.slice(0, 40));
  }
  return low;
})()
"""


def check(browser: Browser, page: Path, picture: Path) -> None:
    """Everything that holds of any page."""
    browser.open(page)
    fetched = [address[:200] for address in browser.requests[1:] if not address.startswith("data:")]
    _hold(browser.requests[0] == page.resolve().as_uri(), f"the first request is {browser.requests[0]}")
    _hold(not fetched, f"the page fetches {fetched}")
    _hold(not browser.complaints, f"the console says {browser.complaints}")
    images = browser.value("[...document.images].map(i => [i.complete && i.naturalWidth > 100, i.alt.length > 40])")
    _hold(all(loaded and told for loaded, told in images), f"pictures that do not load, or say nothing: {images}")
    _hold(browser.value("document.documentElement.lang") == "en", "the page has no language")
    _hold(browser.value("document.title").startswith("npumatmul bench"), "the page has another title")
    levels = browser.value("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    _hold(levels[0] == 1 and set(levels[1:]) == {2}, f"headings have the levels {levels}")
    links = browser.value("[...document.links].map(a => document.querySelector(a.getAttribute('href')) !== null)")
    _hold(links and all(links), "a link leads nowhere")
    loose = "[...document.querySelectorAll('th')].filter(c => !c.scope).length"
    _hold(browser.value(loose) == 0, "a heading of a table does not say what it is of")
    low = browser.value(CONTRAST)
    _hold(not low, f"text that is hard to read: {low}")
    for width in (320, 768, 1280):
        browser.resize(width, 900)
        wide = browser.value("document.documentElement.scrollWidth")
        _hold(wide <= width, f"at {width} pixels the page is {wide} wide")
    shot = browser.screenshot()
    picture.write_bytes(shot)
    seen = imread(io.BytesIO(shot))
    _hold(seen.shape[1] == 1280 and float(np.std(seen[..., :3])) > 0.05, "the picture of the page is empty")
    print(f"{page.name}: {len(images)} pictures, nothing fetched, no complaints; it looks as {picture}", flush=True)


def hostile(record: Record) -> Record:
    """The same run with names that are markup."""
    rows = [replace(row, case={**row.case, "note": HOSTILE}, marks=(HOSTILE,)) for row in record.rows]
    machine = replace(record.machine, cpu=HOSTILE, kernel=HOSTILE, governors={"npu": HOSTILE})
    return Record(machine, rows, {"shapes": HOSTILE})


def _hold(true: bool, otherwise: str) -> None:
    if not true:
        sys.exit(f"check_page: {otherwise}")


def main() -> None:
    """Make pages unless there is one, and check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args().page
    packages.ensure("looking at the page", NEEDED)
    BUILD.mkdir(exist_ok=True)
    page, run = BUILD / "page.html", BUILD / "page.json"
    if given is None:
        command = [sys.executable, "-m", "npumatmul.cli", *MATMUL, "--html", str(page), "--json", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with Browser() as browser:
        check(browser, given or page, BUILD / "page.png")
        if given is None:
            other = BUILD / "hostile.html"
            other.write_text(as_html(hostile(read_record(run))))
            check(browser, other, BUILD / "hostile.png")


if __name__ == "__main__":
    main()
