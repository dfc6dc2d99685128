"""Modelled times of encoders: sums of what their products take, and the table of docs/embeddings.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from npumatmul.chips import chip
from npumatmul.chips.types import MatmulType
from npumatmul.errors import ModelError
from npumatmul.llm.modelled import shape_of
from npumatmul.llm.modelled.encoder import encoder_linears, modelled_texts
from npumatmul.llm.models.decoder_config import LayerConfig
from npumatmul.llm.models.encoder_config import EncoderConfig
from npumatmul.planning.product import plan_matmul
from npumatmul.planning.weight import plan_weight

INT8, FLOAT16 = MatmulType.INT8_INT8_INT32, MatmulType.FLOAT16_FLOAT16_FLOAT32
PAGE = Path(__file__).parents[2] / "docs" / "embeddings.md"


def sized(layers: int, hidden: int, heads: int, ffn: int, **options: Any) -> EncoderConfig:
    options = {"positions": 512, **options}
    return EncoderConfig("bert", layers, hidden, heads, ffn, 30522, 512, (LayerConfig(),) * layers, **options)


MODELS = {
    "all-MiniLM-L6-v2": sized(6, 384, 12, 1536),
    "bge-base-en": sized(12, 768, 12, 3072),
    "bge-m3, bge-reranker-v2-m3": sized(24, 1024, 16, 4096),
    "ModernBERT-base": sized(22, 768, 12, 1152, positions=0, gated=True),
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
    assert [each.times for each in encoder_linears(config)] == [22] * 4


def test_texts_of_like_length_take_less_time_between_products() -> None:
    config, device = MODELS["all-MiniLM-L6-v2"], chip("rk3588")
    even, uneven = (modelled_texts(config, lengths, INT8, device) for lengths in ([64, 64], [100, 28]))
    assert even is not None
    assert uneven is not None
    assert even.linear.seconds == uneven.linear.seconds  # products have no padding
    assert even.between < uneven.between  # attention has


def test_plans_of_decoders_refuse_encoders(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 6}')
    with pytest.raises(ModelError, match="bert is an encoder, which generates nothing"):
        shape_of(tmp_path)
