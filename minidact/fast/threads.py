"""How many threads work on a kernel, and how they wait for each other.

Numba reads its settings when it is imported, and OpenMP when it is loaded, so this comes first. In
a program that has imported Numba already, its settings stay.
"""

import math
import os
import sys
from contextlib import suppress
from pathlib import Path

from ..errors import InputError

CGROUPS = Path("/sys/fs/cgroup")  # where Linux says what a container may use


def cores(cgroups: Path = CGROUPS) -> int:
    """How many processors this process may keep busy: allowed to it, and within its quota.

    A container with half a processor sees all of the machine's. With more threads than its quota
    feeds it would be stopped in the middle of a kernel, again and again.
    """
    if hasattr(os, "sched_getaffinity"):  # on Linux
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # versions 2, 1
        with suppress(OSError, ValueError):  # no such file; no quota: "max"
            quota, period = map(int, " ".join((cgroups / f).read_text() for f in files).split())
            if quota > 0 and period > 0:
                return min(allowed, math.ceil(quota / period))
    return allowed


def limit_threads() -> None:
    """Tells Numba how many threads to start. Raises InputError for a wish that is no number."""
    wish = os.environ.get("NUMBA_NUM_THREADS", "").strip() or str(cores())
    if not wish.isdecimal() or int(wish) < 1:
        raise InputError(f"NUMBA_NUM_THREADS is {wish!r}; it must be a whole number from 1 on")
    # more threads than processors only take turns, and a few thousand cannot even be started
    os.environ["NUMBA_NUM_THREADS"] = str(min(int(wish), cores()))


def start_threads() -> None:
    """Raises InputError if Numba finds no threads of the kind that NUMBA_THREADING_LAYER names."""
    import numba

    try:
        numba.get_num_threads()
    except ValueError as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"Numba cannot start its threads: {reason}") from None


def use(count: int) -> None:
    """Lets that many of them work."""
    import numba

    numba.set_num_threads(count)


def kind_of_threads() -> str:
    """What runs them: "omp", "tbb" or "workqueue". Known once a kernel has run."""
    import numba

    return numba.threading_layer()


def survive_a_fork() -> bool:
    """Will the child of a fork find threads that work? None have been started, or TBB's were."""
    try:
        return kind_of_threads() == "tbb"
    except ValueError:  # Numba has started none
        return True


def are_slow() -> bool:
    """Has Numba found neither OpenMP nor TBB, though nobody asked for its own threads?"""
    import numba

    return kind_of_threads() == "workqueue" != numba.config.THREADING_LAYER


# How long a thread of GNU's OpenMP waits awake for the others: by default milliseconds. Where other
# programs run, too, those who wait then keep those who are waited for from working. So many turns
# took a quarter of a millisecond, longer than the pauses between the kernels of a pass. With fewer
# (1000) they fall asleep within a pass, and the first ones after a rest take thrice as long.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
if "numba" not in sys.modules:
    limit_threads()
