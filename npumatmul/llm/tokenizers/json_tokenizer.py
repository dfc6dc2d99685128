"""The tokenizer of a Hugging Face folder: tokenizer.json, and the special tokens of tokenizer_config.json."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer

from npumatmul.errors import ModelError
from npumatmul.files.reading import parse_json, shown
from npumatmul.llm.tokenizers.bpe import byte_alphabet
from npumatmul.llm.tokenizers.json_checks import PARTS, check_steps, decoder_steps
from npumatmul.llm.tokenizers.lock import Lock
from npumatmul.llm.tokenizers.package import failures_as
from npumatmul.llm.tokenizers.protocol import STOP_TOKENS, BaseTokenizer, SpecialTokens

logger = logging.getLogger(__name__)

MOST_TOKENS = 1 << 22
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_ANCHOR = "a"
_BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Problem = Callable[[str], ModelError]


class JSONTokenizer(BaseTokenizer):
    """The tokenizer of a language model in a Hugging Face folder.

    Its special tokens are those that tokenizer_config.json or special_tokens_map.json name. Begin and end tokens are
    added as the post-processor of tokenizer.json says, as transformers does too.

    Parameters
    ----------
    files : mapping of str to bytes
        Contents of the tokenizer's files by name; tokenizer.json has to be among them.
    vocab_size : int, optional
        How many tokens the model reads, which may be more than have a spelling; by default, as many as have one.
    stop_ids : iterable of int
        Tokens that end an answer besides the end of a sequence and the names in `STOP_TOKENS`, such as those of
        generation_config.json.
    error : callable, optional
        Makes the exception for a problem, whose text says where the tokenizer is.
    answers : bool, default True
        Whether the model answers: then it is warned of that there is no token which ends an answer.

    Raises
    ------
    npumatmul.errors.ModelError
        If there is no tokenizer.json, it is damaged, or it would make texts grow without bounds.

    Examples
    --------
    >>> import json
    >>> from npumatmul.llm import JSONTokenizer
    >>> model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    >>> tokenizer = JSONTokenizer({"tokenizer.json": json.dumps({"version": "1.0", "model": model}).encode()})
    >>> tokenizer.encode("aab")
    [0, 2]
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        vocab_size: int | None = None,
        stop_ids: Iterable[int] = (),
        error: Problem = ModelError,
        answers: bool = True,
    ) -> None:
        if "tokenizer.json" not in files:
            raise error(_without(files))
        config = _settings(files, "tokenizer_config.json", error)
        backend, described = _backend(files["tokenizer.json"], error)
        _add_tokens(backend, config, error)
        tokens = _tokens(backend, vocab_size, error)
        names = _settings(files, "special_tokens_map.json", error) | config
        ids = {name: _number(backend, name, names.get(name)) for name in _NAMES}
        added = backend.get_added_tokens_decoder()
        control = {i for i, token in added.items() if token.special or token.content in STOP_TOKENS}
        stops = {i for i in control if tokens[i] in STOP_TOKENS} | {i for i in stop_ids if 0 <= i < len(tokens)}
        if ids["eos_token"] is not None:
            stops.add(ids["eos_token"])
        if answers and not stops:
            logger.warning("the tokenizer names no token that ends an answer: answers go on to their greatest length")
        unknown = getattr(backend.model, "unk_token", None)  # which texts have, whether or not it is named
        found_in_text = control - {ids["unk_token"], None if unknown is None else backend.token_to_id(unknown)}
        engine = _JSONEngine(backend, described, tokens, frozenset(added), frozenset(found_in_text), error)
        before, after = engine.around()
        unknown = [i for i in (*before, *after) if i >= len(tokens)]
        if unknown:
            raise error(
                f"the post_processor in its tokenizer.json adds token {unknown[0]}; it has {len(tokens)} tokens"
            )
        special = SpecialTokens(
            bos_id=ids["bos_token"],
            eos_id=ids["eos_token"],
            unk_id=ids["unk_token"],
            pad_id=ids["pad_token"],
            add_bos=bool(before),
            add_eos=bool(after),
            stop_ids=frozenset(stops),
            control_ids=frozenset(control),
        )
        super().__init__(engine, tokens, special)
        self._before, self._after = before, after
        self._pair = engine.around_two()

    def encode_pair(self, first: str, second: str, longest: int | None = None) -> tuple[list[int], list[int]]:
        """Turn two texts that belong together into token numbers, as the post-processor of tokenizer.json says.

        Parameters
        ----------
        first, second : str
            The texts; names of control tokens in them are ordinary text.
        longest : int, optional
            Tokens at most: the end of the longer text is left out, then that of both.

        Returns
        -------
        ids, types : list of int
            Token numbers, and of which text each is: 0 or 1, or whatever the post-processor says.

        Raises
        ------
        npumatmul.errors.ModelError
            If the post-processor takes no pairs, or has no place for two texts in so few tokens.
        TypeError, ValueError
            As `encode`.
        """
        if self._pair is None:
            raise ModelError("this tokenizer says nothing of pairs of texts")
        parts = [self.encode(each, add_special=False) for each in (first, second)]
        if longest is not None:
            room = longest - sum(len(tokens) for tokens, _ in self._pair if tokens is not None)
            if room < 2:
                raise ModelError(f"{longest} tokens have no room for two texts")
            parts = [
                tokens[:kept] for tokens, kept in zip(parts, _kept(len(parts[0]), len(parts[1]), room), strict=True)
            ]
        texts = iter(parts)
        ids, types = [], []
        for tokens, kind in self._pair:
            here = next(texts) if tokens is None else tokens
            ids += here
            types += [kind] * len(here)
        return ids, types


def _kept(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens that stay of two texts, where one after another goes from the longer one."""
    short, long = min(first, second), max(first, second)
    long = min(long, short if short > room else max(short, room - short))
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)


class _JSONEngine:
    """The engine of a tokenizer.json: the ``tokenizers`` package, but for decoding token by token."""

    def __init__(
        self,
        backend: Tokenizer,
        described: Mapping[str, Any],
        tokens: list[str],
        added: frozenset[int],
        control: frozenset[int],
        error: Problem,
    ) -> None:
        self._backend = backend
        self._control = control
        self._tokens = tokens
        self._added = added
        self._error = error
        self._lock = Lock()  # encode() switches a setting of the backend
        self._alphabet = byte_alphabet()
        steps = decoder_steps(described.get("decoder"), error)
        self._byte_level = "ByteLevel" in steps
        self._byte_names = "ByteFallback" in steps
        self._joined = not steps  # by spaces
        self.piece = lru_cache(maxsize=1 << 16)(self._piece)
        self.leading_space = self._joined or self._strips()

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """As `Engine.encode`."""
        ids = self._encode(text, parse_special, False)
        if parse_special or self._control.isdisjoint(ids):
            return ids
        # a unigram model has control tokens among its pieces, and finds them where a text spells them
        return [each for i in ids for each in (self._characters(i) if i in self._control else [i])]

    def around(self) -> tuple[list[int], list[int]]:
        """What the post-processor puts in front of a text and behind it."""
        bare, whole = self._encode(_ANCHOR, False, False), self._encode(_ANCHOR, False, True)
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        return [], []

    def around_two(self) -> list[tuple[list[int] | None, int]] | None:
        """What the post-processor makes of two texts: tokens, or None where a text goes, and their type."""
        bare = self._encode(_ANCHOR, False, False)
        with self._lock:
            try:
                whole = self._backend.encode(_ANCHOR, _ANCHOR, add_special_tokens=True)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # the tokenizers package raises plain Exception, or panics
                return None
        ids, types, texts = list(whole.ids), list(whole.type_ids), 0
        parts: list[tuple[list[int] | None, int]] = []
        at = 0
        while at < len(ids):
            if bare and texts < 2 and ids[at : at + len(bare)] == bare:
                parts.append((None, types[at]))
                at, texts = at + len(bare), texts + 1
            else:
                parts.append(([ids[at]], types[at]))
                at += 1
        return parts if texts == 2 else None

    def _encode(self, text: str, parse_special: bool, add_special: bool) -> list[int]:
        with self._lock:
            self._backend.encode_special_tokens = not parse_special
            with failures_as(lambda told: self._error(f"its tokenizer.json fails on this text: {told}")):
                return list(self._backend.encode(text, add_special_tokens=add_special).ids)

    def _characters(self, token_id: int) -> list[int]:
        """Tokens of the single characters of one."""
        return [each.id for char in self._tokens[token_id] for each in self._backend.model.tokenize(char)]

    def _piece(self, token_id: int) -> bytes:
        token = self._tokens[token_id]
        if self._byte_level and token_id not in self._added and all(char in self._alphabet for char in token):
            return bytes(self._alphabet[char] for char in token)
        if self._byte_names and (match := _BYTE_NAME.fullmatch(token)):
            return bytes([int(match[1], 16)])
        if self._byte_level or not token:
            return token.encode()
        if self._joined:
            return f" {token}".encode()
        text = self._decoded(_ANCHOR, token)
        return text.removeprefix(self._decoded(_ANCHOR)).encode()

    def _strips(self) -> bool:
        """Whether a space is left out at the beginning of texts, tried on the first token that has one there."""
        for token_id, token in enumerate(self._tokens):
            if token[:1] in ("\u2581", " ") and token_id not in self._added:
                return self.piece(token_id)[:1] == b" " and not self._decoded(token).startswith(" ")
        return not self._byte_level and self._decoded(_ANCHOR, _ANCHOR).endswith(f" {_ANCHOR}")

    def _decoded(self, *tokens: str) -> str:
        decoder = self._backend.decoder
        assert decoder is not None
        text: str = decoder.decode(list(tokens))
        return text


def _without(files: Mapping[str, bytes]) -> str:
    others = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if name in files]
    has = f"it has no tokenizer.json but {others[0]}" if others else "it has no tokenizer.json"
    return (
        f"{has}: fetch the model's tokenizer.json, or make it with transformers, which writes it beside the others: "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


def _settings(files: Mapping[str, bytes], name: str, error: Problem) -> dict[str, Any]:
    if name not in files:
        return {}
    return _parsed(files[name], name, error)


def _parsed(content: bytes, name: str, error: Problem) -> dict[str, Any]:
    try:
        found = parse_json(content)
    except ValueError as problem:  # UnicodeDecodeError is one
        raise error(f"its {name} cannot be read: {problem}") from problem
    if not isinstance(found, dict):
        raise error(f"its {name} is {shown(found)}; an object is needed")
    return found


def _backend(content: bytes, error: Problem) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and what its parts but the model are, as JSON has them."""
    with failures_as(lambda told: error(f"its tokenizer.json is damaged: {shown(told)}")):
        backend = Tokenizer.from_str(content.decode("utf-8"))
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None) is not None:
            backend.model.dropout = None  # for training: it makes the same text other tokens each time
        parts = {name: getattr(backend, name) for name in PARTS}
        described = {name: None if part is None else parse_json(part.__getstate__()) for name, part in parts.items()}
    check_steps(described, error)
    return backend, described


def _add_tokens(backend: Tokenizer, config: Mapping[str, Any], error: Problem) -> None:
    """Add what tokenizer_config.json has beyond tokenizer.json."""
    more = config.get("added_tokens_decoder", {})
    if not isinstance(more, dict):
        raise error(f"added_tokens_decoder in its tokenizer_config.json is {shown(more)}; an object is needed")
    known = backend.get_added_tokens_decoder()
    wanted = []
    for number, token in more.items():
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or not number.isascii() or not number.isdigit() or len(number) > 9:
            raise error(f"token {shown(number)} in its tokenizer_config.json is {shown(token)}, which is no token")
        flags = {key: token.get(key) is True for key in ("special", "lstrip", "rstrip", "single_word", "normalized")}
        wanted.append((int(number), AddedToken(content, **flags)))
    for number, token in sorted(wanted, key=lambda each: each[0]):
        old = known.get(number)
        if old is not None and old.content == token.content and old.special == token.special:
            continue
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != number:
            raise error(
                f"its tokenizer_config.json says that {shown(token.content)} is token {number}, its tokenizer.json "
                f"makes it {backend.token_to_id(token.content)}: the two do not belong together"
            )


def _tokens(backend: Tokenizer, vocab_size: int | None, error: Problem) -> list[str]:
    """Spellings by number; numbers without a token are empty."""
    vocab = backend.get_vocab(with_added_tokens=True)
    if not vocab:
        raise error("its tokenizer.json has no tokens")
    last = max(vocab, key=lambda token: vocab[token])
    count = vocab[last] + 1
    if vocab_size is not None and count > vocab_size:
        raise error(f"its tokenizer has a token {shown(last)} of number {count - 1}, its model {vocab_size} tokens")
    if count > MOST_TOKENS:
        raise error(f"its tokenizer has a token {shown(last)} of number {count - 1}; at most {MOST_TOKENS} are read")
    tokens = [""] * (vocab_size or count)
    for token, number in vocab.items():
        tokens[number] = token
    return tokens


def _number(backend: Tokenizer, name: str, given: object) -> int | None:
    """The number of a special token, which is named by its text or by an object that has it."""
    content = given.get("content") if isinstance(given, dict) else given
    if not isinstance(content, str):
        return None
    number: int | None = backend.token_to_id(content)
    if number is None:
        logger.warning("%s of the tokenizer is %s, which is none of its tokens; it is ignored", name, shown(content))
    return number
