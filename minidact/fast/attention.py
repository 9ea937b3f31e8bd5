"""Attention on a ragged batch, forward and backward, one head of one sentence at a time.

    P = softmax(scale Q K'),  out = P V,  received_k = sum of P_qk over the other tokens q

No array is larger than one sentence needs, and all products use the tiles of gemm.py.

The attention weights are computed transposed: P' (keys, queries), with whole panels of queries side
by side. The softmax then goes down the columns. Each of its steps does the same to numbers that lie
side by side, so the compiler turns it into whole vectors. A softmax along the rows would need sums
across a vector. At the end of each row, the numbers that do not fill a vector would be computed one
by one. In a short sentence those are most of the numbers. The transposition costs nothing, because
a tile takes its rows with any stride.
"""

import math

import numpy as np
from numba import prange

from ..ops import MOST_AHEAD, attention_size
from .gemm import PANEL, aligned, multiply_panels, panels_of_columns, panels_of_rows
from .jit import jit
from .special import exp2

QUERIES = 3 * PANEL  # queries side by side, at most: their arrays then stay in the cache
F = np.float32
LOG2_E = F(math.log2(math.e))
AHEAD_IN_BITS = F(MOST_AHEAD) * LOG2_E


@jit()
def _softmax(score, queries, scale, gates, received):
    """Replaces the first `queries` columns of score (keys, width) by softmax(scale column).

    The other columns become 0. received (keys,) grows by the sum of each row. gates: of size 0, or
    (keys,): keys with gate 0 do not count for the largest score, but may be ahead of it.
    """
    width, in_bits = score.shape[1], scale * LOG2_E  # e^x is 2^(x log2 e)
    top, share = np.full(width, F(-np.inf)), np.zeros(width, np.float32)
    for j in range(len(score)):
        row = score[j]
        if len(gates) == 0 or gates[j] > 0:
            for q in range(width):
                top[q] = np.maximum(top[q], row[q])  # max() would not become vectors
    for j in range(len(score)):
        row = score[j]
        for q in range(width):
            row[q] = exp2(min((row[q] - top[q]) * in_bits, AHEAD_IN_BITS))
            share[q] += row[q]
    for q in range(width):
        share[q] = F(1.0) / share[q] if q < queries else F(0.0)
    for j in range(len(score)):
        row, total = score[j], F(0.0)
        for q in range(width):
            row[q] *= share[q]
            total += row[q]
        received[j] += total


@jit()
def _softmax_backward(dweight, weight, scale):
    """Replaces dweight (keys, width), the gradient of the weights, by that of the scores."""
    width = weight.shape[1]
    inner = np.zeros(width, np.float32)
    for j in range(len(weight)):
        dweight_j, weight_j = dweight[j], weight[j]
        for q in range(width):
            inner[q] += dweight_j[q] * weight_j[q]
    for j in range(len(weight)):
        dweight_j, weight_j = dweight[j], weight[j]
        for q in range(width):
            dweight_j[q] = weight_j[q] * (dweight_j[q] - inner[q]) * scale


@jit()
def _gate(weight, queries, gates, i, received):
    """Applies the gates g to the softmax in weight (keys, width), for queries i : i + queries.

    P = g softmax / (its sum over the keys). weight becomes e = P / g. received (keys,) grows by
    the sum over the other queries of P times the query's gate.
    """
    n, width = weight.shape
    share = np.zeros(width, np.float32)
    for k in range(n):
        row, g = weight[k], gates[k]
        for q in range(width):
            share[q] += row[q] * g
    for q in range(width):
        share[q] = F(1.0) / share[q] if q < queries else F(0.0)
    for k in range(n):
        row, total = weight[k], F(0.0)
        for q in range(width):
            row[q] *= share[q]
        for q in range(queries):
            total += row[q] * gates[i + q]
        received[k] += total * gates[k]
    for q in range(queries):
        received[i + q] -= weight[i + q, q] * gates[i + q] * gates[i + q]


@jit()
def _times_gates(weight, gates):
    """Multiplies weight (keys, width) by gates (keys,), in place; does nothing without gates."""
    for k in range(len(gates)):
        row, g = weight[k], gates[k]
        for q in range(len(row)):
            row[q] *= g


@jit()
def _gates_backward(dweight, weight, gates, dgates):
    """Sets dgates (keys,) to sum over queries of e (dweight - sum over keys of dweight P).

    weight holds e = P / g.
    """
    n, width = weight.shape
    inner = np.zeros(width, np.float32)
    for k in range(n):
        dweight_k, weight_k, g = dweight[k], weight[k], gates[k]
        for q in range(width):
            inner[q] += dweight_k[q] * weight_k[q] * g
    for k in range(n):
        dweight_k, weight_k, total = dweight[k], weight[k], F(0.0)
        for q in range(width):
            total += weight_k[q] * (dweight_k[q] - inner[q])
        dgates[k] = total


@jit()
def _block(offsets, sentence, head, num_heads):
    """Returns where a sentence's weights (n, n) of one head begin and end in the flat array."""
    before = 0
    for b in range(sentence):
        before += num_heads * (offsets[b + 1] - offsets[b]) ** 2
    square = (offsets[sentence + 1] - offsets[sentence]) ** 2
    return before + head * square, before + (head + 1) * square


@jit()
def _keep(block, first, columns, flat):
    """Copies the block's columns to flat, (n, n), as its columns first : first + columns."""
    n = len(block)
    for k in range(n):
        row, to = block[k], flat[k * n + first : k * n + first + columns]
        for q in range(columns):
            to[q] = row[q]


@jit()
def _kept(flat, block):
    """Copies flat, (n, n), to block (n, width), and fills the other columns with 0."""
    n, width = block.shape
    for k in range(n):
        row, source = block[k], flat[k * n : (k + 1) * n]
        for q in range(n):
            row[q] = source[q]
        for q in range(n, width):
            row[q] = F(0.0)


@jit()
def _drop(block, first, columns, flat):
    """Multiplies the block's columns by columns first : first + columns of the mask flat, (n, n).

    flat of size 0 means no dropout.
    """
    n = len(block) if len(flat) > 0 else 0
    for k in range(n):
        row, mask = block[k], flat[k * n + first : k * n + first + columns]
        for q in range(columns):
            row[q] *= mask[q]


@jit()
def _attend_head(qkv, rows, column, size, drop, gates, scale, out, received, weights):
    """Computes one head of one sentence, and keeps its (n, n) weights if `weights` has room."""
    (lo, hi), c = rows, out.shape[1]
    n = hi - lo
    keys = qkv[lo:hi, c + column : c + column + size]
    values = panels_of_columns(qkv, rows, 2 * c + column, size)
    received[:], ungated = F(0.0), np.zeros(len(gates), np.float32)
    for i in range(0, n, QUERIES):
        j = min(i + QUERIES, n)
        queries = panels_of_rows(qkv[lo + i : lo + j, column : column + size])
        width = len(queries) * PANEL
        weight = aligned(n * width).reshape(n, width)
        multiply_panels(keys, queries, weight[:, :width])
        _softmax(weight, j - i, scale, gates, ungated if len(gates) > 0 else received)
        if len(gates) > 0:
            _gate(weight, j - i, gates, i, received)
        else:
            for t in range(i, j):
                received[t] -= weight[t, t - i]  # what a token gives itself does not count
        if len(weights) > 0:
            _keep(weight, i, j - i, weights)
        _times_gates(weight, gates)
        _drop(weight, i, j - i, drop)
        here = out[lo + i : lo + j, column : column + size]
        multiply_panels(weight[:, : j - i].T, values, here)


@jit(parallel=True)
def attend(qkv, offsets, num_heads, drop, gates, scale, out, received, weights):
    """Computes multi-head attention within every sentence, into arrays that are given, in float32.

    qkv (T, 3C) holds queries, keys and values side by side; offsets (B + 1,) is int64. out (T, C)
    gets the result. received (H, T) gets the attention that each token got from the others, for
    every head. weights and drop have ops.attention_size elements, gates (T,). Each of the three may
    be of size 0: then the weights are not kept, there is no dropout, there are no gates.
    """
    size = out.shape[1] // num_heads
    sentences = len(offsets) - 1
    for task in prange(num_heads * sentences):  # each thread gets heads of all, so of long ones too
        head, b = task // sentences, task % sentences
        rows = (offsets[b], offsets[b + 1])
        start, stop = _block(offsets, b, head, num_heads)
        mine, kept = received[head, rows[0] : rows[1]], weights[start:stop]
        mask, gate = drop[start:stop], gates[rows[0] : rows[1]]
        _attend_head(qkv, rows, head * size, size, mask, gate, scale, out, mine, kept)


@jit()
def _attend_head_backward(dout, qkv, weights, rows, column, size, drop, gates, scale, dqkv, dgates):
    """Computes one head's part of dqkv for one sentence, and of dgates if there are gates."""
    (lo, hi), c = rows, dout.shape[1]
    n, last = hi - lo, column + size
    dout_panels = panels_of_rows(dout[lo:hi, column:last])
    width = len(dout_panels) * PANEL
    weight, dweight = aligned(2 * n * width).reshape(2, n, width)
    _kept(weights, weight)
    values = qkv[lo:hi, 2 * c + column : 2 * c + last]
    multiply_panels(values, dout_panels, dweight[:, :width])  # out = (weight drop) values
    _drop(dweight, 0, n, drop)
    if len(gates) > 0:
        _gates_backward(dweight, weight, gates, dgates)
        _times_gates(weight, gates)
    _softmax_backward(dweight, weight, scale)  # weight = softmax(scale queries keys' + log gates)
    _drop(weight, 0, n, drop)
    dout_panels = panels_of_columns(dout, rows, column, size)
    multiply_panels(weight[:, :n], dout_panels, dqkv[lo:hi, 2 * c + column : 2 * c + last])
    keys = panels_of_columns(qkv, rows, c + column, size)
    multiply_panels(dweight[:, :n].T, keys, dqkv[lo:hi, column:last])
    queries = panels_of_columns(qkv, rows, column, size)
    multiply_panels(dweight[:, :n], queries, dqkv[lo:hi, c + column : c + last])


@jit(parallel=True)
def _attention_backward(dout, qkv, weights, offsets, num_heads, drop, gates, scale, dqkv, dgates):
    """Computes dqkv (T, 3C) and dgates (H, T) by all threads, a sentence and a head at a time."""
    size = dout.shape[1] // num_heads
    sentences = len(offsets) - 1
    for task in prange(num_heads * sentences):
        head, b = task // sentences, task % sentences
        rows = (offsets[b], offsets[b + 1])
        start, stop = _block(offsets, b, head, num_heads)
        mask, kept = drop[start:stop], weights[start:stop]
        gate, dgate = gates[rows[0] : rows[1]], dgates[head, rows[0] : rows[1]]
        _attend_head_backward(
            dout, qkv, kept, rows, head * size, size, mask, gate, scale, dqkv, dgate
        )


def _options(size, num_heads, drop, gates):
    """Returns drop and gates with None replaced by an empty array, and the scale of the scores."""
    none = np.empty(0, np.float32)
    scale = F(1 / math.sqrt(size // num_heads))
    return (none if drop is None else drop), (none if gates is None else gates), scale


def attention_forward(qkv, offsets, num_heads, drop=None, gates=None):
    """Returns attention within every sentence, out (T, C), received (T,) and a cache, in float32.

    Arguments and results are those of ops.attention_forward, which explains them.
    """
    size = qkv.shape[1] // 3
    out, received = np.empty((len(qkv), size), F), np.empty((num_heads, len(qkv)), F)
    weights = np.empty(attention_size(offsets, num_heads), F)
    options = _options(size, num_heads, drop, gates)
    attend(qkv, offsets, num_heads, *options, out, received, weights)
    return out, received.sum(0), (qkv, weights, offsets, num_heads, drop, gates)


def attention_backward(dout, cache):
    """Returns dqkv (T, 3C), and dgates (T,) or None, for dout (T, C), in float32."""
    qkv, weights, offsets, num_heads, drop, gates = cache
    dqkv, dgates = np.empty(qkv.shape, F), np.empty((num_heads, len(qkv)), F)
    options = _options(dout.shape[1], num_heads, drop, gates)
    _attention_backward(dout, qkv, weights, offsets, num_heads, *options, dqkv, dgates)
    return dqkv, (None if gates is None else dgates.sum(0))
