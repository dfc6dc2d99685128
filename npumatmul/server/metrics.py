"""Counts of what a server did, in the text form of Prometheus."""

from __future__ import annotations

from collections import Counter

from npumatmul.server.desk import Desk

__all__ = ["Metrics"]


class Metrics:
    """Counts since the start; all in the thread of the event loop."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0
        self.prompt_seconds = 0.0
        self.generate_seconds = 0.0
        self.gone = 0

    def text(self, desk: Desk) -> str:
        lines: list[str] = []

        def add(name: str, kind: str, about: str, values: list[tuple[str, float]]) -> None:
            lines.extend((f"# HELP npumatmul_{name} {about}", f"# TYPE npumatmul_{name} {kind}"))
            lines.extend(f"npumatmul_{name}{labels} {value}" for labels, value in values)

        add(
            "requests_total",
            "counter",
            "Requests by path and status.",
            [(f'{{path="{path}",status="{status}"}}', n) for (path, status), n in sorted(self.requests.items())],
        )
        add("abandoned_total", "counter", "Requests whose client went away.", [("", self.gone)])
        add("prompt_tokens_total", "counter", "Tokens of prompts.", [("", self.prompt_tokens)])
        add("cached_tokens_total", "counter", "Tokens of prompts found in a cache.", [("", self.cached_tokens)])
        add("generated_tokens_total", "counter", "Tokens generated.", [("", self.generated_tokens)])
        add("prompt_seconds_total", "counter", "Seconds until first tokens.", [("", self.prompt_seconds)])
        add(
            "generate_seconds_total",
            "counter",
            "Seconds for all tokens after the first.",
            [("", self.generate_seconds)],
        )
        add("running", "gauge", "Requests at work.", [("", len(desk.jobs))])
        add("waiting", "gauge", "Requests waiting for a place.", [("", desk.waiting)])
        return "\n".join(lines) + "\n"
