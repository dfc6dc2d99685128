"""The commands, and what becomes of their errors."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import npumatmul
from npumatmul.cli import bench_files, caching, estimators, info, onnx_models, probing, simulating
from npumatmul.cli.bench_commands import add_commands
from npumatmul.cli.chat_command import chat_command
from npumatmul.cli.doctor_command import doctor_command
from npumatmul.cli.files import path
from npumatmul.cli.offloading import (
    CoresOption,
    DecodeOption,
    NpuLayersOption,
    NpuMemoryOption,
    PolicyOption,
    policy_of,
)
from npumatmul.cli.options import (
    CacheOption,
    DeviceOption,
    EmulateOption,
    ExpertFolderOption,
    ExpertMemoryOption,
    ModelArgument,
    OriginalOption,
    SchemeOption,
    SeedOption,
    SpeculationOption,
    TemperatureOption,
    TextOption,
    TokensOption,
    checked_speculation,
)
from npumatmul.cli.plan_command import names_of, plan_command
from npumatmul.cli.profiling import ProfileOption
from npumatmul.cli.serve_command import serve_command
from npumatmul.cli.terminal import Once, in_words, prepare_streams, visible
from npumatmul.errors import NpuError

#: Plain help and errors: the frames of rich leave too little room for words on a narrow terminal.
PLAIN: dict[str, Any] = {
    "no_args_is_help": True, "add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False,
}  # fmt: skip

app = typer.Typer(help="Matrix multiplication on Rockchip NPUs.", **PLAIN)
app.add_typer(simulating.app, name="sim", short_help="The simulator for programs in C.")
app.add_typer(caching.app, name="cache", short_help="The packed models that are kept on disk.")
app.add_typer(onnx_models.app, name="onnx", short_help="ONNX models.")
app.add_typer(estimators.app, name="sklearn", short_help="Estimators of scikit-learn.")

DEMO_PROMPT = "Explain in a few sentences what a neural processing unit is and why it helps."


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(npumatmul.__version__)
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens on standard error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    handler = logging.StreamHandler()
    handler.addFilter(Once())
    # where a program that calls the command logs already, its handlers are left as they are
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        handlers=[handler],
    )


@app.command("info", short_help="The device, and what was looked for where.")
def info_command(
    device: DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    capabilities: Annotated[
        bool, typer.Option("--capabilities", help="Show types, sizes, layouts and known problems, with sources.")
    ] = False,
    soc: Annotated[str | None, typer.Option(help="With --capabilities: a chip, such as rk3588.")] = None,
    runtime: Annotated[str | None, typer.Option(help="With --capabilities: a runtime version, such as 2.3.2.")] = None,
) -> None:
    """Show the device, its runtime and driver, and what was looked for and where."""
    if capabilities:
        info.show_capabilities(device, soc, runtime, as_json)
    elif soc is not None or runtime is not None:
        raise typer.BadParameter("--soc and --runtime go with --capabilities")
    else:
        info.show(device, as_json)


app.command("doctor", short_help="What makes this machine's NPU slow or broken.")(doctor_command)


@app.command("probe", short_help="Answer open questions about a board.")
def probe_command(
    device: DeviceOption = None,
    questions: Annotated[
        str | None, typer.Option(help="Question numbers, such as Q1,Q8; by default all that are safe.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds per question.")] = 60.0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file of results; by default one that is found again.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes and repetitions.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Also what may crash or hang the board.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="List the questions and how they are answered.")] = False,
) -> None:
    """Answer the open questions about a chip by trying, on the board, and use the answers from then on."""
    if list_only:
        probing.list_questions()
        return
    probing.run(
        device,
        None if questions is None else questions.split(","),
        timeout=timeout,
        output=output,
        quick=quick,
        everything=everything,
    )


@app.command("generate", short_help="Answer a prompt with a language model.")
def generate_command(
    model: Annotated[
        Path,
        typer.Option(
            "-m",
            "--model",
            parser=path,
            metavar="<path>",
            help="A GGUF file, a Hugging Face folder, or a quantized model.",
        ),
    ],
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="The prompt; read from standard input without it.")
    ] = None,
    max_tokens: TokensOption = 256,
    scheme: SchemeOption = None,
    device: DeviceOption = None,
    temperature: TemperatureOption = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among this many likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Choose among the likeliest of this mass.")] = 1.0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Leave out those below this part of the best.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes repetitions less likely.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be given again.")] = None,
    seed: SeedOption = None,
    system: Annotated[str | None, typer.Option(help="A system message before the prompt.")] = None,
    raw: Annotated[bool, typer.Option(help="Continue the text of the prompt, without the chat format.")] = False,
    context: Annotated[int | None, typer.Option(min=1, help="Longest sequence in tokens.")] = None,
    speculation: SpeculationOption = "none",
    cache: CacheOption = True,
    stats: Annotated[bool, typer.Option(help="Print a table of figures at the end, on standard error.")] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end: text, counts, speeds, why it ended.")
    ] = False,
    expert_memory: ExpertMemoryOption = None,
    expert_folder: ExpertFolderOption = None,
    profile: ProfileOption = None,
    npu_layers: NpuLayersOption = None,
    decode: DecodeOption = None,
    npu_memory: NpuMemoryOption = None,
    cores: CoresOption = None,
    policy: PolicyOption = None,
) -> None:
    """Answer a prompt with a language model, every linear layer through the matmul API."""
    from npumatmul.cli import generating  # here, since it needs the extra `llm`, which other commands do not

    request = generating.Request(
        model=model,
        prompt=generating.read_prompt(prompt),
        scheme=scheme,
        device=device,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
        system=system,
        raw=raw,
        context=context,
        speculation=checked_speculation(speculation),
        cache=cache,
        stats=stats and not as_json,
        as_json=as_json,
        expert_memory=expert_memory,
        expert_folder=expert_folder,
        profile=tuple(profile or ()),
        policy=policy_of(policy, npu_layers=npu_layers, decode=decode, memory_limit=npu_memory, cores=cores),
    )
    generating.answer(request)


@app.command("transcribe", short_help="What is said in a wave file, as text or subtitles.")
def transcribe_command(
    model: Annotated[Path, typer.Argument(parser=path, help="A folder with a Whisper, as Hugging Face has it.")],
    audio: Annotated[Path, typer.Argument(parser=path, help="A wave file of PCM samples.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A file; '-' prints.")] = Path("-"),
    form: Annotated[str, typer.Option("--format", help="text, json, srt or vtt.")] = "text",
    language: Annotated[
        str | None, typer.Option(help="Such as 'de' or 'german'; by default what it sounds like.")
    ] = None,
    task: Annotated[str, typer.Option(help="transcribe; or translate: to English.")] = "transcribe",
    prompt: Annotated[str | None, typer.Option(help="What was said before, or names that may be said.")] = None,
    timestamps: Annotated[bool, typer.Option(help="Have the model write times.")] = True,
    scheme: SchemeOption = None,
    device: DeviceOption = None,
    seed: SeedOption = None,
    cache: CacheOption = True,
    profile: ProfileOption = None,
) -> None:
    """Write down what is said in a recording of any length."""
    from npumatmul.cli import transcribing

    transcribing.run(
        transcribing.Request(
            model,
            audio,
            output,
            form,
            language,
            task,
            prompt,
            timestamps,
            scheme,
            device,
            seed,
            cache,
            tuple(profile or ()),
        )
    )


@app.command("embed", short_help="Embeddings of texts, or their scores for a query.")
def embed_command(
    model: Annotated[
        Path,
        typer.Option(
            "-m",
            "--model",
            parser=path,
            metavar="<path>",
            help="A folder with an encoder, or any model whose states are pooled.",
        ),
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; else each line of --file, or of standard input, is one.")
    ] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="A file with a text in each line, UTF-8.")] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="*.npy: an array of float32; else lines of JSON, '-' prints them.")
    ] = Path("-"),
    query: Annotated[
        str | None, typer.Option("-q", "--query", help="Scores for this query by a cross-encoder, not embeddings.")
    ] = None,
    scheme: SchemeOption = None,
    device: DeviceOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts that are computed together at most.")] = 32,
    normalize: Annotated[
        bool | None, typer.Option(help="Divide embeddings by their lengths; by default as the model says.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Name of what precedes each text, such as 'query'.")] = None,
    pooling: Annotated[str | None, typer.Option(help="mean, cls, last or max; by default as the model says.")] = None,
    cache: CacheOption = True,
    profile: ProfileOption = None,
    npu_layers: NpuLayersOption = None,
    decode: DecodeOption = None,
    npu_memory: NpuMemoryOption = None,
    cores: CoresOption = None,
    policy: PolicyOption = None,
) -> None:
    """Compute embeddings of texts, or with a query how well each fits it."""
    from npumatmul.cli import embedding

    if query is not None and not (normalize is None and prompt is None and pooling is None):
        raise typer.BadParameter("--normalize, --prompt and --pooling are for embeddings; --query gives scores")
    embedding.run(
        embedding.Request(
            model=model,
            texts=tuple(texts or ()),
            file=file,
            output=output,
            query=query,
            scheme=scheme,
            device=device,
            batch_size=batch_size,
            normalize=normalize,
            prompt=prompt,
            pooling=pooling,
            cache=cache,
            profile=tuple(profile or ()),
            policy=policy_of(policy, npu_layers=npu_layers, decode=decode, memory_limit=npu_memory, cores=cores),
        )
    )


app.command("chat", short_help="Talk with a language model.")(chat_command)


app.command("serve", short_help="Answer requests over HTTP, with OpenAI's and Ollama's APIs.")(serve_command)


@app.command("demo", short_help="Fetch a small model and let it answer.")
def demo_command(
    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            "--model",
            parser=path,
            metavar="<path>",
            help="A GGUF file, folder or quantized model instead of the demo's.",
        ),
    ] = None,
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="The prompt.")] = DEMO_PROMPT,
    max_tokens: TokensOption = 128,
    scheme: SchemeOption = None,
    device: DeviceOption = None,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = None,
    cache: CacheOption = True,
    profile: ProfileOption = None,
) -> None:
    """Fetch a small language model (98 MB, once) and let it answer a prompt."""
    from npumatmul.cli import generating, models

    request = generating.Request(
        model=models.fetch_model() if model is None else model,
        prompt=prompt,
        scheme=scheme,
        device=device,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        cache=cache,
        profile=tuple(profile or ()),
    )
    generating.answer(request)


@app.command("perplexity", short_help="Measure a model on a text.")
def perplexity_command(
    text: TextOption,
    model: ModelArgument = None,
    scheme: Annotated[
        str | None, typer.Option(help="One or more, separated by commas; 'float32' is numpy without an NPU.")
    ] = None,
    device: DeviceOption = None,
    emulate: EmulateOption = False,
    context: Annotated[int, typer.Option("-c", "--ctx", min=4, help="Tokens in a window.")] = 512,
    stride: Annotated[int, typer.Option("--stride", min=0, help="Tokens between windows; 0: one after another.")] = 0,
    chunks: Annotated[int | None, typer.Option(min=1, help="Windows at most.")] = None,
    reference: Annotated[bool, typer.Option(help="Compare with the model in float32 on numpy.")] = True,
    original: OriginalOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    profile: ProfileOption = None,
) -> None:
    """Measure a model on a text: perplexity, and KL divergence and top-1 agreement with its float32 logits."""
    from npumatmul.cli import evaluating

    evaluating.perplexity(
        evaluating.Request(
            text=text,
            model=model,
            schemes=names_of(scheme),
            device=device,
            emulate=emulate,
            context=context,
            stride=stride,
            chunks=chunks,
            reference=reference,
            original=original,
            as_json=as_json,
            profile=tuple(profile or ()),
        )
    )


@app.command("analyze", short_help="Errors of each layer, or of arrays.")
def analyze_command(
    model: ModelArgument = None,
    text: Annotated[Path | None, typer.Option("-f", "--text", help="A text file, UTF-8.")] = None,
    weight: Annotated[Path | None, typer.Option(help="Instead of a model: a weight (K, N), .npy or .npz.")] = None,
    activations: Annotated[Path | None, typer.Option(help="With --weight: activations (M, K), .npy or .npz.")] = None,
    transposed: Annotated[bool, typer.Option("--transposed", help="The weight is given as (N, K).")] = False,
    scheme: Annotated[str | None, typer.Option(help="Such as w8a8; for arrays one or more, with commas.")] = None,
    best: Annotated[bool, typer.Option("--best", help="For arrays: the best recipe of each scheme.")] = False,
    device: DeviceOption = None,
    emulate: EmulateOption = False,
    context: Annotated[int, typer.Option("-c", "--ctx", min=4, help="Tokens in a window.")] = 512,
    chunks: Annotated[int | None, typer.Option(min=1, help="Windows at most.")] = 1,
    original: OriginalOption = None,
    csv: Annotated[Path | None, typer.Option(help="Save the table of layers here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Save a plot of the layers here.")] = None,
) -> None:
    """Show the error of each layer, alone and with all before it, and of the model as a whole; or of arrays."""
    from npumatmul.cli import evaluating

    if weight is not None or activations is not None:
        if weight is None or activations is None or text is not None or model is not None:
            raise typer.BadParameter("arrays are given by --weight and --activations, without a model or a text")
        arrays = evaluating.Arrays(weight, activations, transposed, names_of(scheme), best, device, emulate, csv)
        evaluating.analyze_arrays(arrays)
        return
    if text is None or best:
        raise typer.BadParameter("a model is analyzed on a --text; --best goes with arrays")
    evaluating.analyze(
        evaluating.Request(
            text=text,
            model=model,
            schemes=names_of(scheme),
            device=device,
            emulate=emulate,
            context=context,
            chunks=chunks,
            original=original,
            csv=csv,
            plot=plot,
        )
    )


@app.command("quantize", short_help="Write a quantized model.")
def quantize_command(
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write; by custom *.safetensors.")],
    model: ModelArgument = None,
    scheme: Annotated[
        str | None, typer.Option(help="Such as w8a8, w4a8_g128, w4a4 or gguf; auto chooses for each layer.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A JSON file: scheme, transform, rounding, ... and overrides for layers.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="With --scheme: the recipe that loses least, with calibration.")
    ] = False,
    candidates: Annotated[str, typer.Option(help="With auto: schemes to choose from, best recipes.")] = "w4a8,w8a8",
    max_bits: Annotated[float | None, typer.Option(help="With auto: most stored bits per weight, on average.")] = None,
    max_kl: Annotated[float | None, typer.Option(help="With auto: most KL divergence on the calibration text.")] = None,
    chip: Annotated[
        str | None, typer.Option(help="Whose layout the file has, such as rk3588; by default the device's.")
    ] = None,
    portable: Annotated[bool, typer.Option("--portable", help="Write codes, which every chip can lay out.")] = False,
    calibration: Annotated[Path | None, typer.Option(help="A text file; else the model writes one itself.")] = None,
    context: Annotated[int, typer.Option("-c", "--ctx", min=4, help="Tokens in a window of that text.")] = 512,
    chunks: Annotated[int, typer.Option(min=1, help="Windows of it at most.")] = 40,
) -> None:
    """Quantize a model by a scheme or a recipe, and write a file that `generate` and others take as they take GGUF.

    A model that is quantized already, with neither scheme nor recipe, is laid out for another chip.
    """
    from npumatmul.cli import quantizing
    from npumatmul.cli.models import check_scheme
    from npumatmul.llm.quantize import Recipe, best_recipe, quick_recipe

    if scheme is not None and recipe is not None:
        raise typer.BadParameter("give either --scheme or --recipe")
    if chip is not None and portable:
        raise typer.BadParameter("a --portable file is for every --chip")
    if (scheme == "auto") != (max_bits is not None or max_kl is not None):
        raise typer.BadParameter("--scheme auto goes with --max-bits or --max-kl")
    chosen: Recipe | quantizing.Budget | None = None
    if recipe is not None:
        if best:
            raise typer.BadParameter("--best goes with --scheme")
        chosen = Recipe.read(recipe)
    elif scheme == "auto":
        schemes = names_of(candidates, "--candidates") or ()
        for name in schemes:
            check_scheme(name, "--candidates")
        recipes = tuple(best_recipe(name).default for name in schemes)
        chosen = quantizing.Budget(recipes, max_bits, max_kl)
    elif scheme is not None:
        check_scheme(scheme)
        chosen = best_recipe(scheme) if best else Recipe(quick_recipe(scheme))
    elif best:
        raise typer.BadParameter("--best goes with --scheme")
    quantizing.quantize(quantizing.Request(output, model, chosen, chip, portable, calibration, context, chunks, recipe))


app.command("plan", short_help="Size and modelled speed of a model.")(plan_command)


@app.command("calibrate", short_help="Fit the timing model to this board.")
def calibrate_command(
    device: DeviceOption = None,
    seconds: Annotated[float, typer.Option(min=1.0, max=100.0, help="About so long is spent on timing.")] = 60.0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file of constants; by default one that is found again.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Store nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every run.")] = False,
) -> None:
    """Time runs on the board, fit the constants of the timing model to them, and plan with those from then on."""
    from npumatmul.cli import calibrating

    calibrating.run(device, seconds=seconds, output=output, dry_run=dry_run, as_json=as_json)


bench_app = typer.Typer(help="Measure matmuls and what is around them.", **PLAIN)
app.add_typer(bench_app, name="bench", short_help="Measure matmuls and what is around them.")
add_commands(bench_app)
bench_files.register(bench_app)


def run() -> None:
    """Run the command line; errors that people can do something about are one line, not a stack trace."""
    prepare_streams()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _discard_output()  # the reader has gone: nobody is left to be told
        sys.exit(1)
    except (NpuError, OSError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        logging.getLogger(__name__).debug("the error in full", exc_info=True)
        sys.exit(visible(f"npumatmul: {in_words(error)}"))


def _discard_output() -> None:
    """Have what is still to be written to a pipe without a reader go nowhere, also when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
