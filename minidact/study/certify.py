"""A promise in numbers: the cheapest knobs that keep it, tested on a user's own texts.

`python -m minidact.evaluate --certify` prints what is computed here. One part of the texts puts the
knobs in order, the other tests them (risk.py); neither may have trained the model or chosen its
knobs. The promise is about texts like these, on average: not about each of them, nor each class,
nor texts of another kind.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import data
from ..config import Config
from ..mechanisms.exits import RULES
from ..model import Model
from . import risk, sweep
from .scores import in_float32

ORDERING = 1 / 3  # share of the texts that put the knobs in order; the others test
LOSSES = ("agreement", "accuracy")

# (knobs, indices of texts) -> which of them fail (N,) bool, and their share of the multiply-adds
Measure = Callable[[dict[str, Any], np.ndarray], tuple[np.ndarray, float]]


def failures(classes, full, labels=None) -> np.ndarray:
    """(N,) bool: is the class another than the full model's?

    With labels: is it wrong where the full model's is right? That is 1[wrong] - 1[full wrong],
    clipped at 0: what is right by chance does not make up for what is wrong.
    """
    return classes != full if labels is None else (classes != labels) & (full == labels)


def settings(config: Config) -> list[dict[str, Any]]:
    """The mechanisms' settings that a sweep tries, first those of one alone; no other rules."""
    return [knobs for name, knobs in sweep.settings(config) if name not in RULES]


def split(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the texts that order and of those that test; together they are 0..n-1."""
    orders, tests = np.split(np.random.default_rng(seed).permutation(n), [round(n * ORDERING)])
    return orders, tests


def certify(
    choices: list[dict[str, Any]],
    measure: Measure,
    n: int,
    wanted: float,
    confidence: float,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, Any]:
    """Finds the cheapest of the choices that keeps a promise, with n texts.

    choices: keyword arguments for Model.knobs. wanted: the risk, the share of failures that is
    promised not to be exceeded; confidence: the probability, over such texts, that what is promised
    is true. Returns examples (those that tested), allowed and disagreements (how many of them may
    fail, and did), p_value, knobs and macs_fraction; where no setting passed, knobs is None and the
    rest is the safest setting's.
    """
    orders, tests = split(n, seed)
    measured = [measure(knobs, orders) for knobs in progress(choices)]
    counts, costs = np.array([(failed.sum(), share) for failed, share in measured]).T
    chain = [j for j, knobs in enumerate(choices) if knobs["use"] == choices[0]["use"]]
    sequence = risk.order(counts, costs, chain)
    seen: list[tuple[int, float]] = []

    def tested(j: int) -> int:
        failed, share = measure(choices[j], tests)
        seen.append((int(failed.sum()), share))
        return seen[-1][0]

    place = risk.last_passing(map(tested, sequence), len(tests), wanted, confidence)
    disagreements, share = seen[max(place, 0)]
    return {
        "risk": wanted,
        "confidence": confidence,
        "examples": len(tests),
        "allowed": risk.allowed(len(tests), wanted, confidence),
        "disagreements": disagreements,
        "p_value": risk.p_value(disagreements, len(tests), wanted),
        "knobs": choices[sequence[place]] if place >= 0 else None,
        "macs_fraction": share,
    }


def measuring(model: Model, examples: data.Examples, labels=None, batch_size: int = 32) -> Measure:
    """What `certify` asks, of a model and its texts; labels (N,) int where accuracy is promised."""
    sentences = data.encode(model.tokenizer, examples.texts, examples.pairs)

    def answers(asked: Model, knobs, indices):
        starts = range(0, len(indices), batch_size)
        parts = [[sentences[i] for i in indices[s : s + batch_size]] for s in starts]
        return [asked.run(part, knobs) for part in parts]

    def classes(found):
        return np.concatenate([a.probs.argmax(1) for a in found])

    exact = in_float32(model)
    full = classes(answers(exact, exact.knobs(()), np.arange(len(sentences))))

    def measure(knobs, indices):
        found = answers(model, model.knobs(**knobs), indices)
        spent = sum(a.macs.sum() for a in found) / sum(a.macs_full.sum() for a in found)
        own = labels if labels is None else labels[indices]
        return failures(classes(found), full[indices], own), float(spent)

    return measure


def told(r: dict[str, Any]) -> str:
    """What `certify` found, in sentences; r has the loss, too."""
    what = "differ from the full model's class"
    if r["loss"] == "accuracy":
        what = "come out wrong where the full model is right"
    n = r["examples"]
    if r["knobs"] is not None:
        knobs = ", ".join(
            f"{name} {'+'.join(value) if name == 'use' else f'{value:g}'}"
            for name, value in r["knobs"].items()
        )
        return (
            f"certified: at most {100 * r['risk']:g}% of the answers {what}, "
            f"with confidence {r['confidence']:g}\n"
            f"tested:    {r['disagreements']} of {n} did; the test allows {r['allowed']} "
            f"(p = {r['p_value']:.2g})\n"
            f"knobs:     {knobs}\n"
            f"cost:      {r['macs_fraction']:.0%} of the multiply-adds"
            + ("\nnot stored: --risk is about other classes" * (r["loss"] == "accuracy"))
        )
    rate = r["disagreements"] / n
    may = f"the test allows {r['allowed']}" if r["allowed"] >= 0 else "these are too few texts"
    needed = risk.texts_needed(r["risk"], r["confidence"], rate)
    if rate >= r["risk"]:
        more = "that is no smaller a share than the risk"
    elif needed:
        texts = math.ceil(needed / (1 - ORDERING) - 1e-9)
        more = f"if the share stays, it takes about {texts} new texts"
    else:
        more = "it would take more than a million texts"
    return (
        f"nothing can be certified: with the safest setting {r['disagreements']} of {n} answers "
        f"{what}, {may}; {more}"
    )
