"""What a language model is asked: to go on with prompts, and to answer in conversations."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import ClosedError, ModelError
from npumatmul.files.uncopied import Uncopied
from npumatmul.llm.counts import count_from_one
from npumatmul.llm.loading import LoadedModel
from npumatmul.llm.models.cache import ContextFullError
from npumatmul.llm.models.decoder import Decoder, PromptProgress
from npumatmul.llm.models.embedded import Embedded, check_no_places, filled
from npumatmul.llm.models.part import Part
from npumatmul.llm.run.batch import BatchGeneration
from npumatmul.llm.run.full import OnFull
from npumatmul.llm.run.generation import Generation, checked_ids
from npumatmul.llm.run.pieces import Constraint
from npumatmul.llm.run.sampling import SamplingOptions
from npumatmul.llm.run.session import Session
from npumatmul.llm.run.sharing import Shared
from npumatmul.llm.run.speculation import Costs, DraftModel, Drafts, Lookup, Speculation
from npumatmul.llm.run.steps import Step, shared_length
from npumatmul.llm.tokenizers.protocol import Tokenizer

__all__ = ["Answering", "Embeddings", "Messages", "Prompt"]

Messages = Sequence[Mapping[str, object]]
Prompt = str | Sequence[int] | NDArray[np.integer] | Messages
"""A text to go on with, the messages of a conversation, or token numbers."""
Embeddings = Mapping[int, Embedded] | Sequence[Embedded]
"""Rows from outside, by their first place or in the order of placeholders."""


class Answering(Uncopied):
    """What `Model` is asked; see there."""

    name: str
    part: Part | None = None
    scheme: str
    tokenizer: Tokenizer
    context: int
    vocab_size: int
    _loaded: LoadedModel
    _model: Decoder
    _shared: Shared
    _costs: Costs

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """SHA-256 of what is in the model's files."""
        raise NotImplementedError

    @property
    def schemes_digest(self) -> str:
        """Of how each layer's weights are stored."""
        raise NotImplementedError

    def _check_whole(self, call: str) -> None:
        """Refuse what a part of a model cannot do alone."""
        if self.part is not None:
            raise ModelError(
                f"{call}: this is a part of {self.name}, {self.part}; its sequence() takes tokens or states, and gives "
                "what the next part takes, or logits"
            )

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        stop_ids: Collection[int] | None = None,
        seed: int | None = None,
        logprobs: int | None = None,
        progress: PromptProgress | None = None,
        constraint: Constraint | None = None,
        embeddings: Embeddings | None = None,
        on_full: OnFull = "error",
        keep: int | None = None,
        speculation: Speculation | Literal["auto", "lookup"] | None = None,
    ) -> Generation:
        """Go on with a prompt.

        Nothing is computed until the first piece is asked for.

        Parameters
        ----------
        prompt : str, sequence of int, or sequence of mappings
            A text that is gone on with as it stands; token numbers; or messages, as for `chat`.
        max_tokens : int, default 256
            Tokens to generate at most.
        temperature : float, default 0
            Logits are divided by it; 0 always takes the most probable token.
        top_k : int, default 0
            Only this many of the most probable tokens stay; 0 keeps all.
        top_p : float, default 1
            Only the most probable tokens stay that together reach this probability.
        min_p : float, default 0
            Only tokens stay that have at least this share of the probability of the most probable one.
        repetition_penalty : float, default 1
            Positive logits of tokens seen before are divided by it, negative ones multiplied.
        stop : str or sequence of str, optional
            Texts that end the answer; neither they nor parts of them belong to it.
        stop_ids : collection of int, optional
            Tokens that end the answer; by default the model's own. Empty means none.
        seed : int, optional
            Makes the choices repeatable.
        logprobs : int, optional
            Tells the logarithm of each token's probability, and those of as many of the most probable tokens.
        progress : callable, optional
            Called with (tokens read, tokens to read) while the prompt is read.
        constraint : Constraint, optional
            What the answer has to obey: an object with ``allowed(logits)``, which sets scores to ``-inf``, and
            ``accept(token)``. It serves one generation.
        embeddings : mapping of int to Embedded, or sequence of Embedded, optional
            Rows for places of the prompt, such as what an encoder made of pictures (docs/embedded.md): by where the
            first row of each goes, one token being replaced by each row; or in the order of the prompt's placeholders.
        on_full : {"error", "window"}
            What happens where the context is full. ``"error"``: a prompt without room for an answer is refused, and an
            answer ends. ``"window"``: what is between the first `keep` tokens and the newest ones is left out, half a
            window at a time, and what is left is computed anew, as if it had been the prompt.
        keep : int, optional
            For ``"window"``: so many of the first tokens stay; by default, what the system says in a conversation, and
            of other prompts the token that the tokenizer begins with, if it does.
        speculation : Speculation, "auto", "lookup" or None
            Whether tokens are proposed and several of them checked at once, which gives the same answers: None, not;
            ``"auto"``, where that is faster by the times of steps so far; ``"lookup"``, wherever something was in the
            sequence before; or as a `Speculation` says.

        Returns
        -------
        Generation
            An iterator over `Piece`; the last one has counts and the reason. Its ``cancel`` ends it from any thread.

        Raises
        ------
        npumatmul.llm.ContextFullError
            If the prompt leaves no room for an answer.
        npumatmul.errors.ClosedError
            If the model is closed; from the iterator, if it is closed while a generation waits for its turn.
        TypeError, ValueError
            If an argument cannot be used.

        Examples
        --------
        >>> import npumatmul.llm
        >>> model = npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), "float32")
        >>> pieces = list(model.generate("One, two, three,", max_tokens=3, logprobs=1))
        >>> "".join(piece.text for piece in pieces)
        ' four, five'
        >>> pieces[-1].reason.value, pieces[-1].stats.generated_tokens, pieces[0].logprob > -1
        ('max_tokens', 3, True)
        """
        options = SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        ids, continues = self._ids(prompt)
        ids = self._filled(ids, embeddings)
        return self._generation(
            ids,
            max_tokens,
            options,
            stop=stop,
            stop_ids=stop_ids,
            logprobs=logprobs,
            progress=progress,
            constraint=constraint,
            on_full=on_full,
            keep=keep,
            speculation=speculation,
            continues=continues,
            keeping=lambda: int(isinstance(prompt, str) and ids[:1] == [self.tokenizer.bos_id]),
        )

    def generate_batch(self, prompts: Sequence[Prompt], **options: Any) -> BatchGeneration:
        """Go on with several prompts at once: each step of the model is one of all of them.

        A weight is read once for a step, so that a step of several sequences takes little longer than one of one.
        Answers are those of each prompt alone: of integer schemes bit for bit. Floats may be summed in another order
        where a product has more rows, so that another of two tokens may be chosen that are almost as good.

        Parameters
        ----------
        prompts : sequence of prompts
            Each as for `generate`; messages are answered as by `chat`.
        **options
            As for `generate`, for all of them; with a `seed` each has its own random numbers, made of it and its place.
            `constraint` and `embeddings` serve one generation and are refused.

        Returns
        -------
        BatchGeneration
            An iterator over (number of the prompt, `Piece`); ``texts()`` runs it to the end.

        Raises
        ------
        TypeError, ValueError
            If there are no prompts, or as `generate`, which is told with the number of the prompt.
        npumatmul.errors.ClosedError
            If the model is closed.

        Examples
        --------
        >>> import npumatmul.llm
        >>> model = npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), "float32")
        >>> model.generate_batch(["The capital of France is", "One, two, three,"], max_tokens=2).texts()
        [' Paris.', ' four,']
        """
        if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence) or not len(prompts):
            raise TypeError("generate_batch: prompts are a list of at least one prompt; generate takes a single one")
        for name in ("constraint", "embeddings"):
            if options.get(name) is not None:
                raise ValueError(f"generate_batch: {name} serves one generation; call generate for each of them")
        seed = options.pop("seed", None)
        made = []
        for number, prompt in enumerate(prompts):
            own = {} if seed is None else {"seed": seed + number}
            generation = self.generate(prompt, **options, **own)
            generation.driven = True
            made.append(generation)
        return BatchGeneration(self._shared, made)

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        stop_ids: Collection[int] | None = None,
        seed: int | None = None,
        logprobs: int | None = None,
        progress: PromptProgress | None = None,
        constraint: Constraint | None = None,
        embeddings: Embeddings | None = None,
        on_full: OnFull = "error",
        keep: int | None = None,
        speculation: Speculation | Literal["auto", "lookup"] | None = None,
    ) -> Generation:
        """Answer the last message of a conversation.

        Messages go through the model's chat template, and control tokens that they spell become those tokens;
        `control_texts` finds them in texts from outside.

        Parameters
        ----------
        messages : sequence of mappings
            Each with a ``role``, such as ``"user"``, and a ``content``.
        tools : sequence of mappings, optional
            Descriptions of tools, for templates that know them.
        variables : mapping, optional
            Further variables of the template, such as ``{"enable_thinking": False}``.
        max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, stop_ids, seed, logprobs
            As for `generate`.
        progress, constraint, embeddings, on_full, keep, speculation
            As for `generate`.

        Returns
        -------
        Generation
            As `generate` does.

        Raises
        ------
        ValueError
            If messages are malformed, or the template refuses them; and as `generate`.
        npumatmul.errors.ModelError
            If the template fails, or would take too long or too much memory.

        Examples
        --------
        >>> import npumatmul.llm
        >>> model = npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), "float32")
        >>> answer = model.chat([{"role": "user", "content": "Name the capital of Japan."}])
        >>> "".join(piece.text for piece in answer)
        'The capital of Japan is Tokyo.'
        """
        options = SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        return self._generation(
            self._filled(self.encode_chat(messages, tools=tools, variables=variables), embeddings),
            max_tokens,
            options,
            stop=stop,
            stop_ids=stop_ids,
            logprobs=logprobs,
            progress=progress,
            constraint=constraint,
            on_full=on_full,
            keep=keep,
            speculation=speculation,
            continues=False,
            keeping=lambda: self._system_tokens(messages, tools, variables),
        )

    def session(self, messages: Messages = (), *, system: str | None = None, **settings: Any) -> Session:
        """Begin a conversation that remembers what was said and what was read.

        Parameters
        ----------
        messages : sequence of mappings
            What was said already.
        system : str, optional
            What the system says first.
        **settings
            As for `chat`, for all answers, such as ``max_tokens=512``; they are plain data, as in JSON.

        Returns
        -------
        Session
            ``send`` says something and gives the answer; ``save`` writes it all into a file.

        Raises
        ------
        TypeError
            If there is no such setting, or it is none that can be saved.
        """
        return Session(self, messages, system=system, **settings)

    def load_session(self, path: str | os.PathLike[str]) -> Session:
        """Go on with a conversation from a file of `Session.save`; what was read is not read again.

        Parameters
        ----------
        path : str or os.PathLike

        Returns
        -------
        Session

        Raises
        ------
        OSError
            If the file, or the model's own, cannot be read.
        npumatmul.errors.UnusableFileError
            If it is none of a session, is damaged, or belongs to a model of other files or schemes.
        """
        return Session.load(path, self)

    def encode_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Turn a conversation into the tokens of a prompt, which `chat` goes on with.

        Parameters
        ----------
        messages, tools, variables
            As for `chat`.

        Returns
        -------
        list of int
            Token numbers.

        Raises
        ------
        ValueError, npumatmul.errors.ModelError
            As `chat`.
        """
        return self._loaded.encode_chat(messages, tools=tools, variables=variables)

    def _ids(self, prompt: Prompt) -> tuple[Sequence[int], bool]:
        """Token numbers of a prompt, and whether the answer goes on with its text."""
        if isinstance(prompt, str):
            if not prompt:
                raise ValueError("the prompt is empty; a model needs something to go on with")
            return self.tokenizer.encode(prompt), True
        if isinstance(prompt, np.ndarray):
            if prompt.ndim != 1 or prompt.dtype.kind not in "iu":
                raise TypeError(
                    f"a prompt of token numbers is one row of whole numbers, not {prompt.dtype} of shape {prompt.shape}"
                )
            return prompt.tolist(), True
        if isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, Sequence):
            raise TypeError(f"a prompt is a text, a list of messages or of token numbers, not {type(prompt).__name__}")
        if prompt and all(isinstance(each, Mapping) for each in prompt):
            return self.encode_chat(prompt), False  # type: ignore[arg-type]
        return prompt, True  # type: ignore[return-value]

    def _filled(self, ids: Sequence[int], embeddings: Embeddings | None) -> Sequence[int]:
        """A prompt with rows from outside, if there are any, and none of what they would stand for otherwise."""
        if embeddings is None:
            check_no_places(ids, self._loaded.config)
            return ids
        return filled(checked_ids(ids, self.vocab_size, "the prompt"), embeddings, self._loaded.config)

    def _system_tokens(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, object]] | None,
        variables: Mapping[str, object] | None,
    ) -> int:
        """How many tokens a conversation begins with, whatever is asked: what the system says, and its frame."""
        said = [each for each in messages if each.get("role") == "system"][:1]
        try:
            one, other = (
                self.encode_chat([*said, {"role": "user", "content": text}], tools=tools, variables=variables)
                for text in ("a", "b")
            )
        except (ValueError, ModelError):  # the template takes no such conversation
            return 0
        return shared_length(one, other)

    def _generation(
        self,
        ids: Sequence[int],
        max_tokens: int,
        options: SamplingOptions,
        *,
        on_full: OnFull,
        keep: int | None,
        speculation: object,
        keeping: Callable[[], int],
        **others: Any,
    ) -> Generation:
        if self.closed:
            raise ClosedError(f"the model {self.name} is closed")
        self._check_whole("generate")
        if len(ids) >= self.context and on_full == "error":
            raise ContextFullError(
                f"the prompt has {len(ids)} tokens; the context of {self.context} leaves no room for an answer: "
                f"shorten it, load the model with a larger context, or let it slide by on_full='window'"
            )
        if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int)):
            raise TypeError(f"generate: keep is a number of tokens or None, not {keep!r}")
        if on_full == "window" and keep is None:
            keep = keeping()
        return Generation(
            self._model,
            self.tokenizer,
            ids,
            max_new_tokens=count_from_one(max_tokens, "max_tokens", "generate"),
            sampling=options,
            host=self._shared,
            context=self.context,
            on_full=on_full,
            keep=keep or 0,
            drafts=self._drafts(Speculation.of(speculation)),
            **others,
        )

    def _drafts(self, how: Speculation | None) -> Drafts | None:
        """Who proposes tokens of one generation."""
        if how is None:
            return None
        costs = self._costs if how.when == "auto" else None
        if how.model is None:
            return Drafts(Lookup(how.match, how.least), how.drafts, costs)
        other = how.model
        if not isinstance(other, Answering):
            raise TypeError(f"speculation: the smaller model is a {type(other).__name__}, not a Model")
        if other is self or other.vocab_size != self.vocab_size:
            raise ValueError(
                f"speculation: {other.name} has a vocabulary of {other.vocab_size} tokens, {self.name} of "
                f"{self.vocab_size}; the smaller model has to be another one with the same vocabulary"
            )
        return Drafts(DraftModel(other._model.new_cache, other._draft_step), how.drafts, costs)

    def _draft_step(self, step: Step) -> None:
        self._shared.compute([step], lambda: False)
        if step.error is not None:
            raise step.error
