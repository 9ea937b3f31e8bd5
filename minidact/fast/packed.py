"""The layers of a BERT for inference only, with packed weights, in float32.

bert.py defines what a layer computes. This file computes the same, and a test compares the two. It
is faster for four reasons:
- Every weight is packed once (gemm.py says how and why), when a sentence first reaches its layer.
  All weights of a layer go into one array, so that the pages of memory are few and large.
- Query, key and value are one product, and GELU is applied to each block as soon as it is made.
- Nothing is kept for a backward pass, and all layers use the same buffers.
- A layer is one call from Python. With one short sentence, ten calls would be a tenth of the time.
"""

from typing import Any

import numpy as np

from .. import bert
from ..config import Config
from ..tensors import stored
from . import kernels
from .decisions import Decisions
from .gemm import PANEL, aligned, linear_packed, pack, starts_of
from .host import HALVES
from .jit import jit


class Encoder(Decisions):
    """The packed layers of a model. A layer is packed when a sentence first reaches it.

    Nothing else ever changes, so threads may share them. Weights that float16 holds exactly are
    packed in 16 bits, if the processor itself can widen them.
    """

    KERNEL = "packed._layer"  # what jit.is_compiled is asked about

    def __init__(self, params, config: Config, halves: bool = True):
        """params: float32 arrays under Hugging Face's names, as network.shapes(config) lists them.

        halves: may they be packed as float16, if it holds all of a layer's exactly?
        """
        super().__init__(params, config)
        self.halves = halves and HALVES
        self._packed: dict[int, tuple] = {}

    def packed(self, n: int):
        """A layer's panels, and whatever else `layer` reads beside them."""
        if n not in self._packed:
            self._packed[n] = self.pack(f"bert.encoder.layer.{n}")
        return self._packed[n]

    def pack(self, at: str):
        """A layer's panels and vectors, each end to end in the order in which _layer uses them."""
        weights = of_products(self.params, at, "weight")
        halves: list[Any] = [halved(w) for w in weights] if self.halves else [None]
        if all(half is not None for half in halves):
            weights = [half.view(np.uint16) for half in halves]
        else:
            weights = [w.astype(np.float32, copy=False) for w in weights]
        sizes, kind = [panels_for(len(w)) * w.shape[1] * PANEL for w in weights], weights[0].dtype
        panels, end = aligned(sum(sizes) * kind.itemsize // 4).view(kind), 0
        for w, size in zip(weights, sizes, strict=True):
            begin, end = end, end + size
            pack(w, panels[begin:end].reshape(-1, w.shape[1], PANEL))
        return panels, _vectors(self.params, at)

    def workspace(self, offsets):
        """Returns float32 buffers for batches with at most as many rows as this one.

        offsets (B + 1,) are int64. The buffers are what `layer` takes as its workspace.
        """
        c, f, heads = (
            self.config.hidden_size,
            self.config.intermediate_size,
            self.config.num_attention_heads,
        )
        rows = offsets[-1]
        sizes = ((rows, 3 * c), (rows, c), (rows, c), (rows, f), (heads, rows))
        return tuple(aligned(m * n).reshape(m, n) for m, n in sizes)

    def layer(self, n: int, x, offsets, workspace):
        """Runs layer n (from 0) on a ragged batch, and writes its output over x (T, C), float32.

        Returns received (H, T), the attention that each token got from the others, for every head.
        It lies in the workspace, so the next call overwrites it.
        """
        heads, eps = self.config.num_attention_heads, np.float32(self.config.layer_norm_eps)
        return _layer(x, offsets, *self.packed(n), heads, eps, workspace)


# a layer's products, in the order of their use; the first is query, key and value in one
PRODUCTS = (
    [f"attention.self.{name}" for name in bert.QKV],
    ["attention.output.dense"], ["intermediate.dense"], ["output.dense"],
)  # fmt: skip


def of_products(params, at, kind):
    """Returns a layer's four weight matrices, or their four biases; kind: "weight" or "bias".

    They are as the file has them, in float16 or float32, and may be read only.
    """
    groups = [[stored(params, f"{at}.{name}.{kind}") for name in names] for names in PRODUCTS]
    return [np.concatenate(group) if len(group) > 1 else group[0] for group in groups]


def _vectors(params, at):
    """Returns a layer's vectors as one, (N,): biases, and each layer norm's gamma and beta.

    The biases are padded with 0 to whole panels.
    """
    biases = (b.astype(np.float32) for b in of_products(params, at, "bias"))
    qkv, mixed, wide, out = (starts_of(b).ravel() for b in biases)
    after_attention, after_all = norms(params, at).reshape(2, -1)
    return np.concatenate([qkv, mixed, after_attention, wide, out, after_all])


def norms(params, at):
    """Returns a layer's two layer norms as (4, C): gamma, beta, gamma, beta."""
    layer_norms = (f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm")
    return np.stack([params[f"{n}.{kind}"] for n in layer_norms for kind in ("weight", "bias")])


def halved(w) -> Any:
    """Returns a float16 or float32 array in float16, or None if that changes any number."""
    if w.dtype == np.float16:
        return w
    with np.errstate(over="ignore"):  # a weight too large for float16 fails the comparison
        half = w.astype(np.float16)
    return half if np.array_equal(w, half) else None


def panels_for(outputs):
    """Returns the number of panels that a weight with so many outputs is packed into."""
    return -(-outputs // PANEL)


@jit()
def _linear(x, panels, vectors, gelu, out):
    """Computes one packed product, and returns the rest of the layer's panels and vectors."""
    depth, count = x.shape[1], (out.shape[1] + PANEL - 1) // PANEL
    size, starts = count * depth * PANEL, count * PANEL
    linear_packed(
        x,
        panels[:size].reshape(count, depth, PANEL),
        vectors[:starts].reshape(count, PANEL),
        gelu,
        out,
    )
    return panels[size:], vectors[starts:]


@jit()
def _layer(x, offsets, panels, vectors, heads, eps, workspace):
    """Runs one layer, writes its output over x (T, C), and returns received (H, T)."""
    rows, c = x.shape
    qkv, mixed, middle, wide, received = workspace
    qkv, mixed, middle, wide = qkv[:rows], mixed[:rows], middle[:rows], wide[:rows]
    scale = np.float32(1 / np.sqrt(c // heads))
    gelu, plain = c > 0, c < 0  # literal True and False would be compiled separately
    panels, vectors = _linear(x, panels, vectors, plain, qkv)
    none = vectors[:0]  # no dropout, no gates, no weights to keep
    kernels.attend(qkv, offsets, heads, none, none, scale, mixed, received, none)
    panels, vectors = _linear(mixed, panels, vectors, plain, middle)
    kernels.add_layer_norm(middle, x, vectors[:c], vectors[c : 2 * c], eps)
    panels, vectors = _linear(middle, panels, vectors[2 * c :], gelu, wide)
    panels, vectors = _linear(wide, panels, vectors, plain, x)
    kernels.add_layer_norm(x, middle, vectors[:c], vectors[c : 2 * c], eps)
    return received[:, :rows]
