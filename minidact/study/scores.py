"""What a model scores and costs on a labelled file, adaptive and in full, both timed."""

import time
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from .. import data, metrics
from ..errors import visible
from ..hard import Answers, Knobs
from ..model import Model


class Full(NamedTuple):
    """The full model's part of what is measured, the same for all knobs."""

    value: float
    ms_per_text: float
    classes: np.ndarray  # (N,) int, of the full float32 network


def measure(
    model: Model, examples, labels, metric=None, batch_size=32, how=None, known: Full | None = None,
    each: bool = False,
) -> tuple[dict, Full]:  # fmt: skip
    """The object of `evaluate --json`, and the full model's part of it.

    how: keyword arguments that make the model adaptive. Every batch is answered twice, in full and
    adaptively, from text to probabilities, the two in alternating order; ms_per_text and
    ms_per_text_full are the totals per text. Where a product is rounded, it is answered a third
    time in float32, which is not timed: agreement is the share of classes that are the same (of a
    regression None). known: the full model's part, from an earlier
    call on the same examples. each: with "probs" (N, Y), "layers", "macs" and "macs_full" (N,) of
    every text.
    """
    regression = model.config.problem_type == "regression"
    metric = metrics.choose(metric, examples.metric, regression, model.config.num_labels)
    runs = {"": (model, model.knobs(**(how or {})))}
    if not known:
        exact = in_float32(model)
        runs |= {"full": (model, model.knobs(()))}
        runs |= {} if exact is model else {"exact": (exact, model.knobs(()))}
        # what only large batches need is compiled here, not on the clock
        model.run(data.encode(model.tokenizer, examples.texts[:batch_size]), model.knobs(()))
    answers, seconds = _in_turn(runs, examples, batch_size)

    def gathered(field, key=""):
        return np.concatenate([getattr(a, field) for a in answers[key]])

    def figures(key):
        probs = gathered("probs", key)
        return metrics.score(metric, probs, labels), seconds[key] * 1e3 / len(labels)

    if not known:
        value, ms = figures("full")
        known = Full(value, ms, gathered("probs", list(runs)[-1]).argmax(1))
    value, ms = figures("")
    same = gathered("probs").argmax(1) == known.classes
    tokens_full = len(gathered("stayed")) * model.config.num_hidden_layers
    result = {
        "metric": metric,
        "examples": len(labels),
        "num_layers": model.config.num_hidden_layers,
        "layers_mean": float(gathered("layers_run").sum(1).mean()),
        "tokens_fraction": float(gathered("lengths").sum() / tokens_full),
        "macs_fraction": float(gathered("macs").sum() / gathered("macs_full").sum()),
        "value": value,
        "ms_per_text": ms,
        "value_full": known.value,
        "ms_per_text_full": known.ms_per_text,
        "agreement": None if regression else float(same.mean()),
    }
    if each:
        result |= {name: gathered(name) for name in ("probs", "macs", "macs_full")}
        result["layers"] = gathered("layers_run").sum(1)
    return result, known


def _in_turn(
    runs: dict[str, tuple[Model, Knobs]], examples: data.Examples, batch_size: int
) -> tuple[dict[str, list[Answers]], dict[str, float]]:
    """Every run's answers to every batch, and the seconds that it took in all."""
    seconds: dict[str, float] = dict.fromkeys(runs, 0.0)
    answers: dict[str, list[Answers]] = {key: [] for key in runs}
    starts = range(0, len(examples.texts), batch_size)
    for turn, start in enumerate(tqdm(starts, unit="batch", leave=False, disable=None)):
        part = slice(start, start + batch_size)
        texts, pairs = examples.texts[part], examples.pairs and examples.pairs[part]
        for key in list(runs) if turn % 2 else reversed(runs):
            model, knobs = runs[key]
            begin = time.perf_counter()
            sentences = data.encode(model.tokenizer, texts, pairs)
            answers[key].append(model.run(sentences, knobs))
            seconds[key] += time.perf_counter() - begin
    return answers, seconds


def in_float32(model: Model) -> Model:
    """The same model with products that round nothing; itself where it is one."""
    if model.bits in (None, 32):
        return model
    return Model(model.config, model.params, model.tokenizer, model.reference)


def heading(r: dict) -> str:
    """How many texts were scored, how, and what always the same answer would score."""
    always = ""
    if "baseline" in r:
        label, value = r["baseline"]["label"], r["baseline"]["value"]
        always = f" (always {visible(label)!r} scores {value:.4f})"
    return f"{r['examples']} examples  {r['metric']}{always}"


def table(r: dict) -> str:
    """What `evaluate` returned, as text."""
    agreement = (
        "" if r["agreement"] is None else f", {r['agreement']:.1%} of the classes as in full"
    )
    return (
        f"{heading(r)}\n"
        f"{'':10}{'value':>8}{'layers':>8}{'MACs':>8}{'ms/text':>9}\n"
        f"{'full':10}{r['value_full']:8.4f}{r['num_layers']:8.2f}{1:8.0%}{r['ms_per_text_full']:9.2f}\n"
        f"{'adaptive':10}{r['value']:8.4f}{r['layers_mean']:8.2f}{r['macs_fraction']:8.0%}"
        f"{r['ms_per_text']:9.2f}{agreement}"
    )
