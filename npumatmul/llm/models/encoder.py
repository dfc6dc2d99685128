"""`Encoder`: from texts in tokens to a state for each token, all tokens of a text seeing each other.

Several texts are computed at once. Their tokens stand one after another in one array of rows, without padding, so that
products have as many rows as there are tokens; only attention fills shorter texts up, and masks what is behind them.

Shapes: B texts of up to T tokens, R tokens in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.llm.models.decoder_config import Rotation
from npumatmul.llm.models.encoder_config import EncoderConfig, HeadConfig
from npumatmul.nn.attention import Attention
from npumatmul.nn.embedding import Embedding
from npumatmul.nn.encoder_block import EncoderBlock
from npumatmul.nn.linear import Linear, LinearGroup
from npumatmul.nn.mlp import MLP, activate
from npumatmul.nn.module import Module
from npumatmul.nn.norm import LayerNorm
from npumatmul.nn.pooling import pool
from npumatmul.nn.product import FLOAT32, Float32, Product
from npumatmul.nn.rope import RoPE
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["Encoder", "Texts"]

_PARTS = ("qkv", "attn_out", "gate_up", "down")


class Texts:
    """The tokens of some texts, as rows and, where it has to be, filled up to the longest.

    Parameters
    ----------
    ids : sequence of sequences of int
        Tokens of each text; none is empty.
    types : sequence of sequences of int, optional
        Type of each token; 0 by default.
    """

    def __init__(self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> None:
        if not ids or not all(len(each) for each in ids):
            raise ValueError("texts have one token or more each, and there is one or more of them")
        self.lengths = np.array([len(each) for each in ids])
        self.ids: NDArray[np.int64] = np.concatenate([np.asarray(each, np.int64) for each in ids])
        self.types: NDArray[np.int64] = np.zeros_like(self.ids)
        if types is not None:
            self.types = np.concatenate([np.asarray(each, np.int64) for each in types])
            if [len(each) for each in types] != self.lengths.tolist():
                raise ValueError("each token of a text has one type")
        self.starts = np.cumsum(self.lengths) - self.lengths

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """Where there are tokens, ``(B, T)``."""
        seen: NDArray[np.bool_] = np.arange(self.lengths.max()) < self.lengths[:, None]
        return seen

    @cached_property
    def mask(self) -> NDArray[np.bool_] | None:
        """The same for attention, ``(B, 1, 1, T)``; None where all texts have one length."""
        return None if self.seen.all() else self.seen[:, None, None]

    def filled(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows ``(R, N)`` as texts ``(B, T, N)``; zeros fill up shorter ones."""
        if self.mask is None:
            return rows.reshape(*self.seen.shape, rows.shape[-1])
        whole = np.zeros((*self.seen.shape, rows.shape[-1]), rows.dtype)
        whole[self.seen] = rows
        return whole

    def rows(self, filled: NDArray[Any]) -> NDArray[Any]:
        """What `filled` was made of."""
        return filled.reshape(-1, filled.shape[-1]) if self.mask is None else filled[self.seen]

    def positions(self, pad_id: int | None) -> NDArray[np.int64]:
        """Numbers of positions, ``(R,)``; see `EncoderConfig.pad_id`."""
        if pad_id is None:
            numbers: NDArray[np.int64] = np.arange(len(self.ids)) - np.repeat(self.starts, self.lengths)
            return numbers
        counted = (self.ids != pad_id).astype(np.int64)
        total = np.cumsum(counted)
        before = np.repeat(total[self.starts] - counted[self.starts], self.lengths)
        counts: NDArray[np.int64] = (total - before) * counted + pad_id
        return counts


class Encoder(Module):
    """A model that reads texts from both sides.

    Parameters
    ----------
    config : EncoderConfig
        What it is made of.
    scheme, device
        As for `npumatmul.nn.Linear`: of layers that `load_state_dict` loads without a `pack`. A head is computed by
        numpy in float32: it has one row for each text.

    Attributes
    ----------
    config : EncoderConfig

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm.models.decoder_config import LayerConfig
    >>> config = EncoderConfig("bert", 1, 8, 2, 16, 32, 64, (LayerConfig(),), positions=64)
    >>> model = Encoder(config, scheme="float32")
    >>> rng = np.random.default_rng(0)
    >>> shapes = model.parameter_shapes()
    >>> _ = model.load_state_dict({name: rng.standard_normal(shape) for name, shape in shapes.items()})
    >>> [states.shape for states in model.states([[3, 1, 4], [1, 5]])]
    [(3, 8), (2, 8)]
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        c = self.config = config
        self.word = Embedding(c.vocab_size, c.hidden_size)
        self.position = Embedding(c.positions, c.hidden_size) if c.positions else None
        self.type = Embedding(c.types, c.hidden_size) if c.types else None
        self.embedding_norm = LayerNorm(c.hidden_size, c.norm_eps, c.norm_bias)
        self.layers = [_block(c, i, scheme, device) for i in range(c.n_layers)]
        self.final_norm = LayerNorm(c.hidden_size, c.norm_eps, c.norm_bias) if c.norms == "before" else None
        self.head = None if c.head is None else Head(c.head, c.hidden_size, c.norm_eps, c.norm_bias)

    def __repr__(self) -> str:
        """Return the main sizes."""
        c = self.config
        return f"<Encoder: {c.architecture}, {c.n_layers} layers of {c.hidden_size}, {c.vocab_size} tokens>"

    def linear_modules(self) -> dict[str, Linear | LinearGroup]:
        """The linear layers by name, ``blk.<i>.qkv``, ``.attn_out``, ``.gate_up`` and ``.down``; a head has none."""
        found: dict[str, Linear | LinearGroup] = {}
        for i, block in enumerate(self.layers):
            mlp: Any = block.mlp
            inside = (block.self_attn.qkv, block.self_attn.o_proj, mlp.gate_up or mlp.up_proj, mlp.down_proj)
            found.update((f"blk.{i}.{part}", module) for part, module in zip(_PARTS, inside, strict=True))
        return found

    @property
    def linears(self) -> dict[str, Product]:
        """The products of the linear layers by name; biases are not in them."""
        return {name: module.product for name, module in self.linear_modules().items()}

    def states(
        self, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
    ) -> list[NDArray[np.float32]]:
        """Compute the last states of texts.

        Parameters
        ----------
        ids : sequence of sequences of int
            Tokens of each text.
        types : sequence of sequences of int, optional
            Type of each token; 0 by default.

        Returns
        -------
        list of ndarray of float32, shapes (tokens, hidden)
            For each text one, views of one array.

        Raises
        ------
        ValueError
            If a text is empty or longer than `EncoderConfig.context_length`, or a token or type does not exist.
        """
        texts = Texts(ids, types)
        return np.split(self.run(texts), texts.starts[1:])

    def run(self, texts: Texts) -> Float32:
        """Compute the last states ``(R, hidden)`` of texts."""
        longest = int(texts.lengths.max())
        if longest > self.config.context_length:
            raise ValueError(f"a text has {longest} tokens; the model reads at most {self.config.context_length}")
        words, which = np.unique(texts.ids, return_inverse=True)  # each is read from the file once
        x = self.word(words)[which]
        if self.type is not None:
            x += self.type(texts.types)
        if self.position is not None:
            x += self.position(texts.positions(self.config.pad_id))
        x = self.embedding_norm(x)
        for block in self.layers:
            x = _through(block, x, texts)
        return x if self.final_norm is None else self.final_norm(x)

    def scores(self, texts: Texts) -> Float32:
        """Compute what the head makes of texts, ``(B, labels)``."""
        if self.head is None:
            raise ValueError(f"{self!r} has no head that gives scores")
        return self.head(texts.filled(self.run(texts)), texts.seen)


class Head(Module):
    """Scores of texts from their states: a matrix, a function, perhaps a norm, and another matrix; in float32."""

    def __init__(self, config: HeadConfig, hidden: int, eps: float, norm_bias: bool) -> None:
        self._config = config
        self.dense = Linear(hidden, hidden, config.dense_bias, scheme=FLOAT32)
        self.norm = LayerNorm(hidden, eps, norm_bias) if config.norm else None
        self.out = Linear(hidden, config.labels, scheme=FLOAT32)

    def __call__(self, states: Float32, seen: NDArray[np.bool_]) -> Float32:
        """From ``(B, T, hidden)`` and where there are tokens to ``(B, labels)``."""
        y = self.dense(pool(states, seen, self._config.pooling))
        y = np.tanh(y) if self._config.activation == "tanh" else activate(y, self._config.activation)
        scores: Float32 = self.out(y if self.norm is None else self.norm(y))
        return scores


def _through(block: EncoderBlock, x: Float32, texts: Texts) -> Float32:
    """A block over rows, of which only attention knows where texts begin and end."""
    attention = block.self_attn
    filled = [texts.filled(part) for part in attention.qkv(block.before_attention(x))]
    attended = np.ascontiguousarray(texts.rows(attention.attend(filled, mask=texts.mask)))
    x = block.after_attention(x, attention.o_proj(attended))
    y: Float32 = block.after_mlp(x, block.mlp(block.before_mlp(x)))  # type: ignore[operator]
    return y


def _block(c: EncoderConfig, i: int, scheme: Any, device: Any) -> EncoderBlock:
    how: dict[str, Any] = {"scheme": scheme, "device": device}
    layer = c.layers[i]
    attention = Attention(
        c.hidden_size,
        c.n_heads,
        bias=c.qkv_bias,
        out_bias=c.out_bias,
        rope=None if layer.rotation is None else _rope(layer.rotation, c.context_length),
        window=layer.window,
        fused="qkv" if c.fused else None,
        **how,
    )
    mlp = MLP(
        c.hidden_size,
        c.ffn_size,
        c.activation,
        gated=c.gated,
        bias=c.mlp_bias,
        fused="gate_up" if c.gated else None,
        **how,
    )
    return EncoderBlock(
        attention,
        mlp,
        norms=c.norms,
        eps=c.norm_eps,
        norm_bias=c.norm_bias,
        first_norm=c.norms == "after" or i > 0,
    )


def _rope(rotation: Rotation, length: int) -> RoPE:
    return RoPE(rotation.dim, base=rotation.theta, scaling=rotation.scaling, max_position=length)
