"""Follow README.md on a machine that has nothing of npumatmul: its first install line, then its Python programs.

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


def install_line(text: str) -> list[str]:
    """The arguments of the first ``pip install``."""
    found = re.search(r"^pip install (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    if found is None:
        raise SystemExit("README.md has no line that begins with pip install")
    return shlex.split(found[1])


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
        line = install_line(text)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *line], check=True, cwd=ROOT)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("NPUMATMUL_", "PYTHON"))}
        done = subprocess.run([str(python), "-c", "\n".join(blocks)], cwd=folder, env=clean)
    if done.returncode != 0:
        raise SystemExit(f"README.md's programs fail after 'pip install {shlex.join(line)}'")
    print(f"README.md: {len(blocks)} programs run after 'pip install {shlex.join(line)}'")


if __name__ == "__main__":
    main()
