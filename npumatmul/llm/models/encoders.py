"""Which encoders there are, and from a model on disk to an `Encoder`: no tensor may be left over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from npumatmul.files.reading import shown
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.models.bert import BERT
from npumatmul.llm.models.class_names import check_classes
from npumatmul.llm.models.encoder import Encoder
from npumatmul.llm.models.encoder_config import EncoderArchitecture, EncoderConfig
from npumatmul.llm.models.from_gguf import settings_of
from npumatmul.llm.models.modernbert import MODERNBERT
from npumatmul.llm.models.roberta import ROBERTA
from npumatmul.llm.models.settings import Settings
from npumatmul.nn.product import Float32, FloatProduct, Pack, Product

__all__ = ["ENCODERS", "ENCODER_TYPES", "encoder_architecture", "encoder_config_of", "load_encoder"]

ENCODERS: tuple[EncoderArchitecture, ...] = (BERT, ROBERTA, MODERNBERT)
ENCODER_TYPES: Mapping[str, EncoderArchitecture] = {name: each for each in ENCODERS for name in each.model_types}
_OF_GGUF: Mapping[str, EncoderArchitecture] = {name: each for each in ENCODERS for name in each.gguf}
_PARTS = {
    "self_attn.qkv": "qkv",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_up": "gate_up",
    "mlp.up_proj": "gate_up",
    "mlp.down_proj": "down",
}

Progress = Callable[[int, int, str], None]


def encoder_architecture(source: ModelSource) -> EncoderArchitecture | None:
    """The architecture of a folder or GGUF file that holds an encoder; None if it holds something else."""
    return (ENCODER_TYPES if source.kind == "folder" else _OF_GGUF).get(source.architecture)


def encoder_config_of(source: ModelSource) -> EncoderConfig:
    """Read what an encoder is made of.

    Raises
    ------
    npumatmul.errors.ModelError
        If it is none, or a value that may change the arithmetic is not known.
    """
    architecture = encoder_architecture(source)
    if architecture is None:
        raise source.error(f"{shown(source.architecture)} is no encoder; known: {', '.join(ENCODER_TYPES)}")
    if source.kind == "folder":
        described = Settings(source.config, source.error)
        check_classes(described, architecture.classes)
        return architecture.from_config(described)
    assert architecture.from_gguf is not None
    settings = settings_of(source.config, source.architecture, source.error, parameters=source.weights)
    return architecture.from_gguf(settings, lambda name: source.weights.shape(name)[0] if name in source.weights else 0)


def load_encoder(source: ModelSource, pack: Pack, *, progress: Progress | None = None) -> Encoder:
    """Make an encoder of a folder or GGUF file.

    Weights are taken one after another, so besides what `pack` keeps, only one is in memory. The table of words stays
    in the file, and its rows are read as tokens need them.

    Parameters
    ----------
    source : ModelSource
        The open model.
    pack : callable
        Makes a product of a float32 weight ``(N, K)`` and the layer's name, ``blk.<i>.qkv``, ``.attn_out``,
        ``.gate_up`` or ``.down``; where it has a method ``ready(name)`` that gives one, no weight is read.
    progress : callable, optional
        Called before each layer and at the end with (layers done, layers in all, name).

    Returns
    -------
    Encoder
        The model.

    Raises
    ------
    npumatmul.errors.ModelError
        If the architecture or one of its features is not known, or a tensor is missing, left over or of another shape.
    """
    config = encoder_config_of(source)
    if config.n_layers > len(source.weights):
        raise source.error(f"it says that it has {config.n_layers} layers, but holds {len(source.weights)} tensors")
    architecture = encoder_architecture(source)
    assert architecture is not None
    try:
        model = Encoder(config)
    except ValueError as error:  # layers look at what they are made with once more
        raise source.error(f"its configuration makes no model: {error}") from error
    names = _stored_names(source, architecture, model)
    total = 4 * config.n_layers
    model.load_state_dict(_Renamed(source, names), pack=_ByLayer(pack, total, progress))
    if progress is not None:
        progress(total, total, "done")
    return model


def _stored_names(source: ModelSource, architecture: EncoderArchitecture, model: Encoder) -> dict[str, str]:
    """What the folder calls each parameter; all have to be there, of their shapes, and nothing else."""
    weights, shapes = source.weights, model.parameter_shapes()
    is_part = any(name.startswith(f"{architecture.prefix}embeddings.") for name in weights)
    prefix = architecture.prefix if is_part else ""
    names = {name: architecture.stored_name(name, prefix) for name in shapes}
    missing = [each for each in names.values() if each not in weights]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise source.error(f"tensor {shown(missing[0])}{more} is missing")
    for name, each in names.items():
        found = tuple(weights.shape(each))
        if found != shapes[name]:
            raise source.error(f"tensor {shown(each)} has shape {found}, its metadata asks for {shapes[name]}")
    known = set(names.values())
    beside = tuple(start + each for start in {"", prefix} for each in architecture.others)
    left = [name for name in weights if name not in known and not name.startswith(beside)]
    if left:
        raise source.error(f"it has {len(left)} tensors of a kind that is not supported, such as {shown(left[0])}")
    return names


class _Renamed(Mapping[str, Any]):
    """The weights of a folder by the names in an `Encoder`; the table of words by its rows."""

    def __init__(self, source: ModelSource, names: Mapping[str, str]) -> None:
        self._weights, self._names = source.weights, names

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> Float32:
        return self._weights[self._names[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(self._names[name])

    def rows(self, name: str) -> Any:
        return self._weights.rows(self._names[name]) if name.startswith("word.") else None


class _ByLayer:
    """Packs by the names of layers instead of their paths; a head stays in float32."""

    def __init__(self, pack: Pack, total: int, progress: Progress | None) -> None:
        self._pack, self._total, self._progress, self._done = pack, total, progress, 0

    def ready(self, path: str) -> Product | None:
        name = _layer_name(path)
        if name is None:
            return None
        if self._progress is not None:
            self._progress(self._done, self._total, name)
        self._done += 1
        ready = getattr(self._pack, "ready", None)
        found: Product | None = ready(name) if callable(ready) else None
        return found

    def __call__(self, weight: Float32, path: str) -> Product:
        name = _layer_name(path)
        return FloatProduct(weight) if name is None else self._pack(weight, name)


def _layer_name(path: str) -> str | None:
    """The name of a layer in a block by the path of its module; None for those of a head."""
    if not path.startswith("layers."):
        return None
    _, number, inside = path.split(".", 2)
    return f"blk.{number}.{_PARTS[inside]}"
