"""`HifiGan`: from latent frames to a waveform, as the decoder of VITS does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.nn.conv_transpose import ConvTranspose1d
from npumatmul.nn.convolution import Conv1d, Convolution
from npumatmul.nn.module import LoadResult, Module, check_number, check_size, float32_of, rounded_to
from npumatmul.nn.product import FLOAT32, Float32, Pack, Product
from npumatmul.nn.weight_norm import fold_weight_norm
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["HifiGan"]

_Scheme = Scheme | SchemeName | str

#: What configurations of transformers call the sizes, and the number of channels that come in.
_NAMES = (
    "flow_size",
    "upsample_initial_channel",
    "upsample_rates",
    "upsample_kernel_sizes",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
    "leaky_relu_slope",
    "speaker_embedding_size",
)


class _RowProduct:
    """A product in float32 whose rows do not depend on which others there are, to the bit.

    BLAS adds up in another order where a row stands elsewhere among those of a call; so each row is a call.
    """

    def __init__(self, weight: Float32) -> None:
        self._b: Float32 = np.ascontiguousarray(weight.T)

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)``."""
        k, n = self._b.shape
        return k, n

    def __call__(self, x: Float32) -> Float32:
        """Multiply ``(M, K)`` to ``(M, N)``."""
        y: Float32 = np.matmul(x[:, None], self._b)[:, 0]
        return y

    def unpack(self) -> Float32:
        """The weight."""
        weight: Float32 = np.ascontiguousarray(self._b.T)
        return weight


class _Span(NamedTuple):
    """Values from `start` to before `stop`."""

    start: int
    stop: int

    def within(self, size: int) -> _Span:
        """What of it there is among so many values."""
        return _Span(max(0, self.start), min(size, self.stop))


def _parts_of(frames: int, chunk: int) -> Iterator[_Span]:
    return (_Span(start, min(start + chunk, frames)) for start in range(0, frames, chunk))


def _leaky(x: Float32, slope: float) -> Float32:
    y: Float32 = x * np.float32(slope)
    np.maximum(x, y, out=y)
    return y


class _ResBlock(Module):
    """Pairs of convolutions, or single ones, each with what came in added to it."""

    def __init__(
        self, channels: int, kernel: int, dilations: Sequence[int], slope: float, pairs: bool,
        scheme: _Scheme, device: Device | str | None,
    ) -> None:  # fmt: skip
        def conv(dilation: int) -> Conv1d:
            return Conv1d(
                channels, channels, kernel, padding=dilation * (kernel - 1) // 2, dilation=dilation,
                scheme=scheme, device=device,
            )  # fmt: skip

        self._slope = slope
        self._reach = sum((d + pairs) * (kernel - 1) // 2 for d in dilations)
        if pairs:
            self.convs1 = [conv(each) for each in dilations]
            self.convs2 = [conv(1) for _ in dilations]
        else:
            self.convs = [conv(each) for each in dilations]

    def _steps(self) -> list[tuple[Conv1d, ...]]:
        if hasattr(self, "convs"):
            return [(each,) for each in self.convs]
        return list(zip(self.convs1, self.convs2, strict=True))

    def __call__(self, x: Float32) -> Float32:
        for convs in self._steps():
            y = x
            for conv in convs:
                y = conv.rows(_leaky(y, self._slope))
            y += x
            x = y
        return x


class HifiGan(Module):
    """The HiFi-GAN generator, the decoder of VITS: waveforms of any number of latent frames, in one pass or in parts.

    Parameters are named as transformers' ``VitsConfig`` names them; `from_config` takes one.

    Parameters
    ----------
    flow_size : int
        Channels of the latent frames.
    upsample_initial_channel : int
        Channels before the first step; each step halves them.
    upsample_rates, upsample_kernel_sizes : sequence of int
        How many values each step makes of one, and of how many values its windows are. Their difference is even.
    resblock_kernel_sizes, resblock_dilation_sizes : sequence of int, sequence of sequences of int
        The blocks after each step, whose results are averaged. Kernels are odd.
    leaky_relu_slope : float
    speaker_embedding_size : int
        Width of what tells speakers apart; 0 if there is one speaker.
    resblock : {"1", "2"}
        Blocks with pairs of convolutions, or with single ones, as the configurations of HiFi-GAN have it.
    scheme, device
        As for `Linear`.

    Raises
    ------
    ValueError, TypeError
        If sizes do not go together, or there is no such scheme for floats.

    Notes
    -----
    Parameters are those of transformers' ``VitsModel.decoder``: ``conv_pre``, ``upsampler.<i>``,
    ``resblocks.<i>.convs1.<j>`` and ``convs2``, ``conv_post``, ``cond``. `load_state_dict` folds ``weight_norm``, and
    takes ``ups.<i>``, which others call the upsampler. All products are those of `Conv1d` and `ConvTranspose1d`, with
    their bounds; activations, sums and windows are the CPU's.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> decoder = nn.HifiGan(
    ...     64, 64, upsample_rates=(4, 4), upsample_kernel_sizes=(8, 8),
    ...     resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3),),
    ... )
    >>> rng = np.random.default_rng(0)
    >>> shapes = decoder.parameter_shapes()
    >>> _ = decoder.load_state_dict({name: rng.normal(0, 0.1, shape) for name, shape in shapes.items()})
    >>> latents = rng.standard_normal((1, 64, 21), np.float32)
    >>> whole = decoder(latents)
    >>> whole.shape, decoder.hop
    ((1, 1, 336), 16)
    >>> bool((np.concatenate(list(decoder.stream(latents, chunk=8)), -1) == whole).all())
    True
    """

    def __init__(
        self,
        flow_size: int = 192,
        upsample_initial_channel: int = 512,
        upsample_rates: Sequence[int] = (8, 8, 2, 2),
        upsample_kernel_sizes: Sequence[int] = (16, 16, 4, 4),
        resblock_kernel_sizes: Sequence[int] = (3, 7, 11),
        resblock_dilation_sizes: Sequence[Sequence[int]] = ((1, 3, 5),) * 3,
        leaky_relu_slope: float = 0.1,
        speaker_embedding_size: int = 0,
        *,
        resblock: Literal["1", "2"] = "1",
        scheme: _Scheme = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        rates, kernels = tuple(upsample_rates), tuple(upsample_kernel_sizes)
        blocks = list(zip(resblock_kernel_sizes, resblock_dilation_sizes, strict=False))
        self._check(rates, kernels, resblock_kernel_sizes, resblock_dilation_sizes, leaky_relu_slope, resblock)
        check_size("HifiGan", flow_size=flow_size, upsample_initial_channel=upsample_initial_channel)
        if speaker_embedding_size is not False and speaker_embedding_size != 0:
            check_size("HifiGan", speaker_embedding_size=speaker_embedding_size)
        if upsample_initial_channel % 2 ** len(rates):
            raise ValueError(
                f"HifiGan: upsample_initial_channel is {upsample_initial_channel}, which cannot be halved "
                f"{len(rates)} times"
            )
        options: dict[str, Any] = {"scheme": scheme, "device": device}
        channels = [upsample_initial_channel // 2**i for i in range(len(rates) + 1)]
        self._slope, self._scheme, self._blocks = float(leaky_relu_slope), scheme, len(blocks)
        self._rates, self._kernels = rates, kernels
        self.conv_pre = Conv1d(flow_size, channels[0], 7, padding=3, **options)
        self.upsampler = [
            ConvTranspose1d(channels[i], channels[i + 1], k, s, (k - s) // 2, **options)
            for i, (s, k) in enumerate(zip(rates, kernels, strict=True))
        ]
        self.resblocks = [
            _ResBlock(width, k, dilations, self._slope, resblock == "1", scheme, device)
            for width in channels[1:]
            for k, dilations in blocks
        ]
        self.conv_post = Conv1d(channels[-1], 1, 7, padding=3, bias=False, **options)
        self.cond = Conv1d(speaker_embedding_size, channels[0], 1, **options) if speaker_embedding_size else None

    @staticmethod
    def _check(
        rates: tuple[int, ...], kernels: tuple[int, ...], sizes: Sequence[int], dilations: Sequence[Sequence[int]],
        slope: float, resblock: str,
    ) -> None:  # fmt: skip
        if len(rates) != len(kernels) or not rates:
            raise ValueError(
                f"HifiGan: upsample_rates has {len(rates)} numbers, upsample_kernel_sizes {len(kernels)}; there has to "
                "be one of each for every step"
            )
        for rate, kernel in zip(rates, kernels, strict=True):
            check_size("HifiGan", upsample_rates=rate, upsample_kernel_sizes=kernel)
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(
                    f"HifiGan: a step of {rate} has windows of {kernel}; they have to be longer by an even number, so "
                    f"that each value becomes {rate}"
                )
        if len(sizes) != len(dilations) or not len(sizes):
            raise ValueError(
                f"HifiGan: resblock_kernel_sizes has {len(sizes)} entries, resblock_dilation_sizes {len(dilations)}; "
                "there has to be one of each for every block"
            )
        for size, each in zip(sizes, dilations, strict=True):
            check_size("HifiGan", resblock_kernel_sizes=size, **{"resblock_dilation_sizes": min(each, default=0)})
            if size % 2 == 0:
                raise ValueError(f"HifiGan: resblock_kernel_sizes holds {size}; kernels of blocks are odd")
        check_number("HifiGan", leaky_relu_slope=slope)
        if not 0 <= slope <= 1:
            raise ValueError(f"HifiGan: leaky_relu_slope is {slope}; it has to be between 0 and 1")
        if resblock not in ("1", "2"):
            raise ValueError(f"HifiGan: resblock is {resblock!r}; it can be '1' or '2'")

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> HifiGan:
        """Make a generator of the sizes that a configuration of transformers names.

        Parameters
        ----------
        config : VitsConfig, or mapping
        **options
            `scheme`, `device`, `resblock`.

        Raises
        ------
        ValueError
            If a size is missing, or as for the class.

        Examples
        --------
        >>> from npumatmul import nn
        >>> sizes = dict(upsample_rates=[8, 8], upsample_kernel_sizes=[16, 16], resblock_kernel_sizes=[3])
        >>> more = dict(resblock_dilation_sizes=[[1, 3]], leaky_relu_slope=0.1, speaker_embedding_size=0)
        >>> config = dict(flow_size=192, upsample_initial_channel=512, **sizes, **more)
        >>> nn.HifiGan.from_config(config).hop
        64
        """
        found = config if isinstance(config, Mapping) else vars(config)
        missing = [name for name in _NAMES if name not in found]
        if missing:
            raise ValueError(f"HifiGan.from_config: the configuration does not say {', '.join(missing)}")
        return cls(**{name: found[name] for name in _NAMES}, **options)

    @property
    def hop(self) -> int:
        """Values of the waveform for each frame."""
        return int(np.prod(self._rates))

    @property
    def context(self) -> tuple[int, int]:
        """Frames before and behind its own that a frame's part of the waveform depends on."""
        # far from both ends; what the ends cut off does not count
        span = self._spans(_Span(0, self.hop))[0]
        return -span.start, span.stop - 1

    def products(self, frames: int, chunk: int | None = None) -> list[tuple[int, int, int]]:
        """What is multiplied for so many frames, at once or in parts: rows, K and N of each product, in their order.

        Parameters
        ----------
        frames : int
        chunk : int, optional
            As for `stream`.

        Raises
        ------
        ValueError
            If a number is none of 1 or more.

        Examples
        --------
        >>> from npumatmul import nn
        >>> decoder = nn.HifiGan()
        >>> products = decoder.products(62)
        >>> len(products), products[0], sum(m * k * n for m, k, n in products) // 10**9  # of nearly a second
        (133, (62, 1344, 512), 19)
        """
        check_size("HifiGan.products", frames=frames, chunk=frames if chunk is None else chunk)
        found: list[tuple[int, int, int]] = []

        def note(layer: Convolution, length: int) -> None:
            k, n = layer.product_shape
            found.extend((rows, k, n) for rows in layer.product_rows(length))

        for part in _parts_of(frames, frames if chunk is None else chunk):
            given, *spans = self._spans(_Span(part.start * self.hop, part.stop * self.hop), frames)
            note(self.conv_pre, given.stop - given.start)
            for i, up in enumerate(self.upsampler):
                length = spans[i].stop - spans[i].start
                note(up, length)
                for block in self.resblocks[i * self._blocks : (i + 1) * self._blocks]:
                    for convs in block._steps():
                        for conv in convs:
                            note(conv, length * self._rates[i])
            note(self.conv_post, spans[-1].stop - spans[-1].start)
        return found

    def load_state_dict(
        self, mapping: Mapping[str, Any], strict: bool = True, *, prefix: str = "", pack: Pack | None = None
    ) -> LoadResult:
        """Load parameters by name, as `Module.load_state_dict` does, with ``weight_norm`` folded.

        Parameters
        ----------
        mapping, strict, prefix, pack
            As there. Names may be those of transformers, or ``ups.<i>`` for ``upsampler.<i>``.

        Returns
        -------
        LoadResult

        Raises
        ------
        ModelError, TypeError, NotFiniteError
            As there.
        """
        if isinstance(mapping, Mapping):
            mapping = fold_weight_norm(_Renamed(mapping, f"{prefix}ups.", f"{prefix}upsampler."))
        if pack is None and self._scheme == FLOAT32:
            pack = _by_rows
        return super().load_state_dict(mapping, strict, prefix=prefix, pack=pack)

    # ---- calls -------------------------------------------------------------------------------------------------------

    def __call__(self, x: Any, g: Any = None, mask: Any = None) -> Any:
        """Make the waveform of all frames.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (B, flow_size, T)
            Latent frames; T can be any number.
        g : ndarray, shape (B, speaker_embedding_size, 1) or (1, speaker_embedding_size, 1), optional
            Who speaks.
        mask : ndarray, shape (B, 1, T) or (1, 1, T), optional
            What latents are multiplied by.

        Returns
        -------
        ndarray or NpuArray, shape (B, 1, T * hop)
            Between -1 and 1: float16 or bfloat16 where `x` is, else float32.

        Raises
        ------
        ValueError
            If shapes do not fit, or `g` is given to a generator of one speaker.
        ModelError
            If no weights were loaded yet.
        """
        if type(x) is not np.ndarray:
            return self._of_other(x, g, mask)
        frames, added = self._inputs(x, g, mask)
        return rounded_to(self._wave(frames, added, _Span(0, x.shape[2])), x.dtype)

    def stream(self, x: NDArray[Any], g: Any = None, mask: Any = None, *, chunk: int = 64) -> Iterator[NDArray[Any]]:
        """Make the waveform part by part: joined, parts are what a call gives.

        Each part is made of its frames and of as many around them as it depends on (`context`), and each step computes
        no more of these than the steps after it need. Memory does not grow with the number of frames.

        Parameters
        ----------
        x, g, mask
            As for a call; `x` an ndarray.
        chunk : int
            Frames of a part.

        Yields
        ------
        ndarray, shape (B, 1, chunk * hop)
            The last one may be shorter.

        Raises
        ------
        ValueError, ModelError
            As for a call, before the first part is made.

        Notes
        -----
        With ``scheme="float32"`` joined parts are equal to the whole to the bit. So they are on the NPU as far as its
        products make each row by itself, which all schemes with scales for rows do; with one scale for all rows of a
        call parts have scales of their own.
        """
        check_size("HifiGan.stream", chunk=chunk)
        frames, added = self._inputs(np.asarray(x), g, mask)
        return self._parts(frames, added, int(chunk), np.asarray(x).dtype)

    def _parts(
        self, frames: Float32, added: Float32 | None, chunk: int, dtype: np.dtype[Any]
    ) -> Iterator[NDArray[Any]]:
        for part in _parts_of(frames.shape[1], chunk):
            yield rounded_to(self._wave(frames, added, part), dtype)

    def _inputs(self, x: NDArray[Any], g: Any, mask: Any) -> tuple[Float32, Float32 | None]:
        """Frames with channels last, and what the speaker adds to each."""
        width = self.conv_pre.in_channels
        if x.ndim != 3 or x.shape[1] != width or not x.shape[2]:
            raise ValueError(f"HifiGan takes frames (B, {width}, T) with T of 1 or more; the input has shape {x.shape}")
        frames = float32_of(x, "HifiGan")
        if mask is not None:
            mask = float32_of(np.asarray(mask), "HifiGan: mask")
            if mask.shape not in ((len(x), 1, x.shape[2]), (1, 1, x.shape[2])):
                raise ValueError(f"HifiGan: mask has shape {mask.shape}, for frames of shape {x.shape}")
            frames = frames * mask
        return np.ascontiguousarray(frames.transpose(0, 2, 1)), self._of_speaker(g, len(x))

    def _of_speaker(self, g: Any, batch: int) -> Float32 | None:
        if g is None:
            return None
        if self.cond is None:
            raise ValueError("HifiGan: g is given, but speaker_embedding_size is 0: there is one speaker")
        g = float32_of(np.asarray(g), "HifiGan: g")
        if g.shape not in ((batch, self.cond.in_channels, 1), (1, self.cond.in_channels, 1)):
            raise ValueError(f"HifiGan: g has shape {g.shape}; ({batch}, {self.cond.in_channels}, 1) is needed")
        return self.cond.rows(np.ascontiguousarray(g.transpose(0, 2, 1)))

    def _spans(self, wanted: _Span, frames: int | None = None) -> list[_Span]:
        """What has to be known of the input, and before each step and behind the last, for a part of the waveform."""
        sizes = [None] * (len(self._rates) + 1) if frames is None else [frames * n for n in self._lengths()]
        spans: list[_Span] = []

        def note(span: _Span, size: int | None) -> _Span:
            spans.append(span if size is None else span.within(size))
            return spans[-1]

        span = note(_Span(wanted.start - 3, wanted.stop + 3), sizes[-1])  # of conv_post
        for i in reversed(range(len(self._rates))):
            reach = max(each._reach for each in self.resblocks[i * self._blocks : (i + 1) * self._blocks])
            rate, kernel = self._rates[i], self._kernels[i]
            first, last = span.start - reach, span.stop + reach - 1
            cut = (kernel - rate) // 2
            span = note(_Span(-(-(first + cut - kernel + 1) // rate), (last + cut) // rate + 1), sizes[i])
        note(_Span(span.start - 3, span.stop + 3), frames)  # of conv_pre
        return spans[::-1]

    def _lengths(self) -> list[int]:
        """Values for each frame before each step, and behind the last."""
        return [int(np.prod(self._rates[:i])) for i in range(len(self._rates) + 1)]

    def _wave(self, frames: Float32, added: Float32 | None, wanted: _Span) -> Float32:
        """The waveform of some frames, ``(B, 1, L)``: of everything around them only what it depends on is computed."""
        out = _Span(wanted.start * self.hop, wanted.stop * self.hop)
        given, *spans = self._spans(out, frames.shape[1])
        at = given.start  # where what is there begins
        x = self.conv_pre.rows(np.ascontiguousarray(frames[:, given.start : given.stop]))
        if added is not None:
            x += added
        for i, up in enumerate(self.upsampler):
            x = x[:, spans[i].start - at : spans[i].stop - at]
            x = up.rows(_leaky(x, self._slope))
            at = spans[i].start * self._rates[i]
            x = self._averaged(i, x)
        last = spans[-1]
        x = _leaky(x[:, last.start - at : last.stop - at], 0.01)
        y = np.tanh(self.conv_post.rows(x))[:, out.start - last.start : out.stop - last.start]
        return np.ascontiguousarray(y.transpose(0, 2, 1))

    def _averaged(self, step: int, x: Float32) -> Float32:
        first, *others = self.resblocks[step * self._blocks : (step + 1) * self._blocks]
        total = first(x)
        for each in others:
            total += each(x)
        total /= np.float32(self._blocks)
        return total


def _by_rows(weight: Float32, path: str) -> Product:
    return _RowProduct(weight)


class _Renamed(Mapping[str, Any]):
    """A mapping with another beginning of some names."""

    def __init__(self, mapping: Mapping[str, Any], before: str, after: str) -> None:
        self._mapping = mapping
        self._names = {after + n.removeprefix(before) if n.startswith(before) else n: n for n in mapping}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Any:
        return self._mapping[self._names[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value, without reading it where the mapping can do so."""
        shape_of = getattr(self._mapping, "shape", None)
        own = self._names[name]
        return tuple(shape_of(own)) if callable(shape_of) else tuple(np.shape(self._mapping[own]))
