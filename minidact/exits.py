"""The neighbours: other ways to stop early, with one head for each layer, to compare DACT with.

**Rules**, of what is known of B sentences after n layers, y (n, B, Y) answers, h (n, B) and a knob,
say which of them stop, (B,) bool:

    fixed        after k layers, whatever the sentence
    confidence   max y_n >= threshold
    entropy      H(y_n) < S, in nats: DeeBERT (Xin et al., arXiv 2004.12993), S in 0..0.7
    patience     the class was said again t times in a row: PABEE (Zhou et al., arXiv 2006.04152)
    uncertainty  H(y_n) / log classes <= speed: FastBERT (Liu et al., arXiv 2004.02178)
    cumulated    q_1 + .. + q_n >= a share, 1/2 in PALBERT's Q-exit (Balagansky, Gavrilov; arXiv
                 2204.03276), for heads trained as a PonderNet (Banino et al., arXiv 2107.05407)

The answer is y_n of the layer that stopped. With two classes confidence, entropy and uncertainty
are one rule on three scales. **Losses**, each on all L heads, which are DACT's units (dact.py), so
that nothing but loss and rule differs:

    deebert      mean_n CE(y_n), on a backbone that is frozen
    fastbert     (CE(y_L) + sum_{n<L} CE(y_n, y_L)) / L: heads imitate the last; backbone frozen
    pabee        sum_n n CE(y_n) / sum_n n
    pondernet    sum_n q_n CE(y_n) + beta KL(q || geometric), q_n = (1 - h_n) h_1 .. h_{n-1}

PonderNet takes the mean of the losses, so every y_n must be right by itself; DACT (dact.py) takes
the loss of the mean, so only their average must. The last head is trained with the others: the
authors of DeeBERT and FastBERT keep the one that the backbone was fine-tuned with.

This file works on arrays only: it knows neither BERT nor the mechanisms.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import ops

OWN_RULE = {  # the rule that goes with heads trained so (config.TRAINED)
    "dact": "dact",
    "deebert": "entropy",
    "fastbert": "uncertainty",
    "pabee": "patience",
    "pondernet": "cumulated",
}
FROZEN = ("deebert", "fastbert")  # these leave the backbone as it is
TINY = 1e-8  # halting probabilities are not taken below this before a logarithm


# ---------------------------------------------------------------------------- rules


def fixed(y, h, layers: float):
    return np.full(y.shape[1], len(y) >= layers)


def confidence(y, h, threshold: float):
    return y[-1].max(1) >= threshold


def entropy(y, h, most: float):
    return _entropy(y[-1]) < most


def patience(y, h, times: float):
    classes = y.argmax(2)  # (n, B)
    again = np.cumprod(classes[::-1] == classes[-1], 0).sum(0) - 1
    return again >= times


def uncertainty(y, h, speed: float):
    return _entropy(y[-1]) <= speed * np.log(y.shape[2])


def cumulated(y, h, share: float):
    return 1 - np.prod(h, 0) >= share  # q_1 + .. + q_n = 1 - h_1 .. h_n


def _entropy(y):
    return -(y * np.log(np.maximum(y, TINY))).sum(-1)


class Rule(NamedTuple):
    """stop (y, h, knob) -> (B,) bool; the knob's usual value, and a range.

    The range starts where every sentence stops at the first layer, so that no curve lacks its cheap
    end, and goes on with more and more work.
    """

    stop: Callable
    usual: float
    range: tuple[float, ...]


RULES = {
    "fixed": Rule(fixed, 3, (1, 2, 3, 4, 5, 6)),
    "confidence": Rule(
        confidence, 0.9, (0, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999)
    ),
    "entropy": Rule(
        entropy, 0.3, (9, 1, 0.8, 0.69, 0.67, 0.65, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.005)
    ),
    "patience": Rule(patience, 2, (0, 1, 2, 3, 4, 5)),
    "uncertainty": Rule(
        uncertainty,
        0.4,
        (1, 0.99, 0.97, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01),
    ),
    "cumulated": Rule(
        cumulated,
        0.5,
        (0, 0.001, 0.003, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    ),
}


# ---------------------------------------------------------------------------- losses


def depth_weights(loss: str, layers: int):
    """Weight of each layer's cross-entropy, (L,): they sum to 1."""
    weights = np.arange(1.0, layers + 1) if loss == "pabee" else np.ones(layers)
    return weights / weights.sum()


def geometric(prior: float, layers: int):
    """PonderNet's prior: prior (1 - prior)^(n - 1), and the last layer takes the rest. (L,)"""
    g = prior * (1 - prior) ** np.arange(layers)
    g[-1] = 1 - g[:-1].sum()
    return g


def pondernet_forward(z, h, labels, beta: float, prior: float):
    """z (L, B, Y) logits, h (L, B), labels (B,) -> mean over B of sum_n q_n CE_n + beta KL."""
    log_y = ops.log_softmax(z)
    ce = -log_y[:, np.arange(len(labels)), labels]  # (L, B)
    on = np.cumprod(np.concatenate([np.ones_like(h[:1]), h[:-1]]), 0)  # h_1 .. h_{n-1}
    q = on * (1 - h)
    q[-1] = on[-1]  # the last layer has to answer
    ratio = np.log(np.maximum(q, TINY)) - np.log(geometric(prior, len(h)))[:, None].astype(q.dtype)
    loss = (q * (ce + beta * ratio)).sum(0).mean()
    return loss, (h, labels, beta, log_y, ce, on, q, ratio)


def pondernet_backward(dloss, cache):
    """-> dz (L, B, Y), dh (L, B)."""
    h, labels, beta, log_y, ce, on, q, ratio = cache
    each = dloss / h.shape[1]
    dz = np.exp(log_y)
    dz[:, np.arange(len(labels)), labels] -= 1
    dz *= q[..., None] * each
    dq = (ce + beta * (ratio + (q > TINY))) * each  # d (q log q) = log q + 1
    dh, later = np.zeros_like(h), np.zeros_like(h[0])  # later: d loss / d on_{n+1}
    for n in reversed(range(len(h))):
        last = n == len(h) - 1
        #   on_{n+1} = on_n h_n;   q_n = on_n (1 - h_n), but q_L = on_L
        dh[n] = 0 if last else later * on[n] - dq[n] * on[n]
        later = dq[n] if last else later * h[n] + dq[n] * (1 - h[n])
    return dz, dh
