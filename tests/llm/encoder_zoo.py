"""Small random encoders of transformers, saved as folders with a tokenizer and what sentence-transformers adds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "rain", "##s", "##ing", "chip", "fast", ".", ",", "?"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCAB = len(SPECIAL) + len(WORDS) + 36
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODERN = {**SIZES, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}


@dataclass(frozen=True)
class Variant:
    """One configuration of an architecture."""

    model_type: str
    what: str
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "Model"
    older: Callable[[dict[str, Any]], None] | None = None

    @property
    def name(self) -> str:
        return f"{self.model_type}-{self.what}"


def _older_modernbert(config: dict[str, Any]) -> None:
    given = config.pop("rope_parameters")
    config["global_rope_theta"] = given["full_attention"]["rope_theta"]
    config["local_rope_theta"] = given["sliding_attention"]["rope_theta"]
    config["global_attn_every_n_layers"] = 3
    config["position_embedding_type"] = "absolute"
    del config["layer_types"]


SCORED = {"num_labels": 1}
CLASSIFIER = "ForSequenceClassification"
VARIANTS = [
    Variant("bert", "plain"),
    Variant("bert", "tanh-gelu", {"hidden_act": "gelu_new", "type_vocab_size": 3, "layer_norm_eps": 1e-5}),
    Variant("bert", "masked", kind="ForMaskedLM"),
    Variant("bert", "scores", SCORED, CLASSIFIER),
    Variant("bert", "labels", {"num_labels": 3}, CLASSIFIER),
    Variant("roberta", "plain", {"pad_token_id": 1, "type_vocab_size": 1}),
    Variant("xlm-roberta", "plain", {"pad_token_id": 1, "type_vocab_size": 1, "hidden_act": "silu"}),
    Variant("xlm-roberta", "scores", {**SCORED, "pad_token_id": 1, "type_vocab_size": 1}, CLASSIFIER),
    Variant("camembert", "masked", {"pad_token_id": 1, "type_vocab_size": 1}, "ForMaskedLM"),
    Variant("modernbert", "plain", {**MODERN, "num_hidden_layers": 4, "local_attention": 6}),
    Variant("modernbert", "older", {**MODERN, "num_hidden_layers": 4, "local_attention": 7}, older=_older_modernbert),
    Variant("modernbert", "biases", {**MODERN, "attention_bias": True, "mlp_bias": True, "norm_bias": True}),
    Variant("modernbert", "masked", MODERN, "ForMaskedLM"),
    Variant("modernbert", "scores", {**MODERN, **SCORED, "classifier_pooling": "mean"}, CLASSIFIER),
    Variant("modernbert", "scores-cls", {**MODERN, **SCORED, "classifier_bias": True}, CLASSIFIER),
]


def torch_model(variant: Variant, seed: int = 0) -> Any:
    """The model as transformers has it, every parameter random and large enough to matter."""
    kind = transformers.AutoConfig.for_model(variant.model_type).__class__
    config = kind(**{**SIZES, **json.loads(json.dumps(dict(variant.options)))})
    auto = {"Model": "AutoModel", CLASSIFIER: "AutoModelForSequenceClassification"}.get(variant.kind)
    made = getattr(transformers, auto or "AutoModelForMaskedLM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = made.from_config(config, dtype=torch.float32, attn_implementation="eager")
        for name, value in model.named_parameters():
            with torch.no_grad():
                if value.ndim == 2:
                    value.normal_(0, 1 if "embed" in name else 1.5 * value.shape[1] ** -0.5)
                elif name.endswith("bias"):
                    value.normal_(0, 0.2)
                else:
                    value.normal_(1, 0.2)
    return model.eval()


def write_folder(path: Path, variant: Variant, model: Any) -> Path:
    """Save it as Hugging Face does."""
    model.save_pretrained(path)
    if variant.older is not None:
        edit(path / "config.json", variant.older)
    (path / "tokenizer.json").write_text(word_tokenizer(pad_first=variant.options.get("pad_token_id") != 1).to_str())
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def word_tokenizer(pad_first: bool = True) -> Tokenizer:
    """A WordPiece tokenizer as BERT's, with types 0 and 1, or as RoBERTa's with the padding token second."""
    special = SPECIAL if pad_first else ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = [*special, *WORDS, *letters[1:], *(f"##{each}" for each in letters[:11])]
    tokenizer = Tokenizer(models.WordPiece({each: i for i, each in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1" if pad_first else "[CLS] $A [SEP] [SEP] $B [SEP]"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def sentence_folder(path: Path, *, pooling: str = "mean", normalize: bool = False, longest: int | None = None) -> Path:
    """Add what sentence-transformers writes beside a model."""
    prefix = "sentence_transformers.models"
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{prefix}.Transformer"}]
    modules.append({"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{prefix}.Pooling"})
    if normalize:
        modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{prefix}.Normalize"})
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    names = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}
    config = {f"pooling_mode_{each}": each == names[pooling] for each in names.values()}
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **config}))
    if longest is not None:
        described = {"max_seq_length": longest, "do_lower_case": False}
        (path / "sentence_bert_config.json").write_text(json.dumps(described))
    return path


# ---- GGUF -----------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, model: Any, *, pooling: int = 1, **metadata: Any) -> Path:
    """Write a BERT, or an XLM-RoBERTa's states, as llama.cpp's converter does."""
    c = model.config
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_block_count(c.num_hidden_layers)
    unused = 0 if c.model_type == "bert" else c.pad_token_id + 1
    writer.add_context_length(c.max_position_embeddings - unused)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_layer_norm_eps(c.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for key, value in metadata.items():
        writer.add_uint32(f"bert.{key}", value)
    tokens = sorted(json.loads(word_tokenizer().to_str())["model"]["vocab"].items(), key=lambda each: each[1])
    spelled = [
        name if name in SPECIAL else name[2:] if name.startswith("##") else f"\u2581{name}" for name, _ in tokens
    ]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(spelled)
    writer.add_token_types([3 if name in SPECIAL else 1 for name, _ in tokens])
    writer.add_token_type_count(c.type_vocab_size)
    for name, number in (("padding", 0), ("unknown", 1), ("cls", 2), ("seperator", 3)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, c.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue
        array = value.numpy()
        if "position_embeddings" in name:
            array = array[unused:]
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
