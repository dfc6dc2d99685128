"""What a server allows, and where it listens."""

from __future__ import annotations

import dataclasses
from typing import Literal

from npumatmul.nn.pooling import POOLINGS

__all__ = ["Settings"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where a server listens, and its limits.

    Attributes
    ----------
    host, port
        The address; port 0 takes one that is free.
    api_key : str, optional
        What clients have to send as ``Authorization: Bearer ...``.
    origins : tuple of str
        Web pages whose scripts may ask, such as ``"https://example.org"``; ``"*"`` is all. By default none.
    hosts : tuple of str
        Names under which the server may be asked, beside its addresses and ``localhost``. A server on a loopback
        address refuses others, so that no web page reaches it by a name that leads there.
    parallel : int
        Answers that are computed at the same time.
    queue : int
        Requests that may wait for that; others are told to come again.
    connections : int
        Connections at the same time.
    max_body : int
        Bytes of a request.
    max_messages, max_choices, max_texts : int
        Messages of a conversation, answers to one request, and texts of one request.
    max_prompt_tokens, max_tokens : int, optional
        Tokens of a prompt and of an answer; the model's context is a limit of both.
    read_timeout : float
        Seconds that a request may take to arrive.
    write_timeout : float
        Seconds that a client may take nothing of its answer.
    answer_timeout : float
        Seconds that a request may wait and be answered.
    shutdown_timeout : float
        Seconds that answers may go on when the server is to end.
    pooling : str, optional
        How states of texts become embeddings, as for `Model.embed`; by default as each model says.
    speculation : {"auto", "lookup"}, optional
        Whether several guessed tokens are checked at once, as for `Model.generate`.
    control_texts : {"refuse", "allow"}
        What becomes of messages that spell control tokens, which chat templates cannot tell from their own.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = dataclasses.field(default=None, repr=False)
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    parallel: int = 4
    queue: int = 64
    connections: int = 256
    max_body: int = 4 << 20
    max_messages: int = 1024
    max_choices: int = 8
    max_texts: int = 1024
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    read_timeout: float = 30.0
    write_timeout: float = 30.0
    answer_timeout: float = 600.0
    shutdown_timeout: float = 10.0
    pooling: str | None = None
    speculation: Literal["auto", "lookup"] | None = None
    control_texts: Literal["refuse", "allow"] = "refuse"

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; it must be from 0 to 65535")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip() == self.api_key != ""):
            raise ValueError("api_key is ASCII text without space at its ends, as it is sent in a header")
        if self.control_texts not in ("refuse", "allow"):
            raise ValueError(f"control_texts is {self.control_texts!r}; it must be 'refuse' or 'allow'")
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}; it must be one of {', '.join(POOLINGS)}")
        if self.speculation not in (None, "auto", "lookup"):
            raise ValueError(f"speculation is {self.speculation!r}; it must be 'auto', 'lookup' or None")
        for name, least in (("parallel", 1), ("queue", 0), ("connections", 1), ("max_body", 1024), ("max_messages", 1)):
            self._at_least(name, least)
        for name in ("max_choices", "max_texts", "max_prompt_tokens", "max_tokens"):
            self._at_least(name, 1)
        for name in ("read_timeout", "write_timeout", "answer_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not self.shutdown_timeout >= 0:
            raise ValueError(f"shutdown_timeout is {self.shutdown_timeout}; it must be 0 or more")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be {least} or more")
