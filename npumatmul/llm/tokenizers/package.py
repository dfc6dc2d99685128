"""Calls of the ``tokenizers`` package: it raises plain Exception, and what panics in it is not even one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def failures_as(error: Callable[[str], Exception]) -> Iterator[None]:
    """Raise what fails in the package as another exception, which is made of its text."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as failure:
        raise error(str(failure)) from failure
