"""Modelled times of encoders: sums of what their products take, and the table of docs/embeddings.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from encoder_zoo import VARIANTS, torch_model, write_folder, write_gguf

from npumatmul.chips import chip
from npumatmul.chips.types import MatmulType
from npumatmul.llm.modelled import SHAPES, modelled_texts, plan_model, shape_of
from npumatmul.planning.product import plan_matmul
from npumatmul.planning.weight import plan_weight

INT8, FLOAT16 = MatmulType.INT8_INT8_INT32, MatmulType.FLOAT16_FLOAT16_FLOAT32
PAGE = Path(__file__).parents[2] / "docs" / "embeddings.md"


MODELS = {
    "all-MiniLM-L6-v2": SHAPES["all-MiniLM-L6-v2"],
    "bge-base-en": SHAPES["bge-base-en"],
    "bge-m3, bge-reranker-v2-m3": SHAPES["bge-m3"],
    "ModernBERT-base": SHAPES["ModernBERT-base"],
}


def row(name: str, soc: str) -> str:
    cells = []
    for lengths in ([16], [128] * 8):
        for mm_type in (INT8, FLOAT16):
            found = modelled_texts(MODELS[name], lengths, mm_type, chip(soc))
            assert found is not None
            both = (1e3 * each / len(lengths) for each in (found.seconds, found.linear.seconds))
            cells.append("{:.3g} ({:.3g})".format(*both))
    return f"| {name} | {soc.upper()} | {' | '.join(cells)} |"


def test_the_page_has_the_modelled_times() -> None:
    rows = [row(name, soc) for name in MODELS for soc in ("rk3588", "rk3576")]
    assert "\n".join(rows) + "\n" in PAGE.read_text(), "\n".join(rows)


def test_products_are_those_of_the_plans() -> None:
    config, device = MODELS["ModernBERT-base"], chip("rk3588")
    found = modelled_texts(config, [10, 30], INT8, device)
    assert found is not None
    wanted = 0.0
    for k, n in ((768, 3 * 768), (768, 768), (768, 2 * 1152), (1152, 768)):
        plan = plan_matmul(40, plan_weight(k, n, INT8, device, device.runtime), timings=device.timings)
        assert plan.modelled is not None
        wanted += 22 * plan.modelled.seconds
    assert found.linear.seconds == pytest.approx(wanted)
    assert found.rows == 40
    assert [each.times for each in config.linears] == [22] * 4


def test_texts_of_like_length_take_less_time_between_products() -> None:
    config, device = MODELS["all-MiniLM-L6-v2"], chip("rk3588")
    even, uneven = (modelled_texts(config, lengths, INT8, device) for lengths in ([64, 64], [100, 28]))
    assert even is not None
    assert uneven is not None
    assert even.linear.seconds == uneven.linear.seconds  # products have no padding
    assert even.between < uneven.between  # attention has


def test_a_plan_of_an_encoder_has_times_of_texts() -> None:
    (scheme,) = plan_model(MODELS["all-MiniLM-L6-v2"], chip("rk3588"), ["w8a8"]).schemes
    assert scheme.token is scheme.tokens_per_second is None
    assert scheme.prompts == {}
    assert list(scheme.texts) == ["1 x 16", "1 x 128", "8 x 128", "32 x 128", "1 x 512"]
    alone = modelled_texts(MODELS["all-MiniLM-L6-v2"], [128] * 8, INT8, chip("rk3588"))
    assert alone is not None
    assert scheme.texts["8 x 128"] == alone.estimate
    assert "head" not in [layer.name for layer in scheme.layers]
    assert 10.6e6 < scheme.nbytes < 1.06 * 10.7e6  # six blocks of 12 * 384**2


def test_encoders_in_gguf_files_are_planned(tmp_path: Path) -> None:
    variant = next(each for each in VARIANTS if each.model_type == "bert")
    model = torch_model(variant)
    path = write_gguf(tmp_path / "encoder.gguf", model)
    folder = write_folder(tmp_path / "folder", variant, model)
    found, other = shape_of(path), shape_of(folder)
    assert found.kind == "encoder"
    assert (found.linears, found.hidden) == (other.linears, other.hidden)
