"""The `npumatmul` command."""

from __future__ import annotations

import sys

from npumatmul.errors import MissingPackageError
from npumatmul.extras import explain_missing

__all__ = ["main"]


def main() -> None:
    """Run the command line; what it is built on belongs to the extra ``cli``."""
    try:
        try:
            from npumatmul.cli.app import run
        except ImportError as error:
            explain_missing(error, "the command line")
            raise
    except MissingPackageError as error:
        sys.exit(f"npumatmul: {error}")
    run()
