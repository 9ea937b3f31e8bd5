"""Attention on ragged rows, forward and backward, for one head of one sentence at a time.

    P = softmax(scale Q K'),  out = P V,  received_k = sum of P_qk over the other tokens q

No array is larger than one sentence needs, and all products are tiles of gemm.py. The weights are
worked on turned round, P' (keys, queries), whole panels of queries side by side: then a softmax
goes down the columns, and every step of it is the same on numbers next to each other, which the
compiler makes whole vectors of. Along a row it would need sums across a vector, and what is left
over of a sentence's length would be worked on one by one, which is most of a short sentence.
Turning costs nothing: a tile takes its rows from any stride.
"""

import math

import numpy as np
from numba import prange

from ..ops import attention_size
from .gemm import PANEL, aligned, multiply_panels, panels_of_columns, panels_of_rows
from .jit import jit
from .special import exp

QUERIES = 3 * PANEL  # at most so many side by side: what they need stays near
F = np.float32


@jit()
def _softmax(score, queries, scale, received):
    """score (keys, width): each of the first `queries` columns becomes softmax(scale column).

    The columns beyond become 0. received (keys,) grows by the sum of each row.
    """
    width = score.shape[1]
    top, share = np.full(width, F(-np.inf)), np.zeros(width, np.float32)
    for j in range(len(score)):
        row = score[j]
        for q in range(width):
            top[q] = max(top[q], row[q])
    for j in range(len(score)):
        row = score[j]
        for q in range(width):
            row[q] = exp((row[q] - top[q]) * scale)
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
    """dweight (keys, width), the softmax's gradient, becomes that of what it was given."""
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
    """P = g softmax / (its sum over the keys), for each of the columns i : i + queries.

    Leaves e = P / g in weight; received (keys,): by the queries that are there.
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
    """weight (keys, width) times gates (keys,), in place; gates of size 0: left alone."""
    for k in range(len(gates)):
        row, g = weight[k], gates[k]
        for q in range(len(row)):
            row[q] *= g


@jit()
def _gates_backward(dweight, weight, gates, dgates):
    """dgates (keys,) += e (dweight - sum over keys of dweight P), where weight holds e = P / g."""
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
    """Where one sentence's and head's (n, n) lies in the flat array of attention weights."""
    before = 0
    for b in range(sentence):
        before += num_heads * (offsets[b + 1] - offsets[b]) ** 2
    square = (offsets[sentence + 1] - offsets[sentence]) ** 2
    return before + head * square, before + (head + 1) * square


@jit()
def _keep(block, first, columns, flat):
    """The (n, n) in flat gets the block's columns, as columns first : first + columns."""
    n = len(block)
    for k in range(n):
        row, to = block[k], flat[k * n + first : k * n + first + columns]
        for q in range(columns):
            to[q] = row[q]


@jit()
def _kept(flat, block):
    """block (n, width) = the (n, n) in flat, and 0 beyond."""
    n, width = block.shape
    for k in range(n):
        row, source = block[k], flat[k * n : (k + 1) * n]
        for q in range(n):
            row[q] = source[q]
        for q in range(n, width):
            row[q] = F(0.0)


@jit()
def _drop(block, first, columns, flat):
    """The block's columns times the same of the (n, n) in flat; flat of size 0: no dropout."""
    n = len(block) if len(flat) > 0 else 0
    for k in range(n):
        row, mask = block[k], flat[k * n + first : k * n + first + columns]
        for q in range(columns):
            row[q] *= mask[q]


@jit()
def _attend_head(qkv, rows, column, size, drop, gates, scale, out, received, weights):
    """One head of one sentence: its (n, n) weights are kept if `weights` has room for them."""
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
        _softmax(weight, j - i, scale, ungated if len(gates) > 0 else received)
        if len(gates) > 0:
            _gate(weight, j - i, gates, i, received)
        else:
            for t in range(i, j):
                received[t] -= weight[t, t - i]  # what it gives itself does not count
        if len(weights) > 0:
            _keep(weight, i, j - i, weights)
        _times_gates(weight, gates)
        _drop(weight, i, j - i, drop)
        here = out[lo + i : lo + j, column : column + size]
        multiply_panels(weight[:, : j - i].T, values, here)


@jit(parallel=True)
def attend(qkv, offsets, num_heads, drop, gates, scale, out, received, weights):
    """attention_forward into arrays that are given; received (H, T) is by head.

    drop, weights (as attention_size says) and gates (T,) may be of size 0: no dropout, weights
    are not kept, no gates.
    """
    size = out.shape[1] // num_heads
    for task in prange((len(offsets) - 1) * num_heads):
        b, head = task // num_heads, task % num_heads
        rows = (offsets[b], offsets[b + 1])
        start, stop = _block(offsets, b, head, num_heads)
        mine, kept = received[head, rows[0] : rows[1]], weights[start:stop]
        mask, gate = drop[start:stop], gates[rows[0] : rows[1]]
        _attend_head(qkv, rows, head * size, size, mask, gate, scale, out, mine, kept)


@jit()
def _attend_head_backward(dout, qkv, weights, rows, column, size, drop, gates, scale, dqkv, dgates):
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
    size = dout.shape[1] // num_heads
    for task in prange((len(offsets) - 1) * num_heads):
        b, head = task // num_heads, task % num_heads
        rows = (offsets[b], offsets[b + 1])
        start, stop = _block(offsets, b, head, num_heads)
        mask, kept = drop[start:stop], weights[start:stop]
        gate, dgate = gates[rows[0] : rows[1]], dgates[head, rows[0] : rows[1]]
        _attend_head_backward(
            dout, qkv, kept, rows, head * size, size, mask, gate, scale, dqkv, dgate
        )


def _options(size, num_heads, drop, gates):
    none = np.empty(0, np.float32)
    scale = F(1 / math.sqrt(size // num_heads))
    return (none if drop is None else drop), (none if gates is None else gates), scale


def attention_forward(qkv, offsets, num_heads, drop=None, gates=None):
    size = qkv.shape[1] // 3
    out, received = np.empty((len(qkv), size), F), np.empty((num_heads, len(qkv)), F)
    weights = np.empty(attention_size(offsets, num_heads), F)
    options = _options(size, num_heads, drop, gates)
    attend(qkv, offsets, num_heads, *options, out, received, weights)
    return out, received.sum(0), (qkv, weights, offsets, num_heads, drop, gates)


def attention_backward(dout, cache):
    qkv, weights, offsets, num_heads, drop, gates = cache
    dqkv, dgates = np.empty_like(qkv), np.empty((num_heads, len(qkv)), F)
    options = _options(dout.shape[1], num_heads, drop, gates)
    _attention_backward(dout, qkv, weights, offsets, num_heads, *options, dqkv, dgates)
    return dqkv, (None if gates is None else dgates.sum(0))
