"""The tree of exceptions that the docstring of `npumatmul.errors` draws."""

from __future__ import annotations

import re

from npumatmul import errors


def test_the_docstring_draws_every_exception_with_its_bases() -> None:
    drawn = dict(re.findall(r"── (\w+)(?: \(([\w, ]+)\))?$", errors.__doc__ or "", re.M))
    defined = {
        name: ", ".join(base.__name__ for base in each.__bases__[1:])
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, errors.NpuError) and each is not errors.NpuError
    }
    assert drawn == defined
