"""`fold_weight_norm`: weights of checkpoints that keep direction and length apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import ModelError
from npumatmul.nn.module import floats

__all__ = ["fold_weight_norm"]

#: How PyTorch ends the names of length and direction of ``X.weight``: as it does now, and as it did before.
_ENDS = (
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
    (".weight_g", ".weight_v"),
)


class _Folded(Mapping[str, Any]):
    """The mapping with each pair as one weight, which is computed when it is asked for."""

    def __init__(self, mapping: Mapping[str, Any]) -> None:
        self._mapping = mapping
        self._names: dict[str, str | tuple[str, str]] = {}
        directions = set()
        for name in mapping:
            for length, direction in _ENDS:
                if name.endswith(length) and name.removesuffix(length) + direction in mapping:
                    stem = name.removesuffix(length)
                    self._names[f"{stem}.weight"] = name, stem + direction
                    directions.add(stem + direction)
                    break
            else:
                self._names.setdefault(name, name)
        for name in directions:
            self._names.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Any:
        where = self._names[name]
        return self._mapping[where] if isinstance(where, str) else self._weight(*where)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value, without reading it where the mapping can do so."""
        where = self._names[name]
        source = where if isinstance(where, str) else where[1]
        shape_of = getattr(self._mapping, "shape", None)
        return tuple(shape_of(source)) if callable(shape_of) else tuple(np.shape(self._mapping[source]))

    def _weight(self, length: str, direction: str) -> NDArray[np.float32]:
        g = floats(self._mapping[length], length).astype(np.float64)
        v = floats(self._mapping[direction], direction).astype(np.float64)
        fits = g.ndim == v.ndim and all(a in (1, b) for a, b in zip(g.shape, v.shape, strict=True))
        if not fits:
            raise ModelError(f"fold_weight_norm: {length} of shape {g.shape} is no length of {direction}, {v.shape}")
        over = tuple(i for i, size in enumerate(g.shape) if size == 1)
        norm = np.sqrt((v * v).sum(over, keepdims=True))
        with np.errstate(invalid="ignore", divide="ignore"):  # of a direction that is zero, as in PyTorch
            weight: NDArray[np.float32] = (v * (g / norm)).astype(np.float32)
        return weight


def fold_weight_norm(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make plain weights of a state dict that PyTorch's ``weight_norm`` has parted.

    Parameters
    ----------
    mapping : mapping of str to array_like
        With ``X.weight_g`` and ``X.weight_v``, or ``X.parametrizations.weight.original0`` and ``original1``; other
        names stay as they are.

    Returns
    -------
    mapping of str to array_like
        With ``X.weight`` for each pair, computed in float64 and rounded to float32 whenever it is asked for.

    Raises
    ------
    ModelError
        When a weight is asked for whose length does not fit its direction.

    Examples
    --------
    >>> import numpy as np
    >>> parted = {"conv.weight_g": np.full((1, 1), 10.0), "conv.weight_v": np.array([[3.0, 4.0]])}
    >>> dict(fold_weight_norm(parted))
    {'conv.weight': array([[6., 8.]], dtype=float32)}
    """
    return _Folded(mapping)
