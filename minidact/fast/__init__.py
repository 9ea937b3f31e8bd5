"""What makes it fast: everything that Numba compiles. ops.py and bert.py are the definition."""

from . import threads  # noqa: F401  before anything imports Numba
