"""Measuring single matmuls at the level of the C API: what each step costs, and what the model says.

`cases` says what is measured, `measure` measures it, `machine` tells where, `record` is the run as it is saved,
`tables` and `report` print it, and `plots` draws it. Times measured on the simulator are those of the
CPU, and every output says so.
"""

from npumatmul.bench.cases import Case, cases_from, parse_shapes
from npumatmul.bench.machine import describe_machine
from npumatmul.bench.measure import Measurement, Step, measure
from npumatmul.bench.record import Machine, Record, Row, read_record
from npumatmul.bench.report import as_csv, as_markdown, row_of

__all__ = [
    "Case",
    "Machine",
    "Measurement",
    "Record",
    "Row",
    "Step",
    "as_csv",
    "as_markdown",
    "cases_from",
    "describe_machine",
    "measure",
    "parse_shapes",
    "read_record",
    "row_of",
]
