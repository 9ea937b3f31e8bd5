"""Halting: DACT-BERT (Eyzaguirre, del Rio, Araujo, Soto; arXiv 2109.11745), after 2004.12770.

After every layer n = 1..L a small unit reads the sentence's summary s_n and says two things:

    t_n = relu(W_t s_n + b_t)             trunk
    y_n = softmax(W_y t_n + b_y)          what the answer is
    h_n = sigmoid(w_h t_n + b_h)          near 1: keep going; near 0: the answer is ready
                                          (w_h may also see log(1 - max y_n): ours)

The answers are averaged, each weighted by the doubt that the layers before it left:

    p_0 = 1     p_n = h_n p_{n-1}                              doubt never rises
    a_0 = 0     a_n = p_{n-1} y_n + (1 - p_{n-1}) a_{n-1}      the answer is a_L

In training all layers run, so every gradient is exact, and what is minimised is

    rho = sum_n u_n p_n                    what thinking costs; u_n: did layer n run (1) or not (0)
    loss = -log a_L[label] + tau rho + alpha mean_n CE(y_n, label)    the last term is ours

In inference a sentence stops as soon as the layers that are left could not change its class any
more (`margin`): they are bounded by the doubt.

Letters: B sentences, L layers, C the hidden size, Y classes, D the trunk's width. s_n is the [CLS]
row after layer n, or the mean of the rows. params, grads: arrays by name; calc: what computes, ops
(NumPy) or kernels (Numba). Floats keep the dtype they come in; labels are int64.

This file works on arrays only: it knows neither BERT nor the other mechanisms. The record of the
mechanism, halting, is in exits.py, where DACT stands beside related methods.
"""

import numpy as np

from .. import ops
from ..errors import known

PREFIX = "dact."  # of the units' tensors
CONFIDENCE_FLOOR = 1e-6  # 1 - max y_n is not taken below this: its logarithm stays above -14
ANSWER_FLOOR = 1e-8  # nor a_L[label] below this

# h starts at sigmoid(2.5) = 0.92, so that p_5 = 0.67 and layer 6 counts; with h = 1/2, p_5 = 0.03
HALTING_BIAS = 2.5
PONDER = ("p", "h")  # what the ponder cost may sum
BOUNDS = ("tight", "paper")  # what `margin` may bound by


def unit_name(layer: int) -> str:
    """The name of the unit after a layer, counted from 0."""
    return f"{PREFIX}layer.{layer}"


def shapes(name: str, size: int, trunk: int, classes: int, sees_confidence: bool) -> dict:
    """The parameters of one unit, under the prefix `name`, and their shapes."""
    return {
        f"{name}.trunk.weight": (trunk, size),
        f"{name}.trunk.bias": (trunk,),
        f"{name}.classifier.weight": (classes, trunk),
        f"{name}.classifier.bias": (classes,),
        f"{name}.halting.weight": (1, trunk + sees_confidence),
        f"{name}.halting.bias": (1,),
    }


# ---------------------------------------------------------------------------- one unit


def unit_forward(s, params: dict, name: str, calc=ops):
    """s (B, C), summaries after layer n -> z (B, Y) logits, y (B, Y) = softmax(z), h (B,).

    If w_h is one longer than the trunk, h_n also sees how sure y_n is, as log(1 - max y_n). That is
    our addition: no gradient goes through it, so h cannot make y less sure in order to go on.
    """
    w_t, w_y, w_h = (params[f"{name}.{part}.weight"] for part in ("trunk", "classifier", "halting"))
    b_t, b_y, b_h = (params[f"{name}.{part}.bias"] for part in ("trunk", "classifier", "halting"))
    t, trunk_cache = calc.linear_forward(s, w_t, b_t)  # (B, D)
    t, relu_cache = calc.relu_forward(t)
    z, classifier_cache = calc.linear_forward(t, w_y, b_y)  # (B, Y)
    y, softmax_cache = calc.softmax_forward(z)
    seen = t
    if w_h.shape[1] > t.shape[1]:
        rest = np.maximum(1 - y.max(1, keepdims=True), s.dtype.type(CONFIDENCE_FLOOR))
        seen = np.concatenate([t, np.log(rest)], 1)  # (B, D + 1)
    g, halting_cache = calc.linear_forward(seen, w_h, b_h)  # (B, 1)
    h, sigmoid_cache = calc.sigmoid_forward(g[:, 0])  # (B,)
    caches = (trunk_cache, relu_cache, classifier_cache)
    return z, y, h, (name, *caches, softmax_cache, halting_cache, sigmoid_cache)


def unit_backward(dz, dy, dh, cache, grads: dict, calc=ops):
    """dy (B, Y), dh (B,), dz (B, Y): what reaches z beside dy -> ds (B, C); fills grads."""
    name, trunk_cache, relu_cache, classifier_cache, *rest = cache
    softmax_cache, halting_cache, sigmoid_cache = rest
    dg = calc.sigmoid_backward(dh, sigmoid_cache)[:, None]  # (B, 1)
    dseen, dw, db = calc.linear_backward(dg, halting_cache)
    grads[f"{name}.halting.weight"], grads[f"{name}.halting.bias"] = dw, db
    dz = dz + calc.softmax_backward(dy, softmax_cache)
    dt, dw, db = calc.linear_backward(dz, classifier_cache)
    grads[f"{name}.classifier.weight"], grads[f"{name}.classifier.bias"] = dw, db
    dt += dseen[:, : dt.shape[1]]  # what h saw of the confidence has no gradient
    dt = calc.relu_backward(dt, relu_cache)
    ds, dw, db = calc.linear_backward(dt, trunk_cache)
    grads[f"{name}.trunk.weight"], grads[f"{name}.trunk.bias"] = dw, db
    return ds


# ---------------------------------------------------------------------------- the answer


def accumulate_step(a, p, y, h, u=None):
    """One layer's turn: a, y (B, Y), p, h (B,) before it -> a, p after it.

    u (B,): did the layer run for the sentence (1) or was it left out (0)? None: for all.
    """
    q = p if u is None else u * p
    #   a_n = p_{n-1} y_n + (1 - p_{n-1}) a_{n-1}        and as it was, where u_n = 0
    a = q[:, None] * y + (1 - q[:, None]) * a
    #   p_n = h_n p_{n-1}                                and as it was, where u_n = 0
    p = h * p if u is None else (1 - u * (1 - h)) * p
    return a, p


def accumulate_forward(y, h, u=None):
    """y (L, B, Y), h (L, B), u (L, B) or None -> the answer a_L (B, Y), doubts p_1..p_L (L, B)."""
    a, p = np.zeros_like(y[0]), np.ones_like(h[0])
    before, doubts = [], []
    for n in range(len(y)):
        before.append((a, p))
        a, p = accumulate_step(a, p, y[n], h[n], None if u is None else u[n])
        doubts.append(p)
    return a, np.stack(doubts), (y, h, np.ones_like(h) if u is None else u, before)


def accumulate_backward(da, dp, cache):
    """da (B, Y) of a_L, dp (L, B) of the doubts -> dy (L, B, Y), dh, du (L, B)."""
    y, h, u, before = cache
    dy, dh, du = np.empty_like(y), np.empty_like(h), np.empty_like(h)
    later = np.zeros_like(h[0])  # d loss / d p_n by way of the layers after n
    for n in reversed(range(len(y))):
        a, p = before[n]  # a_{n-1}, p_{n-1}
        dp_n = dp[n] + later
        #   p_n = (1 - u_n (1 - h_n)) p_{n-1}
        dh[n] = dp_n * u[n] * p
        du[n] = dp_n * (h[n] - 1) * p
        later = dp_n * (1 - u[n] * (1 - h[n]))
        #   a_n = q y_n + (1 - q) a_{n-1},  q = u_n p_{n-1}
        q = (u[n] * p)[:, None]
        dq = (da * (y[n] - a)).sum(1)
        dy[n] = q * da
        du[n] += dq * p
        later += dq * u[n]
        da = (1 - q) * da
    return dy, dh, du


# ---------------------------------------------------------------------------- the loss
# every loss is one number per sentence, (B,), so that a training can weigh sentences as it likes


def answer_loss_forward(a, labels):
    """a (B, Y), labels (B,) -> -log max(a[label], 1e-8), (B,).

    Of labels that are probabilities t (B, Y): -sum_y t_y log max(a_y, 1e-8).
    """
    targets = ops.one_hot(labels, a)
    logs = np.log(np.maximum(a, a.dtype.type(ANSWER_FLOOR)))
    return -(targets * logs).sum(1), (a, targets)


def answer_loss_backward(dlosses, cache):
    """dlosses (B,) -> da (B, Y); 0 where the floor holds."""
    a, targets = cache
    alive = a > ANSWER_FLOOR
    return np.where(alive, -dlosses[:, None] * targets / np.where(alive, a, 1), 0).astype(a.dtype)


def ponder_cost_forward(p, h, kind="p"):
    """p, h (L, B) -> rho (B,), the sum over layers of p_n (kind "p", the paper's) or of h_n ("h").

    Raises InputError for another kind.
    """
    known("ponder", kind, PONDER)
    return (p if kind == "p" else h).sum(0), (len(p), kind)


def ponder_cost_backward(dcosts, cache):
    """dcosts (B,) -> dp (L, B), dh (L, B)."""
    layers, kind = cache
    share = np.tile(dcosts, (layers, 1))
    return (share, np.zeros_like(share)) if kind == "p" else (np.zeros_like(share), share)


def heads_loss_forward(z, targets, weights=None):
    """z, targets (L, B, Y), logits and probabilities -> mean over n of CE(y_n, target), (B,).

    weights (L,), which sum to 1, are those of the layers; without them all count the same.

    Our addition. With a loss on a_L alone the early heads starve: what a later layer overwrites
    gets no gradient, nothing becomes ready early, and nothing halts.
    """
    log_y = ops.log_softmax(z)
    weights = np.full(len(z), 1 / len(z)) if weights is None else weights
    weights = weights.astype(z.dtype)[:, None]  # (L, 1)
    return -((targets * log_y).sum(-1) * weights).sum(0), (log_y, targets, weights)


def heads_loss_backward(dlosses, cache):
    """dlosses (B,) -> dz (L, B, Y)."""
    log_y, targets, weights = cache
    return (np.exp(log_y) - targets) * (dlosses * weights)[..., None]


def targets(y, labels, distill: float):
    """What the heads learn, (L, B, Y): the labels, mixed with a share of the last head's answer.

    distill: that share. The last head learns from the labels alone. y_L counts as a constant.
    """
    out = np.tile(ops.one_hot(labels, y[0]), (len(y), 1, 1))
    out[:-1] += distill * (y[-1] - out[:-1])
    return out


def loss_forward(z, y, h, u, labels, prices):
    """The whole loss, -log a_L[label] + tau rho + alpha mean_n CE(y_n).

    z, y (L, B, Y), h (L, B), labels (B,) or (B, Y); u (L, B): which layers ran, or None; prices:
    tau, alpha, distill and ponder as in the record of halting (exits.py). Returns losses (B,), each
    term's mean by its name, cache.
    """
    a, p, sum_cache = accumulate_forward(y, h, u)
    answer, answer_cache = answer_loss_forward(a, labels)
    ran = np.ones_like(h) if u is None else u  # a layer that planning left out costs nothing
    ponder, ponder_cache = ponder_cost_forward(ran * p, ran * h, prices.ponder)
    heads, heads_cache = heads_loss_forward(z, targets(y, labels, prices.distill))
    losses = answer + prices.tau * ponder + prices.alpha * heads
    terms = {"answer": answer.mean(), "ponder": ponder.mean(), "heads": heads.mean()}
    caches = (sum_cache, answer_cache, (ran, p, h, ponder_cache), heads_cache)
    return losses, terms, (prices, *caches)


def loss_backward(dlosses, cache):
    """dlosses (B,) -> dz, dy (L, B, Y), dh, du (L, B)."""
    prices, sum_cache, answer_cache, (ran, p, h, ponder_cache), heads_cache = cache
    dz = heads_loss_backward(prices.alpha * dlosses, heads_cache)
    dp_ran, dh_ran = ponder_cost_backward(prices.tau * dlosses, ponder_cache)
    da = answer_loss_backward(dlosses, answer_cache)
    dy, dh, du = accumulate_backward(da, ran * dp_ran, sum_cache)
    return dz, dy, dh + ran * dh_ran, du + p * dp_ran + h * dh_ran


# ---------------------------------------------------------------------------- when to stop


def margin(a, p, layers_left: int, bound: str = "tight"):
    """By how much the top class is safe, after some layer: a (B, Y), p (B,) -> (B,) float64.

    bound: "tight" or "paper"; raises InputError for another one.

    Let c be the top class of a_n, r the runner-up, d the layers left. Each of those moves at most
    the share p_n of the answer, so the top class keeps at least (1 - p_n)^d of what it has. The
    class CANNOT change any more if the margin, lower bound less upper bound, is not negative:

        paper    a[c] (1 - p)^d  -  (a[r] + p d)
        tight    (a[c] - a[r]) (1 - p)^d  -  (1 - (1 - p)^d)

    The tight one is ours. In the end a_L = k a_n + (1 - k) m, with k >= (1 - p)^d and m a mean of
    later answers; at worst m is wholly the rival's, and then a_L[c] - a_L[r] is what the line says.
    It is never below the paper's, as 1 - (1 - p)^d <= p d (Bernoulli). Exact up to rounding: the
    classes can only differ where the two leaders end level to the last digits.
    """
    known("bound", bound, BOUNDS)
    p, (second, top) = np.asarray(p, np.float64), _leaders(a)
    kept = (1 - p) ** layers_left
    if bound == "paper":
        return top * kept - (second + p * layers_left)
    return (top - second) * kept - (1 - kept)


def lead(a):
    """By how much the top class leads now: a (B, Y) -> a[c] - a[r], (B,) float64."""
    second, top = _leaders(a)
    return top - second


def _leaders(a):
    """The two highest, a[r] and a[c]."""
    return np.partition(np.asarray(a, np.float64), -2, axis=-1)[..., -2:].T


def halts(margins, leads, slack: float = 0.0):
    """Which sentences stop: where (1 - slack) margin + slack lead >= 0.

    The margin is what is left of the lead at worst. Slack 0 never changes a class; with slack S the
    layers that are left would have to take back 1 - S of what they can; 1 (or more) stops at once.
    The paper's bound has no such knob: it is ours.
    """
    slack = min(slack, 1.0)
    return (1 - slack) * margins + slack * leads >= 0
