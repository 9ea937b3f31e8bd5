"""What decides in a pass, compiled: units, planners, ranks, and the rows that a text begins with.

bert.py and the mechanisms define all of it. With one short text a call of NumPy takes longer than
its numbers do, and a unit is a dozen calls. Here each question is one. Matrices are packed once.
"""

from typing import Any

import numpy as np

from .. import bert
from ..config import Config
from ..errors import known
from ..mechanisms import dact, planning, selection, token_gates
from ..ragged import Batch
from ..tensors import stored
from . import kernels
from .gemm import PANEL, linear_packed, multiply, panels_of_rows, starts_of, widened
from .host import HALVES
from .jit import jit
from .special import exp

F = np.float32
FLOOR = F(dact.CONFIDENCE_FLOOR)
OPEN = F(token_gates.OPEN)


class Decisions:
    """The questions that hard.py asks of a model, as Reference (layers.py) asks them in NumPy."""

    def __init__(self, params: Any, config: Config):
        """params: float32 arrays by name, as network.shapes(config) lists them."""
        self.params, self.config = params, config
        words, *others = bert.TABLES
        table = stored(params, words)  # half of a small model: it stays in the file
        halves = HALVES and table.dtype == np.float16
        self.words = table.view(np.uint16) if halves else params[words]
        self.others = tuple(params[name] for name in others)
        at = "bert.embeddings.LayerNorm"
        self.norm = (params[f"{at}.weight"], params[f"{at}.bias"], F(config.layer_norm_eps))
        layers, parts = config.num_hidden_layers, ("trunk", "classifier", "halting")
        halting, shape = "halting" in config.mechanisms, config.mechanisms.get("planning")
        self.units = [self._head(dact.unit_name(n), parts) for n in range(layers) if halting]
        names = planning.names(shape.planner, layers) if shape else []
        self.planners = {name: self._head(name, ("hidden", "gate")) for name in names}
        select = config.mechanisms.get("selection")
        places = selection.places(layers, select.reductions) if select else []
        names = [selection.policy_name(n) for n in places]
        self.policies = {name: self._head(name, ("hidden", "gate")) for name in names}

    def _head(self, name, parts):
        """A small network: its first matrix and bias in panels, the others as they are."""
        first, *others = parts
        w, b = self.params[f"{name}.{first}.weight"], self.params[f"{name}.{first}.bias"]
        rest = [
            self.params[f"{name}.{part}.{kind}"] for part in others for kind in ("weight", "bias")
        ]
        return panels_of_rows(w), starts_of(b), *rest

    def embed(self, batch: Batch):
        """bert.embeddings_forward: token ids -> x (T, C)."""
        x = np.empty((len(batch.ids), self.config.hidden_size), np.float32)
        if not _embed(*batch, self.words, *self.others, *self.norm, x):
            bert.check_ids(self.config, batch)  # says which
        return x

    def summary(self, x, offsets):
        """bert.summary_forward: x (T, C) -> s (B, C)."""
        if known("summary", self.config.summary, bert.ROWS) == "cls":
            return x[offsets[:-1]]
        s = np.empty((len(offsets) - 1, x.shape[1]), np.float32)
        kernels.mean_rows(x, offsets, s)
        return s

    def planner(self, name: str, s):
        """planning.planner_forward: s (B, C) -> pi (B, D)."""
        panels, starts, w, b = self.planners[name]
        pi = np.empty((len(s), len(w)), np.float32)
        _planner(s, panels, starts, w, b, pi)
        return pi

    def policy(self, name: str, x):
        """selection.policy_forward, and its sigmoid: x (T, C) -> pi (T,)."""
        pi = np.empty(len(x), np.float32)
        _policy(x, *self.policies[name], pi)
        return pi

    def unit(self, layer: int, s, a, p):
        """dact.unit_forward of s (B, C) -> y (B, Y), h (B,), and accumulate_step's a, p with them.

        a (B, Y), p (B,): before the layer.
        """
        y, h, a, p = np.empty_like(a), np.empty_like(p), a.copy(), p.copy()
        _unit(s, *self.units[layer], y, h, a, p)
        return y, h, a, p

    def margin(self, a, p, left: int, bound: str):
        """dact.margin and dact.lead of a (B, Y), p (B,) -> (B,), (B,) float64."""
        margin, lead = np.empty((2, len(a)))
        _margin(a, p, left, known("bound", bound, dact.BOUNDS) == "paper", margin, lead)
        return margin, lead

    def stays(self, layer: int, received, offsets, run, keep: float):
        """token_gates.stays, of sentences in run (B,) bool -> (T,) bool."""
        shape, gates = self.config.mechanisms["tokens"], self.params[token_gates.NAME][layer - 1]
        relative = known("ranks", shape.ranks, token_gates.RANKS) == "relative"
        out = np.empty(len(received), np.bool_)
        _stays(received, offsets, run, gates, relative, keep, out)
        return out

    def add_dropped(self, x, offsets, keep, sums):
        """Adds the rows of x (T, C) that are not in keep (T,) to their sentences' sums (B, C)."""
        _add_dropped(x, offsets, keep, sums)


@jit()
def _embed_row(word, place, kind, gamma, beta, eps, x):
    for c in range(len(x)):
        x[c] = widened(word[c]) + place[c] + kind[c]
    mean, inv = kernels.mean_and_inv_std(x, eps)
    for c in range(len(x)):
        x[c] = (x[c] - mean) * inv * gamma[c] + beta[c]


@jit()
def _embed(ids, segments, offsets, words, places, kinds, gamma, beta, eps, x):
    """False if an id, a place or a segment has no row in its table."""
    for t in range(len(ids)):
        if ids[t] >= len(words) or segments[t] >= len(kinds):
            return False
    for b in range(len(offsets) - 1):
        if offsets[b + 1] - offsets[b] > len(places):
            return False
    for b in range(len(offsets) - 1):
        for t in range(offsets[b], offsets[b + 1]):
            place = places[t - offsets[b]]
            _embed_row(words[ids[t]], place, kinds[segments[t]], gamma, beta, eps, x[t])
    return True


@jit()
def _dot(a, b):
    total = F(0.0)
    for c in range(len(a)):
        total += a[c] * b[c]
    return total


@jit()
def _hidden(s, panels, starts):
    """A head's first product, (B, whole panels)."""
    t = np.empty((len(s), starts.size), np.float32)
    for i in range(len(panels)):
        multiply(s[:, : s.shape[1]], panels[i], starts[i], t[:, i * PANEL : (i + 1) * PANEL])
    return t


@jit()
def _sigmoid(x):
    return F(1.0) / (F(1.0) + exp(-x))


@jit()
def _planner(s, panels, starts, w, b, pi):
    t, width = _hidden(s, panels, starts), w.shape[1]
    for r in range(len(s)):
        t_r = t[r, :width]
        for c in range(width):
            t_r[c] = F(1.0) - F(2.0) / (F(1.0) + exp(t_r[c] + t_r[c]))  # tanh
        for d in range(len(w)):
            pi[r, d] = _sigmoid(_dot(t_r, w[d]) + b[d])


@jit()
def _policy(x, panels, starts, w, b, pi):
    t, gelu = np.empty((len(x), w.shape[1]), np.float32), len(x) > 0
    linear_packed(x, panels, starts, gelu, t)
    for r in range(len(x)):
        pi[r] = _sigmoid(_dot(t[r], w[0]) + b[0])


@jit()
def _softmax_row(y):
    top, total = y[0], F(0.0)
    for k in range(len(y)):
        top = max(top, y[k])
    for k in range(len(y)):
        y[k] = exp(y[k] - top)
        total += y[k]
    for k in range(len(y)):
        y[k] /= total


@jit()
def _unit(s, panels, starts, w_y, b_y, w_h, b_h, y, h, a, p):
    t, width = _hidden(s, panels, starts), w_y.shape[1]
    for r in range(len(s)):
        t_r, y_r = t[r, :width], y[r]
        for c in range(width):
            t_r[c] = max(t_r[c], F(0.0))
        for k in range(len(y_r)):
            y_r[k] = _dot(t_r, w_y[k]) + b_y[k]
        _softmax_row(y_r)
        g = _dot(t_r, w_h[0, :width]) + b_h[0]
        if w_h.shape[1] > width:  # it sees how sure y is
            top = F(0.0)
            for k in range(len(y_r)):
                top = max(top, y_r[k])
            g += w_h[0, width] * np.log(max(F(1.0) - top, FLOOR))
        h[r] = _sigmoid(g)
        for k in range(len(y_r)):
            a[r, k] = p[r] * y_r[k] + (F(1.0) - p[r]) * a[r, k]
        p[r] *= h[r]


@jit()
def _margin(a, p, left, paper, margin, lead):
    for r in range(len(a)):
        top, second = -np.inf, -np.inf
        for k in range(a.shape[1]):
            value = np.float64(a[r, k])
            second = max(second, min(top, value))
            top = max(top, value)
        doubt, kept = np.float64(p[r]), 1.0
        for _ in range(left):
            kept *= 1.0 - doubt
        lead[r] = top - second
        if paper:
            margin[r] = top * kept - (second + doubt * left)
        else:
            margin[r] = lead[r] * kept - (1.0 - kept)


@jit()
def _add_dropped(x, offsets, keep, sums):
    for b in range(len(sums)):
        sum_b = sums[b]
        for t in range(offsets[b], offsets[b + 1]):
            if not keep[t]:
                row = x[t]
                for c in range(len(row)):
                    sum_b[c] += row[c]


@jit()
def _above(received, t):
    """How many of a sentence's rows beside its first, received (n,), come before its row t."""
    count, mine = 0, received[t]
    for u in range(1, len(received)):
        count += received[u] > mine or (received[u] == mine and u < t)
    return count


@jit(fastmath=())  # a share on a bin's border stays there: no division becomes a product
def _stays(received, offsets, run, gates, relative, keep, out):
    bins = len(gates)
    for b in range(len(offsets) - 1):
        lo, hi = offsets[b], offsets[b + 1]
        of_sentence, others = received[lo:hi], max(hi - lo - 1, 1)
        for t in range(hi - lo):
            if t == 0 or not run[b]:
                out[lo + t] = True
                continue
            rank = _above(of_sentence, t)
            index = rank * bins / (others * keep) if relative else rank / keep
            out[lo + t] = gates[int(min(max(index, 0.0), bins - 1.0))] >= OPEN
