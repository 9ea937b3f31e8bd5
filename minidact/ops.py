"""The calculus in plain NumPy: every operation of a BERT, forward and backward. The reference.

    out, cache = f_forward(...)             cache holds what the backward needs, and nothing else
    dx, dw, db = f_backward(dout, cache)    dx stands for d loss / d x, and has x's shape

Results have the float dtype of the inputs, whichever that is. Only adamw_update writes to its
inputs. The gradients that a backward returns share memory with nothing else. fast/kernels.py has
the hot ones in Numba. The tests compare the two, and this file with finite differences.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np

from . import ragged

# ---------------------------------------------------------------------------- linear


def linear_forward(x, w, b):
    """Returns x w' + b (T, O) and a cache; x (T, I), b (O,), w (O, I) as checkpoints store it."""
    return x @ w.T + b, (x, w)


def linear_backward(dout, cache):
    """Returns dx (T, I), dw (O, I) and db (O,) for dout (T, O)."""
    x, w = cache
    return dout @ w, dout.T @ x, dout.sum(0)


# ---------------------------------------------------------------------------- pointwise


def _normal_cdf(x):
    # imported here because it takes long, and fast/kernels.py does without it
    from scipy.special import erf

    return x.dtype.type(0.5) * (1 + erf(x * x.dtype.type(math.sqrt(0.5))))


def gelu_forward(x):
    """Returns x Phi(x), of x's shape, and a cache. Phi is the normal distribution function.

    This is the exact GELU, not the tanh approximation.
    """
    return x * _normal_cdf(x), x


def gelu_backward(dout, cache):
    """Returns dx, of x's shape."""
    x = cache
    phi = np.exp(x * x * x.dtype.type(-0.5)) * x.dtype.type(1 / math.sqrt(2 * math.pi))
    return dout * (_normal_cdf(x) + x * phi)  # (x Phi)' = Phi + x phi


def tanh_forward(x):
    """Returns tanh(x), of x's shape, and a cache."""
    out = np.tanh(x)
    return out, out


def tanh_backward(dout, cache):
    """Returns dx, of x's shape."""
    out = cache
    return dout * (1 - out * out)


def sigmoid_forward(x):
    """Returns 1 / (1 + e^-x), of x's shape, and a cache."""
    half = x.dtype.type(0.5)
    out = half + half * np.tanh(half * x)  # the same number, but nothing can overflow
    return out, out


def sigmoid_backward(dout, cache):
    """Returns dx, of x's shape."""
    out = cache
    return dout * out * (1 - out)


def relu_forward(x):
    """Returns max(x, 0), of x's shape, and a cache."""
    return np.maximum(x, 0), x


def relu_backward(dout, cache):
    """Returns dx, of x's shape; it is 0 where x is 0."""
    x = cache
    return dout * (x > 0)


def dropout_forward(x, rate, rng):
    """Returns x with random elements set to 0, and a cache. rng is a np.random.Generator.

    Each element becomes 0 with probability rate. The others are scaled by 1 / (1 - rate). If rate
    is 0 or rng is None (inference), x itself is returned.
    """
    if rate == 0 or rng is None:
        return x, None
    mask = dropout_mask(x.shape, rate, rng, x.dtype)
    return x * mask, mask


def dropout_backward(dout, cache):
    """Returns dx, of x's shape."""
    mask = cache
    return dout.copy() if mask is None else dout * mask


def dropout_mask(shape, rate, rng, dtype):
    """Returns a random array of 0 (with probability rate) and 1 / (1 - rate).

    shape: a tuple, or a number of elements. dtype: a np.dtype.
    """
    size = math.prod(shape) if isinstance(shape, tuple) else shape
    keep = dropout_bits(size, rng) >= dropout_least(rate)
    return (keep * dtype.type(1 / (1 - rate))).reshape(shape)


def dropout_bits(size, rng):
    """Returns 16 random bits for each element, uint16 (size,): four of each 64-bit number."""
    words = rng.integers(2**64 - 1, size=-(-size // 4), dtype=np.uint64, endpoint=True)
    return words.view(np.uint16)[:size]


def dropout_least(rate):
    """Returns the least number, a uint16, that an element's bits must be for it to be kept."""
    return np.uint16(rate * 2**16)


# ---------------------------------------------------------------------------- rows


def softmax_forward(x):
    """Returns the softmax over the last axis, of x's shape, and a cache."""
    e = np.exp(x - x.max(-1, keepdims=True))  # the shift changes nothing but keeps exp finite
    out = e / e.sum(-1, keepdims=True)
    return out, out


def softmax_backward(dout, cache):
    """Returns dx, of x's shape."""
    out = cache
    return out * (dout - (dout * out).sum(-1, keepdims=True))


def layer_norm_forward(x, gamma, beta, eps):
    """Returns x (T, C) with normalised rows, and a cache; gamma and beta are (C,).

    Each row gets mean 0 and variance 1. It is then scaled by gamma and shifted by beta.
    """
    centred = x - x.mean(-1, keepdims=True)
    variance = np.mean(centred * centred, -1, keepdims=True)
    inv_std = 1 / np.sqrt(variance + x.dtype.type(eps))  # (T, 1)
    normal = centred * inv_std  # (T, C)
    return normal * gamma + beta, (normal, inv_std, gamma)


def layer_norm_backward(dout, cache):
    """Returns dx (T, C), dgamma (C,) and dbeta (C,) for dout (T, C)."""
    normal, inv_std, gamma = cache
    dgamma = (dout * normal).sum(0)
    dbeta = dout.sum(0)
    dnormal = dout * gamma
    # x reaches normal directly, through the mean, and through the variance
    dx = dnormal - dnormal.mean(-1, keepdims=True)
    dx -= normal * (dnormal * normal).mean(-1, keepdims=True)
    dx *= inv_std
    return dx, dgamma, dbeta


def log_softmax(x):
    """Returns log(softmax) over the last axis, of x's shape; finite even where softmax is 0."""
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def one_hot(labels, like):
    """Returns labels (B,) int as probabilities, of the shape and dtype of like (B, Y).

    Labels that are probabilities already, (B, Y), stay what they are.
    """
    if labels.ndim == 2:
        return labels.astype(like.dtype)
    out = np.zeros_like(like)
    out[np.arange(len(labels)), labels] = 1
    return out


def cross_entropy_forward(logits, labels):
    """Returns -sum_y t_y log softmax(logits)_y of each sentence, (B,), and a cache.

    logits (B, Y); labels (B,) int, or t (B, Y) itself, which sums to 1.
    """
    log_probs, targets = log_softmax(logits), one_hot(labels, logits)
    return -(targets * log_probs).sum(1), (np.exp(log_probs), targets)


def cross_entropy_backward(dlosses, cache):
    """Returns dlogits (B, Y) for dlosses (B,)."""
    probs, targets = cache
    return (probs - targets) * dlosses[:, None]


def squared_error_forward(values, targets):
    """Returns (value - target)^2 of each sentence, (B,), and a cache.

    values (B, 1); targets (B,).
    """
    difference = values[:, 0] - targets.astype(values.dtype)
    return difference * difference, difference


def squared_error_backward(dlosses, cache):
    """Returns dvalues (B, 1) for dlosses (B,)."""
    difference = cache
    return (2 * difference * dlosses)[:, None]


# ---------------------------------------------------------------------------- ragged


def embedding_forward(ids, segments, offsets, words, places, kinds):
    """Returns the sum of three rows for each token, (T, C), and a cache.

    The rows are those of its id in words (V, C), of its position within the sentence in
    places (positions, C), and of its segment in kinds (segment types, C). ids and segments are
    (T,) int; offsets is (B + 1,).
    """
    position_ids = ragged.positions(offsets)
    out = words[ids]
    out += places[position_ids]
    out += kinds[segments]
    return out, (ids, position_ids, segments, words.shape, places.shape, kinds.shape)


def embedding_backward(dout, cache):
    """Returns dwords (V, C), dplaces (positions, C) and dkinds (segment types, C)."""
    *indices, words_shape, places_shape, kinds_shape = cache
    grads = []
    for index, shape in zip(indices, (words_shape, places_shape, kinds_shape), strict=True):
        dtable = np.zeros(shape, dout.dtype)
        # a table's row may be used many times; this does what np.add.at does, but with one sum
        # for each distinct row
        order = np.argsort(index, kind="stable")
        rows, starts = np.unique(index[order], return_index=True)
        dtable[rows] = np.add.reduceat(dout[order], starts)
        grads.append(dtable)
    return tuple(grads)


def mean_rows_forward(x, offsets):
    """Returns the mean of each sentence's rows, (B, C), and a cache; x (T, C), offsets (B + 1,)."""
    n = ragged.lengths(offsets)[:, None].astype(x.dtype)
    return np.add.reduceat(x, offsets[:-1]) / n, (n, offsets)


def mean_rows_backward(dout, cache):
    """Returns dx (T, C) for dout (B, C)."""
    n, offsets = cache
    return np.repeat(dout / n, ragged.lengths(offsets), 0)


def first_rows_forward(x, offsets):
    """Returns each sentence's first row, that of [CLS], (B, C), and a cache; x (T, C)."""
    return x[offsets[:-1]], (x.shape, offsets)


def first_rows_backward(dout, cache):
    """Returns dx (T, C) for dout (B, C)."""
    shape, offsets = cache
    dx = np.zeros(shape, dout.dtype)
    dx[offsets[:-1]] = dout
    return dx


MOST_AHEAD = 30  # a token with gate 0 leads the others' scores by no more: theirs would be lost


def attention_forward(qkv, offsets, num_heads, drop=None, gates=None):
    """Returns multi-head attention within every sentence: out (T, C), received (T,), a cache.

    qkv (T, 3C) holds queries, keys and values side by side. drop is a dropout mask for the
    attention weights, or None. gates (T,), from 0 to 1, say how much of a token is there
    (mechanisms/token_gates.py); None means that all of them are there. With scores s and gates g,

        P_qk = g_k e_qk,    e_qk = exp(s_qk) / sum_j g_j exp(s_qj)

    A token with gate 0 gets no attention, as if it had been removed. Gates of 1 change nothing.
    received is the attention that each token got from the others, before dropout, summed over heads
    and over queries, each query times its gate. No gradient goes through it.

    The weights e lie in one flat array of `attention_size` numbers, sentence by sentence, head by
    head, (n keys, n queries) each. drop has the same layout.
    """
    size = qkv.shape[1] // 3
    scale = qkv.dtype.type(1 / math.sqrt(size // num_heads))
    out, received = np.empty((len(qkv), size), qkv.dtype), np.empty(len(qkv), qkv.dtype)
    weights = np.empty(attention_size(offsets, num_heads), qkv.dtype)
    for rows, flat in _blocks(offsets, num_heads):
        q, k, v = _heads(qkv[rows], 3 * num_heads).reshape(3, num_heads, -1, size // num_heads)
        g = np.ones(1, qkv.dtype) if gates is None else gates[rows]
        score = q @ k.transpose(0, 2, 1) * scale  # (H, n, n)
        top = np.where(g > 0, score, -np.inf).max(-1, keepdims=True)
        weight = np.exp(np.minimum(score - top, qkv.dtype.type(MOST_AHEAD)))
        weight = weight / (weight * g).sum(-1, keepdims=True)
        weights[flat] = weight.transpose(0, 2, 1).ravel()
        weight = weight * g
        got = weight * g[:, None]  # each query counts as much as its gate
        received[rows] = (got.sum(1) - got.diagonal(0, 1, 2)).sum(0)
        if drop is not None:
            weight = weight * _weights(drop[flat], num_heads)
        out[rows] = _rows(weight @ v)
    return out, received, (qkv, weights, offsets, num_heads, drop, gates)


def attention_backward(dout, cache):
    """Returns dqkv (T, 3C) for dout (T, C), and dgates (T,), or None if there were no gates."""
    qkv, weights, offsets, num_heads, drop, gates = cache
    size = dout.shape[1]
    scale = qkv.dtype.type(1 / math.sqrt(size // num_heads))
    dqkv = np.empty_like(qkv)
    dgates: Any = None if gates is None else np.empty_like(gates)
    for rows, flat in _blocks(offsets, num_heads):
        q, k, v = _heads(qkv[rows], 3 * num_heads).reshape(3, num_heads, -1, size // num_heads)
        dout_b = _heads(dout[rows], num_heads)  # (H, n, K)
        e = _weights(weights[flat], num_heads)
        weight = e if gates is None else e * gates[rows]
        mask = 1 if drop is None else _weights(drop[flat], num_heads)
        dv = (weight * mask).transpose(0, 2, 1) @ dout_b  # out = (weight mask) v
        dweight = (dout_b @ v.transpose(0, 2, 1)) * mask
        dinner = dweight - (dweight * weight).sum(-1, keepdims=True)
        dscore = weight * dinner * scale  # weight = softmax(scale q k' + log g)
        if gates is not None:
            dgates[rows] = (e * dinner).sum((0, 1))
        dq, dk = dscore @ k, dscore.transpose(0, 2, 1) @ q
        dqkv[rows] = _rows(np.concatenate([dq, dk, dv]))
    return dqkv, dgates


def attention_size(offsets, num_heads):
    """Returns the number of a batch's attention weights: the sum of H n^2 over its sentences."""
    return int(num_heads * (ragged.lengths(offsets) ** 2).sum())


def _blocks(offsets, num_heads):
    """Yields each sentence's slice of rows, and its slice of the flat attention weights."""
    start = 0
    for begin, end in pairwise(offsets):
        stop = start + num_heads * int(end - begin) ** 2
        yield slice(begin, end), slice(start, stop)
        start = stop


def _weights(flat, num_heads):
    """Returns a sentence's part of the flat array as (H, n queries, n keys)."""
    n = math.isqrt(len(flat) // num_heads)
    return flat.reshape(num_heads, n, n).transpose(0, 2, 1)


def _heads(x, num_heads):
    """Returns x (n, C) cut into heads, (H, n, K)."""
    return x.reshape(len(x), num_heads, -1).transpose(1, 0, 2)


def _rows(x):
    """Returns heads (H, n, K) side by side, (n, C)."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


# ---------------------------------------------------------------------------- eight bits

WEIGHT_TOP = 63  # a weight's largest size in eight bits; fast/int8.py says why


def quantise(x, top=127):
    """Returns x (T, n) as whole numbers q (T, n) int8 and scales s (T,), so that x ~ s q.

    A row's scale is its largest size / top, so q is -top..top. Both are computed in x's dtype.
    """
    size, top = np.abs(x).max(1), x.dtype.type(top)
    with np.errstate(divide="ignore"):
        inverse = np.where(size > 0, top / size, x.dtype.type(0))
    return np.rint(x * inverse[:, None]).astype(np.int8), size / top


def linear_int8(x, w, b):
    """Returns x w' + b (T, O) as eight bits compute it, and the sums in whole numbers, (T, O)."""
    (q, s), (p, r) = quantise(x), quantise(w, WEIGHT_TOP)
    sums = q.astype(np.int32) @ p.astype(np.int32).T
    return sums.astype(x.dtype) * (s[:, None] * r) + b, sums


# ---------------------------------------------------------------------------- update


def sum_of_squares(x):
    """Returns the sum of the squares of all elements, a float."""
    return float(np.einsum("i,i", x.reshape(-1), x.reshape(-1)))


def adamw_update(p, g, m, v, step, lr, beta1, beta2, eps, decay, scale):
    """Does one AdamW step on one array (Loshchilov & Hutter, arXiv 1711.05101).

    The parameters p and the moments m and v are changed in place. The gradient g, of the same
    shape, is first multiplied by scale (norm clipping). step counts from 1. decay is decoupled
    from the gradient, as in PyTorch.
    """
    number = p.dtype.type  # every coefficient has p's precision, in the Numba kernel too
    g = g * number(scale)
    p *= number(1 - lr * decay)
    m += (g - m) * (1 - number(beta1))
    v *= number(beta2)
    v += g * g * (1 - number(beta2))
    root = np.sqrt(v) / number(math.sqrt(1 - beta2**step)) + number(eps)
    p -= m / root * number(lr / (1 - beta1**step))
