"""`Embedding`: rows of a table, by number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.device import Device
from npumatmul.errors import ModelError
from npumatmul.nn.linear import Linear
from npumatmul.nn.module import Module, Rows, Take, check_size, floats
from npumatmul.nn.product import Float32, Pack, packed_by
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["Embedding"]


class Embedding(Module):
    """A table of which rows are taken by number: the first layer of a language model.

    Parameters
    ----------
    num_embeddings : int
        Rows, the size of the vocabulary.
    embedding_dim : int
        Width of rows.

    Raises
    ------
    ValueError
        If one of them is not positive.

    Notes
    -----
    The parameter is ``weight``, ``(num_embeddings, embedding_dim)``, kept as wide as it came and not copied. If the
    mapping given to `load_state_dict` has a method ``rows(name)`` that makes a function from row numbers to float32
    rows, the table stays where that function finds it, and rows are read when they are needed.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> table = nn.Embedding.from_array(np.arange(6.0).reshape(3, 2))
    >>> table(np.array([[2, 0]]))
    array([[[4., 5.],
            [0., 1.]]], dtype=float32)
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        check_size("Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self._num, self._dim = num_embeddings, embedding_dim
        self._table: NDArray[Any] | None = None
        self._rows: Rows | None = None

    def __repr__(self) -> str:
        return f"Embedding({self._num}, {self._dim})"

    @classmethod
    def from_array(cls, weight: ArrayLike) -> Embedding:
        """Make a layer of a table; it is not copied.

        Raises
        ------
        ValueError
            If it has not two dimensions.
        TypeError
            If it is not of floats.
        """
        table = floats(weight, "weight")
        if table.ndim != 2:
            raise ValueError(f"Embedding.from_array: a table has 2 dimensions; this has shape {table.shape}")
        layer = cls(*table.shape)
        layer._table = table
        return layer

    @classmethod
    def from_rows(cls, num_embeddings: int, embedding_dim: int, rows: Rows) -> Embedding:
        """Make a layer of a table that is elsewhere.

        Parameters
        ----------
        num_embeddings, embedding_dim : int
        rows : callable
            From row numbers ``(T,)``, all of them valid, to float32 rows ``(T, embedding_dim)``.

        Examples
        --------
        >>> import numpy as np
        >>> from npumatmul import nn
        >>> table = nn.Embedding.from_rows(8, 2, lambda ids: np.stack([ids, -ids], 1).astype(np.float32))
        >>> table([3])
        array([[ 3., -3.]], dtype=float32)
        """
        layer = cls(num_embeddings, embedding_dim)
        layer._rows = rows
        return layer

    @property
    def weight(self) -> NDArray[Any]:
        """The table; one that is elsewhere is read, all of it.

        Raises
        ------
        ModelError
            If none was loaded yet.
        """
        if self._table is not None:
            return self._table
        return self._read(np.arange(self._num))

    def _read(self, ids: NDArray[np.int64]) -> Float32:
        if self._table is not None:
            return self._table[ids].astype(np.float32, copy=False)
        if self._rows is None:
            raise ModelError(f"{self!r} has no weight yet; load_state_dict loads one")
        rows = self._rows(ids)
        if rows.shape != (len(ids), self._dim):
            raise ModelError(f"{self!r}: what reads rows gave {rows.shape} instead of {(len(ids), self._dim)}")
        return rows

    def __call__(self, ids: ArrayLike) -> Float32:
        """Take rows.

        Parameters
        ----------
        ids : array_like of int, shape (...)

        Returns
        -------
        ndarray of float32, shape (..., embedding_dim)
            A new array.

        Raises
        ------
        ValueError
            If a number is not one of a row.
        TypeError
            If they are no integers.
        """
        numbers = np.asarray(ids)
        if numbers.dtype.kind not in "iu" and numbers.size:
            raise TypeError(f"{self!r}: row numbers are integers, not {numbers.dtype}")
        flat = numbers.astype(np.int64).reshape(-1)
        if flat.size and not (np.minimum.reduce(flat) >= 0 and np.maximum.reduce(flat) < self._num):
            wrong = flat[(flat < 0) | (flat >= self._num)][0]
            raise ValueError(f"{self!r}: there is no row {wrong}; rows are 0 to {self._num - 1}")
        rows = self._read(flat)
        return rows if numbers.ndim == 1 else rows.reshape(*numbers.shape, self._dim)

    def as_linear(
        self,
        *,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
        pack: Pack | None = None,
        name: str = "lm_head",
    ) -> Linear:
        """Make the linear layer with the same weight: the head of a model whose embeddings are tied.

        Parameters
        ----------
        scheme, device
            As for `Linear`.
        pack : callable, optional
            As for `load_state_dict`, instead of the scheme.
        name : str
            What `pack` is told.

        Examples
        --------
        >>> import numpy as np
        >>> from npumatmul import nn
        >>> table = nn.Embedding.from_array(np.eye(3, dtype=np.float32))
        >>> table.as_linear(scheme="float32")(table([1]))
        array([[0., 1., 0.]], dtype=float32)
        """
        if pack is None:
            return Linear.from_arrays(self.weight, scheme=scheme, device=device)
        return Linear.from_product(packed_by(pack, lambda: self.weight, name))

    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """``weight``."""
        return {"weight": (self._num, self._dim)}

    def own_values(self, name: str, path: str) -> NDArray[Any]:
        """The table."""
        return self.weight

    def load_own(self, names: list[str], take: Take, pack: Pack | None, path: str) -> None:
        """Take the table, or what reads its rows."""
        rows = take.rows("weight")
        if rows is None:
            self._table, self._rows = take("weight"), None
        else:
            self._table, self._rows = None, rows
