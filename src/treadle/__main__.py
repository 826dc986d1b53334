"""`python -m treadle` is `treadle`."""

from treadle.cli import program

program()
