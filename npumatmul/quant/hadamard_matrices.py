"""Hadamard matrices: square, entries 1 and -1, ``H @ H.T == n * I``.

Powers of two come of Sylvester's construction, other orders of Paley's two: q + 1 for primes q = 3 (mod 4), and
2 (q + 1) for q = 1 (mod 4) that are primes or their squares; and of Williamson's, 4 t for symmetric circulants of order
t. Products of orders are orders (Kronecker). Of multiples of 4 up to 256 that leaves out 188 and 236, and their width
is that of no common language model.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

__all__ = ["hadamard_factors", "hadamard_matrix", "largest_hadamard_block"]

#: Orders above this are not used as one factor: the work per element is the sum of the factors' orders.
MAX_FACTOR = 256
#: Factors that are no powers of two; what the kernel takes.
MAX_DENSE = 3

#: First rows of Williamson's circulants, up to the middle; the rest mirrors it. Those of 23, 29 and 43 were searched
#: for (43 among rows that multiplication by 6 leaves alone, as Williamson did in 1944), those of 39 are published.
_WILLIAMSON = {
    23: ("+--+-+-+++++", "+--++-+-+-++", "+++---++--++", "+--+--+++---"),
    29: ("+--++----+-++++", "+-+++-+++--+-++", "+--+---+-+--+++", "++--++-+-++++--"),
    39: ("+++--+-+-----+--++--", "+++--++-+---+-+--+--", "++++---+--++----+-+-", "+---++-+-+-----+++-+"),
    43: ("+---++--++++-+-+++-++-", "++---++++-+--+--++----", "+++-+-++--+-+-++++-+--", "++-++++++----+-+--++-+"),
}


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
    # Files name the order alone, so an order must mean the same matrix for ever: orders that came later are asked only
    # where the first ones give nothing.
    return _factors(n, MAX_DENSE, later=False) or _factors(n, MAX_DENSE, later=True)


@lru_cache(maxsize=256)
def _factors(n: int, dense: int, later: bool) -> tuple[int, ...] | None:
    if n < 1:
        return None
    if n & (n - 1) == 0:
        return (n,)
    best: tuple[int, ...] | None = None
    for order in range(12, min(n, MAX_FACTOR) + 1, 4) if dense else ():
        if n % order or order & (order - 1) == 0 or not (_is_paley_order(order) or (later and _came_later(order))):
            continue
        rest = _factors(n // order, dense - 1, later)
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
    (576, 11008, 1)
    """
    small = [d for d in range(1, isqrt(n) + 1) if n % d == 0]
    divisors = sorted({*small, *(n // d for d in small)}, reverse=True)
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
    elif order // 4 in _WILLIAMSON:
        matrix = _williamson(_WILLIAMSON[order // 4])
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


def _came_later(n: int) -> bool:
    """Orders of constructions that earlier versions did not have."""
    root = isqrt(max(n // 2 - 1, 0))
    square = n % 4 == 0 and root > 2 and root * root == n // 2 - 1 and _is_prime(root)
    return square or (n % 4 == 0 and n // 4 in _WILLIAMSON)


def _quadratic_character(p: int) -> NDArray[np.int8]:
    """1 for squares modulo the prime p, 0 for 0, else -1."""
    character = np.full(p, -1, np.int8)
    character[(np.arange(1, p, dtype=np.int64) ** 2) % p] = 1
    character[0] = 0
    return character


def _jacobsthal(q: int) -> NDArray[np.int8]:
    """Q[i, j] = 1 if i - j is a square in the field of q elements, 0 if it is 0, else -1; q is p or p**2, p a prime.

    Element i of the field of p**2 is a + b x with i = a p + b and x**2 the least non-square c modulo p. It is a square
    where its norm a**2 - c b**2 is one modulo p, because norms are the (p + 1)th powers.
    """
    if _is_prime(q):
        index = np.arange(q)
        matrix: NDArray[np.int8] = _quadratic_character(q)[(index[:, np.newaxis] - index) % q]
        return matrix
    p = isqrt(q)
    character = _quadratic_character(p)
    parts = np.divmod(np.arange(q), p)
    a, b = (part[:, np.newaxis] - part for part in parts)
    c = int(np.flatnonzero(character == -1)[0])
    matrix = character[(a * a - c * b * b) % p]
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


def _williamson(halves: tuple[str, ...]) -> NDArray[np.int8]:
    """Order 4 t of four symmetric circulants of order t whose squares add up to 4 t I."""
    circulants = []
    for half in halves:
        row = np.array([1 if sign == "+" else -1 for sign in half + half[:0:-1]], np.int8)
        index = np.arange(len(row))
        circulants.append(row[(index - index[:, np.newaxis]) % len(row)])
    a, b, c, d = circulants
    return np.block([[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]])
