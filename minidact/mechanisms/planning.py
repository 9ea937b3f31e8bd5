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

from dataclasses import dataclass

import numpy as np

from .. import ops
from ..errors import known
from .record import Knob, Mechanism, Sizes, setting

GATE_BIAS = 2.0  # pi starts at sigmoid(2) = 0.88: one in eight is left out, so both can be compared
PREFIX = "planning."  # of the planners' tensors
PATH = f"{PREFIX}path"  # the name of the planner of whole paths
PLANNERS = ("steps", "path")


def step_name(layer: int) -> str:
    """The name of the planner of one layer, counted from 0."""
    return f"{PREFIX}layer.{layer}"


def is_stepwise(planner: str) -> bool:
    """Is there a planner for every layer ("steps"), or one for all ("path")?"""
    return known("planner", planner, PLANNERS) == "steps"


def names(planner: str, layers: int) -> list[str]:
    """The planners that a model of that many layers has."""
    return [step_name(n) for n in range(1, layers)] if is_stepwise(planner) else [PATH]


def decisions(planner: str, layers: int) -> int:
    """How many layers one planner decides on."""
    return 1 if is_stepwise(planner) else layers - 1


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


# ---------------------------------------------------------------------------- the record


@dataclass(frozen=True)
class Planning:
    """What planners look like: the key "planning" of config.json."""

    planner: str = setting(
        "steps", "one before every layer but the first, or one for all, which reads the embeddings",
        choices=PLANNERS,
    )  # fmt: skip
    width: int = setting(
        64, "width of a planner's hidden layer", least=1, most=65_536, option="planner-width"
    )


@dataclass(frozen=True)
class Prices:
    """What a training charges for layers.

    explore: in the first steps layers are left out with this probability, whatever the planner
    says, and it learns nothing: LayerDrop (Fan et al., arXiv 1909.11556), which the backbone must
    get used to. None: the planner decides.
    """

    layer_cost: float = setting(0.5, "price of including layers; 0..5", most=1000)
    layer_target: float | None = setting(
        None, "share of layers to aim at; the price is of missing it", most=1
    )
    explore: float | None = setting(0.2, "at first, layers are left out so often, blindly", most=1)
    explore_share: float = setting(0.3, "share of the steps in which they are", most=1)


def _shapes(shape: Planning, sizes: Sizes) -> dict:
    size = (sizes.hidden, shape.width, decisions(shape.planner, sizes.layers))
    tables = [shapes(name, *size) for name in names(shape.planner, sizes.layers)]
    return {name: shape for table in tables for name, shape in table.items()}


def _start(own: dict, shape: Planning, prices: Prices) -> None:
    for name, array in own.items():
        if name.endswith(".gate.bias"):
            array[:] = GATE_BIAS


def _macs(shape: Planning, sizes: Sizes) -> int:
    """The multiply-adds of asking one planner once."""
    return shape.width * (sizes.hidden + decisions(shape.planner, sizes.layers))


THRESHOLD = Knob(
    0.5, "planning: a layer is included if its gate is at least this; more leaves out more layers",
    sweep=(0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99, 1.01), grid=(0.5, 0.9),
)  # fmt: skip

PLANNING = Mechanism(
    name="planning", prefix=PREFIX, shape=Planning, prices=Prices,
    knobs={"threshold": THRESHOLD}, shapes=_shapes, start=_start, macs=_macs, least_layers=2,
)  # fmt: skip
