"""Optional packages: which extra of npumatmul each comes with, and the error for one that is not installed."""

from __future__ import annotations

import importlib.util

from npumatmul.errors import MissingPackageError

__all__ = ["EXTRAS", "INSTALLED_AS", "check_installed", "explain_missing"]

#: The extra that a package comes with, as in pyproject.toml.
EXTRAS = {
    "gguf": "llm",
    "jinja2": "llm",
    "matplotlib": "bench",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "rich": "cli",
    "sklearn": "sklearn",
    "skops": "sklearn",
    "starlette": "server",
    "tokenizers": "llm",
    "torch": "torch",
    "transformers": "torch",
    "typer": "cli",
    "uvicorn": "server",
}
#: What is installed under another name than it is imported by.
INSTALLED_AS = {"sklearn": "scikit-learn"}


def explain_missing(error: ModuleNotFoundError, what: str) -> None:
    """Raise in the place of an import's error one that says what to install; return where it is about another package.

    Parameters
    ----------
    error : ModuleNotFoundError
    what : str
        What needs the package.

    Raises
    ------
    MissingPackageError
    """
    package = (error.name or "").partition(".")[0]
    if package in EXTRAS:
        raise _missing(package, what) from error


def check_installed(package: str, what: str) -> None:
    """Find out that a package is missing before the work that it is needed for.

    Raises
    ------
    MissingPackageError
    """
    try:
        found = importlib.util.find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):  # something stands in its way
        found = False
    if not found:
        raise _missing(package, what)


def _missing(package: str, what: str) -> MissingPackageError:
    return MissingPackageError(
        f"{what} needs {INSTALLED_AS.get(package, package)}: pip install 'npumatmul[{EXTRAS[package]}]'", name=package
    )
