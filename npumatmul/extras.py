"""Optional packages: which extra of npumatmul each comes with, and the error for one that is not installed."""

from __future__ import annotations

import importlib.util
import sys

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


def explain_missing(error: ImportError, what: str) -> None:
    """Raise in the place of an import's error one that says what to install; return where it is about another package.

    Parameters
    ----------
    error : ImportError
        Of a package that is missing, or of a part of one that is there in another version.
    what : str
        What needs the package.

    Raises
    ------
    MissingPackageError
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return
    if not _is_there(package):
        raise _missing(package, what) from error
    version = getattr(sys.modules.get(package), "__version__", "")
    raise MissingPackageError(
        f"{what} cannot use the {INSTALLED_AS.get(package, package)} {version}".rstrip()
        + f" that is installed ({error}): pip install --upgrade 'npumatmul[{EXTRAS[package]}]'",
        name=package,
    ) from error


def check_installed(package: str, what: str) -> None:
    """Find out that a package is missing before the work that it is needed for.

    Raises
    ------
    MissingPackageError
    """
    if not _is_there(package):
        raise _missing(package, what)


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):  # something stands in its way
        return False


def _missing(package: str, what: str) -> MissingPackageError:
    return MissingPackageError(
        f"{what} needs {INSTALLED_AS.get(package, package)}: pip install 'npumatmul[{EXTRAS[package]}]'", name=package
    )
