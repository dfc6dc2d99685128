"""Offloaded estimators in folders: scikit-learn's part by skops, which executes nothing that it reads; ours as JSON.

===================  ============================================================================================
estimator.skops      the estimator, or pipeline, as scikit-learn fitted it
npumatmul.json       scheme, and the ranges of values that were folded into weights of each step
===================  ============================================================================================
"""

from __future__ import annotations

import copy
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from sklearn.pipeline import Pipeline
from skops.io.exceptions import UntrustedTypesFoundException

from npumatmul.errors import UnusableFileError
from npumatmul.files.reading import parse_json, read_text, shown
from npumatmul.files.writing import write_bytes
from npumatmul.sklearn.estimators import NpuEstimator
from npumatmul.sklearn.families import family_of
from npumatmul.sklearn.offloading import with_steps, wrapper_of
from npumatmul.sklearn.ranges import Ranges
from npumatmul.sklearn.schemes import SCHEMES

__all__ = ["ESTIMATOR", "SETTINGS", "load", "save"]

ESTIMATOR, SETTINGS = "estimator.skops", "npumatmul.json"
_FORMAT = 1
#: What is read at most, unpacked: more than any estimator that fits into an NPU.
_MOST_BYTES = 1 << 32
_SETTINGS_BYTES = 1 << 28
#: Kernels of Gaussian processes that are offloaded: objects with numbers in them, which skops does not know.
_KERNELS = tuple(
    f"sklearn.gaussian_process.kernels.{name}"
    for name in (
        "ConstantKernel", "DotProduct", "Exponentiation", "Matern", "Product", "RBF", "RationalQuadratic", "Sum",
        "WhiteKernel",
    )
)  # fmt: skip


def save(estimator: Any, folder: str | os.PathLike[str]) -> None:
    """Write what `offload` returned into a folder.

    Parameters
    ----------
    estimator : NpuEstimator or Pipeline
    folder : str or os.PathLike
        It is made if it is not there; files of an earlier `save` are replaced.

    Raises
    ------
    TypeError
        If nothing of it is offloaded.
    OSError
        If the files cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from sklearn.linear_model import Ridge
    >>> from npumatmul.sklearn import load, offload, save
    >>> x = np.eye(4)
    >>> model = offload(Ridge().fit(x, [1.0, 2.0, 3.0, 4.0]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, folder)
    ...     bool((load(folder).predict(x) == model.predict(x)).all())
    True
    """
    found = list(_offloaded(estimator, ""))
    if not found:
        raise TypeError(f"save takes what offload returned, not {type(estimator).__name__}")
    settings = {
        "format": _FORMAT,
        "scheme": found[0][1].scheme,
        "steps": {path: [_written(ranges) for ranges in each._folded] for path, each in found},
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / ESTIMATOR, skops.io.dumps(_original(estimator)))
    write_bytes(folder / SETTINGS, json.dumps(settings).encode())


def load(folder: str | os.PathLike[str], *, device: Any = None, trusted: Sequence[str] = ()) -> Any:
    """Read an offloaded estimator from a folder of `save`, and put its weights onto a device.

    Parameters
    ----------
    folder : str or os.PathLike
    device : Device or str, optional
        The current device by default.
    trusted : sequence of str
        Types outside of scikit-learn and numpy that may be made, as ``package.module.Type``.

    Returns
    -------
    NpuEstimator or Pipeline

    Raises
    ------
    OSError
        If a file cannot be read.
    npumatmul.errors.UnusableFileError
        If it is none of `save`, is damaged, or asks for a type that is not trusted.
    """
    folder = Path(folder)
    scheme, steps = _settings(folder / SETTINGS)
    estimator = read_skops(folder / ESTIMATOR, trusted)
    try:
        return _again(estimator, "", scheme, device, steps)
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise UnusableFileError(f"{folder} does not hold what save wrote: {error}") from error


def read_skops(path: Path, trusted: Sequence[str] = ()) -> Any:
    """Read an estimator from a file of skops.

    Raises
    ------
    OSError, npumatmul.errors.UnusableFileError
        As `load`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(each.file_size for each in archive.infolist())
    except zipfile.BadZipFile as error:
        raise UnusableFileError(f"{path} is no file of skops, or is damaged: {error}") from error
    if size > _MOST_BYTES:
        raise UnusableFileError(f"{path} would take {size} bytes of memory; at most {_MOST_BYTES} are read")
    try:
        return skops.io.load(path, trusted=[*_KERNELS, *trusted])
    except UntrustedTypesFoundException as error:
        found = ", ".join(skops.io.get_untrusted_types(file=path))
        raise UnusableFileError(
            f"{path} holds types that nobody said to trust: {found}; name them in trusted if they may be made"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file breaks skops in many ways
        raise UnusableFileError(f"{path} cannot be read by skops: {type(error).__name__}: {error}") from error


def _settings(path: Path) -> tuple[str, dict[str, tuple[Ranges, ...]]]:
    try:
        read = parse_json(read_text(path, _SETTINGS_BYTES))
        if not isinstance(read, dict) or not isinstance(read.get("steps"), dict):
            raise ValueError("it has no steps")
        if read.get("format") != _FORMAT:
            raise ValueError(f"its format is {shown(read.get('format'))}; this npumatmul reads {_FORMAT}")
        if read.get("scheme") not in SCHEMES:
            raise ValueError(f"its scheme is {shown(read.get('scheme'))}")
        return read["scheme"], {name: tuple(map(_read, each)) for name, each in read["steps"].items()}
    except (ValueError, TypeError, KeyError) as error:
        raise UnusableFileError(f"{path} is none of npumatmul.sklearn.save: {error}") from error


def _offloaded(estimator: Any, path: str) -> Iterator[tuple[str, NpuEstimator]]:
    if isinstance(estimator, NpuEstimator):
        yield path, estimator
    elif isinstance(estimator, Pipeline):
        for name, step in estimator.steps:
            yield from _offloaded(step, f"{path}/{name}")


def _original(estimator: Any) -> Any:
    """The same with scikit-learn's own estimators."""
    if isinstance(estimator, NpuEstimator):
        made = _for_predicting(estimator.estimator_)
        chosen = getattr(estimator, "_sklearn_output_config", None)
        if chosen and chosen != getattr(made, "_sklearn_output_config", None):
            made = copy.copy(made)
            made._sklearn_output_config = dict(chosen)
        return made
    if isinstance(estimator, Pipeline):
        made = with_steps(estimator, [(name, _original(step)) for name, step in estimator.steps])
        made.memory = None  # a cache on this machine, and of fitting only
        return made
    return estimator


def _for_predicting(estimator: Any) -> Any:
    """The same without what only fitting goes on with, or another way to search: skops does not trust these types."""
    given = vars(estimator)
    if given.get("_tree") is None and "_optimizer" not in given:
        return estimator
    made = copy.copy(estimator)
    vars(made).pop("_optimizer", None)
    if given.get("_tree") is not None:
        made._tree, made._fit_method = None, "brute"
    return made


def _again(estimator: Any, path: str, scheme: str, device: Any, steps: dict[str, tuple[Ranges, ...]]) -> Any:
    if isinstance(estimator, Pipeline):
        return with_steps(
            estimator, [(name, _again(step, f"{path}/{name}", scheme, device, steps)) for name, step in estimator.steps]
        )
    if path not in steps:
        if not path:
            raise ValueError("its estimator is not among its steps")
        return estimator
    family_of(estimator, refuses=True)
    return wrapper_of(estimator).of_fitted(
        estimator, scheme=scheme, device=device, example_input=None, ranges=steps[path]
    )


def _written(ranges: Ranges) -> Any:
    return {"middle": ranges.middle.tolist(), "spread": ranges.spread.tolist()}


def _read(written: Any) -> Ranges:
    middle, spread = (np.array(written[name], np.float64) for name in ("middle", "spread"))
    alike = middle.ndim == 1 and middle.shape == spread.shape
    if not alike or not np.isfinite([middle, spread]).all() or (spread < 0).any():
        raise ValueError("its ranges are none")
    return Ranges(middle, spread)
