"""Learned selection: a policy says of each word whether it goes on, and learns it by REINFORCE.

TR-BERT (Ye, Lin, Huang, Sun; NAACL 2021, arXiv 2105.11618). A token gate is asked for a rank, so
sentences of one length always keep the same number of words. A policy is asked for the word itself.

Before some layers, usually the second and the middle one, a small network reads the state x_i of
every token that is still there, and tokens with a_i = 0 leave for good; [CLS] is not asked:

    z_i = w_2 . gelu(W_1 x_i + b_1) + b_2        pi_i = sigmoid(z_i)
    a_i ~ Bernoulli(pi_i)                        in inference: a_i = 1 if pi_i >= 1/2

What is minimised is the expected cost of a sentence, over all that the policies can choose:

    J = E[c(a)]      c(a) = task(a) + alpha kept(a)

task is the loss of the words that were left, kept the share of the sentence's tokens that layers
2..L work on, so alpha is the price of going on with all of them. A choice has no slope, but its
probability has one (the score function; Williams 1992), and so J has:

    dJ = E[ d task(a) + (c(a) - b) d log p(a) ]
    log p(a) = sum_i a_i log pi_i + (1 - a_i) log(1 - pi_i)

for any b that does not depend on a, as E[d log p] = d sum_a p(a) = 0. Without b every choice that
was made becomes likelier or rarer as a whole; with the usual cost as b only what was better than
usual becomes likelier, and the estimate's variance falls. From K samples of the same sentence, b of
each is the mean cost of the others, which makes the estimate unbiased. (TR-BERT takes the mean of
all K, which shrinks it to (K - 1) / K, and divides log p by the number of tokens.)

The other estimator, "gumbel", draws a as well, multiplies by it as token gates do (soft.py), and
lets its gradient go straight through to pi, as planning gates do: little variance, but a bias.

The policies learn first, with all else as it is (`policy_only`). In the first of those steps one of
the K samples is not drawn: it keeps the round(sum_i pi_i) tokens that a guide puts first
(train/guide.py).

Letters: B sentences, T rows of all of them, C the hidden size, W the policy's width, L layers, n a
sentence's tokens. Formulas count layers from 1, names from 0. Floats keep the dtype they come in.

This file works on arrays only: it knows neither BERT nor the other mechanisms.
"""

from dataclasses import dataclass

import numpy as np

from .. import ops, ragged
from ..errors import known
from .record import Knob, Mechanism, Sizes, setting

PREFIX = "selection."  # of the policies' tensors
GATE_BIAS = 2.0  # pi starts at sigmoid(2) = 0.88
POOLS = ("last", "left")
ESTIMATORS = ("reinforce", "gumbel")


def policy_name(layer: int) -> str:
    """The name of the policy before one layer, counted from 0."""
    return f"{PREFIX}layer.{layer}"


def places(layers: int, reductions: int) -> list[int]:
    """The layers, from 0, before which tokens are asked: 1 at first, then evenly spread."""
    return sorted({1 + k * (layers - 1) // reductions for k in range(reductions)})


def shapes(name: str, size: int, width: int) -> dict:
    """The parameters of one policy, and their shapes."""
    return {
        f"{name}.hidden.weight": (width, size),
        f"{name}.hidden.bias": (width,),
        f"{name}.gate.weight": (1, width),
        f"{name}.gate.bias": (1,),
    }


# ---------------------------------------------------------------------------- the policy


def policy_forward(x, params: dict, name: str, calc=ops):
    """x (T, C), tokens' states -> z (T,), the logits of pi."""
    w_1, w_2 = params[f"{name}.hidden.weight"], params[f"{name}.gate.weight"]
    b_1, b_2 = params[f"{name}.hidden.bias"], params[f"{name}.gate.bias"]
    t, hidden_cache = calc.linear_forward(x, w_1, b_1)  # (T, W)
    t, gelu_cache = calc.gelu_forward(t)
    z, gate_cache = calc.linear_forward(t, w_2, b_2)  # (T, 1)
    return z[:, 0], (name, hidden_cache, gelu_cache, gate_cache)


def policy_backward(dz, cache, grads: dict, calc=ops):
    """dz (T,) -> dx (T, C); fills grads."""
    name, hidden_cache, gelu_cache, gate_cache = cache
    dt, dw, db = calc.linear_backward(np.ascontiguousarray(dz)[:, None], gate_cache)
    grads[f"{name}.gate.weight"], grads[f"{name}.gate.bias"] = dw, db
    dx, dw, db = calc.linear_backward(calc.gelu_backward(dt, gelu_cache), hidden_cache)
    grads[f"{name}.hidden.weight"], grads[f"{name}.hidden.bias"] = dw, db
    return dx


# ---------------------------------------------------------------------------- the choice


def asked(offsets, run=None):
    """Whom a policy is asked about, (T,) bool: all but [CLS], of the sentences in run (B,)."""
    out = np.ones(offsets[-1], bool) if run is None else np.repeat(run, ragged.lengths(offsets))
    out[offsets[:-1]] = False
    return out


def draw(z, asked, rng: np.random.Generator | None, threshold: float = 0.5):
    """Which tokens stay, (T,) bool: by chance, or without rng by the threshold; z, asked (T,)."""
    pi = ops.sigmoid_forward(z)[0]
    return ~asked | (pi >= (threshold if rng is None else rng.random(len(z))))


def through_forward(z, asked, rng: np.random.Generator | None):
    """The gates of "gumbel", g (T,), 0 or 1 by draw; the gradient goes straight through to pi."""
    pi, cache = ops.sigmoid_forward(z)
    return draw(z, asked, rng).astype(pi.dtype), (asked, cache)


def through_backward(dg, cache):
    """dg (T,) -> dz (T,)."""
    asked, sigmoid_cache = cache
    return ops.sigmoid_backward(np.where(asked, dg, dg.dtype.type(0)), sigmoid_cache)


def top_tokens(z, asked, scores, offsets):
    """Which tokens stay, (T,) bool: of each sentence the round(sum of pi) with the highest scores.

    z, asked, scores (T,). Who is not asked stays, too, and does not count.
    """
    chances = np.add.reduceat(np.where(asked, ops.sigmoid_forward(z)[0], 0), offsets[:-1])
    sentence = np.repeat(np.arange(len(offsets) - 1), ragged.lengths(offsets))
    order = np.lexsort((-scores, ~asked, sentence))  # in a sentence the asked come first
    stays = ~asked
    stays[order] |= ragged.positions(offsets) < np.repeat(np.rint(chances), ragged.lengths(offsets))
    return stays


def log_prob_forward(z, stays, asked, offsets):
    """log p of what was chosen, for each sentence, (B,); z, stays, asked (T,)."""
    each = -np.logaddexp(0, np.where(stays, -z, z))  # log pi, or log(1 - pi)
    return np.add.reduceat(np.where(asked, each, 0), offsets[:-1]), (z, stays, asked, offsets)


def log_prob_backward(dout, cache):
    """dout (B,) -> dz (T,)."""
    z, stays, asked, offsets = cache
    #   d log pi / dz = 1 - pi,   d log(1 - pi) / dz = -pi
    slope = np.where(asked, stays - ops.sigmoid_forward(z)[0], 0)
    return (slope * np.repeat(dout, ragged.lengths(offsets))).astype(z.dtype)


def advantages(costs):
    """costs (K, B) -> each cost less the mean of the other samples' (K, B); 0 of a single one."""
    count = len(costs)
    return (costs - costs.mean(0)) * (count / max(count - 1, 1))


# ---------------------------------------------------------------------------- who leaves


def leave_forward(x, offsets, stays, dropped=None):
    """Rows that do not stay leave: x (T, C), stays (T,) bool -> x (T', C), offsets, dropped, cache.

    dropped (B, C): the sum of the rows of each sentence that left before, or None if nobody asks.
    """
    rows, after = ragged.thin(offsets, stays)
    if dropped is not None:
        dropped = dropped + np.add.reduceat(np.where(stays[:, None], 0, x), offsets[:-1])
    return x[rows], after, dropped, (rows, stays, offsets)


def leave_backward(dx, ddropped, cache):
    """dx (T', C), ddropped (B, C) or None -> dx (T, C). (That of dropped goes on as it is.)"""
    rows, stays, offsets = cache
    if ddropped is None:
        out = np.zeros((len(stays), dx.shape[1]), dx.dtype)
    else:
        out = np.repeat(ddropped, ragged.lengths(offsets), 0)
    out[rows] = dx
    return out


def whole_mean_forward(mean, dropped, left, whole):
    """The mean of all of a sentence's rows: mean (B, C) of the `left` (B,) of them, and dropped.

    A row that left counts as it last was. whole (B,): how many there were at first.
    """
    left, whole = (n[:, None].astype(mean.dtype) for n in (left, whole))
    return (mean * left + dropped) / whole, (left, whole)


def whole_mean_backward(dout, cache):
    """dout (B, C) -> dmean, ddropped (B, C)."""
    left, whole = cache
    return dout * (left / whole), dout / whole


def counts_what_is_left(pool: str) -> bool:
    """Does the mean of a sentence's rows count only those left ("left"), or all ("last")?"""
    return known("selection_pool", pool, POOLS) == "left"


def copied(x, copies: int):
    """x (B, ..) or (T, ..) so many times, end to end."""
    return np.concatenate([x] * copies)


def added_up(dx, copies: int):
    """The gradient of what was copied: the sum over the copies."""
    return dx.reshape(copies, -1, *dx.shape[1:]).sum(0)


# ---------------------------------------------------------------------------- the record


@dataclass(frozen=True)
class Selection:
    """What the policies look like: the key "selection" of config.json."""

    policy_width: int = setting(32, "width of a policy's hidden layer", least=1, most=65_536)
    reductions: int = setting(
        2, "how often words are asked: before the second layer, and evenly from there", least=1,
        most=1_000,
    )  # fmt: skip
    selection_pool: str = setting(
        "last", "the mean of a sentence's rows counts a dropped one as it last was, or only those "
        "left", choices=POOLS,
    )  # fmt: skip


@dataclass(frozen=True)
class Prices:
    """What a training charges for words, and how the policies learn."""

    selection_cost: float = setting(0.3, "price of keeping all words (alpha); 0.05..2", most=1000)
    estimator: str = setting(
        "reinforce", "how the gradient of a choice is estimated", choices=ESTIMATORS
    )
    samples: int = setting(
        4, "reinforce: choices that are tried for every text, and compared", least=2, most=1000
    )
    policy_only: bool = setting(False, "the policies learn, and all else stays as it is")
    guided: float = setting(
        0.5, "with --policy-only and reinforce: in this share of the steps, the first ones, one of "
        "the samples is a guide's choice", most=1,
    )  # fmt: skip


def _shapes(shape: Selection, sizes: Sizes) -> dict:
    tables = [
        shapes(policy_name(n), sizes.hidden, shape.policy_width)
        for n in places(sizes.layers, shape.reductions)
    ]
    return {name: shape for table in tables for name, shape in table.items()}


def _start(own: dict, shape: Selection, prices: Prices) -> None:
    for name, array in own.items():
        if name.endswith(".gate.bias"):
            array[:] = GATE_BIAS
        elif name.endswith(".hidden.weight"):  # before a kind of ReLU: He's scale, not BERT's
            array *= np.sqrt(2 / array.shape[1]) / 0.02


def _macs(shape: Selection, sizes: Sizes) -> int:
    """The multiply-adds of asking about one token once."""
    return shape.policy_width * (sizes.hidden + 1)


THRESHOLD = Knob(
    0.5, "selection: a word stays if its policy gives it at least this chance; more drops more",
    most=1.01, sweep=(0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99), grid=(0.2, 0.5, 0.8),
)  # fmt: skip

SELECTION = Mechanism(
    name="selection", prefix=PREFIX, shape=Selection, prices=Prices,
    knobs={"selection_threshold": THRESHOLD}, shapes=_shapes, start=_start, macs=_macs,
    least_layers=2, excludes=("tokens",),
)  # fmt: skip
