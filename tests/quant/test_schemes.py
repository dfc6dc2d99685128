"""Schemes by name and by object, and the matmul types that compute them on each chip."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest

from npumatmul.chips import CHIPS, chip
from npumatmul.chips.types import MatmulType
from npumatmul.errors import DeviceError
from npumatmul.quant.params import QuantParams
from npumatmul.quant.routes import route_for
from npumatmul.quant.schemes import SCHEMES, Scheme, scheme_for
from npumatmul.rknn.version import RuntimeVersion

T = MatmulType
F16F16, F16I8, F16I4 = T.FLOAT16_FLOAT16_FLOAT32, T.FLOAT16_INT8_FLOAT32, T.FLOAT16_INT4_FLOAT32
I8I8, I8I4, I4I4 = T.INT8_INT8_INT32, T.INT8_INT4_INT32, T.INT4_INT4_INT16

#: What the guide's table 3-13 lets each chip do (facts 3.2).
EXPECTED = {
    "rk3588": {"w16a16": F16F16, "w8a8": I8I8, "w4a8": I4I4, "w4a4": I4I4, "w8a16": None, "w4a16": None, "int4": I4I4},
    "rk3576": {
        "w16a16": F16F16,
        "w8a8": I8I8,
        "w4a8": I8I4,
        "w4a4": None,
        "w8a16": F16I8,
        "w4a16": F16I4,
        "int4": I8I8,
    },
    **{
        soc: {"w16a16": F16F16, "w8a8": I8I8, "w4a8": I8I8, "w4a4": None, "w8a16": None, "w4a16": None, "int4": I8I8}
        for soc in ("rk3562", "rk3566", "rk3568")
    },
}


def names() -> list[str]:
    granularities, options = ("", "_layer", "_g32", "_g128"), ("", "_aasym", "_static", "_aasym_static")
    quantized = [
        f"{bits}{granularity}{wasym}{option}"
        for bits, granularity, wasym, option in itertools.product(
            ("w8a8", "w4a8", "w4a4"), granularities, ("", "_wasym"), options
        )
    ]
    quantized += [f"{bits}_g64{wasym}{aasym}_agroup" for bits, wasym, aasym in itertools.product(
        ("w8a8", "w4a8", "w4a4"), ("", "_wasym"), ("", "_aasym")
    )]  # fmt: skip
    floats = [f"{bits}{granularity}" for bits in ("w8a16", "w4a16") for granularity in granularities]
    return [*quantized, *floats, "w16a16", "w16a16_high", "int8", "int4", "w8a8o8"]


def test_a_name_says_everything_that_it_can() -> None:
    seen = set()
    for name in names():
        scheme = Scheme.parse(name)
        assert scheme.name == name
        assert pickle.loads(pickle.dumps(scheme)) == scheme
        assert eval(repr(scheme)) == scheme
        seen.add(scheme)
    assert len(seen) == len(names())
    assert Scheme.parse("w4a8_g32_wasym") == Scheme(4, 8, "group", 32, symmetric=False)
    assert Scheme.parse("w8a8_layer_aasym_static") == Scheme(
        8, 8, "layer", activation_granularity="layer", activation_symmetric=False
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("w8", "no scheme is called 'w8'; there are 'w16a16'"),
        ("w8a8_aasym_layer", "no scheme is called"),
        ("w3a8", "w3a8 does not exist; there are w16a16, w8a8"),
        ("w8a4", "does not exist"),
        ("w4a8_g48", "groups have a multiple of 32 values, not 48"),
        ("w4a8_g0", "groups have a multiple of 32 values, not 0"),
        ("w16a16_g32", "not quantized has neither layers"),
        ("w4a16_aasym", "activations that are not quantized"),
        ("w4a16_g32_agroup", "activations that are not quantized"),
        ("w8a8_agroup", "groups of activations are those of the weight, which has none"),
        ("w8a8_layer_agroup", "groups of activations are those of the weight"),
        ("w8a8_g32_static_agroup", "no scheme is called"),
        ("w4a16_wasym", "corrected by sums of quantized activations"),
        ("w8a8o4", "no scheme is called"),
        ("w4a8o8", "no scheme is called"),
        ("w8a8o8_g32", "no scheme is called"),
        ("w8a8_high", "only float16 values have a high and a low part"),
    ],
)
def test_what_is_no_scheme(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Scheme.parse(name)
    with pytest.raises(ValueError, match=f"^pack: .*{reason}"):
        scheme_for(np.dtype(np.float32), name, "pack")


def test_static_parameters_have_to_fit() -> None:
    static = {"activation_granularity": "layer"}
    for params, reason in [
        (QuantParams([1.0, 2.0], granularity="channel"), "have to be per layer of 8 bits"),
        (QuantParams(1.0, bits=4), "have to be per layer of 8 bits"),
        (QuantParams(1.0, 3), "have a zero point"),
    ]:
        with pytest.raises(ValueError, match=reason):
            Scheme(8, 8, activation_params=params, **static)
    with pytest.raises(ValueError, match="belong to static activations"):
        Scheme(8, 8, activation_params=QuantParams(1.0))
    with pytest.raises(ValueError, match="above 0 and is at most 1"):
        Scheme(8, 8, activation_clip=1.5)
    with pytest.raises(ValueError, match="needs activation_params"):
        route_for(Scheme.parse("w8a8_static"), chip("rk3588"))


def test_int8_results_have_one_scale_of_each_kind() -> None:
    good = Scheme.parse("w8a8o8")
    assert good.result == np.int8
    for change, reason in [
        ({"result_bits": 4}, "results can have 8 bits, not 4"),
        ({"granularity": "channel"}, "one scale per layer and without zero points"),
        ({"activation_granularity": "token"}, "one scale per layer and without zero points"),
        ({"activation_symmetric": False}, "one scale per layer and without zero points"),
        ({"symmetric": False}, "one scale per layer and without zero points"),
        ({"weight_bits": 4}, "are those of 8-bit weights"),
        ({"result_params": QuantParams(1.0, 3)}, "have to be per layer, symmetric"),
        ({"result_params": QuantParams(1.0, bits=4)}, "have to be per layer, symmetric"),
        ({"result_bits": None, "result_params": QuantParams(1.0)}, "belong to int8 results"),
    ]:
        with pytest.raises(ValueError, match=reason):
            replace(good, **change)
    full = replace(good, activation_params=QuantParams(0.5), result_params=QuantParams(2.0))
    route = route_for(full, chip("rk3588"))
    assert {each.static_scale for each in route.activations.values()} == {0.5}


@pytest.mark.parametrize("soc", EXPECTED)
def test_routes(soc: str) -> None:
    for name, mm_type in EXPECTED[soc].items():
        scheme = SCHEMES[name]
        if mm_type is None:
            with pytest.raises(DeviceError) as caught:
                route_for(scheme, chip(soc))
            message = str(caught.value)
            works = [other for other in EXPECTED if EXPECTED[other][name] is not None]
            assert all(other in message.split("it works on")[1].split(", and here")[0] for other in works)
            assert "here there are w16a16, w16a16_high, w8a8, w4a8" in message
            continue
        route = route_for(scheme, chip(soc))
        assert route.mm_type is mm_type
        assert route.row_images == (2 if (soc, name) == ("rk3588", "w4a8") else 1)
        stored_wider = name in ("w4a8", "int4") and mm_type is I8I8
        assert ("stored as int8, exactly" in route.note) == stored_wider


def test_old_runtimes_have_fewer_types() -> None:
    old = RuntimeVersion(1, 5, 2)
    assert route_for(SCHEMES["w8a8"], chip("rk3588"), old).mm_type is I8I8
    assert route_for(SCHEMES["w4a8"], chip("rk3588"), old).mm_type is I8I8
    with pytest.raises(DeviceError, match=r"rk3588 under runtime 1\.5\.2 does not have"):
        route_for(SCHEMES["w4a4"], chip("rk3588"), old)


def test_a_static_range_is_kept_where_there_are_fewer_levels() -> None:
    scheme = Scheme(4, 8, activation_granularity="layer", activation_params=QuantParams(0.5))
    split = next(iter(route_for(scheme, chip("rk3588")).activations.values()))
    whole = next(iter(route_for(scheme, chip("rk3576")).activations.values()))
    assert whole.static_scale * 127 == 0.5 * 127
    assert split.static_scale * 119 == pytest.approx(0.5 * 127, rel=1e-6)
    shifted = Scheme(
        4, 8, activation_granularity="layer", activation_symmetric=False, activation_params=QuantParams(0.5, -100)
    )
    split = next(iter(route_for(shifted, chip("rk3588")).activations.values()))
    low, high = (0.5 * (q + 100) for q in (-128, 127))
    assert split.static_scale * (119 - split.static_zero) == pytest.approx(high, abs=split.static_scale)
    assert split.static_scale * (-120 - split.static_zero) == pytest.approx(low, abs=split.static_scale)


def test_every_chip_computes_what_is_documented_for_all() -> None:
    for soc in CHIPS:
        for name in ("w16a16", "w16a16_high", "w8a8", "w8a8_g32", "w4a8_g32_wasym_aasym", "int8", "int4"):
            assert route_for(Scheme.parse(name), chip(soc)).scheme.name == name
