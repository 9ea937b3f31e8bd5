"""How sure a comparison is: a paired bootstrap over texts and seeds (Efron 1979).

A method's curve says what its score is at every cost; `sweep.area` sums up its low half. Another
set of texts, and another seed of the training, would have given another area. The bootstrap draws
the N texts again, with replacement, R times, and the seeds as well. Two methods are compared on the
same draws, so what both find hard does not count as a difference. Of the R differences, the middle
95 % are the interval. A method is "above" another if all of the interval is above 0, "below" if all
of it is below, else "level". With one seed the interval is about texts alone.

Letters: P settings of a curve, N texts, R draws, S seeds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import known
from . import sweep

DRAWS, COVER = 1000, 0.95
COSTS = (0.25, 0.5)  # shares of the multiply-adds at which scores are told, too


class Curve(NamedTuple):
    """What N texts got at P settings: classes, macs (P, N). macs_full, labels (N,) int."""

    classes: np.ndarray
    macs: np.ndarray
    macs_full: np.ndarray
    labels: np.ndarray


class Summary(NamedTuple):
    """A curve summed up: for the texts themselves, then for every draw of them, (1 + R,)."""

    area: np.ndarray
    at: np.ndarray  # (len(COSTS), 1 + R), the scores there
    corners: np.ndarray  # (2, ..): costs and scores of what beats all cheaper settings, undrawn


def draws(texts: int, count: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each text is in each draw, (1 + R, N); the first row is the texts themselves."""
    drawn = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), count)
    return np.concatenate([np.ones((1, texts)), drawn])


def scores(metric: str, classes, labels, counts) -> np.ndarray:
    """A metric for every draw and setting, (1 + R, P): metrics.py's, on texts that count so often.

    metric: accuracy, f1 or matthews; raises InputError for another one.
    """
    known("metric", metric, ("accuracy", "f1", "matthews"))
    total = counts.sum(1, keepdims=True)  # (1 + R, 1)
    hits = counts @ (classes == labels).T  # (1 + R, P)
    if metric == "accuracy":
        return hits / total
    if metric == "f1":
        both = counts @ ((classes == 1) & (labels == 1)).T
        claimed = counts @ (classes == 1).T + counts @ (labels == 1)[:, None]
        return 2 * both / np.maximum(claimed, 1)
    # Gorodkin 2004, by how often each class k was said and was true
    agreed, squared, true_squared = hits * total, total**2, total**2
    for k in range(max(classes.max(), labels.max()) + 1):
        said, true = counts @ (classes == k).T, counts @ (labels == k)[:, None]
        agreed = agreed - said * true
        squared, true_squared = squared - said**2, true_squared - true**2
    scale = np.sqrt(squared * true_squared)
    return np.where(scale > 0, agreed / np.maximum(scale, 1e-12), 0)


def summary(curve: Curve, metric: str, counts, lowest: float) -> Summary:
    """Sums a curve up. counts: of `draws`; lowest: where the areas begin, one layer's share."""
    values = scores(metric, curve.classes, curve.labels, counts)
    costs = counts @ curve.macs.T / (counts @ curve.macs_full)[:, None]
    best = [
        sweep.best_so_far(list(zip(cost, value, strict=True)))
        for cost, value in zip(costs, values, strict=True)
    ]
    areas = [sweep.mean_between(corners, lowest, sweep.LOW_HALF) for corners in best]
    at = [np.interp(COSTS, *corners) for corners in best]
    return Summary(np.array(areas), np.array(at).T, best[0][:, 1:])  # it begins with (0, 0)


def over_seeds(of_seeds: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """(1 + R,): the mean over S seeds; in each draw over S seeds that were drawn, too.

    of_seeds: S of (1 + R,). Methods with the same seeds meet the same draws of them. Drawing S of S
    values varies too little by the factor (S - 1) / S, half for two seeds: that is made good.
    """
    each = np.array(of_seeds)  # (S, 1 + R)
    chosen = np.random.default_rng([seed, 1]).integers(0, len(each), each.shape)
    chosen[:, 0] = np.arange(len(each))
    mean, drawn = each.mean(0), np.take_along_axis(each, chosen, 0).mean(0)
    return mean + (drawn - mean) * np.sqrt(len(each) / max(len(each) - 1, 1))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the draws of a number, (1 + R,)."""
    rest = (1 - COVER) / 2
    low, high = np.quantile(values[1:], [rest, 1 - rest])
    return float(low), float(high)


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict:
    """{"difference", "low", "high", "word"} of numbers of two methods, (1 + R,) each."""
    difference = ours - theirs
    low, high = interval(difference)
    word = "above" if low > 0 else "below" if high < 0 else "level"
    return {"difference": float(difference[0]), "low": low, "high": high, "word": word}
