"""Models and servers for the tests of the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from npumatmul.llm import ChatTemplate, Model
from npumatmul.server import Server, Settings

TOOLS_TEMPLATE = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools> answer in <tool_call>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments.keys() | list | tojson }}</tool_call>"
    "{% endfor %}"
    "<|im_end|>{% endfor %}{% if enable_thinking is defined %}thinking={{ enable_thinking }}{% endif %}"
)


class Forced:
    """A constraint that leaves one way to answer."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = list(ids)

    def allowed(self, logits: Any) -> None:
        """Leave the next token."""
        score = logits[self._ids[0]]
        logits[:] = -np.inf
        logits[self._ids[0]] = score

    def accept(self, token: int) -> None:
        """Go on."""
        assert token == self._ids.pop(0)


class Scripted(Model):
    """A model that says what it is told to, and keeps what it was asked."""

    def __init__(self, model: Model, text: str, template: str = TOOLS_TEMPLATE) -> None:
        self.__dict__.update(model.__dict__)
        self.chat_template = ChatTemplate(template)
        self._loaded = dataclasses.replace(model._loaded, chat_template=self.chat_template)
        self.text = text
        self.prompts: list[str] = []

    def _generation(self, ids: Any, *args: Any, **options: Any) -> Any:
        self.prompts.append(self.tokenizer.decode(ids, skip_special=False))
        said = self.tokenizer.encode(self.text, parse_special=True, add_special=False)
        stop = sorted(self.tokenizer.stop_ids)[0]
        return super()._generation(ids, *args, **{**options, "constraint": Forced([*said, stop])})


@contextmanager
def serving(models: Any, **settings: Any) -> Iterator[Server]:
    """A server on a free port, in this process."""
    with Server(models, Settings(port=0, **settings)) as server:
        yield server
