"""What hard.py asks of a network: packed as a precision wants it, or the NumPy reference.

All of them have the same methods: those of Decisions, and packed.Encoder's `workspace` and `layer`.
"""

import hashlib
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from .. import bert, ops, ragged
from ..config import Config
from ..errors import InputError, known
from ..mechanisms import dact, planning, selection, token_gates
from ..ragged import Batch
from ..tensors import stored
from .packed import Encoder
from .packed_int8 import EncoderInt8

BITS = ("32", "16", "8")  # of a weight in a product


class Reference:
    """bert.py and the mechanisms, in any dtype: the definition of what the others compute."""

    def __init__(self, params: Any, config: Config, calc: Any = ops, bits: int | None = None):
        """calc: ops or kernels. bits: 8 for products that are quantised as int8.py says."""
        self.params, self.config, self.calc, self.products = params, config, calc, calc
        if bits == 8:
            self.products = SimpleNamespace(**vars(ops) | {"linear_forward": _linear_int8})

    def embed(self, batch: Batch):
        """Token ids -> x (T, C)."""
        return bert.embeddings_forward(self.params, self.config, batch, self.calc)[0]

    def summary(self, x, offsets):
        """x (T, C) -> s (B, C)."""
        return bert.summary_forward(x, offsets, self.config.summary, self.calc)[0]

    def planner(self, name: str, s):
        """s (B, C) -> pi (B, D)."""
        return planning.planner_forward(s, self.params, name, self.calc)[0]

    def policy(self, name: str, x):
        """x (T, C) -> pi (T,)."""
        z, _ = selection.policy_forward(x, self.params, name, self.calc)
        return self.calc.sigmoid_forward(z)[0]

    def unit(self, layer: int, s, a, p):
        """s (B, C), a (B, Y), p (B,) before the layer -> y (B, Y), h (B,), and a, p after it."""
        y, h = dact.unit_forward(s, self.params, dact.unit_name(layer), self.calc)[1:3]
        return y, h, *dact.accumulate_step(a, p, y, h)

    def margin(self, a, p, left: int, bound: str):
        """a (B, Y), p (B,) -> by how much the top class is safe, and leads, (B,) each, float64."""
        return dact.margin(a, p, left, bound), dact.lead(a)

    def stays(self, layer: int, received, offsets, run, keep: float):
        """Which rows the token gates let go on, of the sentences in run (B,) bool -> (T,) bool."""
        shape, gates = self.config.mechanisms["tokens"], self.params[token_gates.NAME][layer - 1]
        how = (shape.bins, shape.ranks, keep)
        index = token_gates.bins_of(received, np.ones(len(received), bool), offsets, *how)
        return token_gates.stays(gates, index) | ~np.repeat(run, ragged.lengths(offsets))

    def add_dropped(self, x, offsets, keep, sums):
        """Adds the rows of x (T, C) that are not in keep (T,) to their sentences' sums (B, C)."""
        sentence = np.repeat(np.arange(len(sums)), ragged.lengths(offsets))
        np.add.at(sums, sentence[~keep], x[~keep])

    def workspace(self, offsets) -> None:
        """It needs none."""

    def layer(self, n: int, x, offsets, workspace):
        """Runs layer n, and writes its output over x (T, C). Returns received (T,)."""
        out, received, _ = bert.layer_forward(
            self.params, self.config, n, x, offsets, self.products
        )
        x[:] = out
        return received


def _linear_int8(x, w, b):
    return ops.linear_int8(x, w, b)[0], None


def layers_for(params: Any, config: Config, calc: ModuleType, bits: int | None = None) -> Any:
    """The layers to answer with, by the calculus and the precision that are wanted.

    bits: 32, 16 (weights rounded to float16) or 8 (weights and activations quantised); None: 16 if
    float16 holds all weights exactly, else 32 (known_bits has checked them). Raises InputError for
    weights that float16 cannot hold.
    """
    if bits == 16:
        params = {name: _rounded(name, array) for name, array in params.items()}
    if calc is ops:
        return Reference(params, config, ops, bits)
    if bits == 8:
        return EncoderInt8(params, config)
    return Encoder(params, config, halves=bits != 32)


def known_bits(bits: Any) -> int | None:
    """The bits as a number, or None; raises InputError for such as there are not."""
    return None if bits is None else int(known("bits", str(bits), BITS))


def stored_bits(bits: int | None) -> int:
    """The bits that a certificate is for: 8, or 32 for all products that are not quantised."""
    return 8 if bits == 8 else 32


def weights_digest(params: Any, bits: int | None, beside: str = "") -> str:
    """SHA-256 of all arrays in float32, by name, of how bits rounds them, and of a text beside."""
    digest = hashlib.sha256(beside.encode())
    if bits == 8:
        digest.update(f"whole numbers up to {ops.WEIGHT_TOP}".encode())
    for name in sorted(params):
        array = stored(params, name)  # params[name] would stay in memory, widened
        array = _rounded(name, array) if bits == 16 else array
        digest.update(name.encode() + np.ascontiguousarray(array, "<f4").tobytes())
    return digest.hexdigest()


def kernel_for(bits: int | None) -> str:
    """The kernel that runs a layer in this precision; jit.is_compiled says if it is there."""
    return (EncoderInt8 if bits == 8 else Encoder).KERNEL


def _rounded(name: str, array):
    """A matrix of BERT's layers as float16 holds it; all else as it is."""
    if array.ndim < 2 or not name.startswith("bert.encoder.layer."):
        return array
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16).astype(array.dtype)
    if not np.isfinite(rounded).all():
        raise InputError(f"bits is 16, and {name} holds numbers that float16 cannot hold")
    return rounded
