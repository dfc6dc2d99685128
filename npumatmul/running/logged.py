"""``NPUMATMUL_LOG=bench``: each product of a program, as a command that measures it again.

It is looked at once, when npumatmul is imported: without it, products know nothing of logs.
"""

from __future__ import annotations

import functools
import logging
import os
import shlex
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npumatmul.running.runs import Runs

__all__ = ["command", "log_file", "logged"]

VARIABLE = "NPUMATMUL_LOG"
_KIND = "bench"

logger = logging.getLogger("npumatmul.bench")


def log_file(environment: Mapping[str, str] | None = None) -> str | None:
    """Where products are to be logged: "" is standard error, None nowhere.

    A value that means nothing is warned of, since a log that is not there would be missed too late.

    Examples
    --------
    >>> log_file({"NPUMATMUL_LOG": "bench"}), log_file({"NPUMATMUL_LOG": "bench:calls.sh"}), log_file({})
    ('', 'calls.sh', None)
    """
    value = (os.environ if environment is None else environment).get(VARIABLE, "")
    kind, colon, path = value.partition(":")
    if kind == _KIND and (path or not colon):
        return path
    if value:
        warnings.warn(
            f"{VARIABLE} is {value!r}, and nothing is logged: it can be 'bench' (on standard error) or 'bench:FILE'",
            stacklevel=2,
        )
    return None


def command(runs: Runs) -> str | None:
    """The command that measures a product, to be given to a shell; None of products that are measured already.

    Parameters
    ----------
    runs : Runs
    """
    weight, plan = runs.weight, runs.plan
    if weight.scheme is None:
        return None
    w = plan.weight
    options = {
        "--types": weight.scheme,
        "--shapes": f"{plan.m}x{w.k}x{w.n}",
        "--layouts": "native" if w.ac_native else "normal",
        "--cores": str(plan.cores),
    }
    words = " ".join(f"{name} {shlex.quote(value)}" for name, value in options.items())
    return f"npumatmul bench matmul {words}{'' if runs.on_npu else '  # here the CPU computed it'}"


def logged(run: Callable[..., None], path: str) -> Callable[..., None]:
    """The same function, which logs before it runs; as it was, with a warning, where the file cannot be written."""
    try:
        handler = logging.FileHandler(path, encoding="utf-8") if path else logging.StreamHandler()
    except OSError as error:
        warnings.warn(f"{VARIABLE}: nothing is logged, {path} cannot be written: {error.strerror}", stacklevel=2)
        return run
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # each line is a command, and nothing else

    @functools.wraps(run)
    def run_logged(self: Runs, *given: Any, **named: Any) -> None:
        for product in self.products:
            line = command(product)
            if line is not None:
                logger.info("%s", line)
        run(self, *given, **named)

    return run_logged
