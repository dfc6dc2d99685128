"""A Llama model, from token numbers to logits.

Every product with a weight matrix is a `Linear`, made by whoever loads the model, so the same lines run on an NPU, on
its simulator or on plain numpy. What is left is done here with numpy in float32: RMSNorm, rotary positions, attention
over the cache, and the gate of the feed-forward network.

Matrices that take the same input are one `Linear` with their rows stacked: q, k and v; gate and up. That is exact, and
scales per output channel are not affected.

Shapes: T tokens in a call, H heads, G query heads for each key head, D values per head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.models.attention import Float32, RotaryTable, attention
from npumatmul.llm.models.config import LlamaConfig

__all__ = [
    "BLOCK_LAYERS",
    "PREFILL_CHUNK",
    "Attend",
    "Block",
    "ContextFullError",
    "Embedding",
    "Float32",
    "KVCache",
    "Linear",
    "LlamaModel",
    "Pack",
    "PromptProgress",
    "layer_names",
    "rms_norm",
    "swiglu",
]

PREFILL_CHUNK = 128
BLOCK_LAYERS = ("qkv", "attn_out", "gate_up", "down")


class Linear(Protocol):
    """A weight matrix, ready to be multiplied with.

    Attributes
    ----------
    shape : tuple of int
        ``(K, N)``.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)``: input and output width."""
        ...

    def __call__(self, x: Float32) -> Float32:
        """Multiply: ``(M, K)`` to ``(M, N)``. `x` is C-contiguous; the result is read before the next call."""
        ...


Pack = Callable[[Float32, str], Linear]
"""Makes a `Linear` of a weight stored ``(N, K)``, as GGUF and PyTorch store it, and of the layer's name: see
`layer_names`."""

Embedding = Callable[[NDArray[np.int64]], Float32]
"""From token numbers ``(T,)`` to rows of the embedding table ``(T, hidden)``."""


def layer_names(n_layers: int) -> list[str]:
    """Names of a model's linear layers, in the order in which a token passes them.

    Parameters
    ----------
    n_layers : int
        Transformer blocks.

    Returns
    -------
    list of str
        ``blk.<i>.qkv``, ``blk.<i>.attn_out``, ``blk.<i>.gate_up`` and ``blk.<i>.down`` of every block, then ``head``.

    Examples
    --------
    >>> from npumatmul.llm.models.decoder import layer_names
    >>> layer_names(1)
    ['blk.0.qkv', 'blk.0.attn_out', 'blk.0.gate_up', 'blk.0.down', 'head']
    """
    return [f"blk.{i}.{part}" for i in range(n_layers) for part in BLOCK_LAYERS] + ["head"]


PromptProgress = Callable[[int, int], object]
"""Called with how many tokens have been read, and how many there are."""

Attend = Callable[[Float32], Float32]
"""From q, k and v ``(T, (H + 2 H/G) D)``, biases added, nothing rotated, to what was attended to ``(T, H D)``."""


class ContextFullError(ValueError):
    """More tokens than the cache has room for."""


@dataclass(frozen=True)
class Block:
    """The weights of one transformer block; biases are None where the model has none."""

    attn_norm: Float32
    qkv: Linear
    attn_out: Linear
    ffn_norm: Float32
    gate_up: Linear
    down: Linear
    qkv_bias: Float32 | None = None
    attn_out_bias: Float32 | None = None


class KVCache:
    """Keys and values of the tokens seen so far.

    Parameters
    ----------
    config : LlamaConfig
        The model's configuration.
    capacity : int
        Tokens there is room for.

    Attributes
    ----------
    keys, values : ndarray of float32, shape (layers, kv heads, capacity, head dim)
        Keys are stored rotated. Only the first `length` tokens mean anything.
    tokens : list of int
        The tokens seen.

    Examples
    --------
    >>> from npumatmul.llm import KVCache, LlamaConfig
    >>> config = LlamaConfig(n_layers=2, hidden_size=8, n_heads=2, n_kv_heads=1, head_dim=4, ffn_size=16,
    ...                      vocab_size=32, rms_eps=1e-5, rope_theta=1e4, rope_dim=4, context_length=64)
    >>> KVCache(config, 16)
    <KVCache: 0 of 16 tokens>
    """

    def __init__(self, config: LlamaConfig, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"the capacity of a cache is {capacity}; it must be 1 or more")
        shape = (config.n_layers, config.n_kv_heads, capacity, config.head_dim)
        self.keys: Float32 = np.empty(shape, np.float32)
        self.values: Float32 = np.empty(shape, np.float32)
        self.capacity = capacity
        self.tokens: list[int] = []

    def __repr__(self) -> str:
        """Return how full the cache is."""
        return f"<KVCache: {self.length} of {self.capacity} tokens>"

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.tokens)

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`.

        Parameters
        ----------
        length : int
            Tokens to keep.

        Raises
        ------
        ValueError
            If there are fewer.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"the cache holds {self.length} tokens and cannot be cut to {length}")
        del self.tokens[length:]


class LlamaModel:
    """A Llama model.

    Parameters
    ----------
    config : LlamaConfig
        Sizes and constants.
    embedding : callable
        From token numbers to rows of the embedding table.
    blocks : sequence of Block
        Weights of the transformer blocks.
    output_norm : ndarray of float32, shape (hidden,)
        Weight of the last RMSNorm.
    head : Linear
        The output matrix, ``(hidden, vocab)``.
    rope_factors : ndarray of float32, shape (rope_dim / 2,), optional
        Llama 3's divisors of the rotation frequencies.

    Raises
    ------
    ValueError
        If a matrix does not have the shape that the configuration asks for.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        embedding: Embedding,
        blocks: Sequence[Block],
        output_norm: Float32,
        head: Linear,
        rope_factors: Float32 | None = None,
    ) -> None:
        self.config = config
        self._embedding = embedding
        self._blocks = tuple(blocks)
        self._output_norm = output_norm
        self._head = head
        self._rope_factors = rope_factors
        self.rope = RotaryTable(config, rope_factors)
        self._check_shapes()

    def __repr__(self) -> str:
        """Return the main sizes."""
        c = self.config
        return f"<LlamaModel: {c.n_layers} layers of {c.hidden_size}, {c.vocab_size} tokens>"

    @property
    def linears(self) -> dict[str, Linear]:
        """The linear layers by name, in the order of `layer_names`."""
        inside = (linear for i in range(len(self._blocks)) for linear in self._linears_of(i))
        return dict(zip(layer_names(self.config.n_layers), (*inside, self._head), strict=True))

    def _linears_of(self, layer: int) -> tuple[Linear, ...]:
        """The linear layers of a block, as `BLOCK_LAYERS` names them."""
        block = self._blocks[layer]
        return block.qkv, block.attn_out, block.gate_up, block.down

    def with_linears(self, changed: Mapping[str, Linear]) -> LlamaModel:
        """Make the same model with other linear layers; everything else is shared.

        Parameters
        ----------
        changed : mapping of str to Linear
            New layers by name; the others stay.

        Returns
        -------
        LlamaModel
            Another model.

        Raises
        ------
        ValueError
            If there is no layer of a name, or a shape differs.
        """
        linears = self.linears
        unknown = [name for name in changed if name not in linears]
        if unknown:
            raise ValueError(f"the model has no layer {unknown[0]!r}")
        linears.update(changed)

        def with_new(i: int, block: Block) -> Block:
            qkv, attn_out, gate_up, down = (linears[f"blk.{i}.{part}"] for part in BLOCK_LAYERS)
            return replace(block, qkv=qkv, attn_out=attn_out, gate_up=gate_up, down=down)

        return LlamaModel(
            self.config,
            embedding=self._embedding,
            blocks=[with_new(i, block) for i, block in enumerate(self._blocks)],
            output_norm=self._output_norm,
            head=linears["head"],
            rope_factors=self._rope_factors,
        )

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """Make an empty cache.

        Parameters
        ----------
        capacity : int, optional
            Tokens there is room for; by default and at most the model's context length.

        Returns
        -------
        KVCache
            The cache.
        """
        limit = self.config.context_length
        return KVCache(self.config, limit if capacity is None else min(capacity, limit))

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
            Multiply-accumulates of all `Linear` calls.
        """
        *blocks, head = self.linears.values()
        return tokens * sum(math.prod(linear.shape) for linear in blocks) + logit_rows * math.prod(head.shape)

    def forward(
        self,
        tokens: Sequence[int] | NDArray[np.int64],
        cache: KVCache,
        all_logits: bool = False,
        progress: PromptProgress | None = None,
    ) -> Float32:
        """Run tokens through the model, after those that are in the cache.

        Long inputs are worked on in chunks of `PREFILL_CHUNK` tokens, which bounds the memory. The cache grows when
        a chunk is complete, so an exception or a keyboard interrupt leaves it consistent.

        Parameters
        ----------
        tokens : sequence of int, length T
            Token numbers, at least one.
        cache : KVCache
            What came before; the tokens are added to it.
        all_logits : bool, default False
            Whether to return logits after every token, not only after the last.
        progress : callable, optional
            Called with (tokens done, tokens in all) after each block; blocks of a chunk count for a part of its tokens.

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
        ids = self._checked(tokens, cache)
        rows = []
        for start in range(0, len(ids), PREFILL_CHUNK):
            hidden = self._run_blocks(ids[start : start + PREFILL_CHUNK], cache, len(ids), start, progress)
            if all_logits:
                rows.append(self.logits(hidden))
        return np.concatenate(rows) if all_logits else self.logits(hidden[-1:])[0]

    def _run_blocks(
        self, ids: NDArray[np.int64], cache: KVCache, total: int, before: int, progress: PromptProgress | None
    ) -> Float32:
        x = self._embedding(ids)
        for layer in range(len(self._blocks)):
            x = self.run_block(layer, x, cache)
            if progress is not None:
                progress(before + len(ids) * (layer + 1) // len(self._blocks), total)
        cache.tokens.extend(ids.tolist())
        return x

    def embed(self, tokens: Sequence[int] | NDArray[np.int64]) -> Float32:
        """Look up the embeddings of tokens, the input of the first block.

        Parameters
        ----------
        tokens : sequence of int, length T
            Token numbers.

        Returns
        -------
        ndarray of float32, shape (T, hidden)
            The embeddings.
        """
        return self._embedding(np.asarray(tokens, np.int64))

    def run_block(self, layer: int, x: Float32, cache: KVCache) -> Float32:
        """Run tokens through one block.

        Parameters
        ----------
        layer : int
            Number of the block.
        x : ndarray of float32, shape (T, hidden)
            What enters it for the tokens that follow those in the cache; at most `PREFILL_CHUNK` of them.
        cache : KVCache
            Takes keys and values of this block. It does not grow: that is for whoever has run all blocks.

        Returns
        -------
        ndarray of float32, shape (T, hidden)
            What leaves it, a new array.
        """
        return self.run_block_with(layer, x, self.attention_over(layer, cache, len(x)))

    def run_block_with(self, layer: int, x: Float32, attend: Attend) -> Float32:
        """Run rows through one block, with attention from elsewhere.

        Parameters
        ----------
        layer : int
            Number of the block.
        x : ndarray of float32, shape (T, hidden)
            Rows.
        attend : callable
            See `Attend`.

        Returns
        -------
        ndarray of float32, shape (T, hidden)
            What leaves it, a new array.
        """
        linears = dict(zip(BLOCK_LAYERS, self._linears_of(layer), strict=True))
        steps = self.block_steps(layer, x, attend)
        try:
            part, given = next(steps)
            while True:
                part, given = steps.send(linears[part](given))
        except StopIteration as end:
            result: Float32 = end.value
            return result

    def block_steps(self, layer: int, x: Float32, attend: Attend) -> Generator[tuple[str, Float32], Float32, Float32]:
        """Run rows through one block whose products are the caller's.

        Many inputs can be brought to the same layer this way before any of them goes on.

        Parameters
        ----------
        layer : int
            Number of the block.
        x : ndarray of float32, shape (T, hidden)
            Rows.
        attend : callable
            See `Attend`.

        Yields
        ------
        part : str
            One of `BLOCK_LAYERS`, in their order.
        given : ndarray of float32, shape (T, K)
            What enters that layer. The generator is sent what leaves it, ``(T, N)``, and does not keep that.

        Returns
        -------
        ndarray of float32, shape (T, hidden)
            What leaves the block, a new array.
        """
        block, eps = self._blocks[layer], self.config.rms_eps
        attended = attend(_biased((yield "qkv", rms_norm(x, block.attn_norm, eps)), block.qkv_bias))
        x = x + _biased((yield "attn_out", attended), block.attn_out_bias)
        del attended
        x += yield "down", swiglu((yield "gate_up", rms_norm(x, block.ffn_norm, eps)))
        return x

    def attention_over(self, layer: int, cache: KVCache, tokens: int) -> Attend:
        """Attention of tokens to those in the cache, and to those before them among themselves.

        Parameters
        ----------
        layer : int
            Number of the block.
        cache : KVCache
            Takes their keys and values of this block; it does not grow.
        tokens : int
            How many there are: any number, but memory is taken in the square of it.

        Returns
        -------
        callable
            For `run_block_with` and `block_steps`.
        """
        rotation = self.rope.rows(cache.length, cache.length + tokens)
        keys, values = cache.keys[layer, None], cache.values[layer, None]
        return lambda qkv: attention(qkv, rotation, keys, values, cache.length, self.config)

    def logits(self, x: Float32) -> Float32:
        """Turn what leaves the last block into logits.

        Parameters
        ----------
        x : ndarray of float32, shape (T, hidden)
            Rows.

        Returns
        -------
        ndarray of float32, shape (T, vocab)
            Logits of the next token after each, a new array.
        """
        return np.array(self._head(rms_norm(x, self._output_norm, self.config.rms_eps)))

    def _checked(self, tokens: Sequence[int] | NDArray[np.int64], cache: KVCache) -> NDArray[np.int64]:
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.ndim != 1 or not len(ids):
            raise ValueError(f"tokens has shape {ids.shape}; one or more token numbers are needed")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(f"a token is outside 0 to {self.config.vocab_size - 1}, the vocabulary")
        if cache.length + len(ids) > cache.capacity:
            raise ContextFullError(
                f"{len(ids)} more tokens do not fit: the cache holds {cache.length} of at most {cache.capacity}"
            )
        return ids

    def _check_shapes(self) -> None:
        c = self.config
        if len(self._blocks) != c.n_layers:
            raise ValueError(f"there are {len(self._blocks)} blocks, the configuration says {c.n_layers}")
        wanted = {
            "qkv": (c.hidden_size, c.q_size + 2 * c.kv_size),
            "attn_out": (c.q_size, c.hidden_size),
            "gate_up": (c.hidden_size, 2 * c.ffn_size),
            "down": (c.ffn_size, c.hidden_size),
        }
        for i, block in enumerate(self._blocks):
            for name, shape in wanted.items():
                got = tuple(getattr(block, name).shape)
                if got != shape:
                    raise ValueError(f"{name} of block {i} has shape (K, N) = {got}, {shape} is needed")
        if tuple(self._head.shape) != (c.hidden_size, c.vocab_size):
            raise ValueError(
                f"the head has shape (K, N) = {self._head.shape}, {(c.hidden_size, c.vocab_size)} is needed"
            )


def rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    """Divide each row by the root of its mean square and multiply it by `weight`.

    Parameters
    ----------
    x : ndarray of float32, shape (T, hidden)
        Rows.
    weight : ndarray of float32, shape (hidden,)
        Factors.
    eps : float
        Added to the mean square.

    Returns
    -------
    ndarray of float32, shape (T, hidden)
        A new array.
    """
    mean_square = np.einsum("ij,ij->i", x, x) / np.float32(x.shape[1])
    y: Float32 = x / np.sqrt(mean_square + np.float32(eps))[:, None]
    y *= weight
    return y


def swiglu(gate_up: Float32) -> Float32:
    """Multiply ``silu(gate)`` by `up`.

    Parameters
    ----------
    gate_up : ndarray of float32, shape (T, 2 F)
        The gate, then up.

    Returns
    -------
    ndarray of float32, shape (T, F)
        ``gate / (1 + exp(-gate)) * up``, a new array.
    """
    size = gate_up.shape[1] // 2
    gate, up = gate_up[:, :size], gate_up[:, size:]
    with np.errstate(over="ignore"):  # exp of a large number is inf, and gate / inf is the 0 that is wanted
        y: Float32 = np.exp(-gate)
    y += np.float32(1)
    np.divide(gate, y, out=y)
    y *= up
    return y


def _biased(y: Float32, bias: Float32 | None) -> Float32:
    return y if bias is None else y + bias
