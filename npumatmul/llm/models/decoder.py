"""A decoder, from token numbers to logits, over the layers of `npumatmul.nn`: all architectures are this one.

What they differ in is in a `DecoderConfig`. Every product with a weight matrix has a name, by which whoever loads,
quantizes or measures a model finds it (`layer_names`), and can be replaced by any other `Product` of its shape.

Shapes: B sequences, T tokens of each in a call.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.errors import ModelError
from npumatmul.llm.models.block_steps import Steps, steps_through
from npumatmul.llm.models.body import Body, Ropes, linears_of, with_linears, with_rope
from npumatmul.llm.models.cache import ContextFullError, KVCache
from npumatmul.llm.models.decoder_config import BLOCK_LAYERS, DecoderConfig
from npumatmul.llm.models.embedded import EmbeddedRows, Placing
from npumatmul.llm.models.recorded import Ending, RecordedBlocks
from npumatmul.nn import cache as nn_cache
from npumatmul.nn.block import TransformerBlock
from npumatmul.nn.cache_batch import CacheBatch
from npumatmul.nn.expert_names import unstacked
from npumatmul.nn.linear import Linear, LinearGroup
from npumatmul.nn.module import LoadResult, Module
from npumatmul.nn.product import Float32, Pack, PackedProduct, Product
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["BLOCK_LAYERS", "PREFILL_CHUNK", "Decoder", "PromptProgress", "layer_names"]

PREFILL_CHUNK = 128

PromptProgress = Callable[[int, int], object]
"""Called with how many tokens have been read, and how many there are."""


def layer_names(n_layers: int) -> list[str]:
    """Names of the linear layers of a model whose blocks have one of each, in the order in which a token passes them.

    Parameters
    ----------
    n_layers : int
        Transformer blocks.

    Returns
    -------
    list of str
        ``blk.<i>.qkv``, ``blk.<i>.attn_out``, ``blk.<i>.gate_up`` and ``blk.<i>.down`` of every block, then ``head``.
        Matrices that take the same input are one layer: q, k and v; gate and up, or up alone.

    Notes
    -----
    `DecoderConfig.layer_names` has those of any model. Of a block with experts the last two are
    ``blk.<i>.expert.<e>.gate_up`` and ``blk.<i>.expert.<e>.down`` of each of them, and ``blk.<i>.shared.gate_up`` and
    ``blk.<i>.shared.down`` of one that all tokens pass; without attention the first two are ``blk.<i>.in_proj`` and
    ``blk.<i>.out_proj``.

    Examples
    --------
    >>> from npumatmul.llm.models.decoder import layer_names
    >>> layer_names(1)
    ['blk.0.qkv', 'blk.0.attn_out', 'blk.0.gate_up', 'blk.0.down', 'head']
    """
    return [f"blk.{i}.{part}" for i in range(n_layers) for part in BLOCK_LAYERS] + ["head"]


class Decoder(Module):
    """A language model that continues texts.

    Parameters
    ----------
    config : DecoderConfig
        What it is made of.
    scheme, device
        As for `npumatmul.nn.Linear`: of layers that `load_state_dict` loads without a `pack`.

    Attributes
    ----------
    config : DecoderConfig
        What it is made of.
    model : Body
        Embeddings, blocks and the last norm.
    lm_head : Linear
        The output matrix.

    Notes
    -----
    Parameters are named as Hugging Face's: ``model.layers.0.self_attn.q_proj.weight``. A head that is tied to the
    embeddings has none.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(2, 8, 2, 1, 4, 16, vocab_size=32, context_length=64), scheme="float32")
    >>> rng = np.random.default_rng(0)
    >>> shapes = model.parameter_shapes()
    >>> _ = model.load_state_dict({name: rng.standard_normal(shape) for name, shape in shapes.items()})
    >>> model.forward([3, 1, 4], model.new_cache()).shape
    (32,)
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        self.config = config
        self.model = Body(config, scheme=scheme, device=device)
        head = _TiedHead if config.tied else Linear
        self.lm_head = head(config.hidden_size, config.vocab_size, False, scheme=scheme, device=device)
        self._head_of = scheme, device
        self._recorded = RecordedBlocks()
        self._long: dict[str, list[TransformerBlock]] = {}  # the same blocks, rotating as long sequences are rotated

    def __repr__(self) -> str:
        """Return the main sizes."""
        c = self.config
        layers = f"{c.n_layers} layers" if c.part is None else str(c.part)
        return f"<Decoder: {c.architecture}, {layers} of {c.hidden_size}, {c.vocab_size} tokens>"

    def load_state_dict(
        self, mapping: Mapping[str, Any], strict: bool = True, *, prefix: str = "", pack: Pack | None = None
    ) -> LoadResult:
        """As `Module.load_state_dict`; a tied head is made of the embeddings."""
        result = super().load_state_dict(unstacked(mapping), strict, prefix=prefix, pack=pack)
        if self.config.tied:
            scheme, device = self._head_of
            made = self.model.embed_tokens.as_linear(scheme=scheme, device=device, pack=pack, name=f"{prefix}lm_head")
            self.lm_head = self.lm_head.with_product(made.product)
        return result

    # ---- products with weights ---------------------------------------------------------------------------------------

    @property
    def layer_names(self) -> list[str]:
        """Names of the linear layers; see the function `layer_names`."""
        return self.config.layer_names

    def linear_modules(self) -> dict[str, Linear | LinearGroup]:
        """The modules of the linear layers by name, in the order of `layer_names`."""
        inside = [module for block in self.model.layers for module in linears_of(block)]
        beside = self.model.per_layer_model_projection
        every = [*([] if beside is None else [beside]), *inside, *[self.lm_head] * self.config.has_head]
        return dict(zip(self.layer_names, every, strict=True))

    @property
    def linears(self) -> dict[str, Product]:
        """The products of the linear layers by name, in the order of `layer_names`; biases are not in them."""
        return {name: module.product for name, module in self.linear_modules().items()}

    def with_linears(self, changed: Mapping[str, Product]) -> Decoder:
        """Make the same model with other products; everything else is shared.

        Parameters
        ----------
        changed : mapping of str to Product
            New ones by the name of their layer; the others stay.

        Returns
        -------
        Decoder
            Another model.

        Raises
        ------
        ValueError
            If there is no layer of a name, or a shape differs.
        """
        modules = self.linear_modules()
        unknown = [name for name in changed if name not in modules]
        if unknown:
            raise ValueError(f"the model has no layer {unknown[0]!r}")
        made = copy.copy(self)
        made.model, made._long, made._recorded = copy.copy(self.model), {}, RecordedBlocks()
        new = {}
        for name, product in changed.items():
            wanted = tuple(modules[name].product.shape)
            if tuple(product.shape) != wanted:
                raise ValueError(f"{name} has shape (K, N) = {tuple(product.shape)}, {wanted} is needed")
            new[name] = modules[name].with_product(product)
        if "head" in new:
            made.lm_head = new.pop("head")  # type: ignore[assignment]
        if "layer_inputs" in new:
            made.model.per_layer_model_projection = new.pop("layer_inputs")  # type: ignore[assignment]
        made.model.layers = list(self.model.layers)
        for i in sorted({int(name.split(".")[1]) for name in new}):
            stem = f"blk.{i}."
            own = {name.removeprefix(stem): module for name, module in new.items() if name.startswith(stem)}
            number = i - self.config.first_block
            made.model.layers[number] = with_linears(self.model.layers[number], own)
        return made

    def weight_macs(self, tokens: int, logit_rows: int = 1) -> int:
        """Count the multiply-accumulates with weight matrices in one `forward`.

        Parameters
        ----------
        tokens : int
            Tokens given to it.
        logit_rows : int, default 1
            Rows of logits computed: 1, or `tokens` with ``all_logits=True``.

        Returns
        -------
        int
            Multiply-accumulates of all products; of experts, those that are chosen.
        """
        each = 0
        for block, layer in zip(self.model.layers, self.config.layers, strict=True):
            sizes = [math.prod(module.product.shape) for module in linears_of(block)]
            if layer.experts is not None:  # which are alike
                del sizes[2 + 2 * layer.experts.chosen : 2 + 2 * layer.experts.count]
            each += sum(sizes)
        c = self.config
        return tokens * each + logit_rows * c.has_head * c.hidden_size * c.vocab_size

    # ---- from tokens to logits ---------------------------------------------------------------------------------------

    def new_cache(self, capacity: int | None = None, *, dtype: str = "float32") -> KVCache:
        """Make an empty cache.

        Parameters
        ----------
        capacity : int, optional
            Tokens there is room for; by default and at most the model's context length.
        dtype : {"float32", "float16", "int8"}
            As what keys and values are kept.

        Returns
        -------
        KVCache
            The cache.
        """
        limit = self.config.context_length
        capacity = limit if capacity is None else min(capacity, limit)
        return KVCache(self.config, capacity, dtype=dtype)

    def forward(
        self,
        tokens: Sequence[int] | NDArray[np.int64],
        cache: KVCache,
        all_logits: bool = False,
        progress: PromptProgress | None = None,
        embeddings: EmbeddedRows | None = None,
    ) -> Float32:
        """Run tokens through the model, after those that are in the cache.

        Long inputs are worked on in chunks of `PREFILL_CHUNK` tokens, which bounds the memory. The cache grows when
        a chunk is complete, so an exception or a keyboard interrupt leaves it consistent.

        Parameters
        ----------
        tokens : sequence of int, length T
            Token numbers, at least one.
        cache : KVCache
            What came before; the tokens are added to it. Where the sequence becomes longer than those for which a model
            has other rotations (LongRoPE), what came before is computed anew.
        all_logits : bool, default False
            Whether to return logits after every token, not only after the last.
        progress : callable, optional
            Called with (tokens done, tokens in all) after each block; blocks of a chunk count for a part of its tokens.
        embeddings : EmbeddedRows, optional
            Rows that negative numbers among the tokens stand for; see `npumatmul.llm.Embedded`.

        Returns
        -------
        ndarray of float32, shape (vocab,) or (T, vocab)
            Logits of the next token.

        Raises
        ------
        ContextFullError
            If the cache has no room for the tokens; nothing has been computed then.
        ValueError
            If there are no tokens, or one is not in the vocabulary.
        """
        ids = self._checked(tokens, cache, embeddings)
        wanted = len(ids) if all_logits else 1
        cache.settle()
        is_long = self._is_long(cache.length + len(ids))
        if cache.is_long != is_long:
            before = np.array(cache.tokens, np.int64)
            lost = [each for each in before[before < 0].tolist() if embeddings is None or each not in embeddings]
            if lost:
                raise ValueError("the text has grown so long that it is computed anew: give all embeddings again")
            ids = np.concatenate([before, ids])
            cache.truncate(0)
            cache.is_long = is_long
        total = cache.length + len(ids)
        rows = []
        for start in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[start : start + PREFILL_CHUNK]
            told = None if progress is None else _told(progress, start, len(chunk), len(ids), self.config.n_layers)
            placing = None if embeddings is None else embeddings.placing(chunk, cache)
            if embeddings is None or placing is None:
                x = self.embed(chunk)
                beside = self.layer_inputs(chunk, x)
            else:
                x, beside = self.embed(np.maximum(chunk, 0)), None
                embeddings.put(chunk, x)
            end = len(chunk)
            first = min(max(0, len(ids) - wanted - start), end)
            if first < end:
                rows.append(self.run_to_logits(x, cache, total, ((first, end),), told, placing, beside=beside))
            else:
                self.run_blocks(x, cache, total, told, placing, beside=beside)
            cache.extend(chunk.tolist(), () if placing is None else placing.stretches)
        made: Float32 = rows[0] if len(rows) == 1 else np.concatenate(rows)
        return made if all_logits else made[0]

    def states(self, tokens: Sequence[int] | NDArray[np.int64]) -> Float32:
        """Compute the last states of a text: what enters the output matrix.

        Parameters
        ----------
        tokens : sequence of int, length T
            Token numbers, at least one.

        Returns
        -------
        ndarray of float32, shape (T, hidden)
            Normalized as the model does it.

        Raises
        ------
        ContextFullError, ValueError
            As `forward`.
        """
        cache = self.new_cache(max(len(tokens), 1))
        ids = self._checked(tokens, cache)
        cache.is_long = self._is_long(len(ids))
        rows = []
        for start in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[start : start + PREFILL_CHUNK]
            x = self.embed(chunk)
            rows.append(self.run_blocks(x, cache, len(ids), beside=self.layer_inputs(chunk, x)))
            cache.extend(chunk.tolist())
        return self.entering_head(np.concatenate(rows))

    def embed(self, tokens: Sequence[int] | NDArray[np.int64]) -> Float32:
        """Look up the embeddings of tokens, the input of the first block.

        Parameters
        ----------
        tokens : array_like of int, shape (...)
            Token numbers.

        Returns
        -------
        ndarray of float32, shape (..., hidden)
            The embeddings.
        """
        x = self.model.embed_tokens(np.asarray(tokens, np.int64))
        scale = self.config.embedding_scale
        return x if scale == 1 else x * np.float32(scale)

    def layer_inputs(self, tokens: NDArray[np.int64], x: Float32) -> Float32 | None:
        """What layers have for themselves of tokens, where a model has such embeddings.

        Parameters
        ----------
        tokens : ndarray of int, shape (...)
            Token numbers.
        x : ndarray of float32, shape (..., hidden)
            Their embeddings, as `embed` gives them.

        Returns
        -------
        ndarray of float32, shape (layers, ..., n), or None
            For the blocks, in their order.
        """
        model, c = self.model, self.config
        if model.embed_tokens_per_layer is None:
            return None
        assert model.per_layer_model_projection is not None
        assert model.per_layer_projection_norm is not None
        rows = tokens.reshape(-1)
        if rows.max(initial=0) >= c.layer_vocab:
            raise ValueError(f"token {rows.max()} has no embeddings for layers, of which the model has {c.layer_vocab}")
        own = model.embed_tokens_per_layer(rows) * np.float32(math.sqrt(c.layer_embedding))
        given = np.array(model.per_layer_model_projection(np.ascontiguousarray(x.reshape(len(rows), -1))))
        given *= np.float32(c.hidden_size**-0.5)
        shape = (len(rows), c.n_layers, c.layer_embedding)
        mixed = model.per_layer_projection_norm(given.reshape(shape)) + own.reshape(shape)
        mixed *= np.float32(2**-0.5)
        made: Float32 = np.ascontiguousarray(mixed.swapaxes(0, 1)).reshape(c.n_layers, *tokens.shape, c.layer_embedding)
        return made

    def run_blocks(
        self,
        x: Float32,
        cache: nn_cache.KVCache | CacheBatch,
        total: int,
        progress: Callable[[int], object] | None = None,
        placing: Placing | None = None,
        *,
        beside: Float32 | None = None,
    ) -> Float32:
        """Run tokens through all blocks.

        Parameters
        ----------
        x : ndarray of float32, shape (T, hidden) or (B, T, hidden)
            Embeddings of the tokens that follow those in the cache.
        cache : npumatmul.nn.KVCache or npumatmul.nn.CacheBatch
            It grows by them.
        total : int
            Tokens that the sequence is to have; see `DecoderConfig.longest_short`.
        progress : callable, optional
            Called with the number of blocks that are done.
        placing : Placing, optional
            Where some of the rows are from outside.
        beside : ndarray of float32, optional
            What `layer_inputs` gives.

        Returns
        -------
        ndarray of float32, of the shape of `x`
            What leaves the last block, a new array.
        """
        blocks = self._blocks(self._is_long(total))
        if placing is None and x.ndim == 2:
            return self._recorded.run(blocks, x, cache, progress, beside)
        for layer, block in enumerate(blocks):
            x = block(
                x,
                cache=cache,
                layer=layer,
                positions=None if placing is None else placing.positions,
                beside=None if beside is None else beside[layer],
            )
            if placing is not None and layer < len(placing.deep):
                x += placing.deep[layer]
            if progress is not None:
                progress(layer + 1)
        return x

    def run_to_logits(
        self,
        x: Float32,
        cache: nn_cache.KVCache | CacheBatch,
        total: int,
        rows: tuple[tuple[int, int], ...],
        progress: Callable[[int], object] | None = None,
        placing: Placing | None = None,
        *,
        beside: Float32 | None = None,
    ) -> Float32:
        """Run tokens through all blocks, and turn what leaves the last one into logits.

        Parameters
        ----------
        x : ndarray of float32, shape (T, hidden)
        cache, total, progress, placing, beside
            As for `run_blocks`.
        rows : tuple of (int, int)
            After which tokens logits are wanted: ranges of them, the first and the one behind the last.

        Returns
        -------
        ndarray of float32, shape (R, vocab)
            Logits of the next token after each, a new array.
        """
        kind, own = type(self), vars(self)
        is_plain = (
            kind.logits is Decoder.logits
            and kind.entering_head is Decoder.entering_head
            and kind.run_blocks is Decoder.run_blocks
            and not ("logits" in own or "entering_head" in own or "run_blocks" in own)
        )
        ending = Ending(self.model.norm, self.lm_head, rows)
        if not is_plain or placing is not None:
            hidden = self.run_blocks(x, cache, total, progress, placing, beside=beside)
            return self.logits(ending.wanted(hidden))
        blocks = self._blocks(self._is_long(total))
        return self._finished(self._recorded.run(blocks, x, cache, progress, beside, ending))

    def run_block(self, layer: int, x: Float32, cache: KVCache) -> Float32:
        """Run tokens through one block.

        Parameters
        ----------
        layer : int
            Number of the block.
        x : ndarray of float32, shape (T, hidden) or (B, T, hidden)
            What enters it for the tokens that follow those in the cache.
        cache : KVCache
            Takes keys and values of this block. It does not grow: that is for whoever has run all blocks.

        Returns
        -------
        ndarray of float32, of the shape of `x`
            What leaves it, a new array.
        """
        self._check_by_blocks()
        block = self._blocks(self._is_long(cache.length + x.shape[-2]))[layer]
        result: Float32 = block(x, cache=cache, layer=layer)
        cache.settle()
        return result

    def block_steps(self, layer: int, x: Float32, cache: KVCache) -> Steps:
        """Run rows through one block whose products are the caller's.

        Many inputs can be brought to the same layer this way before any of them goes on.

        Parameters
        ----------
        layer : int
            Number of the block.
        x : ndarray of float32, shape (T, hidden)
            Rows.
        cache : KVCache
            As for `run_block`.

        Yields
        ------
        part : str
            One of `LayerConfig.parts`, in their order.
        given : ndarray of float32, shape (T, K)
            What enters that layer: of an expert, the rows that chose it, if any. The generator is sent the product,
            ``(T, N)``, and does not keep that.

        Returns
        -------
        ndarray of float32, shape (T, hidden)
            What leaves the block, a new array.
        """
        self._check_by_blocks()
        block = self._blocks(self._is_long(cache.length + len(x)))[layer]
        return steps_through(block, self.config.layers[layer].parts, x, cache, layer)

    def _check_by_blocks(self) -> None:
        why = self.config.whole_only
        if why is not None:
            raise ModelError(f"blocks of {self.config.architecture} cannot be computed one by one: {why}")

    def entering_head(self, x: Float32) -> Float32:
        """What the output matrix is given, of what leaves the last block."""
        normed: Float32 = self.model.norm(x)
        return normed

    def logits(self, x: Float32) -> Float32:
        """Turn what leaves the last block into logits.

        Parameters
        ----------
        x : ndarray of float32, shape (..., hidden)
            Rows.

        Returns
        -------
        ndarray of float32, shape (..., vocab)
            Logits of the next token after each, a new array.
        """
        return self._finished(self.lm_head(self.entering_head(x)))

    def _finished(self, y: Float32) -> Float32:
        """Logits of what the output matrix gives: a new array."""
        if type(getattr(self.lm_head, "product", None)) is not PackedProduct:  # whose results are nobody else's
            y = np.array(y)
        c = self.config
        if c.logit_scale != 1:
            y *= np.float32(c.logit_scale)
        if c.logit_softcap is not None:
            y /= np.float32(c.logit_softcap)
            np.tanh(y, out=y)
            y *= np.float32(c.logit_softcap)
        return y

    def _is_long(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens is rotated otherwise than a shorter one."""
        before = self.config.longest_short
        return before is not None and tokens > before

    def _blocks(self, is_long: bool) -> Sequence[TransformerBlock]:
        if not is_long:
            return self.model.layers
        if "blocks" not in self._long:
            ropes = Ropes(self.config, is_long=True)
            described = zip(self.model.layers, self.config.layers, strict=True)
            self._long["blocks"] = [with_rope(block, ropes.of(layer)) for block, layer in described]
        return self._long["blocks"]

    def _checked(
        self, tokens: Sequence[int] | NDArray[np.int64], cache: KVCache, embeddings: EmbeddedRows | None = None
    ) -> NDArray[np.int64]:
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.ndim != 1 or not len(ids):
            raise ValueError(f"tokens has shape {ids.shape}; one or more token numbers are needed")
        known = [] if embeddings is None else [each for each in ids[ids < 0].tolist() if each in embeddings]
        if np.count_nonzero(ids < 0) > len(known) or ids.max() >= self.config.vocab_size:
            raise ValueError(f"a token is outside 0 to {self.config.vocab_size - 1}, the vocabulary")
        if cache.length + len(ids) > cache.capacity:
            raise ContextFullError(
                f"{len(ids)} more tokens do not fit: the cache holds {cache.length} of at most {cache.capacity}"
            )
        return ids


class _TiedHead(Linear):
    """A head whose weight is that of the embeddings, and no parameter of its own."""

    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        return {}


def _told(progress: PromptProgress, start: int, count: int, total: int, n_layers: int) -> Callable[[int], object]:
    """What tells how many tokens have been read, by the blocks that are done of `count` of them."""
    return lambda layers: progress(start + count * layers // n_layers, total)
