"""`npumatmul embed`: embeddings of texts, as an array of numpy or as lines of JSON."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npumatmul.cli.files import STANDARD, check_outputs, read_standard_input, read_text, write_output
from npumatmul.cli.models import check_model, check_scheme
from npumatmul.cli.profiling import check_profiles, profiled
from npumatmul.cli.progress import working
from npumatmul.cli.terminal import say
from npumatmul.device.current import current_device
from npumatmul.llm import load
from npumatmul.llm.loader import DEFAULT_SCHEME, FLOAT32
from npumatmul.llm.policy import Policy
from npumatmul.llm.tokenizers.protocol import not_characters

_ARRAY = ".npy"
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the options of the command."""

    model: Path
    texts: tuple[str, ...] = ()
    file: Path | None = None
    output: Path = STANDARD
    query: str | None = None
    scheme: str | None = None
    device: str | None = None
    batch_size: int = 32
    normalize: bool | None = None
    prompt: str | None = None
    pooling: str | None = None
    cache: bool = True
    policy: Policy | None = None
    profile: tuple[Path, ...] = ()


def read_texts(given: tuple[str, ...], file: Path | None) -> list[str]:
    """Texts of the command line, or each line of a file or of standard input, but for empty ones at the end.

    Raises
    ------
    ValueError
        If there are none, they come from two places, or a line before others is empty: results would be of other lines
        than people count.
    """
    if given and file is not None:
        raise ValueError("texts are given both as arguments and by --file; give one of them")
    if given:
        return list(given)
    content = read_standard_input("the texts") if file is None else read_text(file)
    texts = _LINE_END.split(content)  # not splitlines, which divides at form feeds and U+2028, too
    while texts and not texts[-1].strip():
        texts.pop()
    if not texts:
        raise ValueError("there are no texts: give them as arguments, or one in each line of --file or standard input")
    for i, text in enumerate(texts):
        if not text.strip():
            where = "standard input" if file in (None, STANDARD) else file
            raise ValueError(f"line {i + 1} of {where} is empty, and each line is a text; take it out")
    return texts


def run(request: Request) -> None:
    """Write embeddings, or with a query the scores of a cross-encoder."""
    check_model(request.model, "--model")
    check_scheme(request.scheme)
    check_outputs({"--output": request.output}, [] if request.file in (None, STANDARD) else [request.file])
    check_profiles(request.profile, [request.output], [request.model])
    texts = read_texts(request.texts, request.file)
    for i, text in enumerate(texts):
        problem = not_characters(text)
        if problem:
            raise ValueError(f"text {i + 1} {problem}")
    scheme = request.scheme or DEFAULT_SCHEME
    device = None if scheme == FLOAT32 else current_device(request.device)
    with (
        working() as progress,
        load(
            request.model, scheme, device=device, cache=request.cache, progress=progress, policy=request.policy
        ) as model,
        profiled(request.profile),
    ):

        def told(done: int, total: int) -> None:
            progress(done, total, "reading texts")

        if request.query is not None:
            made = model.rerank(request.query, texts, batch_size=request.batch_size, progress=told)
        else:
            made = model.embed(
                texts,
                batch_size=request.batch_size,
                normalize=request.normalize,
                prompt=request.prompt,
                pooling=request.pooling,
                progress=told,
            )
    if request.output.suffix == _ARRAY:
        content = io.BytesIO()
        np.save(content, made)
        write_output(request.output, content.getvalue())
        say(f"{request.output}: float32 {' x '.join(map(str, made.shape))}")
        return
    name = "embedding" if request.query is None else "score"
    lines = [
        json.dumps({"text": text, name: row.tolist()}, ensure_ascii=False)
        for text, row in zip(texts, made, strict=True)
    ]
    write_output(request.output, "".join(f"{line}\n" for line in lines))
