"""`SpeechTokens`: which tokens of a vocabulary say something of the speech, and which are never to be written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from npumatmul.files.reading import shown
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.models.settings import Settings
from npumatmul.llm.tokenizers.protocol import Tokenizer

__all__ = ["TASKS", "SpeechTokens", "speech_tokens_of"]

TASKS = ("transcribe", "translate")
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
#: From this size on vocabularies have languages.
_MULTILINGUAL = 51865
#: Models begin within a second: 50 steps of 20 ms.
_FIRST_WITHIN = 50


@dataclass(frozen=True)
class SpeechTokens:
    """Numbers of tokens.

    Attributes
    ----------
    vocab_size : int
    start, end : int
        Of what is written about a window.
    no_timestamps : int or None
        Says that no times follow. The tokens behind it are times, in steps of 20 ms, and the one before it says that
        there is no speech; None where a vocabulary has none of these.
    previous : int or None
        Begins what was said before.
    languages, tasks : mapping of str to int
        By code, and by name; empty where a model knows English only.
    suppressed, suppressed_first : tuple of int
        Never written, and never written first.
    first_within : int
        In how many steps the first time is.
    """

    vocab_size: int
    start: int
    end: int
    no_timestamps: int | None = None
    previous: int | None = None
    languages: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    first_within: int = _FIRST_WITHIN

    @property
    def first_time(self) -> int:
        """The token of 0.00 seconds; behind all tokens where there is none."""
        return self.vocab_size if self.no_timestamps is None else self.no_timestamps + 1

    @property
    def multilingual(self) -> bool:
        """Whether languages and tasks are told."""
        return bool(self.languages)

    def prompt(self, language: str | None, task: str, timestamps: bool) -> list[int]:
        """What stands before what is written about a window."""
        ids = [self.start]
        if self.multilingual:
            ids += [self.languages[language or "en"], self.tasks[task]]
        if not timestamps and self.no_timestamps is not None:
            ids.append(self.no_timestamps)
        return ids


def speech_tokens_of(source: ModelSource, tokenizer: Tokenizer, vocab_size: int) -> SpeechTokens:
    """Read them from generation_config.json, from config.json where there is none, and else from the vocabulary.

    Raises
    ------
    npumatmul.errors.ModelError
        If a token is none, or what every model needs is missing.
    """
    read = _Reader(source, tokenizer, vocab_size)
    no_timestamps = read.token("no_timestamps_token_id", "<|notimestamps|>")
    if no_timestamps is not None and not 0 < no_timestamps < vocab_size - 1:
        raise source.error(f"token {no_timestamps} for no times has none of times behind it")
    languages, tasks = read.languages(), read.tasks()
    return SpeechTokens(
        vocab_size,
        start=read.needed("decoder_start_token_id", "<|startoftranscript|>"),
        end=read.needed("eos_token_id", "<|endoftext|>"),
        no_timestamps=no_timestamps,
        previous=read.token("prev_sot_token_id", "<|startofprev|>"),
        languages=languages,
        tasks=tasks,
        suppressed=read.listed("suppress_tokens"),
        suppressed_first=read.listed("begin_suppress_tokens"),
        first_within=read.steps("max_initial_timestamp_index"),
    )


class _Reader:
    """Asks the files of a model for tokens."""

    def __init__(self, source: ModelSource, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._source, self._vocab_size = source, vocab_size
        self._values = source.generation_config or source.config
        self._settings = Settings(self._values, source.error)
        self._numbers = {
            name: number
            for number in range(tokenizer.vocab_size)
            if (name := tokenizer.token(number) or "").startswith("<|") and name.endswith("|>")
        }

    def _checked(self, what: str, number: Any) -> int:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < self._vocab_size:
            raise self._source.error(f"{what} is {shown(number)}; tokens are 0 to {self._vocab_size - 1}")
        return number

    def token(self, key: str, name: str) -> int | None:
        """A token by what settings call it, or by its name in the vocabulary; of several, the first."""
        given = self._values.get(key)
        found = given[0] if isinstance(given, list) and given else given
        if found is None:
            found = self._numbers.get(name)
        return None if found is None else self._checked(repr(key), found)

    def needed(self, key: str, name: str) -> int:
        found = self.token(key, name)
        if found is None:
            raise self._source.error(f"its generation_config.json has no {key!r}, and its tokenizer no {name}")
        return found

    def listed(self, key: str) -> tuple[int, ...]:
        given = self._settings.sequence(key, int) or []
        return tuple(sorted({self._checked(f"a token of {key!r}", each) for each in given}))

    def steps(self, key: str) -> int:
        steps: int = self._settings.integer(key, _FIRST_WITHIN)
        if steps < 0:
            raise self._source.error(f"{key!r} is {steps}; it must be 0 or more")
        return steps

    def _multilingual(self) -> bool:
        return self._settings.flag("is_multilingual", self._vocab_size >= _MULTILINGUAL)

    def languages(self) -> dict[str, int]:
        if not self._multilingual():
            return {}
        given = self._settings.group("lang_to_id")
        if given is None:
            found = {each: number for each, number in self._numbers.items() if _LANGUAGE.fullmatch(each)}
        else:
            found = {each: self._checked(f"the token of {shown(each)}", given.integer(each)) for each in given.names}
        if not found:
            raise self._source.error("it is multilingual, and says nowhere which languages it knows ('lang_to_id')")
        return {each.removeprefix("<|").removesuffix("|>"): number for each, number in found.items()}

    def tasks(self) -> dict[str, int]:
        if not self._multilingual():
            return {}
        given = self._settings.group("task_to_id")
        found: dict[str, int] = {}
        for name in TASKS:
            number = None if given is None else given.integer(name, None)
            number = self._numbers.get(f"<|{name}|>") if number is None else number
            if number is not None:
                found[name] = self._checked(f"the token of {name!r}", number)
        if "transcribe" not in found:
            raise self._source.error("it is multilingual, and says nowhere which token asks for a transcript")
        return found
