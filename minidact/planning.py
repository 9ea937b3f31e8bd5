"""Planning gates leave out layers, sentence by sentence: DPBERT-style (Wu, Zhuo; arXiv 2308.00108).

The paper's idea, as its abstract has it, is a module that decides which layers a sentence goes
through. The module's shape and its training are ours; its details could not be read.

Before layer l = 2..L a small planner reads the sentence's summary s and says how likely layer l is
worth its cost (the first layer is always included):

    pi_l = sigmoid(w_2 tanh(W_1 s + b_1) + b_2)
    u_l in {0, 1}                                included or left out
    x_{l+1} = u_l F_l(x_l) + (1 - u_l) x_l       F_l: layer l of BERT; left out: the identity

Two planners: "steps" has one for every layer, which reads the summary of x_l just before it; "path"
is a single one, which reads the summary of the embeddings and plans all layers at once.

In training u_l is drawn, 1 with probability pi_l, and its gradient goes straight through to pi_l
(Bengio, Leonard, Courville; arXiv 1308.3432):

    du_l = sum of (F_l(x_l) - x_l) dx_{l+1} over the sentence's rows and columns,
           and what halting and token gates add, where they read u_l
    dpi_l = du_l, and the cost's slope

The cost is lambda times the mean of pi over the L - 1 layers that can be left out, or lambda times
its squared distance from a target. In the first steps layers are left out at random, whatever pi
says, and the planners learn nothing yet.
In inference u_l = 1 if pi_l >= threshold, 1/2 unless it is moved.

Letters: B sentences, T rows of all of them, C the hidden size, W a planner's width, D its decisions
(1, or L - 1 of a path). s is a sentence's [CLS] row, or the mean of its rows. Formulas count layers
from 1, names from 0: `planning.layer.1` decides on l = 2. params, grads: arrays by name; calc: what
computes, ops (NumPy) or kernels (Numba). Floats keep the dtype they come in.

This file works on arrays only: it knows neither BERT nor the other mechanisms.
"""

import numpy as np

from . import ops

GATE_BIAS = 2.0  # pi starts at sigmoid(2) = 0.88: one in eight is left out, so both can be compared
PATH = "planning.path"  # the name of the planner of whole paths


def step_name(layer: int) -> str:
    """The name of the planner of one layer, counted from 0."""
    return f"planning.layer.{layer}"


def names(planner: str, layers: int) -> list[str]:
    """The planners that a model of that many layers has."""
    return [PATH] if planner == "path" else [step_name(layer) for layer in range(1, layers)]


def shapes(name: str, size: int, width: int, decisions: int) -> dict:
    """The parameters of one planner, and their shapes; decisions: L - 1 for a path, else 1."""
    return {
        f"{name}.hidden.weight": (width, size),
        f"{name}.hidden.bias": (width,),
        f"{name}.gate.weight": (decisions, width),
        f"{name}.gate.bias": (decisions,),
    }


# ---------------------------------------------------------------------------- the planner


def planner_forward(s, params: dict, name: str, calc=ops):
    """s (B, C) summaries -> pi (B, D), for D decisions."""
    w_1, w_2 = params[f"{name}.hidden.weight"], params[f"{name}.gate.weight"]
    b_1, b_2 = params[f"{name}.hidden.bias"], params[f"{name}.gate.bias"]
    t, hidden_cache = calc.linear_forward(s, w_1, b_1)  # (B, W)
    t, tanh_cache = calc.tanh_forward(t)
    g, gate_cache = calc.linear_forward(t, w_2, b_2)  # (B, D)
    pi, sigmoid_cache = calc.sigmoid_forward(g)
    return pi, (name, hidden_cache, tanh_cache, gate_cache, sigmoid_cache)


def planner_backward(dpi, cache, grads: dict, calc=ops):
    """dpi (B, D) -> ds (B, C); fills grads."""
    name, hidden_cache, tanh_cache, gate_cache, sigmoid_cache = cache
    dg = calc.sigmoid_backward(dpi, sigmoid_cache)
    dt, dw, db = calc.linear_backward(dg, gate_cache)
    grads[f"{name}.gate.weight"], grads[f"{name}.gate.bias"] = dw, db
    ds, dw, db = calc.linear_backward(calc.tanh_backward(dt, tanh_cache), hidden_cache)
    grads[f"{name}.hidden.weight"], grads[f"{name}.hidden.bias"] = dw, db
    return ds


# ---------------------------------------------------------------------------- the decision


def draw(pi, rng: np.random.Generator | None, threshold: float = 0.5):
    """u (.., like pi) of 0 and 1, in pi's dtype: by chance, or without rng by the threshold.

    Drawing with probability pi is adding logistic noise to pi's logit and asking for its sign: the
    sample of the Gumbel-sigmoid with a hard result. The gradient is the straight-through one.
    """
    limit = threshold if rng is None else rng.random(pi.shape)
    return (pi >= limit).astype(pi.dtype)


def mix_forward(f, x, w):
    """f = F(x), x (T, C), w (T,), how much of the layer each row takes -> w f + (1 - w) x."""
    w = w[:, None]
    return w * f + (1 - w) * x, (f, x, w)


def mix_backward(dout, cache):
    """-> df, dx (T, C), dw (T,)."""
    f, x, w = cache
    return w * dout, (1 - w) * dout, np.einsum("tc,tc->t", dout, f - x)


# ---------------------------------------------------------------------------- the cost


def cost_forward(pi, target: float | None = None):
    """pi (L - 1, B) -> its mean, the share of those layers included; or (mean - target)^2."""
    mean = pi.mean()
    return (mean if target is None else (mean - target) ** 2), (pi.shape, pi.dtype, mean, target)


def cost_backward(dcost, cache):
    """-> dpi (L - 1, B)."""
    shape, dtype, mean, target = cache
    slope = 1.0 if target is None else 2 * (mean - target)
    return np.full(shape, dcost * slope / np.prod(shape), dtype)
