"""The scores of the tasks, from predictions and labels."""

import numpy as np
from scipy.stats import pearsonr, spearmanr


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
