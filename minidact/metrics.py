"""The scores of the tasks, from predictions and labels."""

import numpy as np
from scipy.stats import pearsonr, spearmanr

from .errors import InputError


def accuracy(predicted, labels) -> float:
    return float(np.mean(predicted == labels))


def f1(predicted, labels) -> float:
    """Harmonic mean of precision and recall of class 1."""
    hits = np.sum((predicted == 1) & (labels == 1))
    claimed = np.sum(predicted == 1) + np.sum(labels == 1)
    return float(2 * hits / claimed) if claimed else 0.0


def matthews(predicted, labels) -> float:
    """Matthews' correlation of two or more classes (Gorodkin 2004); 0 where it is undefined."""
    classes = np.union1d(predicted, labels)
    guess = (predicted[:, None] == classes).astype(float)
    truth = (labels[:, None] == classes).astype(float)
    guess, truth = guess - guess.mean(0), truth - truth.mean(0)
    scale = np.sqrt(np.sum(guess * guess) * np.sum(truth * truth))
    return float(np.sum(guess * truth) / scale) if scale else 0.0


def pearson_spearman(predicted, scores) -> float:
    """Mean of Pearson's and Spearman's correlation; 0 where a side is constant."""
    if np.ptp(predicted) == 0 or np.ptp(scores) == 0:
        return 0.0
    return float((pearsonr(predicted, scores)[0] + spearmanr(predicted, scores)[0]) / 2)


METRICS = {
    "accuracy": accuracy,
    "matthews": matthews,
    "f1": f1,
    "pearson_spearman": pearson_spearman,
}


def choose(wanted: str | None, by_layout: str, regression: bool) -> str:
    """The metric that was asked for, else the file's own. Raises InputError on a misfit."""
    default = "pearson_spearman" if regression else by_layout
    if default == "pearson_spearman" and not regression:
        default = "accuracy"
    if wanted is not None and (wanted == "pearson_spearman") != regression:
        kind = "numbers" if regression else "classes"
        raise InputError(f"metric {wanted!r} does not fit: the model predicts {kind}")
    return wanted or default


def score(metric: str, probs, labels) -> float:
    """Of a model's probabilities (N, Y), or of the numbers (N, 1) that a regression predicts."""
    return METRICS[metric](probs[:, 0] if metric == "pearson_spearman" else probs.argmax(1), labels)
