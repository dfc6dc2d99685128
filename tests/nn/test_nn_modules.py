"""Modules: how parameters are found by name, loaded, and given back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from npumatmul import nn
from npumatmul.errors import ModelError, NotFiniteError

RNG = np.random.default_rng(7)


def small_block(**options: Any) -> nn.TransformerBlock:
    attention = nn.Attention(8, 4, 2, bias=True, out_bias=False, qk_norm="head", scheme="float32", **options)
    return nn.TransformerBlock(attention, nn.MLP(8, 12, scheme="float32"))


class Model(nn.Module):
    def __init__(self) -> None:
        self.embed_tokens = nn.Embedding(5, 8)
        self.layers = [small_block(), small_block()]
        self.norm = nn.RMSNorm(8)
        self.scale = np.ones(3, np.float32)
        self._table = np.zeros(4)


def random_state(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in module.parameter_shapes().items()}


class Lazy(Mapping[str, np.ndarray]):
    """A mapping that counts what is read, as one of a file would be read."""

    def __init__(self, values: dict[str, np.ndarray], with_rows: bool = False) -> None:
        self.values_, self.read = values, []
        if with_rows:
            self.rows = lambda name: lambda ids: self.values_[name][ids]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values_[name].shape

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.append(name)
        return self.values_[name]

    def __contains__(self, name: object) -> bool:
        return name in self.values_

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


def test_names_are_those_that_pytorch_and_hugging_face_give() -> None:
    names = set(Model().parameter_shapes())
    block = {
        "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_proj.weight", "self_attn.q_proj.bias",
        "self_attn.k_proj.weight", "self_attn.k_proj.bias", "self_attn.v_proj.weight", "self_attn.v_proj.bias",
        "self_attn.q_norm.weight", "self_attn.k_norm.weight", "self_attn.o_proj.weight", "mlp.gate_proj.weight",
        "mlp.up_proj.weight", "mlp.down_proj.weight",
    }  # fmt: skip
    assert names == {f"layers.{i}.{name}" for i in (0, 1) for name in block} | {
        "embed_tokens.weight",
        "norm.weight",
        "scale",
    }


def test_a_state_dict_of_torch_loads_by_name() -> None:
    theirs = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(4, 3), "b": torch.nn.LayerNorm(3), "c": torch.nn.Embedding(6, 4)}
    )

    class Ours(nn.Module):
        def __init__(self) -> None:
            self.a = nn.Linear(4, 3, scheme="float32")
            self.b = nn.LayerNorm(3)
            self.c = nn.Embedding(6, 4)

    ours = Ours()
    state = theirs.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == ours.parameter_shapes()
    assert ours.load_state_dict(state) == ([], [])
    for name, value in ours.state_dict().items():
        np.testing.assert_array_equal(value, state[name].numpy())
    assert ours.load_state_dict({name: value.to(torch.bfloat16) for name, value in state.items()}) == ([], [])
    for name, value in ours.state_dict().items():
        np.testing.assert_array_equal(value.astype(np.float32), state[name].to(torch.bfloat16).float().numpy())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_what_was_loaded_is_given_back(dtype: Any) -> None:
    model = Model()
    state = {name: value.astype(dtype) for name, value in random_state(model).items()}
    model.load_state_dict(state)
    found = model.state_dict()
    assert list(found) == list(model.parameter_shapes())
    for name, value in state.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), value.astype(np.float32))


def test_a_prefix_chooses_names() -> None:
    block = small_block()
    state = {f"model.layers.3.{name}": value for name, value in random_state(block).items()}
    assert block.load_state_dict({**state, "lm_head.weight": 0}, prefix="model.layers.3.") == ([], [])
    with pytest.raises(ModelError, match=r"model\.layers\.3\.x"):
        block.load_state_dict({**state, "model.layers.3.x": np.ones(1)}, prefix="model.layers.3.")


def test_one_message_lists_what_is_missing_and_what_is_left_over_and_nothing_changes() -> None:
    model = Model()
    before = random_state(model)
    model.load_state_dict(before)
    state = random_state(model)
    del state["norm.weight"], state["layers.1.self_attn.k_proj.bias"]
    state["layers.1.self_attn.k_proj.scale"] = np.ones(4)
    state["lm_head.weight"] = np.ones((5, 8))
    with pytest.raises(ModelError) as caught:
        model.load_state_dict(state)
    text = str(caught.value)
    assert "2 of 31 parameters are missing: layers.1.self_attn.k_proj.bias, norm.weight" in text
    assert "2 names are left over: layers.1.self_attn.k_proj.scale, lm_head.weight" in text
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_not_strict_loads_what_there_is() -> None:
    layer = nn.Linear(2, 2, scheme="float32")
    done = layer.load_state_dict({"weight": np.eye(2), "other": np.ones(1)}, strict=False)
    assert done.missing_keys == ["bias"]
    assert done.unexpected_keys == ["other"]
    layer.load_state_dict({"bias": np.array([1, 2], np.float16)}, strict=False)
    np.testing.assert_array_equal(layer(np.ones((1, 2), np.float32)), [[2, 3]])
    np.testing.assert_array_equal(layer.state_dict()["weight"], np.eye(2))


def test_long_lists_are_cut() -> None:
    with pytest.raises(ModelError, match=r"31 of 31 parameters are missing: .* and 23 more$"):
        Model().load_state_dict({})


@pytest.mark.parametrize("lazy", [False, True])
def test_shapes_are_looked_at_before_anything_changes(lazy: bool) -> None:
    model = Model()
    before = random_state(model)
    model.load_state_dict(before)
    state = random_state(model)
    state["norm.weight"] = np.ones(9, np.float32)
    state["layers.0.mlp.down_proj.weight"] = np.ones((12, 8), np.float32)
    given = Lazy(state) if lazy else state
    with pytest.raises(ModelError) as caught:
        model.load_state_dict(given)
    assert "layers.0.mlp.down_proj.weight has shape (12, 8) instead of (8, 12)" in str(caught.value)
    assert "norm.weight has shape (9,) instead of (8,)" in str(caught.value)
    if isinstance(given, Lazy):
        assert given.read == []
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_values_are_read_once_and_one_at_a_time() -> None:
    model = Model()
    state = Lazy(random_state(model))
    model.load_state_dict(state)
    assert sorted(state.read) == sorted(model.parameter_shapes())


def test_tables_stay_where_the_mapping_reads_rows_of_them() -> None:
    model = Model()
    state = Lazy(random_state(model), with_rows=True)
    model.load_state_dict(state)
    assert "embed_tokens.weight" not in state.read
    np.testing.assert_array_equal(model.embed_tokens([[4, 1]]), state.values_["embed_tokens.weight"][[[4, 1]]])


def test_values_that_are_no_floats_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"a\.weight is int8"):
        nn.Linear(2, 2, bias=False).load_state_dict({"a.weight": np.ones((2, 2), np.int8)}, prefix="a.")


def test_pack_makes_products_of_float32_weights_and_paths() -> None:
    block = small_block()
    seen: dict[str, Any] = {}

    def pack(weight: np.ndarray, name: str) -> nn.Product:
        seen[name] = weight.dtype, weight.shape
        return nn.FloatProduct(weight)

    state = {f"m.{name}": value.astype(np.float16) for name, value in random_state(block).items()}
    block.load_state_dict(state, prefix="m.", pack=pack)
    f32 = np.dtype(np.float32)
    assert seen == {
        "m.self_attn.qkv": (f32, (16, 8)),
        "m.self_attn.o_proj": (f32, (8, 8)),
        "m.mlp.gate_up": (f32, (24, 8)),
        "m.mlp.down_proj": (f32, (8, 12)),
    }


def test_a_product_of_another_shape_is_refused_with_its_path() -> None:
    layer = nn.Linear(2, 3, bias=False)
    with pytest.raises(ValueError, match=r"^x: .*\(K, N\) = \(3, 2\), \(2, 3\) is needed"):
        layer.load_state_dict(
            {"x.weight": np.ones((3, 2), np.float32)}, prefix="x.", pack=lambda w, _: nn.FloatProduct(w.T)
        )


def test_modules_are_found_by_path() -> None:
    model = Model()
    found = dict(model.named_modules())
    assert found[""] is model
    assert found["layers.1.self_attn.o_proj"] is model.layers[1].self_attn.o_proj
    assert found["layers.0.self_attn.qkv"] is model.layers[0].self_attn.qkv
    assert len(found) == 1 + 2 + 2 * 11


def test_a_layer_without_a_weight_says_so() -> None:
    for call in (
        lambda: nn.Linear(2, 2)(np.ones((1, 2), np.float32)),
        lambda: nn.Linear(2, 2).state_dict(),
        lambda: nn.Embedding(2, 2)([0]),
        lambda: nn.LinearGroup(2, {"a": 2})(np.ones((1, 2), np.float32)),
    ):
        with pytest.raises(ModelError, match=r"has no weight yet; load_state_dict loads one"):
            call()


def test_a_group_needs_all_its_weights() -> None:
    group = nn.LinearGroup(2, {"a": 1, "b": 1}, scheme="float32")
    with pytest.raises(ModelError, match=r"needs b\.weight, too"):
        group.load_state_dict({"a.weight": np.ones((1, 2))}, strict=False)


class Ready:
    """What packs layers, and has some ready."""

    def __init__(self, **products: nn.FloatProduct) -> None:
        self.products, self.built = products, []  # type: ignore[var-annotated]

    def ready(self, path: str) -> nn.FloatProduct | None:
        return self.products.get(path.replace(".", "_"))

    def __call__(self, weight: Any, path: str) -> nn.FloatProduct:
        self.built.append(path)
        return nn.FloatProduct(weight)


class Read(dict[str, Any]):
    """Values of parameters; it notes which of them were read."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.names: list[str] = []

    def shape(self, name: str) -> tuple[int, ...]:
        return np.shape(super().__getitem__(name))

    def __getitem__(self, name: str) -> Any:
        self.names.append(name)
        return super().__getitem__(name)


def test_weights_of_products_that_are_ready_are_not_read() -> None:
    group = nn.LinearGroup(3, {"a": 2, "b": 2}, bias=True)
    two = np.full((4, 3), 2, np.float32)
    given = Read(
        {f"m.{n}.{kind}": np.ones((2, 3)[: 1 + (kind == "weight")]) for n in "ab" for kind in ("weight", "bias")}
    )
    ready = Ready(m=nn.FloatProduct(two))
    group.load_state_dict(given, prefix="m.", pack=ready)
    assert given.names == ["m.a.bias", "m.b.bias"]
    np.testing.assert_array_equal(np.concatenate(group(np.ones((1, 3), np.float32)), axis=1), np.full((1, 4), 7))
    layer = nn.Linear(3, 4, bias=False)
    given = Read({"x.weight": np.ones((4, 3))})
    layer.load_state_dict(given, prefix="x.", pack=Ready(x=nn.FloatProduct(two)))
    assert given.names == []
    other = Ready()
    layer.load_state_dict(given, prefix="x.", pack=other)
    assert (given.names, other.built) == (["x.weight"], ["x"])
    table = nn.Embedding.from_rows(4, 3, lambda ids: pytest.fail("it was read"))
    head = table.as_linear(pack=Ready(lm_head=nn.FloatProduct(two)))
    np.testing.assert_array_equal(head(np.ones((1, 3), np.float32)), np.full((1, 4), 6))


def test_mistakes_are_told_with_the_path_of_the_parameter() -> None:
    block = nn.TransformerBlock(nn.Attention(32, 2, scheme="w8a8"), nn.MLP(32, 32, scheme="w8a8"))
    state = {name: np.ones(shape, np.float32) for name, shape in block.parameter_shapes().items()}
    state["mlp.down_proj.weight"][3, 4] = np.nan
    with pytest.raises(
        NotFiniteError, match=r"^model\.mlp\.down_proj: pack: the weight holds nan in row 4 and column 3"
    ):
        block.load_state_dict({f"model.{name}": value for name, value in state.items()}, prefix="model.")
    with pytest.raises(TypeError, match="takes a mapping from names to arrays, not a list"):
        block.load_state_dict(list(state.items()))  # type: ignore[arg-type]


def test_tables_that_are_read_wrongly_are_noticed() -> None:
    with pytest.raises(ModelError, match=r"gave \(1, 3\) instead of \(2, 3\)"):
        nn.Embedding.from_rows(5, 3, lambda ids: np.ones((1, 3), np.float32))([0, 1])


def test_weights_on_the_npu_are_read_back_as_they_are_stored() -> None:
    rng = np.random.default_rng(11)
    w = {name: rng.standard_normal((8, 32), np.float32) for name in ("a.weight", "b.weight")}
    biases = {name: rng.standard_normal(8, np.float32) for name in ("a.bias", "b.bias")}
    for scheme, error in (("w16a16", 2.0**-11), ("w8a8", 0.5 / 127)):
        group = nn.LinearGroup(32, {"a": 8, "b": 8}, bias=True, scheme=scheme, device="sim:rk3588")
        group.load_state_dict({**w, **biases})
        found = group.state_dict()
        assert list(found) == ["a.weight", "a.bias", "b.weight", "b.bias"]
        for name, value in w.items():
            most = np.abs(value).max(axis=1, keepdims=True)
            assert (np.abs(found[name] - value) <= error * 1.001 * most).all()
        for name, value in biases.items():
            np.testing.assert_array_equal(found[name], value)
        again = nn.LinearGroup(32, {"a": 8, "b": 8}, bias=True, scheme=scheme, device="sim:rk3588")
        again.load_state_dict(found)
        for name, value in again.state_dict().items():
            np.testing.assert_allclose(value, found[name], atol=1e-6)


class Opaque:
    """A product whose weight nobody can look at."""

    shape = (2, 3)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.zeros((len(x), 3), np.float32)


def test_what_cannot_be_read_back_is_said() -> None:
    holder = Model()
    holder.linear = nn.Linear.from_product(Opaque())  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="the weight of 'linear' cannot be read back from a Opaque"):
        holder.linear.own_values("weight", "linear")  # type: ignore[attr-defined]
    unloaded = nn.Linear(2, 3)
    unloaded.load_state_dict({"bias": np.ones(3)}, strict=False)
    np.testing.assert_array_equal(unloaded.own_values("bias", ""), np.ones(3))
    for layer in (nn.Linear(2, 3), nn.LinearGroup(2, {"a": 3}, bias=True)):
        with pytest.raises(ModelError, match="was not loaded yet"):
            layer.own_values("bias" if isinstance(layer, nn.Linear) else "a.bias", "")


def test_layers_say_what_they_are() -> None:
    rng = np.random.default_rng(12)
    packed = nn.Linear.from_arrays(rng.standard_normal((2, 3), np.float32), device="sim:rk3588")
    assert (packed.in_features, packed.out_features) == (3, 2)
    assert repr(packed.product).startswith("PackedProduct(PackedWeight(shape=(3, 2)")
    assert repr(nn.FloatProduct(np.ones((2, 3), np.float32))) == "FloatProduct((2, 3))"
    block = small_block(rope=nn.RoPE(2))
    assert repr(block) == ("TransformerBlock(Attention(8, 4 heads over 2 of 2), MLP(8, 12, 'silu', gated=True))")
    assert repr(block.self_attn.rope) == "RoPE(2, base=10000, scaling='default')"
    assert repr(nn.RMSNorm(8, offset=1.0)) == "RMSNorm(8, eps=1e-06, offset=1)"
    with pytest.raises(ValueError, match="out_features names no layers"):
        nn.LinearGroup(2, {})
    np.testing.assert_array_equal(nn.RMSNorm(2)([[3.0, 3.0]]), nn.RMSNorm(2)(np.full((1, 2), 3, np.float32)))


def test_modules_show_what_they_hold() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            self.blocks = [nn.LayerNorm(4), Inner()]

    class Inner(nn.Module):
        def __init__(self) -> None:
            self.down = nn.Linear(4, 2)

    assert repr(Pair()) == (
        "Pair(\n  (blocks.0): LayerNorm(4, eps=1e-05, bias=True)\n  (blocks.1): Inner(\n"
        "    (down): Linear(4, 2, bias=True)\n  )\n)"
    )
    assert repr(nn.Module()) == "Module()"
