"""What makes it fast: everything that Numba compiles. ops.py and bert.py are the definition."""

from . import threads  # noqa: F401, I001  before anything imports Numba
from . import fork  # noqa: F401  a child can compute, too
