"""What methods of weights and arrays call that is itself made of weights and arrays.

The package puts it here when it is imported, so that the classes need not import what is built on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Operators", "operators"]


class Operators:
    """Functions by what they are for.

    Attributes
    ----------
    weight : type
        `PackedWeight`.
    matmul : callable
        Of ``@``: takes both operands.
    call_ufunc, call_function : callable
        Of ``__array_ufunc__`` and ``__array_function__``: take what numpy hands on.
    save_packed : callable
        Of `PackedWeight.save`: takes weight and path.
    """

    weight: type
    matmul: Callable[..., Any]
    save_packed: Callable[..., None]
    call_ufunc: Callable[..., Any]
    call_function: Callable[..., Any]


#: The one instance.
operators = Operators()
