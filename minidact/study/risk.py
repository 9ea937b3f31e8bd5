"""Risk control: which settings keep a promise, tested exactly on texts that they never saw.

Learn then Test (Angelopoulos et al., arXiv 2110.01052, section 2) with an order that other texts
chose (Pareto Testing, arXiv 2210.07913). A setting's loss on a text is 1 where it fails, else 0
(it gives another class than the full model, say), and its risk R is the mean loss over all texts
of that kind, which nobody knows.

    H_j : R_j > r                                "setting j breaks the promise"
    p_j = P(Binomial(n, r) <= losses_j)          so few losses of n, or fewer, if R_j were r

If H_j is true then P(p_j <= d) <= d. The settings are tested one after the other, in an order that
is fixed before the n texts are seen, and the testing ends at the first with p_j > d. A false
promise needs the first setting in the order that breaks it to pass, and that one test is wrong
with probability d at most. So no setting that passed breaks the promise, with probability 1 - d,
however many there are, and the last one that passed is the answer.
"""

from collections.abc import Iterable

import numpy as np

MILLION = 1_000_000


def p_value(losses: int, n: int, risk: float) -> float:
    """P(Binomial(n, risk) <= losses): how likely so few losses are if the promise is broken."""
    from scipy.special import bdtr  # not needed by who only answers

    return float(bdtr(losses, n, risk))


def allowed(n: int, risk: float, confidence: float) -> int:
    """The most losses of n texts with which a setting passes; -1: not even none would do."""
    from scipy.special import bdtr

    return int(np.sum(bdtr(np.arange(n), n, risk) <= 1 - confidence)) - 1


def texts_needed(risk: float, confidence: float, rate: float = 0.0) -> int | None:
    """The fewest texts on which a setting passes that fails on this share of them.

    Without any failure: (1 - risk)^n <= 1 - confidence. None: a million are not enough.
    """
    from scipy.special import bdtr

    n = np.arange(1, MILLION + 1)
    enough = bdtr(np.ceil(rate * n), n, risk) <= 1 - confidence
    return int(n[enough.argmax()]) if enough.any() else None


def order(losses: np.ndarray, costs: np.ndarray, chain: Iterable[int] = ()) -> np.ndarray:
    """The settings worth a test, the safest (and dearest) first -> indices.

    losses, costs: (J,), of each setting on the texts that choose the order. They are those that no
    other beats in both. The first of them had no loss perhaps by luck, and if it fails its test
    nothing is certified; so before it come the dearer ones of a chain, settings in which one knob
    moves, as far as they lost no more.
    """
    best, front = np.inf, []
    for j in np.lexsort((losses, costs)):  # the cheapest first
        if losses[j] < best:
            best = losses[j]
            front.append(j)
    safest = front[-1]
    before = [j for j in chain if costs[j] > costs[safest] and losses[j] <= losses[safest]]
    return np.array([*sorted(before, key=lambda j: -costs[j]), *front[::-1]], int)


def last_passing(losses: Iterable[int], n: int, risk: float, confidence: float) -> int:
    """Tests settings in their order -> the place of the last that passes, -1 if none does.

    losses: of each on the n texts. What comes after the first that fails is not looked at.
    """
    passed = -1
    for count in losses:
        if p_value(count, n, risk) > 1 - confidence:
            break
        passed += 1
    return passed
