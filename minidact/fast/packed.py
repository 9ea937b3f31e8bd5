"""The layers once more, for answers only: weights packed, nothing kept for a backward pass.

bert.py is the definition; this is what runs when no gradient is wanted, in float32. What makes it
faster changes nothing that is computed, and a test holds the two against each other:
- every weight is packed once, when the model is loaded (gemm.py says into what, and why), all of
  them into one array, so that the memory's pages are few and large;
- query, key and value are one product, and GELU is applied to a block just made;
- what a backward pass would need is not kept, and buffers serve layer after layer;
- a layer is one call from Python: with one short sentence, ten calls would be a tenth of the time.
"""

import numpy as np

from .. import bert
from ..config import Config
from . import kernels
from .gemm import PANEL, aligned, linear_packed, pack
from .jit import HALVES, jit


class Encoder:
    """The packed layers of a model. Nothing is written to it: threads may share it.

    In 16 bits, if no weight loses a digit by it and the processor can widen them itself.
    """

    def __init__(self, params: dict, config: Config):
        c, f = config.hidden_size, config.intermediate_size
        self.config, layers = config, range(config.num_hidden_layers)
        matrices = [_matrices(params, f"bert.encoder.layer.{n}") for n in layers]
        with np.errstate(over="ignore"):  # what float16 cannot hold shows in the comparison
            halves = [[w.astype(np.float16) for w in layer] for layer in matrices]
        pairs = [zip(ws, hs, strict=True) for ws, hs in zip(matrices, halves, strict=True)]
        half = HALVES and all(np.array_equal(w, h) for layer in pairs for w, h in layer)
        if half:
            matrices = [[h.view(np.uint16) for h in layer] for layer in halves]
        sizes = [_panels(o) * i * PANEL for o, i in ((3 * c, c), (c, c), (f, c), (c, f))]
        # every panel of a layer, and every vector, in the order in which _layer needs them
        kind = np.dtype(np.uint16 if half else np.float32)
        room = aligned(len(layers) * sum(sizes) * kind.itemsize // 4)
        self.panels = room.view(kind).reshape(len(layers), sum(sizes))
        for layer, ws in zip(self.panels, matrices, strict=True):
            for w, at, size in zip(ws, np.cumsum([0, *sizes]), sizes, strict=False):
                pack(w, layer[at : at + size].reshape(-1, w.shape[1], PANEL))
        self.vectors = np.stack([_vectors(params, f"bert.encoder.layer.{n}") for n in layers])

    def workspace(self, offsets):
        """Buffers for batches with at most the rows of this one."""
        c, f, heads = (
            self.config.hidden_size,
            self.config.intermediate_size,
            self.config.num_attention_heads,
        )
        rows = offsets[-1]
        sizes = ((rows, 3 * c), (rows, c), (rows, c), (rows, f), (heads, rows))
        return tuple(aligned(m * n).reshape(m, n) for m, n in sizes)

    def layer(self, n: int, x, offsets, workspace):
        """Layer n on a ragged batch: x (T, C) float32 is replaced by the layer's output.

        Returns received (H, T): the attention that each token got from others, by head.
        """
        heads, eps = self.config.num_attention_heads, np.float32(self.config.layer_norm_eps)
        return _layer(x, offsets, self.panels[n], self.vectors[n], heads, eps, workspace)


QKV = [f"attention.self.{name}" for name in bert.QKV]


def _matrices(params, at):
    """A layer's weights, query, key and value as one."""
    names = ("attention.output.dense", "intermediate.dense", "output.dense")
    qkv = np.concatenate([params[f"{at}.{name}.weight"] for name in QKV])
    return [qkv, *(params[f"{at}.{name}.weight"] for name in names)]


def _vectors(params, at):
    """A layer's biases, filled up to whole panels, and its layer norms' gamma and beta: (N,)."""
    parts = []
    for names, norm in (
        (QKV, None),
        (["attention.output.dense"], "attention.output.LayerNorm"),
        (["intermediate.dense"], None),
        (["output.dense"], "output.LayerNorm"),
    ):
        bias = np.concatenate([params[f"{at}.{name}.bias"] for name in names])
        parts += bias, np.zeros(_panels(len(bias)) * PANEL - len(bias), np.float32)
        if norm:
            parts += params[f"{at}.{norm}.weight"], params[f"{at}.{norm}.bias"]
    return np.concatenate(parts)


def _panels(outputs):
    return -(-outputs // PANEL)


@jit()
def _linear(x, panels, vectors, gelu, out):
    """One packed product; returns what is left of the layer's panels and vectors."""
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
    rows, c = x.shape
    qkv, mixed, middle, wide, received = workspace
    qkv, mixed, middle, wide = qkv[:rows], mixed[:rows], middle[:rows], wide[:rows]
    scale = np.float32(1 / np.sqrt(c // heads))
    gelu, plain = c > 0, c < 0  # a literal True would be compiled apart from a literal False
    panels, vectors = _linear(x, panels, vectors, plain, qkv)
    none = vectors[:0]  # no dropout, no gates, no weights to keep
    kernels.attend(qkv, offsets, heads, none, none, scale, mixed, received, none)
    panels, vectors = _linear(mixed, panels, vectors, plain, middle)
    kernels.add_layer_norm(middle, x, vectors[:c], vectors[c : 2 * c], eps)
    panels, vectors = _linear(middle, panels, vectors[2 * c :], gelu, wide)
    panels, vectors = _linear(wide, panels, vectors, plain, x)
    kernels.add_layer_norm(x, middle, vectors[:c], vectors[c : 2 * c], eps)
    return received[:, :rows]
