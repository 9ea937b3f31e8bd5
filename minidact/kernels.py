"""The hot half of ops.py in Numba: same names, same signatures, same caches, float32.

What is not written again here is ops.py's own, so `ops` and `kernels` can be exchanged wherever a
function takes the calculus as an argument. Three habits make LLVM vectorise these loops:
- float32 literals only, because one Python float would promote a whole expression to float64;
- no call into the C library: exp and the normal distribution are polynomials below;
- error_model="numpy", so that a division cannot raise and needs no branch.
The fast-math flags allow sums to be reordered, nothing more: NaN and infinity stay what they are.
"""

import math
import os
from collections.abc import Callable

# BLAS and Numba have a pool of threads each. A Numba thread that spins while it waits takes its
# core from BLAS: let it sleep. (Read when Numba starts its threads; it doubles training's speed.)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from numba import njit, prange

from . import ops
from .ops import (  # noqa: F401  what NumPy does as well
    attention_size,
    dropout_backward,
    dropout_forward,
    dropout_mask,
    embedding_backward,
    embedding_forward,
    first_rows_backward,
    first_rows_forward,
    linear_backward,
    mean_rows_backward,
    mean_rows_forward,
    relu_backward,
    relu_forward,
    sigmoid_backward,
    sigmoid_forward,
    softmax_backward,
    softmax_forward,
    tanh_backward,
    tanh_forward,
)

FEW_ROWS = 24  # up to here our matmul beats BLAS, which repacks the weights at every call
CHUNKS = 16  # fixed, so that a sum over rows does not depend on the number of threads

F = np.float32
_REORDER = {"contract", "reassoc", "nsz", "arcp"}


def _jit(parallel=False, fastmath=_REORDER):
    return njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath, parallel=parallel)


# ---------------------------------------------------------------------------- exp and Phi


@_jit(fastmath={"contract"})
def _exp(x):
    """e^x with a relative error of 2e-7: 2^n times a polynomial in the rest, |rest| < ln(2) / 2."""
    clamped = min(max(x, F(-87.0)), F(88.0))
    # adding 1.5 * 2^23 leaves no bits after the point, so it rounds to a whole number n, and n
    # is what the lowest bits of the sum then hold (this must not be reordered: no "reassoc")
    shifted = clamped * F(1.4426950408889634) + F(12582912.0)
    n = shifted - F(12582912.0)
    r = clamped - n * F(0.693359375) - n * F(-2.1219444e-4)  # ln 2 in two parts
    y = F(1.3836742e-3)
    y = y * r + F(8.3748987e-3)
    y = y * r + F(4.1668232e-2)
    y = y * r + F(1.6666420e-1)
    y = y * r + F(0.49999991)
    y = y * r + F(1.0)
    y = y * r + F(1.0)
    bits = np.float32(shifted).view(np.int32)
    exponent = np.int32((bits + np.int32(127)) << np.int32(23))
    y = y * np.int32(exponent).view(np.float32)
    y = F(0.0) if x < F(-87.0) else y
    y = F(np.inf) if x > F(88.0) else y
    return y if x == x else x  # NaN stays NaN


@_jit(fastmath={"contract"})
def _normal(x):
    """(Phi(x), phi(x)): the normal distribution function and density, relative error < 1e-6.

    The upper tail is phi-shaped: 1 - Phi(u) = e^(-u^2/2) P(t), t = 1 / (1 + 0.35 u), u >= 0, with
    P a polynomial of degree 7, fitted for this file to a relative error of 3e-7.
    """
    u = abs(x)
    bell = _exp(x * x * F(-0.5))
    t = F(1.0) / (F(1.0) + F(0.35) * u)
    y = F(4.894249513745308e-2)
    y = y * t + F(-2.0211946964263916e-1)
    y = y * t + F(2.4064113199710846e-1)
    y = y * t + F(-1.702369749546051e-2)
    y = y * t + F(1.5596161782741547e-1)
    y = y * t + F(1.333550661802292e-1)
    y = y * t + F(1.4027035236358643e-1)
    y = y * t + F(-2.731577114900574e-5)
    tail = y * bell
    return (tail if x < F(0.0) else F(1.0) - tail), bell * F(0.3989422804014327)


# ---------------------------------------------------------------------------- gelu


@_jit(parallel=True)
def _gelu_forward(x, out):
    for i in prange(x.size):
        cdf, _ = _normal(x[i])
        out[i] = x[i] * cdf if x[i] > F(-15.0) else F(0.0) * cdf  # -inf * 0 would be NaN


@_jit(parallel=True)
def _gelu_backward(dout, x, dx):
    for i in prange(x.size):
        cdf, density = _normal(x[i])
        slope = x[i] * density if abs(x[i]) < F(15.0) else F(0.0) * density
        dx[i] = dout[i] * (cdf + slope)


def gelu_forward(x):
    out = np.empty_like(x)
    _gelu_forward(x.reshape(-1), out.reshape(-1))
    return out, x


def gelu_backward(dout, cache):
    x = cache
    dx = np.empty_like(x)
    _gelu_backward(dout.reshape(-1), x.reshape(-1), dx.reshape(-1))
    return dx


# ---------------------------------------------------------------------------- layer norm


@_jit(parallel=True)
def _layer_norm_forward(x, gamma, beta, eps, out, normal, inv_std):
    rows, size = x.shape
    for t in prange(rows):
        x_t, out_t, normal_t = x[t], out[t], normal[t]
        mean = F(0.0)
        for c in range(size):
            mean += x_t[c]
        mean /= F(size)
        variance = F(0.0)
        for c in range(size):
            variance += (x_t[c] - mean) * (x_t[c] - mean)
        inv = F(1.0) / np.sqrt(variance / F(size) + eps)
        inv_std[t, 0] = inv
        for c in range(size):
            normal_t[c] = (x_t[c] - mean) * inv
            out_t[c] = normal_t[c] * gamma[c] + beta[c]


@_jit(parallel=True)
def _layer_norm_backward(dout, normal, inv_std, gamma, dx, dgammas, dbetas):
    rows, size = dout.shape
    for chunk in prange(CHUNKS):
        dgamma, dbeta = dgammas[chunk], dbetas[chunk]
        for t in range(rows * chunk // CHUNKS, rows * (chunk + 1) // CHUNKS):
            dout_t, normal_t, dx_t, inv = dout[t], normal[t], dx[t], inv_std[t, 0]
            mean = F(0.0)  # of dnormal
            along = F(0.0)  # mean of dnormal * normal
            for c in range(size):
                mean += dout_t[c] * gamma[c]
                along += dout_t[c] * gamma[c] * normal_t[c]
            mean /= F(size)
            along /= F(size)
            for c in range(size):
                dgamma[c] += dout_t[c] * normal_t[c]
                dbeta[c] += dout_t[c]
                dx_t[c] = (dout_t[c] * gamma[c] - mean - normal_t[c] * along) * inv


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


# ---------------------------------------------------------------------------- attention


@_jit(parallel=True)
def _attention_forward(q, k, v, offsets, starts, num_heads, drop, scale, out, weights):
    size = q.shape[1] // num_heads
    for task in prange((len(offsets) - 1) * num_heads):
        b, head = task // num_heads, task % num_heads
        rows, mine = slice(offsets[b], offsets[b + 1]), slice(head * size, (head + 1) * size)
        q_h, k_h, v_h, out_h = q[rows, mine], k[rows, mine], v[rows, mine], out[rows, mine]
        n = len(q_h)
        for i in range(n):
            start = starts[b] + (head * n + i) * n
            weight, q_i, out_i = weights[start : start + n], q_h[i], out_h[i]
            top = F(-np.inf)
            for j in range(n):
                k_j, score = k_h[j], F(0.0)
                for d in range(size):
                    score += q_i[d] * k_j[d]
                weight[j] = score * scale
                top = max(top, weight[j])
            total = F(0.0)
            for j in range(n):
                weight[j] = _exp(weight[j] - top)
                total += weight[j]
            out_i[:] = F(0.0)
            for j in range(n):
                weight[j] /= total
                v_j, share = v_h[j], weight[j]
                if len(drop) > 0:
                    share *= drop[start + j]
                for d in range(size):
                    out_i[d] += share * v_j[d]


@_jit(parallel=True)
def _attention_backward(
    dout, q, k, v, weights, offsets, starts, num_heads, drop, scale, dq, dk, dv
):
    size = q.shape[1] // num_heads
    for task in prange((len(offsets) - 1) * num_heads):
        b, head = task // num_heads, task % num_heads
        rows, mine = slice(offsets[b], offsets[b + 1]), slice(head * size, (head + 1) * size)
        q_h, k_h, v_h, dout_h = q[rows, mine], k[rows, mine], v[rows, mine], dout[rows, mine]
        dq_h, dk_h, dv_h = dq[rows, mine], dk[rows, mine], dv[rows, mine]
        n = len(q_h)
        dscore = np.empty(n, np.float32)
        for i in range(n):
            start = starts[b] + (head * n + i) * n
            weight, q_i, dout_i, dq_i = weights[start : start + n], q_h[i], dout_h[i], dq_h[i]
            inner = F(0.0)  # <dweight, weight>, the softmax's own
            for j in range(n):
                keep = drop[start + j] if len(drop) > 0 else F(1.0)
                v_j, dv_j, share, dweight = v_h[j], dv_h[j], weight[j] * keep, F(0.0)
                for d in range(size):
                    dweight += dout_i[d] * v_j[d]
                    dv_j[d] += share * dout_i[d]
                dscore[j] = dweight * keep
                inner += dscore[j] * weight[j]
            for j in range(n):
                k_j, dk_j = k_h[j], dk_h[j]
                ds = weight[j] * (dscore[j] - inner) * scale
                for d in range(size):
                    dq_i[d] += ds * k_j[d]
                    dk_j[d] += ds * q_i[d]


def _starts(offsets, num_heads):
    """Where each sentence's block begins in the flat array of attention weights, (B,)."""
    return np.concatenate([[0], np.cumsum(num_heads * np.diff(offsets) ** 2)[:-1]])


def attention_forward(q, k, v, offsets, num_heads, drop=None):
    out = np.empty_like(q)
    weights = np.empty(attention_size(offsets, num_heads), q.dtype)
    scale = F(1 / math.sqrt(q.shape[1] // num_heads))
    mask = np.empty(0, q.dtype) if drop is None else drop
    starts = _starts(offsets, num_heads)
    _attention_forward(q, k, v, offsets, starts, num_heads, mask, scale, out, weights)
    return out, (q, k, v, weights, offsets, num_heads, drop)


def attention_backward(dout, cache):
    q, k, v, weights, offsets, num_heads, drop = cache
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    scale = F(1 / math.sqrt(q.shape[1] // num_heads))
    mask = np.empty(0, q.dtype) if drop is None else drop
    starts = _starts(offsets, num_heads)
    _attention_backward(dout, q, k, v, weights, offsets, starts, num_heads, mask, scale, dq, dk, dv)
    return dq, dk, dv


# ---------------------------------------------------------------------------- matrix product


@_jit(parallel=True)
def _linear_forward(x, w, b, out):
    """Tiles of 4 rows x 2 outputs: every number loaded is used two or four times."""
    rows, size = x.shape
    for tile in prange(len(w) // 2):
        o = 2 * tile
        for t in range(0, rows, 4):
            # a tile that hangs over the edge computes its last row again
            t1, t2, t3 = min(t + 1, rows - 1), min(t + 2, rows - 1), min(t + 3, rows - 1)
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = F(0.0)
            for i in range(size):
                p, q = w[o, i], w[o + 1, i]
                a0 += x[t, i] * p
                a1 += x[t1, i] * p
                a2 += x[t2, i] * p
                a3 += x[t3, i] * p
                b0 += x[t, i] * q
                b1 += x[t1, i] * q
                b2 += x[t2, i] * q
                b3 += x[t3, i] * q
            out[t, o], out[t, o + 1] = a0 + b[o], b0 + b[o + 1]
            out[t1, o], out[t1, o + 1] = a1 + b[o], b1 + b[o + 1]
            out[t2, o], out[t2, o + 1] = a2 + b[o], b2 + b[o + 1]
            out[t3, o], out[t3, o + 1] = a3 + b[o], b3 + b[o + 1]


def linear_forward(x, w, b):
    if len(x) > FEW_ROWS or len(w) % 2 or len(w) < 64:
        return ops.linear_forward(x, w, b)
    out = np.empty((len(x), len(w)), x.dtype)
    _linear_forward(x, w, b, out)
    return out, (x, w)


# ---------------------------------------------------------------------------- loss


@_jit()
def _cross_entropy_forward(logits, labels, probs):
    loss = F(0.0)
    sentences, classes = logits.shape
    for b in range(sentences):
        top = F(-np.inf)
        for y in range(classes):
            top = max(top, logits[b, y])
        total = F(0.0)
        for y in range(classes):
            probs[b, y] = _exp(logits[b, y] - top)
            total += probs[b, y]
        for y in range(classes):
            probs[b, y] /= total
        loss += np.log(total) + top - logits[b, labels[b]]
    return loss / F(sentences)


@_jit()
def _cross_entropy_backward(dloss, probs, labels, dlogits):
    sentences, classes = probs.shape
    for b in range(sentences):
        for y in range(classes):
            hit = F(1.0) if labels[b] == y else F(0.0)
            dlogits[b, y] = (probs[b, y] - hit) * dloss / F(sentences)


def cross_entropy_forward(logits, labels):
    probs = np.empty_like(logits)
    loss = _cross_entropy_forward(logits, labels, probs)
    return F(loss), (probs, labels)


def cross_entropy_backward(dloss, cache):
    probs, labels = cache
    dlogits = np.empty_like(probs)
    _cross_entropy_backward(F(dloss), probs, labels, dlogits)
    return dlogits


# ---------------------------------------------------------------------------- update


@_jit(parallel=True)
def _adamw_update(p, g, m, v, keep, rate, beta1, beta2, eps, inv_correction, scale):
    for i in prange(p.size):
        grad = g[i] * scale
        m[i] += (grad - m[i]) * (F(1.0) - beta1)
        v[i] = v[i] * beta2 + grad * grad * (F(1.0) - beta2)
        p[i] = p[i] * keep - rate * m[i] / (np.sqrt(v[i]) * inv_correction + eps)


def adamw_update(p, g, m, v, step, lr, beta1, beta2, eps, decay, scale):
    inv_correction = F(1 / math.sqrt(1 - beta2**step))
    rate, keep = F(lr / (1 - beta1**step)), F(1 - lr * decay)
    flat = (p.reshape(-1), g.reshape(-1), m.reshape(-1), v.reshape(-1))
    _adamw_update(*flat, keep, rate, F(beta1), F(beta2), F(eps), inv_correction, F(scale))


# ---------------------------------------------------------------------------- first use


def warm_up(announce: Callable[[], None] = lambda: None) -> None:
    """Compiles what inference needs, or loads it from Numba's cache on disk.

    announce() is called once, before the long part, if something really has to be compiled.
    """
    x = np.ones((2, 64), np.float32)
    offsets = np.array([0, 2])
    cross_entropy_forward(x, np.zeros(2, np.int64))  # the quickest one tells if the cache is cold
    if _cross_entropy_forward.stats.cache_misses:
        announce()
    gelu_forward(x)
    layer_norm_forward(x, x[0], x[0], 1e-12)
    attention_forward(x, x, x, offsets, 2)
    linear_forward(x, np.ones((64, 64), np.float32), x[0])
