"""Early exits: when to stop, what the heads learn. DACT among related methods, to compare them.

**Rules** say which of B sentences stop after n of L layers. What is `Known` then: y (n, B, Y) and
h (n, B) of every layer so far; or, for DACT's, the margin (B,) of its answer and its lead (B,).

    dact         the class can change no more, or hardly: dact.py, with slack
    fixed        after k layers, whatever the sentence
    confidence   max y_n >= threshold
    entropy      H(y_n) < S, in nats: DeeBERT (Xin et al., arXiv 2004.12993), S in 0..0.7
    patience     the class was said again t times in a row: PABEE (Zhou et al., arXiv 2006.04152)
    uncertainty  H(y_n) / log classes <= speed: FastBERT (Liu et al., arXiv 2004.02178)
    cumulated    q_1 + .. + q_n >= a share, 1/2 in PALBERT's Q-exit (Balagansky, Gavrilov; arXiv
                 2204.03276), for heads trained as a PonderNet (Banino et al., arXiv 2107.05407)
    certain      1 - h_n >= a share, for heads trained as BERxiT's (Xin et al., EACL 2021)

DACT answers with a_n, the others with y_n of the layer that stopped. With two classes
confidence, entropy and uncertainty are one rule on three scales.

**Heads** are DACT's units (dact.py), one after each layer, so that nothing but loss and rule
differs between methods:

    dact         -log a_L[label] + tau rho + alpha mean_n CE(y_n)
    deebert      mean_n CE(y_n), on a backbone that is frozen
    fastbert     (CE(y_L) + sum_{n<L} CE(y_n, y_L)) / L: heads imitate the last; backbone frozen
    pabee        sum_n n CE(y_n) / sum_n n
    pondernet    sum_n q_n CE(y_n) + beta KL(q || geometric), q_n = (1 - h_n) h_1 .. h_{n-1}
    berxit       CE(y_L) / 2 + mean_n CE(y_n) / 2 + mean_n (1 - h_n - r_n)^2, r_n: is y_n right?
                 (the authors take the first two in turn; this is what they do in the mean)

PonderNet takes the mean of the losses, so every y_n must be right by itself; DACT takes the loss of
the mean, so only their average must. The last head is trained with the others: the authors of
DeeBERT and FastBERT keep the one that the backbone was fine-tuned with.

This file works on arrays only: it knows neither BERT nor the other mechanisms. A rule of your own
is a function and a line in RULES; every command knows it then. Only the page of `evaluate
--explore` needs it in study/explorer.html and study/explore.py, too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..errors import known
from . import dact
from .record import Knob, Mechanism, Sizes, setting

TINY = 1e-8  # halting probabilities are not taken below this before a logarithm


# ---------------------------------------------------------------------------- rules


class Known(NamedTuple):
    """What a rule may look at after n layers."""

    y: Any  # (n, B, Y), or None for a rule that averages
    h: Any  # (n, B), likewise
    margin: np.ndarray | None  # (B,) of dact.margin, for a rule that averages
    lead: np.ndarray | None  # (B,) of dact.lead, likewise


def settled(known: Known, slack: float):
    return dact.halts(known.margin, known.lead, slack)


def fixed(known: Known, layers: float):
    return np.full(known.y.shape[1], len(known.y) >= layers)


def confidence(known: Known, threshold: float):
    return known.y[-1].max(1) >= threshold


def entropy(known: Known, most: float):
    return _entropy(known.y[-1]) < most


def patience(known: Known, times: float):
    classes = known.y.argmax(2)  # (n, B)
    again = np.cumprod(classes[::-1] == classes[-1], 0).sum(0) - 1
    return again >= times


def uncertainty(known: Known, speed: float):
    return _entropy(known.y[-1]) <= speed * np.log(known.y.shape[2])


def cumulated(known: Known, share: float):
    return 1 - np.prod(known.h, 0) >= share  # q_1 + .. + q_n = 1 - h_1 .. h_n


def certain(known: Known, share: float):
    return 1 - known.h[-1] >= share


def _entropy(y):
    return -(y * np.log(np.maximum(y, TINY))).sum(-1)


class Rule(NamedTuple):
    """A rule for stopping.

    stop(known, knob) -> (B,) bool. knob: what it stops by; its `sweep` starts where every sentence
    stops at the first layer, so that no curve lacks its cheap end, and goes on with more and more
    work. set_by: the option that sets the knob. averages: it answers with a_n, and not with y_n.
    own: it is only for heads that were trained for it.
    """

    stop: Callable[[Known, float], np.ndarray]
    knob: Knob
    set_by: str = "at"
    averages: bool = False
    own: bool = False


SLACK = Knob(
    0.0, "0: halt only when the answer cannot change; more halts earlier, 1 after the first layer; "
    "0.5 or so is useful", sweep=(0.0, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 1.0),
    grid=(0.0, 0.3, 0.5, 0.6, 0.7, 1.0),
)  # fmt: skip

RULES = {
    "dact": Rule(settled, SLACK, set_by="slack", averages=True),
    "fixed": Rule(fixed, Knob(3.0, "layers", sweep=(1, 2, 3, 4, 5, 6))),
    "confidence": Rule(confidence, Knob(0.9, "least probability", sweep=(
        0, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999))),
    "entropy": Rule(entropy, Knob(0.3, "most entropy, in nats", sweep=(
        9, 1, 0.8, 0.69, 0.67, 0.65, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.005))),
    "patience": Rule(patience, Knob(2.0, "times", sweep=(0, 1, 2, 3, 4, 5))),
    "uncertainty": Rule(uncertainty, Knob(0.4, "most entropy, as a share", sweep=(
        1, 0.99, 0.97, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01))),
    "cumulated": Rule(cumulated, Knob(0.5, "share", sweep=(
        0, 0.001, 0.003, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95))),
    "certain": Rule(certain, Knob(0.9, "share", sweep=(
        0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995)), own=True),
}  # fmt: skip


# ---------------------------------------------------------------------------- losses
# forward(z, y, h, u, labels, prices) -> losses (B,), terms {name: mean}, cache
# backward(dlosses (B,), cache) -> dz, dy (L, B, Y), dh, du (L, B); du None: gates are not taught


def _heads_forward(weigh, distill):
    """The methods that take a mean of cross-entropies: weigh(L) -> (L,), the heads' weights."""

    def forward(z, y, h, u, labels, prices):
        weights = weigh(len(z))
        targets = dact.targets(y, labels, distill)
        losses, cache = dact.heads_loss_forward(z, targets, weights / weights.sum())
        return losses, {}, (y, h, cache)

    return forward


def _heads_backward(dlosses, cache):
    y, h, cache = cache
    return dact.heads_loss_backward(dlosses, cache), np.zeros_like(y), np.zeros_like(h), None


def by_depth(layers: int):
    """PABEE's weights, n of layer n, (L,)."""
    return np.arange(1.0, layers + 1)


def geometric(prior: float, layers: int):
    """PonderNet's prior, (L,): prior (1 - prior)^(n - 1), and the last layer takes the rest."""
    g = prior * (1 - prior) ** np.arange(layers)
    g[-1] = (1 - prior) ** (layers - 1)
    return g


def pondernet_forward(z, h, labels, beta: float, prior: float):
    """z (L, B, Y) logits, h (L, B), labels (B,) or (B, Y) -> sum_n q_n CE_n + beta KL, (B,)."""
    log_y = ops.log_softmax(z)
    targets = ops.one_hot(labels, z[0])
    ce = -(targets * log_y).sum(2)  # (L, B)
    on = np.cumprod(np.concatenate([np.ones_like(h[:1]), h[:-1]]), 0)  # h_1 .. h_{n-1}
    q = on * (1 - h)
    q[-1] = on[-1]  # the last layer has to answer
    ratio = np.log(np.maximum(q, TINY)) - np.log(geometric(prior, len(h)))[:, None].astype(q.dtype)
    losses = (q * (ce + beta * ratio)).sum(0)
    return losses, (h, targets, beta, log_y, ce, on, q, ratio)


def pondernet_backward(dlosses, cache):
    """dlosses (B,) -> dz (L, B, Y), dh (L, B)."""
    h, targets, beta, log_y, ce, on, q, ratio = cache
    dz = (np.exp(log_y) - targets) * (q * dlosses)[..., None]
    dq = (ce + beta * (ratio + (q > TINY))) * dlosses  # d (q log q) = log q + 1
    dh, later = np.zeros_like(h), np.zeros_like(h[0])  # later: d loss / d on_{n+1}
    for n in reversed(range(len(h))):
        last = n == len(h) - 1
        #   on_{n+1} = on_n h_n;   q_n = on_n (1 - h_n), but q_L = on_L
        dh[n] = 0 if last else later * on[n] - dq[n] * on[n]
        later = dq[n] if last else later * h[n] + dq[n] * (1 - h[n])
    return dz, dh


def _pondernet_forward(z, y, h, u, labels, prices):
    losses, cache = pondernet_forward(z, h, labels, prices.beta, prices.prior)
    return losses, {}, (y, cache)


def _pondernet_backward(dlosses, cache):
    y, cache = cache
    dz, dh = pondernet_backward(dlosses, cache)
    return dz, np.zeros_like(y), dh, None


def berxit_forward(z, y, h, u, labels, prices):
    weights = np.full(len(z), 0.5 / len(z))
    weights[-1] += 0.5
    losses, cache = dact.heads_loss_forward(z, dact.targets(y, labels, 0.0), weights)
    right = y.argmax(2) == ops.one_hot(labels, y[0]).argmax(1)  # (L, B)
    off = (1 - h) - right
    return losses + (off * off).mean(0), {}, (y, off, cache)


def berxit_backward(dlosses, cache):
    y, off, cache = cache
    dh = -2 * off * (dlosses / y.dtype.type(len(y)))
    return dact.heads_loss_backward(dlosses, cache), np.zeros_like(y), dh, None


class Heads(NamedTuple):
    """One way to train the heads.

    forward, backward: the loss. rule: of RULES, the one that goes with heads trained so. frozen:
    the backbone stays as it is. bias(prices): where the logit of h starts.
    """

    forward: Callable
    backward: Callable
    rule: str
    frozen: bool = False
    bias: Callable[[Any], float] = lambda prices: dact.HALTING_BIAS


HEADS = {
    "dact": Heads(dact.loss_forward, dact.loss_backward, "dact"),
    "deebert": Heads(_heads_forward(np.ones, 0.0), _heads_backward, "entropy", frozen=True),
    "fastbert": Heads(_heads_forward(np.ones, 1.0), _heads_backward, "uncertainty", frozen=True),
    "pabee": Heads(_heads_forward(by_depth, 0.0), _heads_backward, "patience"),
    "pondernet": Heads(
        _pondernet_forward, _pondernet_backward, "cumulated",
        # q starts as the prior; DACT's start would give the end most of it
        bias=lambda prices: math.log((1 - prices.prior) / prices.prior),
    ),
    "berxit": Heads(berxit_forward, berxit_backward, "certain"),
}  # fmt: skip


def units_forward(summaries, params: dict, calc=ops):
    """Every layer's unit: summaries (L of (B, C)) -> z, y (L, B, Y), h (L, B), caches."""
    units = [
        dact.unit_forward(s, params, dact.unit_name(layer), calc)
        for layer, s in enumerate(summaries)
    ]
    z, y, h, caches = zip(*units, strict=True)
    return np.stack(z), np.stack(y), np.stack(h), caches


def heads_forward(summaries, params: dict, trained: str, u, labels, prices, calc=ops):
    """The units, and the loss that `trained` says -> losses (B,), terms {name: mean}, cache.

    u (L, B): which layers a sentence ran; labels: (B,) classes, or (B, Y) probabilities.
    """
    z, y, h, unit_caches = units_forward(summaries, params, calc)
    heads = HEADS[known("trained", trained, HEADS)]
    losses, terms, loss_cache = heads.forward(z, y, h, u, labels, prices)
    return losses, terms, (heads, unit_caches, loss_cache)


def heads_backward(dlosses, cache, grads: dict, calc=ops):
    """dlosses (B,) -> dsummaries (L of (B, C)), du (L, B) or None; fills grads."""
    heads, unit_caches, loss_cache = cache
    dz, dy, dh, du = heads.backward(dlosses, loss_cache)
    dsummaries = [
        dact.unit_backward(dz[n], dy[n], dh[n], unit_cache, grads, calc)
        for n, unit_cache in enumerate(unit_caches)
    ]
    return dsummaries, du


# ---------------------------------------------------------------------------- the record


@dataclass(frozen=True)
class Halting:
    """What the units look like, and how they were trained: the key "halting" of config.json."""

    trunk_size: int = setting(
        128, "width of the hidden layer that a unit's two heads share", least=1, most=65_536
    )
    sees_confidence: bool = setting(True, "h does not see how sure y is", option="blind")
    trained: str = setting(
        "dact", "or as another method's, to compare; deebert and fastbert leave the backbone as "
        "it is", choices=tuple(HEADS), option="heads",
    )  # fmt: skip


@dataclass(frozen=True)
class Prices:
    """What a training charges for thinking on, and what the heads learn beside."""

    tau: float = setting(0.05, "price of thinking on; 0..0.3, higher stops earlier", most=100)
    tau_ramp: float = setting(
        0.5, "share of the steps in which tau, and the price of tokens, grow from 0", most=1
    )
    alpha: float = setting(1.0, "weight of the loss on every layer's own answer", most=100)
    distill: float = setting(0.0, "share of the last layer's answer in its target", most=1)
    ponder: str = setting("p", "ponder cost: sum of p_n, or of h_n", choices=dact.PONDER)
    beta: float = setting(0.01, "pondernet: weight of the prior", most=1000)
    prior: float = setting(
        0.3, "pondernet: the prior's chance to stop at a layer", least=0.001, most=0.999
    )


def _shapes(shape: Halting, sizes: Sizes) -> dict:
    unit = (sizes.hidden, shape.trunk_size, sizes.classes, shape.sees_confidence)
    tables = [dact.shapes(dact.unit_name(layer), *unit) for layer in range(sizes.layers)]
    return {name: shape for table in tables for name, shape in table.items()}


def _start(own: dict, shape: Halting, prices: Prices) -> None:
    for name, array in own.items():
        if name.endswith(".halting.bias"):
            array[:] = HEADS[shape.trained].bias(prices)
        elif name.endswith(".trunk.weight"):  # a ReLU layer of its own: He's scale, not BERT's
            array *= np.sqrt(2 / array.shape[1]) / 0.02


def _macs(shape: Halting, sizes: Sizes) -> int:
    """The multiply-adds of one unit: trunk, class head, halting head."""
    seen = shape.trunk_size + shape.sees_confidence
    return shape.trunk_size * (sizes.hidden + sizes.classes) + seen


HALTING = Mechanism(
    name="halting", prefix=dact.PREFIX, shape=Halting, prices=Prices,
    knobs={
        "slack": SLACK,
        "bound": Knob("tight", "which exact bound to halt by", choices=dact.BOUNDS),
        "rule": Knob(None, "halt by this rule instead of the one that the heads were trained for, "
                     "to compare; with --use halting", choices=tuple(RULES)),
        "at": Knob(None, "that rule's threshold, depth or count (mechanisms/exits.py)"),
    },
    shapes=_shapes, start=_start, macs=_macs, answers=True,
)  # fmt: skip
