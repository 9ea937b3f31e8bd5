"""What a training tells: what it is to beat, how good it is, how its depths spread."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .. import data, metrics, soft
from ..config import Config
from ..errors import visible
from ..mechanisms import token_gates
from ..model import Model
from ..network import Network

ALIKE = 0.9  # if so many texts run the same layers, nothing is adaptive


class Report(NamedTuple):
    """A dev set's score with every mechanism in use, in words, and the layers of each text."""

    text: str
    value: float
    layers: np.ndarray  # (N,) int


def report(
    trained: Model, use: tuple[str, ...], calc, sentences: list[data.Encoded], labels, metric: str
) -> Report:
    """Scores a model on a dev set, in full and with the mechanisms in use."""
    config, params = trained.config, trained.params
    parts = [sentences[start : start + 32] for start in range(0, len(labels), 32)]
    values, layers, spent = [], [], 1.0
    for used in ((), use) if use else ((),):
        answers = [trained.run(part, trained.knobs(used)) for part in parts]
        probs = np.concatenate([a.probs for a in answers])
        values.append(metrics.score(metric, probs, labels))
        layers.append(np.concatenate([a.layers_run.sum(1) for a in answers]))
        spent = sum(a.macs.sum() for a in answers) / sum(a.macs_full.sum() for a in answers)
    text = f"dev {metric} {values[0]:.4f}"
    if use:
        text += f", {values[1]:.4f} after {layers[1].mean():.2f} of {config.num_hidden_layers} "
        text += f"layers, with {spent:.0%} of the multiply-adds"
    if "tokens" in use:  # are the gates fit to be set to 0 and 1?
        shapes = {name: config.mechanisms[name] for name in use}
        net = Network(params, replace(config, mechanisms=shapes), calc)
        probs = np.concatenate([soft.soft_answers(net, data.to_batch(part)) for part in parts])
        value = metrics.score(metric, probs, labels)
        far = token_gates.undecided(params[token_gates.NAME])
        text += f"; with token gates as they are, a mean {far:.3f} from 0 or 1: {value:.4f}"
    return Report(text, values[-1], layers[-1])


def to_beat(config: Config, metric: str, labels) -> str:
    """How many texts there are to score on, and what always the same answer scores."""
    told = f"scored on {len(labels)} examples"
    if config.problem_type == "regression":
        return told
    always, value = metrics.baseline(metric, labels)
    return f"{told}; always {visible(config.id2label[always])!r} scores {metric} {value:.4f}"


def spread(config: Config, use: tuple[str, ...], layers: np.ndarray) -> str:
    """How many texts ran how many layers, and what to move if they are all alike.

    "" where texts run all layers by design, and where none were counted.
    """
    if not len(layers) or not {"halting", "planning"} & set(use):
        return ""
    counts = np.bincount(layers, minlength=config.num_hidden_layers + 1)
    told = ", ".join(f"{count} in {n}" for n, count in enumerate(counts) if count)
    told = f"layers that the dev texts ran: {told}"
    if counts.max() < ALIKE * len(layers):
        return told
    return (
        f"{told}\nnearly all are alike, so little is adaptive: more --epochs make early answers "
        "surer, a higher --tau or --layer-cost saves more, and evaluate --sweep shows what the "
        "knobs do"
    )
