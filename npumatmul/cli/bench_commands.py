"""The commands of `npumatmul bench`: each benchmark with its options, which are the fields of its class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from npumatmul.cli.bench_options import MEASURING_OPTIONS, OUTPUT_OPTIONS
from npumatmul.cli.options import DeviceOption
from npumatmul.device.device import Device

__all__ = ["add_commands"]


def _text(help_text: str, *names: str) -> Any:
    return Annotated[str | None, typer.Option(*names, help=help_text)]


def _number(help_text: str, *names: str) -> Any:
    return Annotated[int | None, typer.Option(*names, min=1, metavar="<int>", help=help_text)]


def _flag(help_text: str, *names: str) -> Any:
    return Annotated[bool | None, typer.Option(*names, help=help_text)]


_ROWS = _text("M, separated by commas; 8-64*2 and 64-512+64 are ranges.")
_TYPES = _text("fp16, int8, int4, int8xint4 and schemes such as w8a8, separated by commas.")
_SHAPES = _text("llm, square, a model's name, 'M,K,N;...', 'K,N;...' or 'MxKxN', also with ranges, or a CSV file.")
_CORES = _text("How many NPU cores share N, separated by commas.")
_CHECK = _flag("Compare results with exact ones.", "--check/--no-check")
_COLD = _flag("Time everything with empty caches, too.", "--cold/--warm")

#: Options of each benchmark beside those that all have, by fields of its class.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "matmul": {
        "types": _TYPES,
        "schemes": _text("Further schemes, such as w8a8,w4a8_g32."),
        "shapes": _SHAPES,
        "rows": _ROWS,
        "layouts": _text("Layouts of A and C: native, normal."),
        "cores": _CORES,
        "cold": _COLD,
        "check": _CHECK,
    },
    "llm": {
        "models": _text(
            "A GGUF file, a folder or a quantized model, or several with commas; the demo's by default.",
            "-m",
            "--model",
        ),
        "schemes": _text("How weights are stored, separated by commas; w8a8.", "--scheme"),
        "prompts": _text("Tokens of prompts, separated by commas; 128,512. 0: none.", "-p", "--n-prompt"),
        "generated": _text("Tokens to generate, separated by commas; 128. 0: none.", "-n", "--n-gen"),
        "depths": _text("Tokens that were read before, separated by commas; 0,2048.", "-d", "--n-depth"),
        "repetitions": _number("How often each test is timed; 5.", "-r", "--repetitions"),
        "cache": _flag("Keep packed models on disk for the next time.", "--cache/--no-cache"),
    },
    "bandwidth": {
        "sizes": _text("KiB that are read, separated by commas; 64-16384*4."),
        "cores": _text("How many NPU cores read at once; by default one, and all."),
        "host": _flag("Measure the CPU, too.", "--host/--no-host"),
    },
    "overhead": {
        "scheme": _text("Of the product that Python makes; w8a8."),
        "size": _number("It is one row by a square of this size; 64."),
        "calls": _number("Calls of Python that are timed as one; 20."),
    },
    "layout": {
        "types": _text("Matmul types, separated by commas; by default all that the chip has."),
        "k": _number("2048.", "-K", "--k"),
        "n": _number("2048.", "-N", "--n"),
        "rows": _ROWS,
        "cold": _COLD,
        "check": _CHECK,
    },
    "cores": {
        "types": _TYPES,
        "shapes": _SHAPES,
        "rows": _ROWS,
        "masks": _flag("Try each core mask with one context, too.", "--masks/--no-masks"),
        "cold": _COLD,
        "check": _CHECK,
    },
    "batch": {
        "k": _number("2048.", "-K", "--k"),
        "n": _number("2048.", "-N", "--n"),
        "rows": _text("Sizes of batches, separated by commas; 1,4,8,16."),
        "scheme": _text("w8a8."),
        "check": _CHECK,
    },
}
#: Of what is timed otherwise.
_OF_ALL = ("seed", "throttle")
#: What each does, in a line and in a sentence.
_HELP = {
    "matmul": ("Time each step of a matmul.", "Time each step of matmuls, beside the modelled time of the chip."),
    "llm": (
        "Prompts and generation of a language model.",
        "Tokens per second of prompts and of generation, as llama-bench measures and prints them.",
    ),
    "bandwidth": (
        "How fast NPU and CPU read memory.",
        "Bytes per second that the NPU reads, by products of one row with larger and larger weights, and that the CPU "
        "reads and copies.",
    ),
    "overhead": (
        "What calls cost beside what they compute.",
        "Time the functions of the C API, and the ways that Python has to a product, with the smallest one.",
    ),
    "layout": (
        "Native layout of A and C beside the normal one.",
        "Time products in native and in normal layout, with what packing and unpacking costs in each.",
    ),
    "cores": (
        "One core, two, ... and each core mask.",
        "Time products that one core, two, ... share, and one context with each core mask.",
    ),
    "batch": (
        "How many rows to multiply at once.",
        "Time batches of rows with one weight: a batch, each row of it, and which size is best.",
    ),
}


def add_commands(app: typer.Typer) -> None:
    """Add a command for each benchmark, and the vendor's demos."""
    for name, (short, sentence) in _HELP.items():
        app.command(name, short_help=short, help=sentence)(_command(name, OPTIONS[name]))
    app.command("demo", short_help="Print what the vendor's demo prints.")(demo_command)
    app.command("dynshape-demo", short_help="Print what the vendor's demo of dynamic shapes prints.")(dynshape_command)


def demo_command(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="ARGS", help="type M,K,N [B_layout] [AC_layout] [loop] [core_mask] [print] [iommu]"),
    ],
    device: DeviceOption = None,
) -> None:
    """Print what the vendor's static matmul demo prints for the same arguments."""
    from npumatmul.bench.demo import parse_demo, run_demo

    request = parse_demo(arguments)
    raise typer.Exit(0 if run_demo(_device_of_demo(device), request) else 1)


def dynshape_command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="ARGS", help="type M1,K1,N1#M2,K2,N2#... [B_layout] [AC_layout] [loop] [core_mask] [print]"
        ),
    ],
    device: DeviceOption = None,
) -> None:
    """Print what the vendor's demo of dynamic shapes prints for the same arguments: several shapes, one context."""
    from npumatmul.bench.dynshape_demo import parse_dynshape_demo, run_dynshape_demo

    request = parse_dynshape_demo(arguments)
    raise typer.Exit(0 if run_dynshape_demo(_device_of_demo(device), request) else 1)


def _device_of_demo(name: str | None) -> Device:
    from npumatmul.device.current import current_device

    device = current_device(name)
    if device.simulated:
        typer.echo(f"npumatmul: the times are those of a CPU that simulates {device.chip.soc}", err=True)
    return device


def _command(name: str, options: Mapping[str, Any]) -> Callable[..., None]:
    """A function whose parameters are the options: what is not given is the benchmark's own."""
    measuring = {field: option for field, option in MEASURING_OPTIONS.items() if name != "llm" or field in _OF_ALL}
    parameters = {**options, "device": DeviceOption, **measuring, **OUTPUT_OPTIONS}

    def command(**given: Any) -> None:
        from npumatmul.bench.running import benchmark
        from npumatmul.cli import benching
        from npumatmul.cli.bench_outputs import Outputs

        own = {field: given[field] for field in (*options, *measuring) if given[field] is not None}
        shapes = own.get("shapes", "")
        outputs = Outputs(**{field: given[field] for field in OUTPUT_OPTIONS})
        sources = [shapes] if shapes.endswith(".csv") else []
        benching.run(benchmark(name, own), given["device"], outputs, sources)

    command.__annotations__ = dict(parameters)
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # what typer reads
        [
            inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for field, annotation in parameters.items()
        ]
    )
    return command
