"""Scores and costs on a labelled file: `python -m minidact.evaluate --data dev.tsv`."""

import argparse
import dataclasses
import json
import os
import sys
import time

import numpy as np
from tqdm import tqdm

from . import checkpoint, data, metrics, plot
from .errors import InputError, run_command
from .infer import load_model
from .mechanisms import MECHANISMS
from .model import Model
from .options import add_model_options, how_to_answer
from .study import sweep


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minidact.evaluate",
        description="Scores a model on a labelled file, adaptive and in full, and times both.",
    )
    add = p.add_argument
    add(
        "--data",
        required=True,
        help="a labelled .tsv (GLUE's layouts or your own), .csv or .jsonl",
    )
    add("--json", action="store_true", help="print one JSON object")
    add("--metric", choices=metrics.METRICS, help="default: by the file's layout, else accuracy")
    add("--sweep", action="store_true", help="every mechanism and neighbour over its knob's range")
    add("--curves", help=f"with --sweep: only these, by commas: {', '.join(MECHANISMS)}, all (of "
        "them together), and the rules for stopping of mechanisms/exits.py")  # fmt: skip
    add("--plot", metavar="FILE", help="with --sweep: draw it (.svg, .png, ..; needs matplotlib)")
    add("--calibrate", action="store_true", help="with --sweep: store in --model's config.json "
        "which knobs spend how much, for --budget")  # fmt: skip
    add_model_options(p)
    return p


def main() -> None:
    options = parser().parse_args()
    how = how_to_answer(options)
    if (options.plot or options.calibrate or options.curves) and not options.sweep:
        raise InputError("--curves, --plot and --calibrate go with --sweep")
    if options.calibrate and not os.path.isdir(options.model or ""):
        raise InputError("--calibrate needs --model with a directory to write to")
    if options.plot:
        plot.check(options.plot)
    examples = data.read_examples(options.data)
    model = load_model(options.model, how, options.bits)
    labels = data.label_ids(examples, model.config, options.data)
    fixed = (model, examples, labels, options.metric, options.batch_size)
    if not options.sweep:
        result = evaluate(*fixed, how)
        print(json.dumps(result) if options.json else table(result))
        return
    if not model.config.mechanisms:
        raise InputError("the model carries no mechanism, so there is no knob to sweep")
    points = sweep.settings(model.config, options.curves)
    if options.calibrate:  # a sweep is long: better now than afterwards
        checkpoint.save_config(options.model, model.config, rehearse=True)
    result = sweep.sweep(points, lambda knobs, known: evaluate(*fixed, knobs, known), tqdm)
    print(json.dumps(result) if options.json else sweep.table(result))
    if options.plot:
        plot.save(plot.sweep(result), options.plot)
    if options.calibrate:
        config = dataclasses.replace(model.config, budgets=tuple(result["budgets"]))
        checkpoint.save_config(options.model, config)


def evaluate(
    model: Model, examples, labels, metric=None, batch_size=32, how=None, known=None
) -> dict:
    """The object of `evaluate --json`. how: keyword arguments that make the model adaptive.

    Every batch is answered twice, in full and adaptively, from text to probabilities, the two in
    alternating order; ms_per_text and ms_per_text_full are the totals per text. known: an earlier
    result on the same examples, whose figures of the full model are taken instead.
    """
    how = how or {}
    metric = metrics.choose(metric, examples.metric, model.config.problem_type == "regression")
    runs = {"": model.knobs(**how)} | ({} if known else {"_full": model.knobs(())})
    seconds: dict[str, float] = dict.fromkeys(runs, 0.0)
    answers: dict[str, list] = {key: [] for key in runs}
    starts = range(0, len(labels), batch_size)
    if not known:  # what only large batches need is compiled here, not on the clock
        first = data.encode(model.tokenizer, examples.texts[:batch_size], None)
        model.run(first, runs["_full"])
    for turn, start in enumerate(
        tqdm(starts, unit="batch", leave=False, disable=not sys.stderr.isatty())
    ):
        part = slice(start, start + batch_size)
        texts, pairs = examples.texts[part], examples.pairs and examples.pairs[part]
        for key in list(runs) if turn % 2 else reversed(runs):
            begin = time.perf_counter()
            sentences = data.encode(model.tokenizer, texts, pairs)
            answers[key].append(model.run(sentences, runs[key]))
            seconds[key] += time.perf_counter() - begin

    def gathered(field):
        return np.concatenate([getattr(a, field) for a in answers[""]])

    def figures(key):
        probs = np.concatenate([a.probs for a in answers[key]])
        return {
            f"value{key}": metrics.score(metric, probs, labels),
            f"ms_per_text{key}": seconds[key] * 1e3 / len(labels),
        }

    full = known or figures("_full")
    tokens_full = len(gathered("stayed")) * model.config.num_hidden_layers
    return {
        "metric": metric,
        "examples": len(labels),
        "num_layers": model.config.num_hidden_layers,
        "layers_mean": float(gathered("layers_run").sum(1).mean()),
        "tokens_fraction": float(gathered("lengths").sum() / tokens_full),
        "macs_fraction": float(gathered("macs").sum() / gathered("macs_full").sum()),
        **figures(""),
        "value_full": full["value_full"],
        "ms_per_text_full": full["ms_per_text_full"],
    }


def table(r: dict) -> str:
    return (
        f"{r['examples']} examples  {r['metric']}\n"
        f"{'':10}{'value':>8}{'layers':>8}{'MACs':>8}{'ms/text':>9}\n"
        f"{'full':10}{r['value_full']:8.4f}{r['num_layers']:8.2f}{1:8.0%}{r['ms_per_text_full']:9.2f}\n"
        f"{'adaptive':10}{r['value']:8.4f}{r['layers_mean']:8.2f}{r['macs_fraction']:8.0%}"
        f"{r['ms_per_text']:9.2f}"
    )


if __name__ == "__main__":
    run_command(main)
