"""What this processor can do: how long its vectors are, how many registers, which instructions.

What no machine here could try is said in README.md, "Processors and systems".
"""

import ctypes
import os
import platform

import numba
from llvmlite import binding

from ..errors import InputError

ARM = platform.machine().lower() in ("arm64", "aarch64")
AT_HWCAP, HWCAP_ASIMDDP = 16, 1 << 20  # Linux, on Arm: the kernel's word on dot products


def _features() -> dict[str, bool]:
    """Which instructions there are, by LLVM's names; with NUMBA_CPU_NAME, those that it allows."""
    name, features = numba.config.CPU_NAME, numba.config.CPU_FEATURES
    if features is not None or name not in (None, binding.get_host_cpu_name(), "host"):
        return {word[1:]: word[0] == "+" for word in (features or "").split(",") if word}
    try:
        found = dict(binding.get_host_cpu_features())
    except RuntimeError:  # LLVM does not know on every system
        found = {}
    if ARM:  # LLVM leaves this one out where it does not know the processor by name
        found["dotprod"] = found.get("dotprod", False) or _dot_product()
    return found


def _dot_product() -> bool:
    if platform.system() == "Linux":
        libc = ctypes.CDLL(None)
        libc.getauxval.restype = ctypes.c_ulong
        return bool(libc.getauxval(ctypes.c_ulong(AT_HWCAP)) & HWCAP_ASIMDDP)
    return platform.system() == "Darwin"  # every Arm processor of Apple's computers has them


def _vector_width() -> int:
    """How many float32 one vector register holds: 16 (AVX-512), 8 (AVX2) or 4.

    MINIDACT_VECTOR_WIDTH forces another one, for tests.
    """
    forced = os.environ.get("MINIDACT_VECTOR_WIDTH")
    if forced is not None:
        if forced not in ("16", "8", "4"):
            raise InputError(f"MINIDACT_VECTOR_WIDTH is {forced!r}; there are: 16, 8, 4")
        return int(forced)
    return 16 if HOST.get("avx512f") else 8 if HOST.get("avx2") and HOST.get("fma") else 4


HOST = _features()
WIDTH = _vector_width()
REGISTERS = 32 if WIDTH == 16 or ARM else 16  # of vectors
HALVES = HOST.get("f16c", False) or ARM  # can it widen float16 to float32 by itself?

if (WIDTH == 16 or ARM) and not numba.config.CPU_FEATURES:
    # where LLVM chooses the vectors, it prefers 256 bits on processors that had to slow down for
    # 512; the products use 512 anyway, and the loops around them gain up to a fifth
    chosen = HOST | {"prefer-256-bit": False} if WIDTH == 16 else HOST
    numba.config.CPU_FEATURES = ",".join(f"{'-+'[on]}{name}" for name, on in sorted(chosen.items()))
