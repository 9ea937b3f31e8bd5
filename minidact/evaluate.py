"""Scores, costs and promises on a file: `python -m minidact.evaluate --data dev.tsv`."""

import argparse
import dataclasses
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import checkpoint, data, metrics, plot
from .config import STORED, Config
from .errors import InputError, run_command
from .fast.layers import stored_bits
from .files import write_file
from .infer import load_model
from .mechanisms import KNOBS, MECHANISMS
from .mechanisms.exits import RULES
from .mechanisms.record import Knob
from .model import Model
from .options import add_knob, add_model_options, check_apart, fill, flag, how_to_answer
from .study import certify, explore, report, sweep
from .study.scores import Full, heading, measure, table

CERTIFYING = {
    "confidence": Knob(0.95, "with --certify: how sure the promise has to be", 0.5, 0.999999),
    "loss": Knob(
        "agreement", "with --certify: what may happen so rarely: another class than in full; or a "
        "wrong one where the full model is right, which needs labels and is not stored",
        choices=certify.LOSSES,
    ),
    "seed": Knob(0, "with --certify: of the split into texts that order and that test", 0, 2**63),
}  # fmt: skip
WRITTEN = {"predictions": (".csv", ".jsonl"), "explore": (".html",), "texts": (".npz",)}
UNSAID = {"use": None, "budget": None, "risk": None} | {n: k.usual for n, k in KNOBS.items()}
SAME = ("risk", "confidence", "bits", "weights")  # a new certificate takes such a one's place


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minidact.evaluate",
        description="Scores a model on a labelled file, adaptive and in full, and times both; or "
        "certifies, on a file that needs no labels, which knobs keep a promise.",
    )
    add = p.add_argument
    add(
        "--data",
        required=True,
        help="a labelled .tsv (GLUE's layouts or your own), .csv or .jsonl",
    )
    add("--json", action="store_true", help="print one JSON object")
    add("--max-length", type=int, metavar="TOKENS", help="longer texts are cut to so many tokens "
        "(default: to as many as the model can read)")  # fmt: skip
    add("--metric", choices=metrics.METRICS, help="default: by the file's layout, else accuracy")
    add("--sweep", action="store_true", help="every mechanism and rule over its knob's range")
    add("--curves", help=f"with --sweep: only these, by commas: {', '.join(MECHANISMS)}, all "
        "(those used together without --use), all+selection (in place of tokens), grid (all "
        "knobs moved), and the rules for stopping of mechanisms/exits.py")  # fmt: skip
    add("--classes", action="store_true", help="print precision, recall and F1 of every class, and "
        "what its texts were taken for")  # fmt: skip
    add("--predictions", metavar="FILE", help="write a row for every text, with the input's "
        "columns, to a .csv or .jsonl file")  # fmt: skip
    add("--explore", metavar="PAGE", help="write one page (.html) to move the knobs of halting in, "
        "and to look at every text")  # fmt: skip
    add("--texts", metavar="FILE", help="write the class and the multiply-adds of every text, with "
        "--sweep at every point, to an .npz file")  # fmt: skip
    add("--plot", metavar="FILE", help="with --sweep: draw it (.svg, .png, ..; needs matplotlib)")
    add("--calibrate", action="store_true", help="with --sweep: store in --model's config.json "
        "which knobs spend how much, for --budget")  # fmt: skip
    add("--certify", action="store_true", help="test which knobs keep the promise of --risk, on a "
        "file that needs no labels, and store them in --model's config.json")  # fmt: skip
    for name, knob in CERTIFYING.items():
        add_knob(p, name, knob)
    add_model_options(p)
    return p


def main() -> None:
    options = parser().parse_args()
    how = how_to_answer(options)
    check(options, how)
    if options.certify:
        promise(options)
        return
    examples = data.read_examples(options.data, others=bool(options.predictions))
    model = load_model(options.model, how, options.bits)
    labels = data.label_ids(examples, model.config, options.data)
    if options.max_length is not None:
        model.tokenizer.enable_truncation(
            min(options.max_length, model.config.max_position_embeddings)
        )
    pairs = examples.pairs is not None
    if model.config.text_pairs not in (None, pairs):
        trained, given = ("one text", "two") if pairs else ("two texts", "one")
        print(f"note: the model was trained on {trained} at a time, and {options.data} has {given} "
              "in a row", file=sys.stderr)  # fmt: skip
    fixed = (model, examples, labels, options.metric, options.batch_size)
    if options.explore:
        explore.check(model, examples)
    if model.config.problem_type == "regression" and (options.classes or options.texts):
        raise InputError("--classes and --texts need classes, and the model predicts numbers")
    if options.predictions:
        report.check(examples, names_of(model.config))
    if not options.sweep:
        once(options, *measure(*fixed, how, each=True), examples, labels, model)
        return
    if not model.config.mechanisms:
        raise InputError("the model carries no mechanism, so there is no knob to sweep")
    points, each = sweep.settings(model.config, options.curves), bool(options.texts)
    if options.calibrate:  # a sweep is long: better now than afterwards
        if all(curve in RULES for curve, _ in points):
            raise InputError("--calibrate stores settings of mechanisms, and there are none to try")
        checkpoint.save_config(options.model, model.config, rehearse=True)
    result = sweep.sweep(points, lambda knobs, known: measure(*fixed, knobs, known, each), tqdm)
    write_texts(options.texts, result["points"], labels)
    first, names = result["points"][0], names_of(model.config)
    if len(names) > 1:
        result["baseline"] = report.always(first["metric"], labels, names)
    told = f"{heading(first | result)}\n{sweep.table(result)}"
    if options.calibrate:
        config = checkpoint.read_config(Path(options.model))  # as it is by now
        config = dataclasses.replace(config, budgets=tuple(result["budgets"]))
        checkpoint.save_config(options.model, config)
    try:
        if options.plot:
            plot.save(plot.sweep(result), options.plot)
    finally:  # a picture that fails costs no figures, and a reader who left no picture
        print(json.dumps(result) if options.json else told)


def once(
    options: argparse.Namespace, result: dict, full: Full, examples, labels, model: Model
) -> None:
    """Prints a score, what it is made of, and writes what was asked for of every text."""
    names = names_of(model.config)
    if len(names) > 1:
        result |= report.report(result["metric"], result["probs"].argmax(1), labels, names)
    if options.explore:
        page = explore.page(model, examples, labels, result["metric"], full, options.batch_size)
        write_file(Path(options.explore), page.encode("utf-8", "replace"))
    if options.predictions:
        rows = report.predictions(examples, result, names)
        report.write(rows, Path(options.predictions))
    write_texts(options.texts, [result], labels)
    print(json.dumps(result) if options.json else table(result))
    if options.classes and not options.json:
        print(report.classes(result))


def names_of(config: Config) -> tuple[str, ...]:
    """What is predicted: the classes, or a regression's one number."""
    return ("score",) if config.problem_type == "regression" else config.id2label


def write_texts(path: str | None, points: list[dict], labels: np.ndarray) -> None:
    """Moves what each text got from the points to a file: arrays (P, N), and labels (N,)."""
    each: dict[str, list] = {name: [] for name in ("probs", "macs", "macs_full", "layers")}
    for name, values in each.items():
        values.extend(point.pop(name) for point in points if name in point)
    if path is not None:
        arrays: dict[str, Any] = {"labels": labels, "classes": np.stack(each["probs"]).argmax(2)}
        arrays |= {name: np.stack(each[name]) for name in ("macs", "macs_full")}
        written = io.BytesIO()
        np.savez_compressed(written, **arrays)
        write_file(Path(path), written.getvalue())


def check(options: argparse.Namespace, how: dict) -> None:
    """Fills in what --certify takes; raises InputError for options that do not go together."""
    fill(options, CERTIFYING, usual=options.certify)
    if (options.plot or options.calibrate or options.curves is not None) and not options.sweep:
        raise InputError("--curves, --plot and --calibrate go with --sweep")
    stores = {"calibrate": options.calibrate, "certify": options.certify and is_stored(options)}
    for name, chosen in stores.items():
        if chosen and not os.path.isdir(options.model or ""):
            raise InputError(f"--{name} needs --model with a directory to write to")
    if options.plot is not None:
        plot.check(options.plot)
    if (options.classes or options.predictions) and (options.sweep or options.certify):
        raise InputError("--classes and --predictions are of one setting: no --sweep, no --certify")
    if options.explore and (options.sweep or options.certify):
        raise InputError("--explore goes with neither --sweep nor --certify")
    if (options.texts or options.max_length is not None) and options.certify:
        raise InputError("--texts and --max-length do not go with --certify")
    if options.max_length is not None and options.max_length < 3:
        raise InputError(f"--max-length is {options.max_length}; it must be at least 3")
    for name, endings in WRITTEN.items():
        if (path := getattr(options, name)) is not None:
            if Path(path).suffix not in endings:
                raise InputError(f"--{name} {path}: the name must end in {' or '.join(endings)}")
            check_apart(options, name, "data")
            write_file(Path(path), b"", rehearse=True)
    if not options.certify:
        if options.sweep and how != UNSAID:
            raise InputError("--sweep moves all knobs itself; --curves chooses which")
        given = [flag(n, k) for n, k in CERTIFYING.items() if getattr(options, n) is not None]
        if given:
            raise InputError(f"{', '.join(given)} goes with --certify")
        return
    if how["risk"] is None:
        raise InputError("--certify needs the risk that is to be promised, such as --risk 0.02")
    if not 0 < how["risk"] < 1:
        raise InputError(f"--risk is {how['risk']:g}; it must be more than 0 and less than 1")
    if options.sweep or options.metric or how != UNSAID | {"risk": how["risk"]}:
        raise InputError("--certify chooses the knobs itself, and has no --metric and no --sweep")


def is_stored(options: argparse.Namespace) -> bool:
    """Is this a promise that --risk can use? It is about other classes, not about accuracy."""
    return options.loss == "agreement"


def promise(options: argparse.Namespace) -> None:
    """Tests which knobs keep the promise, prints it, and stores it for --risk."""
    examples = data.read_examples(options.data, labelled=not is_stored(options))
    if len(examples.texts) < 3:
        raise InputError(f"{options.data} has too few texts to certify anything")
    model, labels = load_model(options.model, {}, options.bits), None
    if model.config.problem_type == "regression":
        raise InputError("--certify counts classes, and the model predicts numbers")
    choices = certify.settings(model.config)
    if not choices:
        raise InputError("the model has no DACT halting and no gates: there is no knob to certify")
    if is_stored(options):  # it takes long: better now than afterwards
        checkpoint.save_config(options.model, model.config, rehearse=True)
    else:
        labels = data.label_ids(examples, model.config, options.data)
    found = certify.certify(
        choices,
        certify.measuring(model, examples, labels, options.batch_size),
        len(examples.texts),
        options.risk,
        options.confidence,
        options.seed,
        lambda choices: tqdm(choices, unit="setting", disable=None),
    )
    found |= {"loss": options.loss, "bits": stored_bits(model.bits), "weights": model.digest}
    if found["knobs"] is not None and is_stored(options):
        new = {key: found[key] for key in STORED["certificates"]}
        config = checkpoint.read_config(Path(options.model))  # as it is by now
        others = [c for c in config.certificates if any(c[key] != new[key] for key in SAME)]
        config = dataclasses.replace(config, certificates=(*others, new))
        checkpoint.save_config(options.model, config)
    print(json.dumps(found) if options.json else certify.told(found))
    if found["knobs"] is None and options.json:
        print(certify.told(found), file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
