"""Measuring single matmuls at the level of the C API: what each step costs, and what the model says.

`cases` says what is measured, `measure` measures it, `machine` records where, `report` prints and saves it, and
`roofline` draws it. Times measured on the simulator are those of the CPU, and every output says so.
"""

from npumatmul.bench.cases import Case, cases_from, parse_shapes
from npumatmul.bench.machine import describe_machine
from npumatmul.bench.measure import Measurement, Step, measure
from npumatmul.bench.report import as_columns, as_csv, as_json

__all__ = [
    "Case",
    "Measurement",
    "Step",
    "as_columns",
    "as_csv",
    "as_json",
    "cases_from",
    "describe_machine",
    "measure",
    "parse_shapes",
]
