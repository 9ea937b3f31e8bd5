"""How the kernels are compiled: Numba's flags, and where machine code is kept.

Numba's own cache on disk looks at the age of one source file. Our kernels call each other across
files, so machine code lies in a directory named after the content of every file in this folder, and
of the modules whose constants kernels hold, the processor and the vector width: neither an edit nor
another machine can meet code that was compiled for something else. So a kernel belongs in this
folder, and need not be listed anywhere.
"""

import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding
from numba.core.compiler_lock import global_compiler_lock
from numba.core.sigutils import normalize_signature

from ..files import locked
from ..signals import later
from .host import WIDTH

REORDER = frozenset({"contract", "reassoc", "nsz", "arcp"})  # sums in any order; NaN, inf stay


def _cache_directory() -> str | None:
    """The first of these that can be written to; None: machine code is not kept."""
    here = Path(__file__).parent
    holding = ("fast/*.py", "mechanisms/*.py", "ops.py")  # kernels, and constants that they take
    files = [file for pattern in holding for file in sorted(here.parent.glob(pattern))]
    content = [file.read_bytes() for file in files]
    version = hashlib.sha256(b"".join(content)).hexdigest()[:12]
    forced = os.environ.get("MINIDACT_INT8", "")  # int8.py: what the machine code multiplies with
    machine = f"{numba.__version__} {binding.get_host_cpu_name()} {numba.config.CPU_NAME}"
    machine += f" {numba.config.CPU_FEATURES}"
    host = hashlib.sha256(machine.encode()).hexdigest()[:6]  # others may keep theirs beside it
    name = f"minidact-{sys.implementation.cache_tag}-{WIDTH}{forced}-{host}-"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    chosen = [numba.config.CACHE_DIR] if numba.config.CACHE_DIR else []
    for parent in (*chosen, here / "__pycache__", home):
        if str(parent).startswith("~"):  # a user without a home
            continue
        try:
            directory = Path(parent) / (name + version)
            directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
        except OSError:
            continue
        for old in directory.parent.glob(name + "*"):
            if old != directory:
                shutil.rmtree(old, ignore_errors=True)
        return str(directory)
    return None


_DIRECTORY = _cache_directory()


def is_on() -> bool:
    """Does Numba compile at all? With NUMBA_DISABLE_JIT=1 the NumPy reference does the work."""
    return not numba.config.DISABLE_JIT


def is_kept() -> bool:
    """Is there a directory where machine code can be kept for the next process?"""
    return _DIRECTORY is not None


def is_compiled(name: str) -> bool:
    """Is there machine code of this kernel from an earlier run? If not, it will take seconds."""
    return _DIRECTORY is not None and any(Path(_DIRECTORY).glob(f"*/{name}-*.nbi"))


_to_say: list = []  # what before_compiling was given, until it is called
_under_way: list = []  # kernels that are being compiled: one calls for the next
_made: list = []  # all kernels, which liberties their sums take, and whether they are inlined


def before_compiling(say: Callable[[], object]) -> None:
    """Has say called, once, before a kernel is compiled because no earlier run left its code."""
    if is_on() and is_kept():
        _to_say[:] = [say]
    elif is_on():
        say()


def waiting() -> AbstractContextManager:
    """Where the outermost kernel is compiled, Ctrl-C waits."""
    return nullcontext() if _under_way else later(signal.SIGINT)


def _keep_on_disk(kernel, directory: str) -> None:
    """Lets a kernel's machine code be kept, so that other processes can trust it.

    - Code is only read and saved for kernels that Python calls. A kernel that another one calls is
      compiled into it anew: Numba (0.68) links code that it read from disk in such a way that what
      it saves then jumps to address 0 in the next process.
    - Ctrl-C waits until a kernel is compiled: Numba swallows KeyboardInterrupt in places.
    - No two processes save at the same time. Each reads an index, adds a line and writes it back:
      two at once could each end up with the other's code under their name.
    """
    cache, compile_ = kernel._cache, kernel.compile
    read: set = set()  # signatures whose code came from the disk
    load, save = cache.load_overload, cache.save_overload

    def compile_alone(signature):
        with waiting(), global_compiler_lock:
            types, _ = normalize_signature(signature)
            if _under_way and types in read:
                del kernel.overloads[types]
                read.remove(types)
            _under_way.append(kernel)
            try:
                return compile_(signature)
            finally:
                _under_way.pop()

    def load_alone(signature, context):
        if len(_under_way) > 1:
            return None
        found = None
        try:
            found = load(signature, context)
        except Exception:  # a file that was cut short raises many kinds: it is written anew
            with suppress(OSError), locked(Path(directory) / "lock"):
                cache.flush()
        if found is None:
            while _to_say:
                _to_say.pop()()
        else:
            read.add(normalize_signature(signature)[0])
        return found

    def save_alone(signature, code):
        if len(_under_way) > 1:
            return
        try:
            with locked(Path(directory) / "lock"):
                save(signature, code)
        except OSError:  # the disk is full, or the directory gone: used now, compiled again later
            pass

    kernel.compile, cache.load_overload, cache.save_overload = compile_alone, load_alone, save_alone


def jit(parallel=False, fastmath=REORDER, inlined=False):
    """numba.njit as every kernel wants it.

    error_model "numpy": a division cannot raise, so that LLVM can vectorise the loop around it.
    fastmath: sums may be reordered, nothing more. nogil: other Python threads go on meanwhile.
    inlined: it becomes part of each kernel that calls it. Without, the process that compiles may
    run one copy of a function and later ones another, which sums in another order.
    """

    def decorate(function):
        kernel = _compiled(function, parallel, fastmath, _DIRECTORY, inlined)
        _made.append((kernel, fastmath, inlined))
        return kernel

    return decorate


def _compiled(function, parallel: bool, fastmath, directory: str | None, inlined: bool = False):
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, directory or ""
    try:
        kernel = numba.njit(
            cache=directory is not None,
            nogil=True,
            error_model="numpy",
            fastmath=set(fastmath),
            parallel=parallel,
            forceinline=inlined,
        )(function)
    finally:
        numba.config.CACHE_DIR = before
    if directory is not None and is_on():
        _keep_on_disk(kernel, directory)
    return kernel


def with_one_thread() -> dict[int, Any]:
    """{id of a kernel: the same function, compiled without threads}, of all there are (fork.py)."""
    directory = _DIRECTORY and os.path.join(_DIRECTORY, "one-thread")
    with suppress(OSError):
        if directory:
            os.makedirs(directory, exist_ok=True)
    return {
        id(kernel): _compiled(kernel.py_func, False, fastmath, directory, inlined)
        for kernel, fastmath, inlined in _made
    }
