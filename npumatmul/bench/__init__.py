"""Measuring matmuls: what each step costs through the C API and through this library, and what the model says.

`run` measures, by the name of a benchmark; `running` lists them, each a file of its own whose class says its options.
`measure` is one case by itself; `record` is a run as it is saved, `tables` and `report` print it, `plots` and `page`
draw it, `comparing` says what changed between two, and `sharing` makes it fit to be sent.
Times measured on the simulator are those of the CPU, and every output says so.
"""

from npumatmul.bench.cases import Case, cases_from
from npumatmul.bench.comparing import compare
from npumatmul.bench.machine import describe_machine
from npumatmul.bench.measure import measure
from npumatmul.bench.page import as_html
from npumatmul.bench.record import Machine, Record, Row, read_record
from npumatmul.bench.report import as_csv, as_markdown
from npumatmul.bench.running import run
from npumatmul.bench.sampling import Sampling
from npumatmul.bench.shapes import parse_shapes
from npumatmul.bench.sharing import share

__all__ = [
    "Case",
    "Machine",
    "Record",
    "Row",
    "Sampling",
    "as_csv",
    "as_html",
    "as_markdown",
    "cases_from",
    "compare",
    "describe_machine",
    "measure",
    "parse_shapes",
    "read_record",
    "run",
    "share",
]
