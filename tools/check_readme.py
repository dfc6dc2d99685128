"""Follow README.md on a machine that has nothing of npumatmul: its install lines, each with the programs it is for.

The first line suffices for the first Python program, all of them together for the others.

    python3 tools/check_readme.py

The environment is made anew and thrown away, so that what somebody has installed for other work cannot hide a missing
package.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def install_lines(text: str) -> list[list[str]]:
    """The arguments of each ``pip install``."""
    found = re.findall(r"^pip install (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    if not found:
        raise SystemExit("README.md has no line that begins with pip install")
    return [shlex.split(line) for line in found]


def main() -> None:
    """Install and run; `SystemExit` where something fails."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    if not blocks:
        raise SystemExit("README.md has no Python programs")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = folder / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("NPUMATMUL_", "PYTHON"))}
        first, *others = install_lines(text)
        for lines, programs in (([first], blocks[:1]), (others, blocks)):
            for line in lines:
                subprocess.run([*pip, *line], check=True, cwd=ROOT)
            done = subprocess.run([str(python), "-c", "\n".join(programs)], cwd=folder, env=clean)
            if done.returncode != 0:
                raise SystemExit(f"README.md's programs fail after 'pip install {shlex.join(lines[-1])}'")
    print(f"README.md: {len(blocks)} programs run, the first after 'pip install {shlex.join(first)}'")


if __name__ == "__main__":
    main()
