"""The `npumatmul` command."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; what it is built on belongs to the extra ``cli``."""
    try:
        from npumatmul.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"npumatmul: the command line needs {error.name}: pip install 'npumatmul[cli]'")
    run()
