"""Models for commands: fetched, opened in whichever way their file and the options ask for, behind a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from npumatmul.device.device import Device
from npumatmul.llm import GGUFFile, LoadedModel, fetch_demo_model, load_model, npu_layers, npu_pack, numpy_pack
from npumatmul.llm.quantize import LayerRecipe, Recipe, is_quantized, load_quantized, parse_scheme, quantize_model

#: Everything but results goes to standard error, so that results can be piped on.
console = Console(stderr=True, highlight=False)

ProgressCallback = Callable[[int, int, str], None]

DEFAULT_SCHEME = "w16a16"
FLOAT32 = "float32"
"""Where a scheme is asked for: the model computed by numpy in float32."""
GGUF = "gguf"


def fetch_model() -> Path:
    """The demo model, fetched on first use."""
    with progress_bar() as progress:
        return fetch_demo_model(progress=progress)


def open_model(
    path: Path,
    scheme: str | None,
    device: Device | None,
    *,
    context: int | None = None,
    progress: ProgressCallback | None = None,
    quiet: bool = False,
) -> LoadedModel:
    """Open a GGUF file with a scheme, or a quantized model as it is.

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
    if is_quantized(path):
        if scheme is not None:
            raise ValueError(f"{path} is quantized already and takes no scheme, but {scheme!r} was given")
        quantized = load_quantized(path)
    elif scheme == FLOAT32:
        return load_model(path, pack=numpy_pack, context_length=context, progress=progress)
    elif device is None or scheme == GGUF:
        if not quiet:
            _say_if_rounded_again(path, scheme or DEFAULT_SCHEME)
        quantized = quantize_model(path, Recipe(LayerRecipe(scheme or DEFAULT_SCHEME)), progress=progress)
    else:
        pack = npu_pack(scheme or DEFAULT_SCHEME, device)
        if not quiet:
            _say_if_rounded_again(path, scheme or DEFAULT_SCHEME)
        return load_model(path, pack=pack, context_length=context, progress=progress)
    if device is None:
        return quantized.load(context_length=context, progress=progress)
    return quantized.load(npu_layers(device), context_length=context, progress=progress)


def _say_if_rounded_again(path: Path, scheme: str) -> None:
    """Tell people whose file holds blocks of few bits already that another rounding follows."""
    if scheme == GGUF or parse_scheme(scheme).weight_bits == 16:
        return
    with GGUFFile(path) as file:
        kinds = {info.kind.name for info in file.tensors.values() if len(info.shape) == 2}
    blocks = sorted(kind for kind in kinds if "Q" in kind)
    if blocks:
        console.print(
            f"note: {path.name} stores weights as {' and '.join(blocks)}; {scheme} rounds them a second time. "
            "Scheme gguf takes Q4_0, Q4_1 and Q8_0 over as they are."
        )


@contextmanager
def progress_bar() -> Iterator[ProgressCallback | None]:
    """A progress bar on a terminal; elsewhere a line when a task begins."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("preparing", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
