"""`unstacked`: of tensors that hold all experts of a layer, one matrix for each, by the names that files have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_EXPERTS", "Unstacked", "unstacked"]

T = TypeVar("T")

MAX_EXPERTS = 1 << 12

_PLACE = r"(?P<stem>(?:.+\.)?)"
_STACK = re.compile(
    _PLACE + r"(?P<part>experts\.(?:gate_up_proj|gate_proj|up_proj|down_proj)|input_linear(?=\.weight)"
    r"|output_linear(?=\.weight))(?P<ending>\.weight|[._]bias|)"
)
_MATRIX = re.compile(_PLACE + r"(?P<expert>experts\.\d{1,4})\.(?P<part>w[123])\.weight")
#: What the parts of an expert are called that has no better names for them.
_NUMBERED = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_ROUTER = re.compile(_PLACE + r"(?:router(?:\.layer)?|gate)\.(?P<ending>weight|bias)")
#: What a stack holds of each expert, below one another.
_PARTS = {
    "experts.gate_up_proj": ("gate_proj", "up_proj"),
    "experts.gate_proj": ("gate_proj",),
    "experts.up_proj": ("up_proj",),
    "experts.down_proj": ("down_proj",),
    "input_linear": ("gate_proj", "up_proj"),
    "output_linear": ("down_proj",),
}


@dataclass(frozen=True)
class _Slice:
    """Rows of a stack that are one matrix, or values that are one bias."""

    name: str
    expert: int
    rows: slice
    shape: tuple[int, ...]
    is_transposed: bool = False


def unstacked(mapping: T) -> T | Unstacked:
    """Look at a mapping of parameters so that experts have a matrix each.

    Parameters
    ----------
    mapping : mapping of str to array_like
        Names of stacks end with ``experts.gate_up_proj`` and ``experts.down_proj`` (transformers), with
        ``experts.gate_proj.weight``, ``experts.up_proj.weight`` and ``experts.down_proj.weight`` (GGUF), or with
        ``input_linear.weight``, ``output_linear.weight`` and ``router.layer.weight`` (Granite), which are
        ``(experts, N, K)`` all. Where ``experts.gate_up_proj_bias`` stands beside them, they are gpt-oss's: rows of
        gate and up alternate, and what is not called ``weight`` is ``(experts, K, N)``. Biases are ``(experts, N)``.

    Returns
    -------
    mapping
        A view in which ``experts.<number>.gate_proj.weight``, ``up_proj`` and ``down_proj`` take the place of stacks,
        biases that of biases, and ``gate.weight`` that of the router; ``block_sparse_moe`` is called ``mlp``, and
        matrices ``experts.<number>.w1`` and so on as above. No value is read before it is asked for. The mapping itself
        where there is nothing of the kind.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> view = nn.unstacked({"mlp.experts.down_proj": np.arange(8).reshape(2, 2, 2)})
    >>> list(view)
    ['mlp.experts.0.down_proj.weight', 'mlp.experts.1.down_proj.weight']
    >>> view["mlp.experts.1.down_proj.weight"]
    array([[4, 5],
           [6, 7]])
    """
    if isinstance(mapping, Unstacked) or not isinstance(mapping, Mapping):
        return mapping
    view = Unstacked(mapping)
    return view if view.stacks or any(map(_MATRIX.fullmatch, mapping)) else mapping


class Unstacked(Mapping[str, Any]):
    """What `unstacked` gives.

    Parameters
    ----------
    mapping : mapping

    Attributes
    ----------
    stacks : int
        How many stacks there are.
    """

    def __init__(self, mapping: Any) -> None:
        self._mapping = mapping
        self._found: dict[str, str | _Slice] = {}
        self._bias: tuple[str, Any] = "", None  # the stack that was read last
        self.stacks = 0
        for name in mapping:
            found = _STACK.fullmatch(name)
            slices = {} if found is None else self._slices(name, found["stem"], found["part"], found["ending"])
            self.stacks += bool(slices)
            for called, place in (slices or {self._renamed(name): name}).items():
                # a name that is there twice is left over, by the name that the mapping has for it
                self._found[name if called in self._found else called] = place

    def _slices(self, name: str, stem: str, part: str, ending: str) -> dict[str, str | _Slice]:
        shape, parts = self._shape(name), _PARTS[part]
        is_bias = ending.endswith("bias")
        alternate = f"{stem}{part}_bias" in self._mapping
        is_transposed = alternate and ending == ""
        if len(shape) != 3 - is_bias or 0 in shape or shape[0] > MAX_EXPERTS:
            return {}
        count, columns = shape[2 if is_transposed else 1], () if is_bias else (shape[1 if is_transposed else 2],)
        rows, left = divmod(count, len(parts))
        if left:
            return {}
        kind = "bias" if is_bias else "weight"
        made: dict[str, str | _Slice] = {}
        for e in range(shape[0]):
            for i, each in enumerate(parts):
                own = slice(i, count, len(parts)) if alternate else slice(i * rows, (i + 1) * rows)
                place = _Slice(name, e, own, (rows, *columns), is_transposed)
                made[f"{_usual(stem)}experts.{e}.{each}.{kind}"] = place
        return made

    @staticmethod
    def _renamed(name: str) -> str:
        found = _MATRIX.fullmatch(name)
        if found is not None:
            return f"{_usual(found['stem'])}{found['expert']}.{_NUMBERED[found['part']]}.weight"
        found = _ROUTER.fullmatch(name)
        return name if found is None else f"{_usual(found['stem'])}gate.{found['ending']}"

    def _shape(self, name: str) -> tuple[int, ...]:
        shape_of = getattr(self._mapping, "shape", None)
        return tuple(shape_of(name)) if callable(shape_of) else np.shape(self._mapping[name])

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Any:
        """Read a matrix; of a stack that can be read by rows, no more than that."""
        found = self._found[name]
        if not isinstance(found, _Slice):
            return self._mapping[found]
        if len(found.shape) == 1:  # experts of a layer take theirs one after another
            if self._bias[0] != found.name:
                self._bias = found.name, self._mapping[found.name]
            return self._bias[1][found.expert, found.rows]
        read = getattr(self._mapping, "matrix", None)
        if not callable(read):
            matrix = self._mapping[found.name][found.expert]
        elif found.is_transposed or found.rows.step is not None:
            count = self._shape(found.name)[1]
            matrix = read(found.name, found.expert, 0, count)
        else:
            return read(found.name, found.expert, found.rows.start, found.rows.stop)
        values: NDArray[Any] = (matrix.T if found.is_transposed else matrix)[found.rows]
        return np.ascontiguousarray(values) if found.is_transposed else values

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a matrix or a bias, without reading it."""
        found = self._found[name]
        return found.shape if isinstance(found, _Slice) else self._shape(found)

    def stored_as(self, name: str) -> str:
        """As `npumatmul.llm.files.model_source.Weights.stored_as`, of mappings that have it."""
        kind: str = self._mapping.stored_as(self.held_as(name))
        return kind

    def rows(self, name: str) -> Any:
        """As `npumatmul.llm.files.model_source.Weights.rows`; None of mappings that do not have it."""
        read = getattr(self._mapping, "rows", None)
        return read(self.held_as(name)) if callable(read) else None

    def rows_of(self, name: str) -> slice:
        """Which rows of the tensor that holds it are a matrix, those of a stack one below the other.

        Raises
        ------
        ValueError
            If columns of the tensor are its rows.
        """
        found = self._found[name]
        if not isinstance(found, _Slice):
            return slice(0, None)
        if found.is_transposed:
            raise ValueError(f"{name} is stored by columns")
        first = found.expert * self._shape(found.name)[1]
        return slice(first + found.rows.start, first + found.rows.stop, found.rows.step)

    def held_as(self, name: str) -> str:
        """What the mapping itself calls the tensor that a matrix is in."""
        found = self._found[name]
        return found.name if isinstance(found, _Slice) else found

    def tensor_name(self, name: str) -> str:
        """What the file calls the tensor that a matrix is in."""
        own = getattr(self._mapping, "tensor_name", None)
        held = self.held_as(name)
        return str(own(held)) if callable(own) else held


def _usual(stem: str) -> str:
    return re.sub(r"(?:^|(?<=\.))block_sparse_moe\.$", "mlp.", stem)
