"""What all kinds of requests share: models by name, formats that were made already, the desk, and counts."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from npumatmul.llm import EncoderModel, Format, GenerationStats, Model, SpeechModel, json_format
from npumatmul.llm.constrain.expressions import Expression
from npumatmul.ops import PackedWeight
from npumatmul.server.desk import Desk
from npumatmul.server.errors import ApiError
from npumatmul.server.metrics import Metrics
from npumatmul.server.settings import Settings

__all__ = ["Served", "Service"]

MOST_FORMATS = 32


@dataclass(frozen=True)
class Served:
    """A model and the name that it is asked by."""

    name: str
    model: Model
    since: float

    @property
    def template(self) -> str | None:
        """The source of its chat template."""
        return self.model.chat_template.source if self.kind == "writer" else None

    @property
    def kind(self) -> str:
        """``"writer"``, ``"encoder"`` of texts, or ``"hearer"`` of speech."""
        if isinstance(self.model, SpeechModel):
            return "hearer"
        return "encoder" if isinstance(self.model, EncoderModel) else "writer"

    @property
    def size(self) -> int:
        """Bytes of its file, or of the files in its folder."""
        path = self.model.path
        files = [path] if path.is_file() else [each for each in path.glob("*") if each.is_file()]
        try:
            return sum(each.stat().st_size for each in files)
        except OSError:
            return 0

    @property
    def npu_bytes(self) -> int:
        """Bytes of its weights in NPU memory."""
        if self.model.placement is not None:
            return self.model.placement.npu_bytes
        weights = (getattr(each, "weight", None) for each in self._computed.linears.values())
        return sum(each.nbytes for each in weights if isinstance(each, PackedWeight) and each.memory == "npu")

    @property
    def architecture(self) -> str:
        """What models of its kind are called, such as llama."""
        return "whisper" if self.kind == "hearer" else str(self._computed.config.architecture)

    @property
    def _computed(self) -> Any:
        """What has its layers."""
        if isinstance(self.model, SpeechModel):
            return self.model._whisper
        return self.model._encoder if isinstance(self.model, EncoderModel) else self.model._model

    @property
    def digest(self) -> str:
        """What tells it from others: made of its name, path and size, since reading a whole model takes long."""
        told = f"{self.model.name} {self.model.path} {self.model.scheme} {self.size}"
        return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()


class Service:
    """The models that are served, and what serves them.

    Parameters
    ----------
    models : mapping of str to Model
        By the names that they are asked by; the first is meant where a request names none.
    settings : Settings
        Limits.
    """

    def __init__(self, models: Mapping[str, Model], settings: Settings) -> None:
        if not models:
            raise ValueError("there is no model to serve")
        now = time.time()
        self.models = {name: Served(name, model, now) for name, model in models.items()}
        self.settings = settings
        self.desk = Desk(settings)
        self.metrics = Metrics()
        self._formats: OrderedDict[tuple[str, str], Format] = OrderedDict()
        self._lock = threading.Lock()

    def served(self, name: str | None) -> Served:
        """The model of a name, with or without the tag that Ollama's clients add."""
        if name is None:
            return next(iter(self.models.values()))
        found = self.models.get(name) or self.models.get(name.removesuffix(":latest"))
        if found is None:
            known = ", ".join(map(repr, self.models))
            raise ApiError(
                404, f"model {name[:100]!r} not found; there are {known}", param="model", code="model_not_found"
            )
        return found

    def writer(self, name: str | None) -> Served:
        """As `served`, of a model that continues texts."""
        found = self.served(name)
        if found.kind != "writer":
            does = "makes embeddings" if found.kind == "encoder" else "writes down speech"
            raise ApiError(400, f"the model {found.name!r} {does}, and answers nothing", param="model")
        return found

    def format_of(self, served: Served, schema: object) -> Format:
        """JSON by a schema, or any object, as the form of answers; made once."""
        key = json.dumps(schema)  # in its order, which is that of the answer's members
        return self._format(served, key, lambda: json_format(served.model.tokenizer, schema))

    def format_by(self, served: Served, key: str, grammar: Callable[[], Expression]) -> Format:
        """A grammar as the form of answers; made once for a key."""
        return self._format(served, key, lambda: Format(grammar(), served.model.tokenizer))

    def _format(self, served: Served, key: str, make: Callable[[], Format]) -> Format:
        with self._lock:
            found = self._formats.get((served.name, key))
            if found is not None:
                self._formats.move_to_end((served.name, key))
                return found
        made = make()
        with self._lock:
            self._formats[served.name, key] = made
            if len(self._formats) > MOST_FORMATS:
                self._formats.popitem(last=False)
        return made

    def count(self, stats: GenerationStats) -> None:
        """Add an answer that ended to the counts."""
        metrics = self.metrics
        metrics.prompt_tokens += stats.prompt_tokens
        metrics.cached_tokens += stats.cached_tokens
        metrics.generated_tokens += stats.generated_tokens
        metrics.prompt_seconds += stats.prompt_seconds
        metrics.generate_seconds += stats.generate_seconds
