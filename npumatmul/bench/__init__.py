"""Measuring matmuls: what each step costs through the C API and through this library, and what the model says."""

from npumatmul.bench.cases import Case, cases_from
from npumatmul.bench.machine import describe_machine
from npumatmul.bench.measure import measure
from npumatmul.bench.record import Machine, Record, Row, read_record
from npumatmul.bench.report import as_columns, as_csv
from npumatmul.bench.sampling import Sampling
from npumatmul.bench.shapes import parse_shapes

__all__ = [
    "Case",
    "Machine",
    "Record",
    "Row",
    "Sampling",
    "as_columns",
    "as_csv",
    "cases_from",
    "describe_machine",
    "measure",
    "parse_shapes",
    "read_record",
]
