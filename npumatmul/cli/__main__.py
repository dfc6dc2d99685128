"""``python -m npumatmul.cli``."""

from npumatmul.cli import main

main()
