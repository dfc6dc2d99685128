"""Hadamard matrices: square, entries 1 and -1, ``H @ H.T == n * I``.

Powers of two come of Sylvester's construction, other orders of Paley's two: q + 1 for primes q = 3 (mod 4), and
2 (q + 1) for primes q = 1 (mod 4). Products of orders are orders (Kronecker). That reaches, times powers of two, 12,
20, 28, 36, 44, 60, 68, 76, 84, 108, ...: most widths of language models.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["hadamard_factors", "hadamard_matrix", "largest_hadamard_block"]

#: Orders above this are not used as one factor: the work per element is the sum of the factors' orders.
MAX_FACTOR = 256
#: Factors that are no powers of two; what the kernel takes.
MAX_DENSE = 3


def hadamard_matrix(n: int) -> NDArray[np.int8]:
    """A Hadamard matrix of order `n`.

    Parameters
    ----------
    n : int

    Returns
    -------
    ndarray of int8, shape (n, n)

    Raises
    ------
    ValueError
        If none of the constructions here gives that order.

    Examples
    --------
    >>> h = hadamard_matrix(12).astype(int)
    >>> bool((h @ h.T == 12 * np.eye(12)).all())
    True
    """
    factors = hadamard_factors(n)
    if factors is None:
        raise ValueError(
            f"hadamard_matrix: no Hadamard matrix of order {n} can be constructed here; "
            f"the largest block that divides it is {largest_hadamard_block(n) if n > 0 else 'none'}"
        )
    matrix = np.ones((1, 1), np.int8)
    for factor in factors:
        matrix = np.kron(matrix, factor_matrix(factor))
    return matrix


def hadamard_factors(n: int) -> tuple[int, ...] | None:
    """Orders whose Kronecker product has order `n`, with the least work.

    Parameters
    ----------
    n : int

    Returns
    -------
    tuple of int, or None
        Up to three orders that are no powers of two, and last the power of two (1 where nothing is left). None if
        there is no such product.

    Examples
    --------
    >>> hadamard_factors(64), hadamard_factors(1536), hadamard_factors(8640), hadamard_factors(11)
    ((64,), (12, 128), (12, 20, 36, 1), None)
    """
    return _factors(n, MAX_DENSE)


@lru_cache(maxsize=256)
def _factors(n: int, dense: int) -> tuple[int, ...] | None:
    if n < 1:
        return None
    if n & (n - 1) == 0:
        return (n,)
    best: tuple[int, ...] | None = None
    for order in range(12, min(n, MAX_FACTOR) + 1, 4) if dense else ():
        if n % order or order & (order - 1) == 0 or not _is_paley_order(order):
            continue
        rest = _factors(n // order, dense - 1)
        if rest is not None and (best is None or _work((order, *rest)) < _work(best)):
            best = tuple(sorted((order, *rest[:-1]))) + rest[-1:]
    return best


def largest_hadamard_block(n: int) -> int:
    """Largest divisor of `n` that is the order of a Hadamard matrix here.

    Parameters
    ----------
    n : int
        1 or more.

    Examples
    --------
    >>> largest_hadamard_block(576), largest_hadamard_block(11008), largest_hadamard_block(7)
    (576, 256, 1)
    """
    divisors = (n // d for d in range(1, n + 1) if n % d == 0)
    return next(d for d in divisors if hadamard_factors(d) is not None)


@lru_cache(maxsize=32)
def factor_matrix(order: int) -> NDArray[np.int8]:
    """Hadamard matrix of one order of `hadamard_factors`; read-only."""
    if order & (order - 1) == 0:
        matrix = np.ones((1, 1), np.int8)
        while len(matrix) < order:
            matrix = np.kron(np.array([[1, 1], [1, -1]], np.int8), matrix)
    elif _is_prime(order - 1):
        matrix = _paley_one(order - 1)
    else:
        matrix = _paley_two(order // 2 - 1)
    matrix.flags.writeable = False
    return matrix


def _work(factors: tuple[int, ...]) -> int:
    """Additions per element: a dense factor takes its order, a power of two its logarithm."""
    return sum(factors[:-1]) + factors[-1].bit_length() - 1


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _is_paley_order(n: int) -> bool:
    one = n % 4 == 0 and _is_prime(n - 1)
    two = n % 4 == 0 and _is_prime(n // 2 - 1) and (n // 2 - 1) % 4 == 1
    return one or two


def _jacobsthal(q: int) -> NDArray[np.int8]:
    """Q[i, j] = 1 if i - j is a square modulo the prime q, 0 if it is 0, else -1."""
    character = np.full(q, -1, np.int8)
    character[(np.arange(1, q, dtype=np.int64) ** 2) % q] = 1
    character[0] = 0
    index = np.arange(q)
    matrix: NDArray[np.int8] = character[(index[:, np.newaxis] - index) % q]
    return matrix


def _paley_one(q: int) -> NDArray[np.int8]:
    """Order q + 1, q = 3 (mod 4): I + S with S skew."""
    skew = np.zeros((q + 1, q + 1), np.int8)
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(q)
    return skew + np.eye(q + 1, dtype=np.int8)


def _paley_two(q: int) -> NDArray[np.int8]:
    """Order 2 (q + 1), q = 1 (mod 4), of a symmetric conference matrix."""
    conference = np.zeros((q + 1, q + 1), np.int8)
    conference[0, 1:], conference[1:, 0], conference[1:, 1:] = 1, 1, _jacobsthal(q)
    off = np.array([[1, 1], [1, -1]], np.int8)
    diagonal = np.array([[1, -1], [-1, -1]], np.int8)
    return np.kron(conference, off) + np.kron(np.eye(q + 1, dtype=np.int8), diagonal)
