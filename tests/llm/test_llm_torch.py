"""SmolLM2's weights in transformers' own model, with its linear layers on the NPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from npumatmul.torch import NpuModule, offload

#: "The capital of France is", and "Water boils at a temperature of 100 degrees Celsius, which is".
SHORT = [504, 3575, 282, 4649, 314]
LONG = [12615, 36411, 418, 253, 2779, 282, 216, 33, 32, 32, 5027, 20590, 28, 527, 314]


def divergence(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean of what is lost of the distribution of the next token, in nats."""
    p, q = (each.double().log_softmax(-1) for each in (expected, logits))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.long
def test_the_demo_models_weights_in_transformers(reference_model: Any) -> None:
    before = torch.tensor([LONG])
    padded = {
        "input_ids": torch.tensor([[0] * (len(LONG) - len(SHORT)) + SHORT, LONG]),
        "attention_mask": torch.tensor([[0] * (len(LONG) - len(SHORT)) + [1] * len(SHORT), [1] * len(LONG)]),
    }
    how = {"max_new_tokens": 5, "do_sample": False}
    with torch.inference_mode():
        expected, tokens = reference_model(before).logits, reference_model.generate(**padded, **how)
        for scheme, least in (("w16a16", 2e-5), ("w8a8", 0.02)):
            model = copy.deepcopy(reference_model)
            report = offload(model, scheme)
            assert len(report) == 7 * 30
            assert report.left == {"lm_head": "skip_modules names it"}
            assert sum(isinstance(each, NpuModule) for each in model.modules()) == 210
            logits = model(before).logits
            assert divergence(logits, expected) < least
            assert torch.equal(logits.argmax(-1), expected.argmax(-1)) or scheme == "w8a8"
            assert torch.equal(model.generate(**padded, **how), tokens)
            del model
