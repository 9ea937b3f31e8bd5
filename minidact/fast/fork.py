"""A process that forks: its child computes with one thread.

The threads of OpenMP do not come along, and GNU's ends a child that asks it for work all the same.
So the child has its kernels compiled without threads, and they take the others' place wherever the
modules of this folder name them. Machine code of that kind is kept on disk, too. A process that
forks before it has loaded a model gives its child nothing to worry about.
"""

import os
import sys

from numba.core.compiler_lock import global_compiler_lock

from . import jit, threads


def in_child() -> None:
    """Puts kernels of one thread in the place of all kernels."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns of the same
    if not jit.is_on() or threads.survive_a_fork():
        return
    alone = jit.with_one_thread()
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{__package__}."):
            for key, value in vars(module).items():
                if id(value) in alone:
                    setattr(module, key, alone[id(value)])


if hasattr(os, "register_at_fork"):  # not on Windows
    # nobody forks while another thread compiles: the child could never compile
    lock, release = global_compiler_lock.acquire, global_compiler_lock.release
    os.register_at_fork(before=lock, after_in_parent=release, after_in_child=release)
    os.register_at_fork(after_in_child=in_child)
