"""The metrics of the tasks: a score from predictions and labels."""

import numpy as np

from .errors import InputError


def accuracy(predicted, labels) -> float:
    """Returns the share of predictions that are right; both are classes, (N,) int."""
    return float(np.mean(predicted == labels))


def f1(predicted, labels) -> float:
    """Returns F1 of class 1, the harmonic mean of precision and recall; both are (N,) int.

    If class 1 occurs nowhere, it is 0.
    """
    hits = np.sum((predicted == 1) & (labels == 1))
    claimed = np.sum(predicted == 1) + np.sum(labels == 1)
    return float(2 * hits / claimed) if claimed else 0.0


def macro_f1(predicted, labels) -> float:
    """Returns the mean over the classes of F1, each class against the rest; both are (N,) int.

    The classes are those that occur on either side.
    """
    classes = np.union1d(predicted, labels)
    return float(np.mean([f1(predicted == k, labels == k) for k in classes]))


def matthews(predicted, labels) -> float:
    """Returns Matthews' correlation of two or more classes (Gorodkin 2004); both are (N,) int.

    Where it is undefined, it is 0.
    """
    classes = np.union1d(predicted, labels)
    guess = (predicted[:, None] == classes).astype(float)
    truth = (labels[:, None] == classes).astype(float)
    guess, truth = guess - guess.mean(0), truth - truth.mean(0)
    scale = np.sqrt(np.sum(guess * guess) * np.sum(truth * truth))
    return float(np.sum(guess * truth) / scale) if scale else 0.0


def pearson_spearman(predicted, scores) -> float:
    """Returns the mean of Pearson's and Spearman's correlation; both are numbers, (N,).

    If one side is constant, it is 0.
    """
    if np.ptp(predicted) == 0 or np.ptp(scores) == 0:
        return 0.0
    from scipy.stats import rankdata  # half a second, which only a regression needs

    values = np.array([predicted, scores], float)
    ranks = np.array([rankdata(predicted), rankdata(scores)])
    return float(np.mean([np.corrcoef(values)[0, 1], np.corrcoef(ranks)[0, 1]]))


METRICS = {
    "accuracy": accuracy,
    "matthews": matthews,
    "f1": f1,
    "macro_f1": macro_f1,
    "pearson_spearman": pearson_spearman,
}


def choose(wanted: str | None, by_layout: str, regression: bool, classes: int = 2) -> str:
    """Returns the name of the metric: the wanted one, or without one what the layout has.

    by_layout: the metric of the file's layout (data.Examples). Raises InputError if the wanted
    metric does not fit what the model predicts, numbers (a regression) or so many classes.
    """
    default = "pearson_spearman" if regression else by_layout
    if default == "pearson_spearman" and not regression:
        default = "accuracy"
    if wanted is not None and (wanted == "pearson_spearman") != regression:
        kind = "numbers" if regression else "classes"
        raise InputError(f"metric {wanted!r} does not fit: the model predicts {kind}")
    if wanted == "f1" and classes != 2:
        raise InputError(
            f"metric 'f1' is of class 1 of two, and the model has {classes} classes; "
            "'macro_f1' is the mean over all"
        )
    return wanted or (default if default != "f1" or classes == 2 else "macro_f1")


def baseline(metric: str, labels) -> tuple[int, float]:
    """Returns the class that scores best if it is always said, and its score; labels (N,) int."""
    scores = {int(k): METRICS[metric](np.full_like(labels, k), labels) for k in np.unique(labels)}
    best = max(scores, key=lambda k: (scores[k], np.sum(labels == k)))
    return best, scores[best]


def score(metric: str, probs, labels) -> float:
    """Returns the metric's value for predictions and labels (N,).

    probs: the probabilities (N, Y) of a classifier, or the numbers (N, 1) that a regression
    predicts.
    """
    return METRICS[metric](probs[:, 0] if metric == "pearson_spearman" else probs.argmax(1), labels)
