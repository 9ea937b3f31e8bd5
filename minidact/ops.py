"""The calculus in plain NumPy: every operation of a BERT, forward and backward. The reference.

    out, cache = f_forward(...)             cache holds what the backward needs, and nothing else
    dx, dw, db = f_backward(dout, cache)    dx stands for d loss / d x, of x's shape

Any float dtype goes in and comes out unchanged. Inputs are never written to, and the gradients a
backward returns share memory with nothing else. kernels.py holds the same functions in Numba
where they are hot; the tests hold the two against each other, and this file against finite
differences.
"""

import math
from itertools import pairwise

import numpy as np

from . import ragged

# ---------------------------------------------------------------------------- linear


def linear_forward(x, w, b):
    """x (T, I), w (O, I) as checkpoints store it, b (O,) -> x w' + b  (T, O)."""
    return x @ w.T + b, (x, w)


def linear_backward(dout, cache):
    x, w = cache
    dx = dout @ w  # (T, I)
    dw = dout.T @ x  # (O, I)
    db = dout.sum(0)  # (O,)
    return dx, dw, db


# ---------------------------------------------------------------------------- pointwise


def _normal_cdf(x):
    from scipy.special import erf  # here: it takes long to import, and kernels.py needs none of it

    return x.dtype.type(0.5) * (1 + erf(x * x.dtype.type(math.sqrt(0.5))))


def gelu_forward(x):
    """x Phi(x), Phi the normal distribution function: the exact GELU, not the tanh one."""
    return x * _normal_cdf(x), x


def gelu_backward(dout, cache):
    x = cache
    phi = np.exp(x * x * x.dtype.type(-0.5)) * x.dtype.type(1 / math.sqrt(2 * math.pi))
    return dout * (_normal_cdf(x) + x * phi)  # (x Phi)' = Phi + x phi


def tanh_forward(x):
    out = np.tanh(x)
    return out, out


def tanh_backward(dout, cache):
    out = cache
    return dout * (1 - out * out)


def sigmoid_forward(x):
    half = x.dtype.type(0.5)
    out = half + half * np.tanh(half * x)  # 1 / (1 + e^-x), but nothing can overflow
    return out, out


def sigmoid_backward(dout, cache):
    out = cache
    return dout * out * (1 - out)


def relu_forward(x):
    return np.maximum(x, 0), x


def relu_backward(dout, cache):
    x = cache
    return dout * (x > 0)


def dropout_forward(x, rate, rng):
    """Zeroes each element with probability rate and scales the others by 1 / (1 - rate).

    rate 0 or rng None: x itself goes through (inference).
    """
    if rate == 0 or rng is None:
        return x, None
    mask = dropout_mask(x.shape, rate, rng, x.dtype)
    return x * mask, mask


def dropout_backward(dout, cache):
    mask = cache
    return dout.copy() if mask is None else dout * mask


def dropout_mask(shape, rate, rng, dtype):
    """Random array of 0 and 1 / (1 - rate)."""
    size = math.prod(shape) if isinstance(shape, tuple) else shape
    keep = dropout_bits(size, rng) >= dropout_least(rate)
    return (keep * dtype.type(1 / (1 - rate))).reshape(shape)


def dropout_bits(size, rng):
    """16 random bits for each element, raw: a sixth of the time that uniform numbers would take."""
    return rng.bit_generator.random_raw(-(-size // 4)).view(np.uint16)[:size]


def dropout_least(rate):
    """An element is kept if its bits, as a number, are at least this."""
    return np.uint16(rate * 2**16)


# ---------------------------------------------------------------------------- rows


def softmax_forward(x):
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))  # the shift changes nothing but keeps exp finite
    out = e / e.sum(-1, keepdims=True)
    return out, out


def softmax_backward(dout, cache):
    out = cache
    return out * (dout - (dout * out).sum(-1, keepdims=True))


def layer_norm_forward(x, gamma, beta, eps):
    """x (T, C): each row to mean 0 and variance 1, then scaled and shifted by gamma, beta (C,)."""
    centred = x - x.mean(-1, keepdims=True)
    variance = np.mean(centred * centred, -1, keepdims=True)
    inv_std = 1 / np.sqrt(variance + x.dtype.type(eps))  # (T, 1)
    normal = centred * inv_std  # (T, C)
    return normal * gamma + beta, (normal, inv_std, gamma)


def layer_norm_backward(dout, cache):
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
    """log of the softmax over the last axis, finite also where the softmax itself is 0."""
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def cross_entropy_forward(logits, labels):
    """logits (B, Y), labels (B,) int -> -log softmax(logits)[label] of each sentence, (B,)."""
    log_probs = log_softmax(logits)
    return -log_probs[np.arange(len(labels)), labels], (np.exp(log_probs), labels)


def cross_entropy_backward(dlosses, cache):
    """dlosses (B,) -> dlogits (B, Y)."""
    probs, labels = cache
    dlogits = probs.copy()
    dlogits[np.arange(len(labels)), labels] -= 1
    return dlogits * dlosses[:, None]


def squared_error_forward(values, targets):
    """values (B, 1), targets (B,) -> (value - target)^2 of each sentence, (B,)."""
    difference = values[:, 0] - targets.astype(values.dtype)
    return difference * difference, difference


def squared_error_backward(dlosses, cache):
    """dlosses (B,) -> dvalues (B, 1)."""
    difference = cache
    return (2 * difference * dlosses)[:, None]


# ---------------------------------------------------------------------------- ragged


def embedding_forward(ids, segments, offsets, words, places, kinds):
    """Sum of three tables' rows: the token's word, its place in the sentence, its segment.

    ids, segments (T,) int; words (V, C), places (positions, C), kinds (segment types, C) -> (T, C)
    """
    position_ids = ragged.positions(offsets)
    out = words[ids]
    out += places[position_ids]
    out += kinds[segments]
    return out, (ids, position_ids, segments, words.shape, places.shape, kinds.shape)


def embedding_backward(dout, cache):
    *indices, words_shape, places_shape, kinds_shape = cache
    grads = []
    for index, shape in zip(indices, (words_shape, places_shape, kinds_shape), strict=True):
        dtable = np.zeros(shape, dout.dtype)
        # np.add.at in effect (a row may be used many times), but one sum per distinct row
        order = np.argsort(index, kind="stable")
        rows, starts = np.unique(index[order], return_index=True)
        dtable[rows] = np.add.reduceat(dout[order], starts)
        grads.append(dtable)
    return tuple(grads)


def mean_rows_forward(x, offsets):
    """x (T, C) -> the mean of each sentence's rows (B, C)."""
    n = ragged.lengths(offsets)[:, None].astype(x.dtype)
    return np.add.reduceat(x, offsets[:-1]) / n, (n, offsets)


def mean_rows_backward(dout, cache):
    n, offsets = cache
    return np.repeat(dout / n, ragged.lengths(offsets), 0)


def first_rows_forward(x, offsets):
    """x (T, C) -> each sentence's first row, that of [CLS] (B, C)."""
    return x[offsets[:-1]], (x.shape, offsets)


def first_rows_backward(dout, cache):
    shape, offsets = cache
    dx = np.zeros(shape, dout.dtype)
    dx[offsets[:-1]] = dout
    return dx


def attention_forward(qkv, offsets, num_heads, drop=None, gates=None):
    """Multi-head attention of every sentence within itself.

    qkv (T, 3C): queries, keys and values side by side; drop: a dropout mask for the attention
    weights, or None; gates (T,) in 0..1: how much a token is there (see token_gates.py), or None:

        P_qk = g_k e_qk,    e_qk = exp(s_qk) / sum_j g_j exp(s_qj)

    so that a token with gate 0 gets no attention, as if it had been removed, and gates of 1 change
    nothing. Returns out (T, C), and received (T,), the attention that each token got from the
    others, summed over heads and (as far as they are there) queries, before dropout; no gradient
    goes through it. The weights e of all sentences and heads lie in one flat array, sentence by
    sentence, head by head, (n keys, n queries) each: sum of H n^2 numbers (`attention_size`); so
    does drop.
    """
    size = qkv.shape[1] // 3
    scale = qkv.dtype.type(1 / math.sqrt(size // num_heads))
    out, received = np.empty((len(qkv), size), qkv.dtype), np.empty(len(qkv), qkv.dtype)
    weights = np.empty(attention_size(offsets, num_heads), qkv.dtype)
    for rows, flat in _blocks(offsets, num_heads):
        q, k, v = _heads(qkv[rows], 3 * num_heads).reshape(3, num_heads, -1, size // num_heads)
        weight, _ = softmax_forward(q @ k.transpose(0, 2, 1) * scale)  # (H, n, n)
        g = np.ones(1, qkv.dtype) if gates is None else gates[rows]
        weight = weight / (weight * g).sum(-1, keepdims=True) if gates is not None else weight
        weights[flat] = weight.transpose(0, 2, 1).ravel()
        weight = weight * g
        got = weight * g[:, None]  # what is given by queries that are there
        received[rows] = (got.sum(1) - got.diagonal(0, 1, 2)).sum(0)
        if drop is not None:
            weight = weight * _weights(drop[flat], num_heads)
        out[rows] = _rows(weight @ v)
    return out, received, (qkv, weights, offsets, num_heads, drop, gates)


def attention_backward(dout, cache):
    """-> dqkv (T, 3C), and dgates (T,) or None."""
    qkv, weights, offsets, num_heads, drop, gates = cache
    size = dout.shape[1]
    scale = qkv.dtype.type(1 / math.sqrt(size // num_heads))
    dqkv, dgates = np.empty_like(qkv), None if gates is None else np.empty_like(gates)
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
    """How many attention weights a batch has: the sum of H n^2 over its sentences."""
    return int(num_heads * (ragged.lengths(offsets) ** 2).sum())


def _blocks(offsets, num_heads):
    """For each sentence: its rows of x, and its part of the flat array of attention weights."""
    start = 0
    for begin, end in pairwise(offsets):
        stop = start + num_heads * int(end - begin) ** 2
        yield slice(begin, end), slice(start, stop)
        start = stop


def _weights(flat, num_heads):
    """A sentence's part of the flat array -> (H, n queries, n keys)."""
    n = math.isqrt(len(flat) // num_heads)
    return flat.reshape(num_heads, n, n).transpose(0, 2, 1)


def _heads(x, num_heads):
    """(n, C) -> (H, n, K)."""
    return x.reshape(len(x), num_heads, -1).transpose(1, 0, 2)


def _rows(x):
    """(H, n, K) -> (n, C)."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


# ---------------------------------------------------------------------------- update


def sum_of_squares(x):
    """The sum of the squares of all elements, a float."""
    return float(np.einsum("i,i", x.reshape(-1), x.reshape(-1)))


def adamw_update(p, g, m, v, step, lr, beta1, beta2, eps, decay, scale):
    """One AdamW step (Loshchilov & Hutter, arXiv 1711.05101) on one array, in place: p, m, v.

    step counts from 1; decay is decoupled from the gradient, as in PyTorch; scale multiplies the
    gradient first (norm clipping).
    """
    number = p.dtype.type  # every coefficient in p's own precision, the kernel's too
    g = g * number(scale)
    p *= number(1 - lr * decay)
    m += (g - m) * (1 - number(beta1))
    v *= number(beta2)
    v += g * g * (1 - number(beta2))
    root = np.sqrt(v) / number(math.sqrt(1 - beta2**step)) + number(eps)
    p -= m / root * number(lr / (1 - beta1**step))
