"""`npumatmul sklearn`: estimators of scikit-learn, offloaded into folders, and used."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from npumatmul.cli.files import STANDARD, check_outputs, read_matrix, read_standard_input, read_text, write_output
from npumatmul.cli.tables import Column, print_table
from npumatmul.cli.terminal import results, say

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Estimators of scikit-learn whose products run on the NPU.",
)

_PICKLES = (".pkl", ".pickle", ".joblib")
_METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function", "transform")


@app.command("convert", short_help="Offload a fitted estimator into a folder.")
def convert_command(
    model: Annotated[Path, typer.Argument(help="A file of skops, or with --allow-pickle of pickle or joblib.")],
    folder: Annotated[Path, typer.Argument(help="Where it is written to.")],
    scheme: Annotated[str, typer.Option(help="w16a16, w16a16_high or w8a8.")] = "w16a16",
    example: Annotated[
        Path | None, typer.Option(help="With w8a8: rows whose ranges are folded into weights (.csv or .npy).")
    ] = None,
    trusted: Annotated[
        list[str] | None, typer.Option(help="A type outside of scikit-learn that may be made; may be repeated.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Execute what a pickle says; only of files that you made.")
    ] = False,
) -> None:
    """Offload a fitted estimator, or a pipeline, into a folder that `predict` takes."""
    from npumatmul.sklearn import offload, report, save

    estimator = _read(model, allow_pickle, trusted or [])
    rows = None if example is None else read_rows(example)
    made = offload(estimator, scheme, rows)
    save(made, folder)
    found = report(made)
    print_table(
        results(),
        f"{type(estimator).__name__} in {folder}",
        Column("step", [each.step for each in found], left=True),
        [
            Column("weight", [each.product or "-" for each in found], left=True),
            Column("K x N", [f"{each.k} x {each.n}" if each.product else "-" for each in found]),
            Column("scheme", [each.scheme or "-" for each in found], left=True),
            Column("on", ["NPU" if each.product else "CPU" for each in found], left=True),
            Column("bytes", [str(each.nbytes) for each in found]),
        ],
    )


@app.command("predict", short_help="Predict rows of a table.")
def predict_command(
    folder: Annotated[Path, typer.Argument(help="A folder of convert.")],
    data: Annotated[
        Path, typer.Argument(help="Rows, as .csv (a first line of names is passed over) or .npy; - for standard input.")
    ],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(_METHODS)}.")] = "predict",
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A .csv or .npy file; standard output by default.")
    ] = STANDARD,
    device: Annotated[str | None, typer.Option(help="The device, such as sim:rk3588.")] = None,
    trusted: Annotated[
        list[str] | None, typer.Option(help="A type outside of scikit-learn that may be made; may be repeated.")
    ] = None,
) -> None:
    """Predict rows of a table, one line of the result for each."""
    from npumatmul.sklearn import load

    if method not in _METHODS:
        raise ValueError(f"--method is {method!r}; it can be {', '.join(_METHODS)}")
    check_outputs({"--output": output}, [] if data == STANDARD else [data])
    rows = read_rows(data)
    estimator = load(folder, device=device, trusted=trusted or [])
    if not hasattr(estimator, method):
        raise ValueError(f"the estimator in {folder} has no {method}")
    made = getattr(estimator, method)(rows)
    if isinstance(made, list):  # of several outputs: the classes of one beside those of another
        made = np.concatenate(made, axis=1)
    made = np.asarray(made)
    if output.suffix == ".npy":
        stream = io.BytesIO()
        np.save(stream, made, allow_pickle=False)
        write_output(output, stream.getvalue())
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(made.reshape(len(made), -1).tolist())
    write_output(output, text.getvalue().encode())


def read_rows(path: Path) -> NDArray[Any]:
    """Rows of numbers from a table.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or holds something else; the line is named.
    """
    if path.suffix == ".npy":
        return read_matrix(path, "the rows")
    text = read_standard_input("the rows") if path == STANDARD else read_text(path)
    lines = [(number, row) for number, row in enumerate(csv.reader(io.StringIO(text)), 1) if row]
    if lines and not any(_is_numbers([value]) for value in lines[0][1]):  # names of columns
        del lines[0]
    if not lines:
        raise ValueError(f"{path} has no rows of numbers")
    width = len(lines[0][1])
    for number, row in lines:
        if len(row) != width:
            raise ValueError(f"{path}, line {number}: it has {len(row)} values, those before have {width}")
        if not _is_numbers(row):
            raise ValueError(f"{path}, line {number}: {','.join(row)[:60]!r} is not all numbers")
    return np.array([[float(value) for value in row] for _, row in lines])


def _is_numbers(row: Sequence[str]) -> bool:
    try:
        for value in row:
            float(value)
    except ValueError:
        return False
    return True


def _read(model: Path, allow_pickle: bool, trusted: Sequence[str]) -> Any:
    from npumatmul.sklearn.saving import read_skops

    if model.suffix not in _PICKLES:
        return read_skops(model, trusted)
    if not allow_pickle:
        raise ValueError(
            f"{model} is a pickle, and reading one executes what its maker wrote into it; if you trust them, give "
            "--allow-pickle, or save the estimator by skops.io.dump"
        )
    say(f"executing the pickle {model}")
    try:
        if model.suffix == ".joblib":
            import joblib  # type: ignore[import-untyped]

            return joblib.load(model)
        with model.open("rb") as file:
            return pickle.load(file)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{model} cannot be read: {type(error).__name__}: {error}") from error
