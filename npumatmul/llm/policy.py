"""`Policy`: which layers of a model the NPU computes, in which phase, and with how much of its memory."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from npumatmul.files.reading import shown
from npumatmul.files.sizes import parsed_size

__all__ = ["Policy", "check_patterns"]

_PLACES = ("auto", "npu", "cpu")
#: What names of layers and patterns of them are made of; none of it means anything to `Policy.parse`.
_PATTERN = re.compile(r"[A-Za-z0-9_.\-*?\[\]!]{1,200}")
_SCHEME = re.compile(r"[A-Za-z0-9_]{1,40}")
_RANGE = re.compile(r"(\d{1,6}):(\d{1,6})", re.ASCII)
_MOST = 1 << 20


@dataclass(frozen=True, repr=False)
class Policy:
    """Where the layers of a model are computed, and what of the NPU they may take.

    A layer is on the NPU, or it stands in ordinary memory and the CPU computes it: in the same scheme and from the same
    tiles, so that what a model says does not depend on its policy. Weights on the NPU are read by the CPU, too, where a
    product has few rows and that is chosen by `decode`; there is one copy of them.

    Parameters
    ----------
    npu_layers : "auto", "all", int, str or sequence of str
        ``"auto"``: as many as there is room for, those first that gain most by byte. A number: so many of the last
        blocks, as ``-ngl`` of llama.cpp; one more than there are is the output matrix, too. Else patterns of names
        (``"blk.*.down"``; ``*`` and ``?`` as in file names): those layers.
    prefill, decode : {"auto", "npu", "cpu"}
        Who computes prompts and who computes tokens of layers on the NPU: products of more than 8 rows, and of fewer.
        ``"auto"``: whoever the timing model says is faster, by the rows of each product; on a board whoever was
        measured to be, where that was measured.
    memory_limit : int or str, optional
        Most bytes of NPU memory that the device may hold, A and C of products included, such as ``"2GB"``; by default
        as many as there are.
    domains : int, optional
        IOMMU domains that weights may be in; by default all (`npumatmul.capabilities` says how much one holds).
    cores : int or sequence of int, optional
        Numbers of the NPU's cores that may be used; by default all.
    layers : (int, int), optional
        A part of the model: blocks from the first number up to the one before the second, as of a slice. Nothing else
        is loaded; `Model.sequence` takes and gives the states between parts.
    schemes : mapping of str to str, optional
        Other schemes for some layers, by patterns of their names; later patterns win.

    Raises
    ------
    ValueError, TypeError
        If a value makes no sense.

    Examples
    --------
    >>> policy = Policy(npu_layers=20, decode="cpu", memory_limit="2GB")
    >>> policy
    Policy(npu_layers=20, decode='cpu', memory_limit=2000000000)
    >>> str(policy), Policy.parse(str(policy)) == policy
    ('npu_layers=20,decode=cpu,memory_limit=2000000000', True)
    """

    npu_layers: str | int | Sequence[str] = "auto"
    prefill: str = "auto"
    decode: str = "auto"
    memory_limit: int | str | None = None
    domains: int | None = None
    cores: int | Sequence[int] | None = None
    layers: tuple[int, int] | None = None
    schemes: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the values, and bring each into one form."""
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    def __repr__(self) -> str:
        """Return what differs from the usual."""
        told = (f"{name}={dict(value) if name == 'schemes' else value!r}" for name, value in self._unusual())
        return f"Policy({', '.join(told)})"

    def __str__(self) -> str:
        """Return what `parse` reads."""
        return ",".join(f"{name}={_text(name, value)}" for name, value in self._unusual())

    def _unusual(self) -> list[tuple[str, Any]]:
        usual = Policy.__dataclass_fields__
        pairs = [(each.name, getattr(self, each.name)) for each in fields(self)]
        return [(name, value) for name, value in pairs if value not in (usual[name].default, {})]

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read a policy of a line of text, as command lines have it.

        Parameters
        ----------
        text : str
            ``name=value`` with commas between; several numbers or patterns of a value have ``+`` between them, a range
            of layers and a pattern with its scheme ``:``.

        Raises
        ------
        ValueError
            If it is something else; the message says what there is.

        Examples
        --------
        >>> Policy.parse("npu_layers=blk.*.down+head,cores=0+2,layers=0:12,schemes=head:w16a16")
        Policy(npu_layers=('blk.*.down', 'head'), cores=(0, 2), layers=(0, 12), schemes={'head': 'w16a16'})
        """
        if not isinstance(text, str):
            raise TypeError(f"Policy.parse: a text is needed, not {shown(text)}")
        names, found = [each.name for each in fields(cls)], {}
        for part in text.split(",") if text.strip() else []:
            name, equals, value = (each.strip() for each in part.partition("="))
            if name not in names or not equals:
                raise ValueError(
                    f"policy: {shown(part.strip())} is not understood; it is name=value with commas between, of "
                    f"{', '.join(names)}, such as npu_layers=20,decode=cpu"
                )
            if name in found:
                raise ValueError(f"policy: {name} is given twice")
            found[name] = _parsed(name, value)
        return cls(**found)

    def scheme_of(self, name: str, usual: str) -> str:
        """The scheme of a layer; the usual one where no pattern names it."""
        found = usual
        for pattern, scheme in self.schemes.items():
            if fnmatchcase(name, pattern):
                found = scheme
        return found

    def wanted(self, names: Sequence[str]) -> list[str] | None:
        """The layers that are asked for on the NPU, of those that a model has; None: as many as there is room for.

        Raises
        ------
        ValueError
            If a pattern matches none.
        """
        if self.npu_layers == "auto":
            return None
        if self.npu_layers == "all":
            return list(names)
        if isinstance(self.npu_layers, int):
            return _last_blocks(names, self.npu_layers)
        patterns = self.npu_layers
        check_patterns(patterns, names, "npu_layers")
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def check_patterns(patterns: Sequence[str] | Mapping[str, str], names: Sequence[str], what: str) -> None:
    """Refuse patterns that no layer has a name for: what they were to do would be missed silently."""
    inside = [name for name in names if name != "head"]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"load: {what} has {pattern!r}, but no layer of the model is called so; its layers are "
                f"{', '.join(names[:4])} to {(inside or names)[-1]}"
                + (", and head" if len(inside) < len(names) else "")
            )


def _last_blocks(names: Sequence[str], count: int) -> list[str]:
    """Layers of so many of the last blocks; with one more the output matrix is among them, as in llama.cpp."""
    blocks = list(dict.fromkeys(block for name in names if (block := _block(name)) is not None))
    chosen = set(blocks[max(0, len(blocks) - count) :])
    return [name for name in names if (_block(name) in chosen if _block(name) else count > len(blocks))]


def _block(name: str) -> str | None:
    """The block of a layer, such as ``blk.3``, or ``decoder.blk.3`` of a model with two halves."""
    before, found, inside = name.rpartition("blk.")
    return f"{before}{found}{inside.partition('.')[0]}" if found else None


# ---- values ----------------------------------------------------------------------------------------------------------


def _checked_layers_on_npu(name: str, value: Any) -> Any:
    if isinstance(value, str):
        if value in ("auto", "all"):
            return value
        value = (value,)
    if isinstance(value, Sequence):
        if not value:
            raise ValueError(f"Policy: {name} has no patterns; 0 has no layer on the NPU")
        for each in value:
            _check_pattern(name, each)
            if each in ("auto", "all") or _is_number(each.removeprefix("-")):
                raise ValueError(f"Policy: {name} has the pattern {each!r}; give {_plain(each)!r} by itself")
        return tuple(value)
    return _count(name, value, 0, "a number of blocks, 'auto', 'all' or patterns of the names of layers")


def _check_pattern(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"Policy: {name} has patterns of the names of layers, not {shown(value)}")
    if not _PATTERN.fullmatch(value):
        raise ValueError(
            f"Policy: {name} has {shown(value)}, which is no pattern: letters, digits, '.', '_', '-', '*', '?' and '[]'"
        )


def _checked_place(name: str, value: Any) -> Any:
    if not isinstance(value, str) or value not in _PLACES:
        raise ValueError(f"Policy: {name} is {shown(value)}; it can be 'auto', 'npu' or 'cpu'")
    return value


def _checked_limit(name: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = parsed_size(value)
        except ValueError as error:
            raise ValueError(f"Policy: {name}: {error}") from None
    return _count(name, value, 1, "a number of bytes, such as 2000000000 or '2GB'", most=1 << 50)


def _checked_domains(name: str, value: Any) -> Any:
    return None if value is None else _count(name, value, 1, "a number of IOMMU domains")


def _checked_cores(name: str, value: Any) -> Any:
    if value is None:
        return None
    given = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    cores = tuple(_count(name, each, 0, "numbers of cores, from 0 on") for each in given)
    if not cores or len(set(cores)) < len(cores):
        raise ValueError(f"Policy: {name} is {shown(value)}; it is one or more numbers of cores, each once")
    return tuple(sorted(cores))


def _checked_range(name: str, value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) != 2:
        raise ValueError(f"Policy: {name} is {shown(value)}; it is two numbers of blocks, such as (0, 12)")
    first, last = (_count(name, each, 0, "two numbers of blocks, such as (0, 12)") for each in value)
    if first >= last:
        raise ValueError(f"Policy: {name} is ({first}, {last}), which holds no block; (0, 12) are blocks 0 to 11")
    return first, last


def _checked_schemes(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(f"Policy: {name} is a mapping from patterns to schemes, not {shown(value)}")
    for pattern, scheme in value.items():
        _check_pattern(name, pattern)
        if not isinstance(scheme, str):
            raise TypeError(f"Policy: {name} gives schemes by their names, not {shown(scheme)}")
        if not _SCHEME.fullmatch(scheme):
            raise ValueError(f"Policy: {name} has {shown(scheme)}, which is the name of no scheme")
    return dict(value)


def _count(name: str, value: Any, least: int, what: str, most: int = _MOST) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"Policy: {name} is {what}, not {shown(value)}") from None
    if not least <= count <= most:
        raise ValueError(f"Policy: {name} is {count}; it must be {least} or more" + f", up to {most}" * (count > most))
    return count


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "npu_layers": _checked_layers_on_npu,
    "prefill": _checked_place,
    "decode": _checked_place,
    "memory_limit": _checked_limit,
    "domains": _checked_domains,
    "cores": _checked_cores,
    "layers": _checked_range,
    "schemes": _checked_schemes,
}


# ---- text ------------------------------------------------------------------------------------------------------------


def _text(name: str, value: Any) -> str:
    if name == "schemes":
        return "+".join(f"{pattern}:{scheme}" for pattern, scheme in value.items())
    if name == "layers":
        return f"{value[0]}:{value[1]}"
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parsed(name: str, text: str) -> Any:
    """A value out of its text; what it may be is checked by `Policy` itself."""
    if not text:
        raise ValueError(f"policy: {name} has no value")
    if name == "npu_layers":
        parts = text.split("+")
        if _is_number(text):
            return _whole(name, text)
        if _is_number(text.removeprefix("-")):
            raise ValueError(f"policy: {name} is {shown(text)}; it must be 0 or more, and 'all' means every layer")
        return text if len(parts) == 1 else parts
    if name in ("prefill", "decode", "memory_limit"):
        return text
    if name == "domains":
        return _whole(name, text)
    if name == "cores":
        return [_whole(name, each) for each in text.split("+")]
    if name == "layers":
        found = _RANGE.fullmatch(text)
        if found is None:
            raise ValueError(f"policy: layers is {shown(text)}; it is two numbers of blocks, such as 0:12")
        return int(found[1]), int(found[2])
    schemes: dict[str, str] = {}
    for each in text.split("+"):
        pattern, colon, scheme = each.partition(":")
        if not colon:
            raise ValueError(f"policy: schemes has {shown(each)}; it is pattern:scheme, such as head:w16a16")
        if pattern in schemes:
            raise ValueError(f"policy: schemes has {shown(pattern)} twice")
        schemes[pattern] = scheme
    return schemes


def _plain(text: str) -> str | int:
    return int(text) if _is_number(text) and len(text) <= 9 else text


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _whole(name: str, text: str) -> int:
    if not _is_number(text) or len(text) > 9:
        raise ValueError(f"policy: {name} is {shown(text)}, and not a number")
    return int(text)
