"""`npumatmul onnx`: what of a model runs where, running it, and comparing it with ONNX Runtime."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from npumatmul.cli.files import check_outputs
from npumatmul.cli.tables import Column, print_table
from npumatmul.cli.terminal import results, say

if TYPE_CHECKING:
    from npumatmul.onnx import Inspected

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="ONNX models whose products run on the NPU.",
)

ModelArgument = Annotated[Path, typer.Argument(help="An ONNX file.")]
SchemeOption = Annotated[str, typer.Option(help="w16a16, w8a8, w4a8, ... (docs/schemes.md).")]
SizeOption = Annotated[
    list[str] | None, typer.Option("--size", help="Of a dimension that the model names, as length=128; others are 1.")
]
InputOption = Annotated[
    list[str] | None, typer.Option("--input", "-i", help="An input, as name=file.npy; others are random.")
]
SeedOption = Annotated[int, typer.Option(help="Of random inputs.")]
DeviceOption = Annotated[str | None, typer.Option(help="The device, such as sim:rk3588.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def _in_words(model: Path) -> Iterator[None]:
    """Errors of ONNX Runtime as those of a command."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
        raise RuntimeError(f"{model}: ONNX Runtime says: {' '.join(text.split())}") from error


@app.command("inspect", short_help="What would run where.")
def inspect_command(
    model: ModelArgument,
    scheme: SchemeOption = "w16a16",
    soc: Annotated[str, typer.Option(help="The chip that times are modelled for.")] = "rk3588",
    size: SizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List nodes with products: where they would run, their multiply-accumulates, modelled times."""
    from npumatmul.chips import chip
    from npumatmul.onnx import inspect

    found = inspect(model, chip(soc), scheme, _sizes(size))
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=1))
        return
    if not found:
        say(f"{model} has no nodes with products that could run on the NPU")
        return
    _print(found, soc, scheme)


def _print(found: list[Inspected], soc: str, scheme: str) -> None:
    known = sum(each.macs or 0 for each in found)
    here = sum(each.macs or 0 for each in found if each.why_not is None)
    print_table(
        results(),
        f"modelled for {soc}, {scheme}; not measured",
        Column("node", [each.name for each in found], left=True),
        [
            Column("operator", [each.op_type for each in found], left=True),
            Column("M x K x N", [f"{_or(each.rows)} x {each.k} x {each.n}" if each.k else "-" for each in found]),
            Column("MACs", [f"{each.macs / 1e6:.2f} M" if each.macs else "-" for each in found]),
            Column("on", ["NPU" if each.why_not is None else "CPU" for each in found], left=True),
            Column("NPU\nus", [_micros(each.npu_seconds) for each in found]),
            Column("CPU\nus", [_micros(each.cpu_seconds) for each in found]),
        ],
    )
    for each in found:
        if each.why_not is not None:
            say(f"{each.name} stays: {each.why_not}")
    if known:
        say(f"{100 * here / known:.1f} % of {known / 1e6:.1f} million multiply-accumulates on the NPU")
    unknown = sum(each.macs is None for each in found)
    if unknown:
        say(f"sizes of {unknown} nodes are not known before the model runs; --size names those that it leaves open")


@app.command("run", short_help="Run a model.")
def run_command(
    model: ModelArgument,
    inputs: InputOption = None,
    size: SizeOption = None,
    scheme: SchemeOption = "w16a16",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A .npz file of the results.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
) -> None:
    """Run a model, and print shapes and ranges of its results."""
    from npumatmul.onnx import InferenceSession

    if output is not None:
        check_outputs({"--output": output}, [model])
    with _in_words(model):
        session = InferenceSession(str(model), scheme=scheme, device=device)
        feeds = _feeds(session, inputs, _sizes(size), seed)
        names = [each.name for each in session.get_outputs()]
        made = session.run(None, feeds)
    say(repr(session))
    for name, values in zip(names, made, strict=True):
        array = np.asarray(values)
        span = f", {array.min():.6g} to {array.max():.6g}" if array.size and array.dtype.kind in "fiub" else ""
        results().print(f"{name}: {array.dtype} {tuple(array.shape)}{span}", soft_wrap=True)
    if output is not None:
        arrays: Any = {name: np.asarray(values) for name, values in zip(names, made, strict=True)}
        np.savez(output, **arrays)


@app.command("compare", short_help="Errors of nodes beside ONNX Runtime.")
def compare_command(
    model: ModelArgument,
    inputs: InputOption = None,
    size: SizeOption = None,
    scheme: SchemeOption = "w16a16",
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a model on the NPU and by ONNX Runtime, and compare results of nodes; errors of those before are in them."""
    from npumatmul.onnx import compare
    from npumatmul.onnx.loading import load_model, session_of

    with _in_words(model):
        loaded = load_model(model)
        feeds = _feeds(session_of(loaded), inputs, _sizes(size), seed)
        found = compare(loaded, feeds, scheme=scheme, device=device)
    if as_json:
        rows = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(e).items()}
            for e in found
        ]
        print(json.dumps(rows, indent=1))
        return
    print_table(
        results(),
        f"{scheme} beside ONNX Runtime",
        Column("node", [each.name for each in found], left=True),
        [
            Column("operator", [each.op_type for each in found], left=True),
            Column("SQNR\ndB", ["equal" if each.sqnr == math.inf else f"{each.sqnr:.1f}" for each in found]),
            Column("cosine", [f"{each.cosine:.7f}" for each in found]),
            Column("largest\nerror", [f"{each.largest:.2e}" for each in found]),
        ],
    )


def _sizes(given: list[str] | None) -> dict[str, int]:
    found = {}
    for each in given or []:
        name, _, value = each.rpartition("=")
        if not name or not value.isdecimal() or not 0 < int(value) < 1 << 31:
            raise ValueError(f"--size is {each!r}; it is the name of a dimension and a number, as length=128")
        found[name] = int(value)
    return found


def _feeds(session: Any, given: list[str] | None, sizes: dict[str, int], seed: int) -> dict[str, NDArray[Any]]:
    """Inputs of a model: those of files, and random ones."""
    wanted = {each.name: each for each in session.get_inputs()}
    feeds: dict[str, NDArray[Any]] = {}
    for each in given or []:
        name, equals, path = each.partition("=")
        if not equals:
            raise ValueError(f"--input is {each!r}; it is name=file.npy")
        if name not in wanted:
            raise ValueError(f"--input: the model has no input {name!r}; it has {', '.join(map(repr, wanted))}")
        if name in feeds:
            raise ValueError(f"--input: {name!r} is given twice")
        feeds[name] = _array(path, name, wanted[name])
    open_sizes = {dim for one in wanted.values() for dim in one.shape if isinstance(dim, str)}
    for name in sizes:
        if name not in open_sizes:
            known = ", ".join(map(repr, sorted(open_sizes))) or "none"
            raise ValueError(
                f"--size: no input of the model has a dimension {name!r}; those that it leaves open: {known}"
            )
    rng = np.random.default_rng(seed)
    for name, one in wanted.items():
        if name in feeds:
            continue
        shape = [dim if isinstance(dim, int) and dim > 0 else sizes.get(str(dim), 1) for dim in one.shape]
        dtype = _DTYPES.get(one.type)
        if dtype is None:
            raise ValueError(f"the input {name} is of {one.type}, which cannot be random; give --input {name}=file.npy")
        if np.dtype(dtype).kind == "f":
            feeds[name] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[name] = rng.integers(0, 2 if dtype == "bool" else 8, shape).astype(dtype)
    return feeds


def _array(path: str, name: str, wanted: Any) -> NDArray[Any]:
    """The array of a file, which has to be of the type and shape of an input."""
    try:
        made: Any = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"--input {name}: {path} is no .npy file: {error}") from error
    if not isinstance(made, np.ndarray):
        made.close()
        raise ValueError(f"--input {name}: {path} holds several arrays or none; numpy.save writes a single one")
    dtype = _DTYPES.get(wanted.type)
    if dtype is not None and made.dtype != dtype:
        raise ValueError(
            f"--input {name}: {path} holds {made.dtype} and the model takes {dtype}; write "
            f"np.save(path, x.astype(np.{dtype}))"
        )
    shape = wanted.shape
    fits = len(shape) == made.ndim and all(
        not isinstance(n, int) or n == m for n, m in zip(shape, made.shape, strict=True)
    )
    if shape and not fits:
        takes = ", ".join("?" if n is None else str(n) for n in shape)
        raise ValueError(f"--input {name}: {path} holds an array of shape {made.shape}; the model takes ({takes})")
    return made


_DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(int64)": "int64",
    "tensor(int32)": "int32", "tensor(int8)": "int8", "tensor(uint8)": "uint8", "tensor(bool)": "bool",
}  # fmt: skip


def _or(value: int | None) -> str:
    return "?" if value is None else str(value)


def _micros(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:.0f}"
