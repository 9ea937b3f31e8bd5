"""The layers of packed.py once more, with products in eight bits (int8.py says how and why).

Only the four products of a layer are in eight bits. Attention, layer norm and GELU stay in float32:
they take little time, and there rounding would be seen. What a product reads is quantised by the
pass that made it, while the row is still in the cache.
"""

import numpy as np
from numba import prange

from . import int8, kernels
from .gemm import PANEL, aligned
from .jit import jit
from .packed import Encoder, norms, of_products, panels_for


class EncoderInt8(Encoder):
    """The packed layers of a model in eight bits; all else is as in its base class."""

    KERNEL = "packed_int8._layer"

    def pack(self, at: str):
        """A layer's panels, columns and layer norms, each end to end in the order of their use."""
        weights, biases = (of_products(self.params, at, kind) for kind in ("weight", "bias"))
        shapes = [(panels_for(len(w)), int8.depth_of(w.shape[1])) for w in weights]
        panels = aligned(sum(p * d for p, d in shapes) * PANEL // 4).view(np.int8)
        columns = np.empty((sum(p for p, _ in shapes), 3, PANEL), np.float32)
        end = first = 0
        for w, b, (count, depth) in zip(weights, biases, shapes, strict=True):
            begin, end = end, end + count * depth * PANEL
            steps = depth // int8.GROUP
            mine = panels[begin:end].reshape(count, steps, PANEL * int8.GROUP)
            int8.pack(w, b, mine, columns[first : first + count])
            first += count
        return panels, columns, norms(self.params, at)

    def workspace(self, offsets):
        """Returns buffers for batches with at most as many rows as this one, offsets (B + 1,)."""
        config, rows = self.config, offsets[-1]
        c, f = config.hidden_size, config.intermediate_size
        sizes = ((rows, 3 * c), (rows, c), (rows, c), (rows, f), (config.num_attention_heads, rows))
        q = np.zeros((rows, int8.depth_of(max(c, f))), int8.KIND)
        buffers = (aligned(m * n).reshape(m, n) for m, n in sizes)
        return (*buffers, q, np.empty(rows, np.float32))

    def layer(self, n: int, x, offsets, workspace):
        """Runs layer n on a ragged batch, as packed.Encoder.layer does."""
        heads, eps = self.config.num_attention_heads, np.float32(self.config.layer_norm_eps)
        return _layer(x, offsets, *self.packed(n), heads, eps, workspace)


@jit()
def _norm_row(x, residual, gamma, beta, eps, q):
    kernels.add_layer_norm_row(x, residual, gamma, beta, eps)
    return int8.quantise_row(x, q)


@jit(parallel=True)
def _norm_many(x, residual, gamma, beta, eps, q, scales):
    for t in prange(len(x)):
        scales[t] = _norm_row(x[t], residual[t], gamma, beta, eps, q[t])


@jit()
def _norm(x, residual, gamma, beta, eps, q, scales):
    """kernels.add_layer_norm, and what it wrote over x quantised to q and scales."""
    if x.size > kernels.WORTH_THREADS:
        _norm_many(x, residual, gamma, beta, eps, q, scales)
    else:
        for t in range(len(x)):
            scales[t] = _norm_row(x[t], residual[t], gamma, beta, eps, q[t])


@jit(parallel=True)
def _quantise_many(x, q, scales):
    for t in prange(len(x)):
        scales[t] = int8.quantise_row(x[t], q[t])


@jit()
def _quantise(x, q, scales):
    if x.size > kernels.WORTH_THREADS:
        _quantise_many(x, q, scales)
    else:
        for t in range(len(x)):
            scales[t] = int8.quantise_row(x[t], q[t])


@jit()
def _linear(q, scales, inputs, panels, columns, gelu, out):
    """Computes one packed product, and returns the rest of the layer's panels and columns."""
    count, depth = (out.shape[1] + PANEL - 1) // PANEL, int8.depth_of(inputs)
    size = count * depth * PANEL
    mine = panels[:size].reshape(count, depth // int8.GROUP, PANEL * int8.GROUP)
    int8.linear_packed(q[:, :depth], scales, mine, columns[:count], gelu, out)
    return panels[size:], columns[count:]


@jit()
def _layer(x, offsets, panels, columns, norms, heads, eps, workspace):
    """Runs one layer, writes its output over x (T, C), and returns received (H, T)."""
    rows, c = x.shape
    qkv, mixed, middle, wide, received, q, scales = workspace
    qkv, mixed, middle, wide = qkv[:rows], mixed[:rows], middle[:rows], wide[:rows]
    q, scales, f = q[:rows], scales[:rows], wide.shape[1]
    scale, none = np.float32(1 / np.sqrt(c // heads)), norms[0, :0]
    gelu, plain = c > 0, c < 0  # literal True and False would be compiled separately
    _quantise(x, q, scales)
    panels, columns = _linear(q, scales, c, panels, columns, plain, qkv)
    kernels.attend(qkv, offsets, heads, none, none, scale, mixed, received, none)
    _quantise(mixed, q, scales)
    panels, columns = _linear(q, scales, c, panels, columns, plain, middle)
    _norm(middle, x, norms[0], norms[1], eps, q, scales)
    panels, columns = _linear(q, scales, c, panels, columns, gelu, wide)
    _quantise(wide, q, scales)
    panels, columns = _linear(q, scales, f, panels, columns, plain, x)
    kernels.add_layer_norm(x, middle, norms[2], norms[3], eps)
    return received[:, :rows]
