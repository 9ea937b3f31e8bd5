"""The hot half of ops.py in Numba: same names, same signatures, same caches, float32.

What is not written again here is ops.py's own, so `ops` and `kernels` can be exchanged wherever a
function takes the calculus as an argument. Four habits make LLVM vectorise these loops:
- float32 literals only, because one Python float would promote a whole expression to float64;
- no call into the C library: exp and the normal distribution are polynomials in special.py;
- error_model="numpy", so that a division cannot raise and needs no branch;
- work on a row is a function of its own: inside a prange the leave to reorder sums is lost.
Matrix products are in gemm.py, attention in attention.py.
"""

import math

import numpy as np
from numba import prange

from .. import ops, ragged
from ..ops import (  # noqa: F401  what NumPy does as well
    attention_size,
    cross_entropy_backward,
    cross_entropy_forward,
    dropout_backward,
    dropout_bits,
    dropout_least,
    dropout_mask,
    embedding_backward,
    embedding_forward,
    first_rows_backward,
    first_rows_forward,
    mean_rows_backward,
    relu_backward,
    relu_forward,
    sigmoid_backward,
    sigmoid_forward,
    softmax_backward,
    softmax_forward,
    squared_error_backward,
    squared_error_forward,
    tanh_backward,
    tanh_forward,
)
from . import special
from .attention import attend, attention_backward, attention_forward  # noqa: F401
from .gemm import linear_backward, linear_forward  # noqa: F401
from .jit import jit

WORTH_THREADS = 1 << 14  # numbers; waking the threads costs as much as working through these
CHUNKS = 16  # fixed, so that a sum over rows does not depend on the number of threads

F = np.float32


# ---------------------------------------------------------------------------- gelu


@jit(parallel=True)
def _gelu_forward(x, out):
    for i in prange(x.size):
        out[i] = special.gelu(x[i])


@jit(parallel=True)
def _gelu_backward(dout, x, dx):
    for i in prange(x.size):
        cdf, density = special.normal(x[i])
        slope = x[i] * density if abs(x[i]) < F(15.0) else F(0.0) * density
        dx[i] = dout[i] * (cdf + slope)


def gelu_forward(x):
    out = np.empty(x.shape, x.dtype)
    _gelu_forward(x.reshape(-1), out.reshape(-1))
    return out, x


def gelu_backward(dout, cache):
    x = cache
    dx = np.empty(x.shape, x.dtype)
    _gelu_backward(dout.reshape(-1), x.reshape(-1), dx.reshape(-1))
    return dx


# ---------------------------------------------------------------------------- dropout


@jit(parallel=True)
def _dropout_forward(x, bits, least, scale, mask, out):
    for i in prange(x.size):
        mask[i] = scale if bits[i] >= least else F(0.0)
        out[i] = x[i] * mask[i]


def dropout_forward(x, rate, rng):
    if rate == 0 or rng is None:
        return x, None
    (mask, out), bits = np.empty((2, *x.shape), x.dtype), dropout_bits(x.size, rng)
    flat = (x.reshape(-1), bits, dropout_least(rate), F(1 / (1 - rate)))
    _dropout_forward(*flat, mask.reshape(-1), out.reshape(-1))
    return out, mask


# ---------------------------------------------------------------------------- layer norm


@jit()
def mean_and_inv_std(x, eps):
    size, mean, variance = F(len(x)), F(0.0), F(0.0)
    for c in range(len(x)):
        mean += x[c]
    mean /= size
    for c in range(len(x)):
        variance += (x[c] - mean) * (x[c] - mean)
    return mean, F(1.0) / np.sqrt(variance / size + eps)


@jit()
def _layer_norm_row(x, gamma, beta, eps, out, normal):
    mean, inv = mean_and_inv_std(x, eps)
    for c in range(len(x)):
        normal[c] = (x[c] - mean) * inv
        out[c] = normal[c] * gamma[c] + beta[c]
    return inv


@jit(parallel=True)
def _layer_norm_forward(x, gamma, beta, eps, out, normal, inv_std):
    for t in prange(len(x)):
        inv_std[t, 0] = _layer_norm_row(x[t], gamma, beta, eps, out[t], normal[t])


@jit(inlined=True)
def _layer_norm_row_backward(dout, normal, inv, gamma, dx, dgamma, dbeta):
    size, mean, along = F(len(dout)), F(0.0), F(0.0)  # of dnormal, of dnormal * normal
    for c in range(len(dout)):
        mean += dout[c] * gamma[c]
        along += dout[c] * gamma[c] * normal[c]
    mean /= size
    along /= size
    for c in range(len(dout)):
        dgamma[c] += dout[c] * normal[c]
        dbeta[c] += dout[c]
        dx[c] = (dout[c] * gamma[c] - mean - normal[c] * along) * inv


@jit(parallel=True)
def _layer_norm_backward(dout, normal, inv_std, gamma, dx, dgammas, dbetas):
    rows = len(dout)
    for chunk in prange(CHUNKS):
        dgamma, dbeta = dgammas[chunk], dbetas[chunk]
        for t in range(rows * chunk // CHUNKS, rows * (chunk + 1) // CHUNKS):
            _layer_norm_row_backward(dout[t], normal[t], inv_std[t, 0], gamma, dx[t], dgamma, dbeta)


@jit()
def add_layer_norm_row(x, residual, gamma, beta, eps):
    for c in range(len(x)):
        x[c] += residual[c]
    mean, inv = mean_and_inv_std(x, eps)
    for c in range(len(x)):
        x[c] = (x[c] - mean) * inv * gamma[c] + beta[c]


@jit(parallel=True)
def _add_layer_norm_many(x, residual, gamma, beta, eps):
    for t in prange(len(x)):
        add_layer_norm_row(x[t], residual[t], gamma, beta, eps)


@jit()
def add_layer_norm(x, residual, gamma, beta, eps):
    """Inference's layer norm: layer_norm(x + residual), written over x."""
    if x.size > WORTH_THREADS:
        _add_layer_norm_many(x, residual, gamma, beta, eps)
    else:
        for t in range(len(x)):
            add_layer_norm_row(x[t], residual[t], gamma, beta, eps)


def layer_norm_forward(x, gamma, beta, eps):
    out, normal = np.empty_like(x), np.empty_like(x)
    inv_std = np.empty((len(x), 1), x.dtype)
    _layer_norm_forward(x, gamma, beta, F(eps), out, normal, inv_std)
    return out, (normal, inv_std, gamma)


def layer_norm_backward(dout, cache):
    normal, inv_std, gamma = cache
    dx = np.empty_like(dout)
    dgammas, dbetas = np.zeros((2, CHUNKS, len(gamma)), dout.dtype)
    _layer_norm_backward(dout, normal, inv_std, gamma, dx, dgammas, dbetas)
    return dx, dgammas.sum(0), dbetas.sum(0)


# ---------------------------------------------------------------------------- summary


@jit()
def mean_rows(x, offsets, out):
    for b in range(len(out)):
        out_b, lo, hi = out[b], offsets[b], offsets[b + 1]
        out_b[:] = F(0.0)
        for t in range(lo, hi):
            row = x[t]
            for c in range(len(row)):
                out_b[c] += row[c]
        for c in range(len(out_b)):
            out_b[c] /= F(hi - lo)


def mean_rows_forward(x, offsets):
    out = np.empty((len(offsets) - 1, x.shape[1]), np.float32)
    mean_rows(x, offsets, out)
    return out, (ragged.lengths(offsets)[:, None].astype(F), offsets)


# ---------------------------------------------------------------------------- update


@jit()
def _square(x):
    total = F(0.0)
    for i in range(len(x)):
        total += x[i] * x[i]
    return total


@jit(parallel=True)
def _sums_of_squares(x, sums):
    for chunk in prange(CHUNKS):
        sums[chunk] = _square(x[x.size * chunk // CHUNKS : x.size * (chunk + 1) // CHUNKS])


def sum_of_squares(x):
    sums = np.empty(CHUNKS)
    _sums_of_squares(x.reshape(-1), sums)
    return float(sums.sum())


@jit(parallel=True)
def _adamw_update(p, g, m, v, keep, rate, new1, beta2, new2, eps, inv_correction, scale):
    for i in prange(p.size):
        grad = g[i] * scale
        m[i] += (grad - m[i]) * new1
        v[i] = v[i] * beta2 + grad * grad * new2
        p[i] = p[i] * keep - rate * m[i] / (np.sqrt(v[i]) * inv_correction + eps)


def adamw_update(p, g, m, v, step, lr, beta1, beta2, eps, decay, scale):
    if not all(a.flags.c_contiguous for a in (p, m, v)):  # flattened they would be copies
        ops.adamw_update(p, g, m, v, step, lr, beta1, beta2, eps, decay, scale)
        return
    inv_correction = F(1 / math.sqrt(1 - beta2**step))
    rate, keep = F(lr / (1 - beta1**step)), F(1 - lr * decay)
    # 1 - beta is taken here: inside the loop it could be multiplied out, and lose its digits
    new1, new2 = F(1) - F(beta1), F(1) - F(beta2)
    flat = (p.reshape(-1), g.reshape(-1), m.reshape(-1), v.reshape(-1))
    _adamw_update(*flat, keep, rate, new1, F(beta2), new2, F(eps), inv_correction, F(scale))
