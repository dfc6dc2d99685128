"""Schemes: how a weight and the activations that meet it are represented, by name and by object.

A name says the bits of weight and activation, and then what differs from the usual::

    w8a8  w8a8_layer  w8a8_g128  w4a8_g32_agroup  w4a8_g32_wasym  w8a8_aasym  w8a8_static  w4a4  w4a16_g128  w16a16
    w16a16_high  w8a8o8

==============  ======================================================================================================
``_layer``      one scale for the whole weight (without: one per output channel)
``_g<n>``       one scale per output channel and group of n values along K, n a multiple of 32
``_wasym``      the weight has zero points
``_aasym``      activations have zero points
``_static``     activations have one given scale (without: each row, a token, gets its own when it comes)
``_agroup``     each row has a scale for each group along K, the same groups as the weight's
``_high``       ``w16a16`` alone: each value is two float16
==============  ======================================================================================================

``w8a8o8`` gives int8: the NPU requantizes its sums. Weight, activations and result have one given scale each, and no
zero points. ``int8`` and ``int4`` take integers as they are; their products are exact.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from npumatmul.quant.params import Granularity, QuantParams

__all__ = ["FLOATS", "SCHEMES", "Scheme", "cast_advice", "scheme_for"]

_F16, _F32, _I8, _I32 = (np.dtype(t) for t in (np.float16, np.float32, np.int8, np.int32))
_BF16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
_I4: np.dtype[Any] = np.dtype(ml_dtypes.int4)
#: Dtypes of floats that are taken.
FLOATS: tuple[np.dtype[Any], ...] = (_F16, _F32, _BF16)

#: Bits of weight and activation that there are.
_BITS = ((16, 16), (8, 8), (4, 8), (4, 4), (8, 16), (4, 16))
#: Groups along K become runs of their own, so they have to be multiples of what K is aligned to (facts 3.3).
_GROUP_MULTIPLE = 32
#: What is requantized on the NPU.
_REQUANTIZED = "w8a8o8"
_NAME = re.compile(r"w(?P<w>\d+)a(?P<a>\d+)(?P<high>_high)?(_(?P<layer>layer)|_g(?P<group>\d+))?(?P<wasym>_wasym)?"
                   r"(?P<aasym>_aasym)?((?P<static>_static)|(?P<agroup>_agroup))?")  # fmt: skip


@dataclass(frozen=True)
class Scheme:
    """How a matmul is represented on the NPU; which matmul type computes it is the chip's matter (`route_for`).

    Attributes
    ----------
    weight_bits, activation_bits : int
        16 (float16), 8 or 4 (integers): (16, 16), (8, 8), (4, 8), (4, 4), (8, 16) or (4, 16).
    granularity : Granularity or str
        What shares a scale of the weight: ``"layer"``, ``"channel"`` (an output channel) or ``"group"``.
    group_size : int, optional
        Values along K per group; a multiple of 32.
    symmetric : bool
        Whether the weight has no zero points.
    activation_granularity : Granularity or str
        ``"token"``: each row is measured when it comes. ``"group"``: each row is measured group by group of the
        weight, which costs no runs beyond those that the weight's groups do. ``"layer"``: `activation_params` hold for
        all.
    activation_symmetric : bool
        Whether rows that are measured get no zero point.
    activation_clip : float
        Factor on the largest magnitude of rows that are measured, above 0 and at most 1: what lies beyond saturates.
    activation_params : QuantParams, optional
        Scale and zero point of static activations; `pack` needs them.
    integers : bool
        Weight and activation are integers as they are, of equal bits; results are int32.
    high : bool
        Each float is the sum of two float16; 16 bits only.
    result_bits : int, optional
        8: results are int8 codes, which the NPU itself rounds sums to (w8a8 with one scale per layer, symmetric static
        activations). Without: float32, or int32 of `integers`.
    result_params : QuantParams, optional
        Scale of int8 results; `pack` needs it.

    Raises
    ------
    ValueError
        If parts do not go together.

    Examples
    --------
    >>> Scheme(4, 8, "group", 32).name
    'w4a8_g32'
    >>> Scheme.parse("w4a8_g32") == Scheme(4, 8, "group", 32)
    True
    """

    weight_bits: int = 16
    activation_bits: int = 16
    granularity: Granularity | str = Granularity.CHANNEL
    group_size: int | None = None
    symmetric: bool = True
    activation_granularity: Granularity | str = Granularity.TOKEN
    activation_symmetric: bool = True
    activation_clip: float = 1.0
    activation_params: QuantParams | None = None
    integers: bool = False
    high: bool = False
    result_bits: int | None = None
    result_params: QuantParams | None = None

    def __post_init__(self) -> None:
        for field in ("granularity", "activation_granularity"):
            object.__setattr__(self, field, Granularity(getattr(self, field)))
        wrong = _contradiction(self)
        if wrong:
            raise ValueError(f"Scheme: {wrong}")

    @classmethod
    def parse(cls, name: str) -> Scheme:
        """The scheme of a name.

        Raises
        ------
        ValueError
            If there is none; the message says how names are made.
        """
        if name in ("int8", "int4"):
            return cls(int(name[3:]), int(name[3:]), integers=True)
        if name == _REQUANTIZED:
            return cls(8, 8, "layer", activation_granularity="layer", result_bits=8)
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(
                f"no scheme is called {name!r}; there are {', '.join(map(repr, SCHEMES))}, and quantized ones with "
                f"_layer or _g<group size>, _wasym, _aasym and _static or _agroup after their bits{_meant(name)}"
            )
        try:
            return cls._found(found)
        except ValueError as error:
            raise ValueError(f"no scheme is called {name!r}: {str(error).partition(': ')[2]}") from None

    @classmethod
    def _found(cls, found: re.Match[str]) -> Scheme:
        granularity = "layer" if found["layer"] else "group" if found["group"] else "channel"
        return cls(
            int(found["w"]),
            int(found["a"]),
            granularity,
            int(found["group"]) if found["group"] else None,
            symmetric=not found["wasym"],
            activation_granularity="layer" if found["static"] else "group" if found["agroup"] else "token",
            activation_symmetric=not found["aasym"],
            high=bool(found["high"]),
        )

    def __repr__(self) -> str:
        more = [f"activation_clip={self.activation_clip}"] if self.activation_clip != 1 else []
        more += [f"activation_params={self.activation_params}"] if self.activation_params is not None else []
        more += [f"result_params={self.result_params}"] if self.result_params is not None else []
        own = f"Scheme.parse({self.name!r})"
        return f"replace({own}, {', '.join(more)})" if more else own

    @cached_property
    def name(self) -> str:
        """What it is called; `activation_clip`, `activation_params` and `result_params` are not part of it."""
        if self.integers:
            return f"int{self.weight_bits}"
        if self.result_bits is not None:
            return _REQUANTIZED
        parts = (
            f"w{self.weight_bits}a{self.activation_bits}",
            "_high" * self.high,
            {Granularity.LAYER: "_layer", Granularity.GROUP: f"_g{self.group_size}"}.get(
                Granularity(self.granularity), ""
            ),
            "_wasym" * (not self.symmetric),
            "_aasym" * (not self.activation_symmetric),
            "_static" * self.static,
            "_agroup" * (self.activation_granularity is Granularity.GROUP),
        )
        return "".join(parts)

    @property
    def static(self) -> bool:
        """Whether activations have one given scale."""
        return self.activation_granularity is Granularity.LAYER

    @property
    def quantizes(self) -> bool:
        """Whether floats of the weight become codes."""
        return self.weight_bits < 16 and not self.integers

    @property
    def result(self) -> np.dtype[Any]:
        """What `matmul` returns."""
        if self.result_bits is not None:
            return _I8
        return _I32 if self.integers else _F32

    @property
    def weights(self) -> tuple[np.dtype[Any], ...]:
        """Dtypes that `pack` takes."""
        return ((_I8 if self.weight_bits == 8 else _I4),) if self.integers else FLOATS

    @property
    def activations(self) -> tuple[np.dtype[Any], ...]:
        """Dtypes that `matmul` takes on the left."""
        if self.result_bits is not None:
            return (*FLOATS, _I8)  # int8: codes of `activation_params`
        if not self.integers:
            return FLOATS
        return (_I8, _I4) if self.weight_bits == 8 else (_I4,)

    @property
    def takes_any_value(self) -> bool:
        """Whether rows of activations may hold anything; those to be quantized have to be finite."""
        return self.integers or self.activation_bits == 16

    @property
    def bits_per_weight(self) -> float:
        """Bits of device memory per value of the weight, scales of groups (float32, on the host) included."""
        shared = self.group_size if self.granularity is Granularity.GROUP else None
        extra = 0.0 if shared is None else (32 if self.symmetric else 64) / shared
        return self.weight_bits * (2 if self.high else 1) + extra


def _contradiction(scheme: Scheme) -> str | None:
    """What is wrong with a scheme, or None."""
    bits = scheme.weight_bits, scheme.activation_bits
    weight_options = not scheme.symmetric or scheme.granularity is not Granularity.CHANNEL
    activation_options = (
        scheme.activation_granularity != "token"
        or not scheme.activation_symmetric
        or scheme.activation_clip != 1
        or scheme.activation_params
    )
    if bits not in _BITS:
        return f"w{bits[0]}a{bits[1]} does not exist; there are {', '.join(f'w{w}a{a}' for w, a in _BITS)}"
    if scheme.granularity is Granularity.TOKEN or scheme.activation_granularity is Granularity.CHANNEL:
        return "weights have scales per layer, channel or group, activations per token, group or layer"
    if scheme.granularity is Granularity.GROUP:
        if not scheme.group_size or scheme.group_size < 1 or scheme.group_size % _GROUP_MULTIPLE:
            return f"groups have a multiple of {_GROUP_MULTIPLE} values, not {scheme.group_size}"
    elif scheme.group_size is not None:
        return f"group_size={scheme.group_size} belongs to granularity 'group' only"
    if (scheme.integers or bits[0] == 16) and weight_options:
        return "a weight that is not quantized has neither layers, groups nor zero points"
    if (scheme.integers or bits[1] == 16) and activation_options:
        return "activations that are not quantized have neither scales, zero points nor clipping"
    if scheme.integers and bits not in ((8, 8), (4, 4)):
        return f"integers of {bits[0]} and {bits[1]} bits; both have 8 or both have 4"
    if bits[1] == 16 and not scheme.symmetric:
        return "zero points of a weight are corrected by sums of quantized activations; float16 ones have none"
    if scheme.high and bits != (16, 16):
        return "only float16 values have a high and a low part"
    return _wrong_activation(scheme) or _wrong_result(scheme)


def _wrong_activation(scheme: Scheme) -> str | None:
    params = scheme.activation_params
    if scheme.activation_granularity is Granularity.GROUP and scheme.granularity is not Granularity.GROUP:
        return "groups of activations are those of the weight, which has none: granularity='group'"
    if not 0 < scheme.activation_clip <= 1:
        return f"activation_clip is {scheme.activation_clip}; it lies above 0 and is at most 1"
    if params is None:
        return None
    if not scheme.static:
        return "activation_params belong to static activations: activation_granularity='layer'"
    if params.granularity is not Granularity.LAYER or params.bits != scheme.activation_bits:
        return f"activation_params have to be per layer of {scheme.activation_bits} bits, not {params}"
    if scheme.activation_symmetric and not params.symmetric:
        return "activation_params have a zero point; set activation_symmetric=False"
    return None


def _wrong_result(scheme: Scheme) -> str | None:
    params = scheme.result_params
    if scheme.result_bits is None:
        return None if params is None else "result_params belong to int8 results: result_bits=8"
    if scheme.result_bits != 8:
        return f"results can have 8 bits, not {scheme.result_bits}"
    plain = scheme.symmetric and scheme.activation_symmetric and scheme.static and scheme.activation_clip == 1
    bits = scheme.weight_bits, scheme.activation_bits
    if scheme.integers or bits != (8, 8) or scheme.granularity is not Granularity.LAYER or not plain:
        return (
            "int8 results are those of 8-bit weights and static 8-bit activations, each with one scale per layer and "
            "without zero points"
        )
    if params is None or (params.granularity is Granularity.LAYER and params.bits == 8 and params.symmetric):
        return None
    return f"result_params have to be per layer, symmetric, of 8 bits, not {params}"


#: The usual schemes by name; `Scheme.parse` knows more.
SCHEMES: Mapping[str, Scheme] = {
    name: Scheme.parse(name)
    for name in ("w16a16", "w16a16_high", "w8a8", "w4a8", "w4a4", "w8a16", "w4a16", "int8", "int4")
}

#: What others call what some schemes do.
_ELSEWHERE = {
    **dict.fromkeys(("fp16", "float16", "f16", "half"), "w16a16"),
    **dict.fromkeys(("w8", "q8", "8bit"), "w8a8"),
    **dict.fromkeys(("w4", "q4", "4bit"), "w4a8"),
}


def _meant(name: str) -> str:
    """What was perhaps meant by a name that is none, as the end of a message; "" if nothing is like it."""
    plain = name.strip().lower().replace("-", "_")
    found = _ELSEWHERE.get(plain, plain)
    if found not in SCHEMES and _NAME.fullmatch(found) is None:
        found = next(iter(difflib.get_close_matches(found, SCHEMES, n=1)), "")
    return f"; did you mean {found!r}?" if found else ""


_BY_DTYPE = {_F16: "w16a16", _F32: "w16a16", _BF16: "w16a16", _I8: "int8", _I4: "int4"}


def scheme_for(dtype: np.dtype[Any], scheme: Scheme | str | None, function: str) -> Scheme:
    """Scheme of a weight.

    Parameters
    ----------
    dtype : numpy.dtype
        Of the weight.
    scheme : Scheme, str or None
        None takes what loses least: ``w16a16`` for floats, the exact ``int8`` and ``int4`` for integers.
    function : str
        For error messages.

    Raises
    ------
    ValueError
        If there is no scheme of that name.
    TypeError
        If the NPU cannot represent the dtype without losing information, or the scheme does not take it.

    Examples
    --------
    >>> scheme_for(np.dtype(np.float32), None, "pack").name
    'w16a16'
    """
    dtype = dtype.newbyteorder("=")
    if scheme is None and dtype not in _BY_DTYPE:
        raise TypeError(f"{function}: {cast_advice(dtype)}")
    chosen = named(_BY_DTYPE[dtype] if scheme is None else scheme, function)
    if dtype not in chosen.weights:
        raise TypeError(
            f"{function}: scheme {chosen.name!r} takes weights of {' or '.join(map(str, chosen.weights))}, not {dtype}"
        )
    return chosen


def named(scheme: Scheme | str, function: str) -> Scheme:
    """A scheme given by name or as an object; errors name the function."""
    if isinstance(scheme, Scheme):
        return scheme
    if not isinstance(scheme, str):
        raise TypeError(f"{function}: scheme is a name or a Scheme, not {type(scheme).__name__}")
    try:
        return Scheme.parse(scheme)
    except ValueError as error:
        raise ValueError(f"{function}: {error}") from None


def cast_advice(dtype: np.dtype[Any]) -> str:
    """Why a dtype is refused, and what to cast to."""
    text = f"the NPU multiplies float16, int8 and int4 and cannot take {dtype} without losing information"
    if dtype.kind == "f":
        return f"{text}; cast to float32 (products of float16, sums of float32) if that precision is enough"
    if dtype.kind in "iub":
        return f"{text}; cast to int8 if the values fit, else to float32 (exact up to 2**11 in magnitude)"
    return f"{text}; cast to float32 or int8 first"
