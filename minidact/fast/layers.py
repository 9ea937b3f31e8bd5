"""The layers of a network for answers: packed as a precision wants them, or the NumPy reference.

All of them have the same two methods, packed.Encoder's `workspace` and `layer`.
"""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from .. import bert, ops
from ..config import Config
from ..errors import InputError, known
from .packed import Encoder
from .packed_int8 import EncoderInt8

BITS = ("32", "16", "8")  # of a weight in a product


class Reference:
    """bert.py's own layers, unpacked, in any dtype: the definition of what the others compute."""

    def __init__(self, params: dict, config: Config, calc: Any = ops, bits: str | None = None):
        """calc: ops or kernels. bits: "8" for products that are quantised as int8.py says."""
        self.params, self.config, self.calc = params, config, calc
        if bits == "8":
            self.calc = SimpleNamespace(**vars(ops) | {"linear_forward": _linear_int8})

    def workspace(self, offsets) -> None:
        """It needs none."""

    def layer(self, n: int, x, offsets, workspace):
        """Runs layer n, and writes its output over x (T, C). Returns received (T,)."""
        out, received, _ = bert.layer_forward(self.params, self.config, n, x, offsets, self.calc)
        x[:] = out
        return received


def _linear_int8(x, w, b):
    return ops.linear_int8(x, w, b)[0], None


def layers_for(params: dict, config: Config, calc: ModuleType, bits: int | None = None) -> Any:
    """The layers to answer with, by the calculus and the precision that are wanted.

    bits: 32, 16 (weights rounded to float16) or 8 (weights and activations quantised); None: 16 if
    float16 holds all weights exactly, else 32. Raises InputError for other bits, and for weights
    that float16 cannot hold.
    """
    wanted = None if bits is None else known("bits", str(bits), BITS)
    if wanted == "16":
        params = {name: _rounded(name, array) for name, array in params.items()}
    if calc is ops:
        return Reference(params, config, ops, wanted)
    if wanted == "8":
        return EncoderInt8(params, config)
    return Encoder(params, config, halves=wanted != "32")


def _rounded(name: str, array):
    """A layer's matrix as float16 holds it; all else as it is."""
    if array.ndim < 2 or ".layer." not in name:
        return array
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16).astype(array.dtype)
    if not np.isfinite(rounded).all():
        raise InputError(f"bits is 16, and {name} holds numbers that float16 cannot hold")
    return rounded
