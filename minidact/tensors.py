"""A safetensors file as arrays: mapped into memory, checked, and widened only when asked for.

The file is not copied. Its pages are read when they are needed, and processes that answer with the
same model share them. What packs weights takes them as they are stored (`Tensors.stored`), so a
model in float16 is never there in float32 as a whole.
"""

import json
import mmap
from collections import UserDict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from .errors import InputError

# as they are stored, and which bits are all 1 in infinity and NaN
KINDS: dict[str, tuple[np.dtype, Any]] = {
    "F64": (np.dtype("<f8"), np.uint64(0x7FF << 52)),
    "F32": (np.dtype("<f4"), np.uint32(0xFF << 23)),
    "F16": (np.dtype("<f2"), np.uint16(0x1F << 10)),
    "BF16": (np.dtype("<u2"), np.uint16(0xFF << 7)),
}
BYTES = (np.dtype(np.uint8), np.uint8(0))  # of a kind that is not read
PIECE = 1 << 18  # numbers that are checked at once


class Tensors(UserDict):
    """Float32 arrays by name. Each is made when it is first asked for, and kept from then on."""

    def __init__(self, mapped: dict[str, tuple[str, np.ndarray]]):
        """mapped: for each name its kind, of KINDS, and what the file holds."""
        super().__init__()
        self.mapped, self.data = mapped, dict.fromkeys(mapped)

    def __getitem__(self, name: str) -> np.ndarray:
        array = self.data[name]
        if array is None:
            array = self.data[name] = widened(*self.mapped[name])
        return array

    def stored(self, name: str) -> np.ndarray:
        """The array in float16 or float32, as the file has it if nobody has asked for it yet.

        It may be read only.
        """
        if self.data[name] is None and self.mapped[name][0] in ("F16", "F32"):
            return self.mapped[name][1]
        return self[name]

    def __reduce__(self):
        """Pickled as the file has it, without what is not in it any more."""
        now = self.data.items()
        return Tensors, ({n: self.mapped[n] if a is None else ("F32", a) for n, a in now},)

    def __or__(self, other):
        return dict(self) | dict(other)

    def __ror__(self, other):
        return dict(other) | dict(self)


def stored(params, name: str) -> np.ndarray:
    """Tensors.stored, or of a plain dict its array."""
    return params.stored(name) if isinstance(params, Tensors) else params[name]


def unread(params):
    """Tensors as if nobody had asked for any yet; anything else as it is."""
    return Tensors(params.mapped) if isinstance(params, Tensors) else params


def dtype_of(params) -> np.dtype:
    """The dtype that all the arrays have."""
    if isinstance(params, Tensors):
        return np.dtype(np.float32)
    return next(iter(params.values())).dtype


def widened(kind: str, array: np.ndarray) -> np.ndarray:
    """A new float32 array of what a file holds; what does not fit becomes infinite."""
    if kind == "BF16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32)


def is_finite(kind: str, array: np.ndarray) -> bool:
    """Is every number finite, in float32, too?"""
    flat, infinite = array.reshape(-1), KINDS[kind][1]
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        if kind == "F64":
            if not np.isfinite(widened(kind, piece)).all():
                return False
        elif ((piece.view(infinite.dtype) & infinite) == infinite).any():
            return False
    return True


def open_tensors(file: Path) -> tuple[dict[str, tuple[str, np.ndarray]], mmap.mmap]:
    """{name: (kind, array as it is stored)}, and the memory in which they lie.

    A kind that is not in KINDS comes with an array of bytes. Raises InputError for a file that is
    not in this format.
    """
    try:
        with safe_open(file, "np"):  # it checks all that the header says
            pass
        with open(file, "rb") as opened:
            memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise InputError(
            f"{file.parent} has no {file.name} (other formats, such as pickles, are never read)"
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{file} is damaged or not a safetensors file: {error}") from None
    length = int.from_bytes(memory[:8], "little")
    header, found = json.loads(memory[8 : 8 + length]), {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            kind: np.dtype = KINDS.get(entry["dtype"], BYTES)[0]
            count = (end - begin) // kind.itemsize
            array = np.frombuffer(memory, kind, count, 8 + length + begin)
            shape = entry["shape"] if entry["dtype"] in KINDS else [count]
            found[name] = (entry["dtype"], array.reshape(shape))
    return found, memory


def release(memory: mmap.mmap) -> None:
    """Gives pages that were read back to the system; they are read again when they are needed."""
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        memory.madvise(mmap.MADV_DONTNEED)
