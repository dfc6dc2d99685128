"""Models for commands: fetched, opened in whichever way their file and the options ask for, behind a progress bar."""

from __future__ import annotations

from pathlib import Path

from npumatmul.cli.files import read_text
from npumatmul.cli.progress import ProgressCallback, working
from npumatmul.cli.terminal import say
from npumatmul.device.device import Device
from npumatmul.llm import (
    DecoderConfig,
    LoadedModel,
    Pack,
    Tokenizer,
    Window,
    fetch_demo_model,
    load_model,
    npu_layers,
    numpy_pack,
    text_tokens,
    windows,
)
from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.loader import DEFAULT_SCHEME, FLOAT32, Packer, rounded_again
from npumatmul.llm.models.encoders import encoder_architecture
from npumatmul.llm.models.registry import config_of
from npumatmul.llm.models.weights import left_out
from npumatmul.llm.models.whisper_config import is_speech
from npumatmul.llm.quantize import (
    Recipe,
    emulate,
    is_quantized,
    load_quantized,
    parse_scheme,
    quantize_layer,
    quantize_model,
    quick_recipe,
)
from npumatmul.llm.quantize.recipe import GGUF_SCHEME
from npumatmul.llm.tokenizers.opening import tokenizer_of


def fetch_model() -> Path:
    """The demo model, fetched on first use."""
    with working() as progress:
        return fetch_demo_model(progress=progress)


def check_scheme(name: str | None, option: str = "--scheme") -> None:
    """Refuse what no model can be stored by, before one is opened.

    Raises
    ------
    ValueError
        If there is no such scheme; the message names the option.
    """
    if name in (None, FLOAT32):
        return
    try:
        parse_scheme(name)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def check_model(path: Path, option: str = "the model") -> None:
    """Refuse an empty name, which would be the folder that we are in."""
    if not str(path).strip():
        raise ValueError(f"{option} has no name: give the path of a file")


def read_windows(
    path: Path, text: Path, context: int, *, stride: int = 0, limit: int | None = None, option: str = "--ctx"
) -> list[Window]:
    """Cut a text into windows of tokens of a model, of which no more than the header is read.

    Raises
    ------
    ValueError
        If the windows are longer than the model reads, or the text is no text or too short.
    """
    if is_quantized(path):
        config, tokenizer = _reads(GGUFSource.of(load_quantized(path).rest))
    else:
        with open_source(path) as source:
            config, tokenizer = _reads(source)
    longest = context + stride // 2
    if longest > config.context_length:
        stretched = f", and half a --stride more, {longest}" if stride else ""
        raise ValueError(
            f"{option} is {context}{stretched}; the model reads at most {config.context_length} tokens at once"
        )
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    return windows(text_tokens(tokenizer, read_text(text)), context, stride=stride, limit=limit, bos_id=bos)


def _reads(source: ModelSource) -> tuple[DecoderConfig, Tokenizer]:
    config = config_of(source)
    return config, tokenizer_of(source, config.vocab_size)


def open_model(
    path: Path,
    scheme: str | None,
    device: Device | None,
    *,
    context: int | None = None,
    progress: ProgressCallback | None = None,
    quiet: bool = False,
) -> LoadedModel:
    """Open a GGUF file or a folder with a scheme, or a quantized model as it is.

    Parameters
    ----------
    path : Path
    scheme : str or None
        `DEFAULT_SCHEME` by default; a quantized model takes none.
    device : Device or None
        Where layers are; None computes on the host what the NPU would.
    context : int, optional
        Longest sequence in tokens.
    progress : callable, optional
    quiet : bool
        Whether to keep to itself that weights are rounded a second time.

    Raises
    ------
    ValueError
        If a scheme is given for a quantized model, or there is no such scheme.
    """
    wanted = scheme or DEFAULT_SCHEME
    if is_quantized(path):
        if scheme is not None:
            raise ValueError(f"{path} is quantized already and takes no scheme, but {scheme!r} was given")
        quantized = load_quantized(path)
    elif wanted == GGUF_SCHEME:
        quantized = quantize_model(path, Recipe(quick_recipe(wanted)), progress=progress)
    else:
        if not quiet:
            say_what_to_know(path, wanted)
        pack = numpy_pack if wanted == FLOAT32 else _emulated(wanted) if device is None else Packer(wanted, device)
        return load_model(path, pack=pack, context_length=context, progress=progress)
    if device is None:
        return quantized.load(context_length=context, progress=progress)
    return quantized.load(npu_layers(device), context_length=context, progress=progress)


def _emulated(scheme: str) -> Pack:
    """Makes products that numpy computes as an NPU would."""
    return lambda weight, name: emulate(quantize_layer(weight, quick_recipe(scheme), name=name))


def say_what_to_know(path: Path, scheme: str) -> None:
    """Tell people whose file holds blocks of few bits already that another rounding follows, and what is left out."""
    if is_quantized(path):
        return
    with open_source(path) as source:
        decodes = encoder_architecture(source) is None and not is_speech(source)
        notes = [rounded_again(source, scheme), left_out(source) if decodes else None]
    for note in notes:
        if note is not None:
            say(f"note: {note}")
