"""What makes a machine's NPU slow or broken: checks, each of which says what is so, why it matters, and what to do.

`diagnose` makes a `Report` of `Finding`s. Checks look at files of Linux below any root (`machine.py`), so that a board
can be diagnosed from a copy of its files, too; what has to be tried (`trial.py`) is tried on the machine itself alone.
"""

from npumatmul.doctor.diagnosis import Report, diagnose
from npumatmul.doctor.finding import Finding, Level

__all__ = ["Finding", "Level", "Report", "diagnose"]
