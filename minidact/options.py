"""The commands' options: what training offers, and what infer and evaluate share.

An option is said once, as a Knob: by the mechanism that it is of (mechanisms/), or in a table here.
Its name, type, default, bounds and help on the command line follow from that.
"""

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import metrics, optim
from .checkpoint import STATE
from .config import SUMMARIES
from .errors import InputError
from .fast.layers import BITS
from .files import write_file
from .mechanisms import KNOBS, MECHANISMS
from .mechanisms.record import Knob, knobs_of
from .model import BATCH_SIZE, BUDGET, RISK

# ---------------------------------------------------------------------------- from Knob to option


def comma_list(text: str | None) -> list[str]:
    """What stands between commas, blanks stripped and empty places left out."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def choose(option: str, text: str | None, choices: Iterable[str], none: bool = False) -> list[str]:
    """A comma list of choices; raises InputError for what is none of them.

    none: the list may be empty; otherwise that is an InputError as well.
    """
    choices, names = tuple(choices), comma_list(text)
    if not names and not none:
        raise InputError(f"--{option} names none; there are: {', '.join(choices)}")
    for name in names:
        if name not in choices:
            raise InputError(f"--{option} {name!r} is unknown; there are: {', '.join(choices)}")
    return names


def flag(name: str, knob: Knob) -> str:
    return "--" + (knob.option or name.replace("_", "-"))


def add_knob(parser: Any, name: str, knob: Knob, before: str = "") -> None:
    """An option for a knob; it is absent from the namespace where it is not given.

    parser: an ArgumentParser, or a group of one. before: what help says before the usual value.
    """
    how: dict[str, Any] = {"type": int if isinstance(knob.usual, int) else float}
    if isinstance(knob.usual, bool):
        how = {"action": "store_const", "const": not knob.usual}
    elif knob.choices:
        how = {"choices": knob.choices}
    plain = knob.usual is None or isinstance(knob.usual, bool)
    text = knob.help if plain else f"{knob.help} (default: {before}{knob.usual})"
    parser.add_argument(flag(name, knob), dest=name, default=argparse.SUPPRESS, help=text, **how)


def fill(options: argparse.Namespace, knobs: dict[str, Knob], usual: bool = True) -> None:
    """Fills in what was not given, the usual values or None; raises InputError for a misfit."""
    for name, knob in knobs.items():
        if not hasattr(options, name):
            setattr(options, name, knob.usual if usual else None)
        elif wrong := knob.misfit(getattr(options, name)):
            raise InputError(f"{flag(name, knob)} is {getattr(options, name)}{wrong}")


# ---------------------------------------------------------------------------- infer and evaluate

ANSWERING = {"batch_size": BATCH_SIZE, "budget": BUDGET, "risk": RISK}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which model, and what of it is adaptive."""
    add = parser.add_argument
    add(
        "--model", help="a directory, a hub id, or a name in weights/ (default: the one that ships)"
    )
    add(
        "--bits", type=int, choices=list(map(int, BITS)), help="of a weight in a product (default: "
        "16 if no weight loses a digit by it, else 32); in 8, activations are rounded, too",
    )  # fmt: skip
    add("--full", action="store_true", help="nothing adaptive: every layer runs")
    names = ", ".join(MECHANISMS)
    add("--use", help=f"mechanisms to switch on, by commas, of {names} (default: all it carries "
        "that go together)")  # fmt: skip
    for name, knob in (KNOBS | ANSWERING).items():
        add_knob(parser, name, knob)


def how_to_answer(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments for calling a Model; raises InputError for options that misfit."""
    if options.full and options.use:
        raise InputError("--full switches everything off, and --use something on: choose one")
    fill(options, KNOBS | ANSWERING)
    use = comma_list(options.use) if options.use is not None else () if options.full else None
    return {"use": use} | {name: getattr(options, name) for name in ("budget", "risk", *KNOBS)}


# ---------------------------------------------------------------------------- train

RECORD = re.compile(rb'\{"step": (\d+),.*\}\n')  # of a training's log, whole
FILES = {
    "data": "training file: .tsv (GLUE's layouts or your own), .csv or .jsonl",
    "dev": "file to score after every epoch (default: a tenth of --data, held out)",
    "init": "model to start from: a directory, a hub id, or a name in weights/",
    "out": "directory to write the model to",
    "log": "a .jsonl file, one object per step",
    "use": f"mechanisms to train, by commas, of {', '.join(MECHANISMS)} (default: all of --init's "
    "that go together)",
    "teacher": "models, by commas, whose mean answer is learnt in place of the labels",
    "label_names": "names for a file's labels 0, 1, .., by commas",
}
PLAIN = {
    "metric": Knob(
        None, "the score (default: by the file's layout)", choices=tuple(metrics.METRICS)
    ),
    "regression": Knob(False, "labels are numbers to predict, not classes"),
    "max_length": Knob(128, "longer texts are cut to so many tokens", 3, 1_000_000),
    "summary": Knob(None, "what the heads read (default: as --init does)", choices=SUMMARIES),
    "layers": Knob(0, "keep only so many of --init's layers, the first ones; 0: all", 0, 1000),
    "epochs": Knob(3, "1..10; small data sets need more", 1, 10_000),
    "batch_size": Knob(32, "16 or 32 are usual", 1, 100_000),
    "lr": Knob(3e-5, "peak rate of the backbone and of a classifier kept; 2e-5..1e-4", 0, 1),
    "head_lr": Knob(1e-3, "peak rate of what is new, and of the mechanisms' parts", 0, 1),
    "schedule": Knob("linear", "the rate after the warm-up", choices=optim.SCHEDULES),
    "warmup": Knob(0.1, "share of the steps with a rising rate", 0, 1),
    "weight_decay": Knob(0.01, "decay of matrices", 0, 1),
    "dropout": Knob(None, "of the training (default: as --init has it)", 0, 0.99),
    "average": Knob(
        0.0, "score and save a moving average of the weights that decays so much a step: 0.999 is "
        "some 1000 steps", 0, 0.99999,
    ),
    "seed": Knob(0, "seed of all that is drawn", 0, 2**63),
    "no_shuffle": Knob(False, "take the examples as they come"),
    "dtype": Knob("float32", "dtype of the saved weights", choices=("float32", "float16")),
    "early_stop": Knob(
        0, "stop after so many epochs without a better dev score, once all layers and gates are "
        "as they stay; 0: never", 0, 10_000
    ),
    "class_weights": Knob(
        "none", "balanced: a class counts the more the rarer it is", choices=("none", "balanced")
    ),
    "keep": Knob(
        "last", "the epoch whose weights to save: the last, or the best by the dev score once all "
        "layers and gates are as they stay", choices=("last", "best"),
    ),
    "save_every": Knob(500, "steps between two checkpoints", 1, 10**9),
}  # fmt: skip
SHAPES = {name: k for m in MECHANISMS.values() for name, k in knobs_of(m.shape).items()}
PRICES = {name: k for m in MECHANISMS.values() for name, k in knobs_of(m.prices).items()}


def training_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minidact.train",
        description="Fine-tunes a BERT, with the mechanisms you choose, on a labelled file.",
    )
    for name, text in FILES.items():
        p.add_argument(
            flag(name, Knob(None, "")), required=name == "out", default=argparse.SUPPRESS, help=text
        )
    p.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, with its options"
    )
    for name, knob in PLAIN.items():
        add_knob(p, name, knob)
    for mechanism, record in MECHANISMS.items():
        group = p.add_argument_group(f"with --use {mechanism}")
        for name, knob in knobs_of(record.shape).items():
            add_knob(group, name, knob, "--init's, else ")
        for name, knob in knobs_of(record.prices).items():
            add_knob(group, name, knob)
    return p


def training_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """A training's options, filled in and checked before anything is read or written.

    Of a mechanism's shape what is not given is None. Raises InputError for what cannot work.
    """
    options = training_parser().parse_args(arguments)
    given = set(vars(options)) - {"out", "resume"}
    if options.resume:
        if given:
            knobs = PLAIN | SHAPES | PRICES
            names = ", ".join(flag(name, knobs.get(name, Knob(None, ""))) for name in sorted(given))
            raise InputError(f"--resume goes on with the run's own options: leave out {names}")
        if not os.path.exists(os.path.join(options.out, STATE)):
            raise InputError(f"{options.out} holds no unfinished run ({STATE}) to go on with")
        return options
    for name in FILES:
        setattr(options, name, getattr(options, name, None))
        if name in ("data", "init") and getattr(options, name) is None:
            raise InputError(f"--{name} is missing")
    fill(options, PLAIN | PRICES)
    fill(options, SHAPES, usual=False)
    options.given = sorted(given)
    if options.use is not None:
        check_in_use(choose("use", options.use, MECHANISMS, none=True), given)
    if options.teacher is not None and not comma_list(options.teacher):
        raise InputError("--teacher names none")
    check_unused(options.out, ", or --resume")
    for name in ("data", "dev", "out", "log"):  # so that --resume works from any directory
        if getattr(options, name) is not None:
            setattr(options, name, os.path.abspath(getattr(options, name)))
    if os.path.exists(options.init):
        options.init = os.path.abspath(options.init)
    if options.log is not None:
        check_log(options)
    return options


def check_in_use(use: list[str], given: set[str]) -> None:
    """Raises InputError for an option that was given, of a mechanism that --use leaves out."""
    for name, record in MECHANISMS.items():
        for key, knob in (knobs_of(record.shape) | knobs_of(record.prices)).items():
            if key in given and name not in use:
                raise InputError(f"{flag(key, knob)} needs --use {name}")


def check_unused(out: str, else_: str = "") -> None:
    """Raises InputError if --out is "", or holds a model or a training; else_: what else to do."""
    if not out:
        raise InputError("--out names none")
    for name in ("config.json", STATE):
        if os.path.exists(os.path.join(out, name)):
            raise InputError(f"{out} holds a model already ({name}); choose another --out{else_}")


def check_apart(options: argparse.Namespace, output: str, *inputs: str) -> None:
    """Raises InputError if the option for an output names the same file as one for an input."""
    path = getattr(options, output)
    for name in inputs:
        given = getattr(options, name)
        if given and os.path.realpath(given) == os.path.realpath(path):
            raise InputError(f"--{output} and --{name} are the same file: {path}")


def check_log(options: argparse.Namespace) -> None:
    """Raises InputError for a --log that would replace what is no log."""
    check_apart(options, "log", "data", "dev")
    log, out = os.path.realpath(options.log), os.path.realpath(options.out)
    if os.path.commonpath([log, out]) == out:
        raise InputError(
            f"--log {options.log} lies in --out, where models and checkpoints are kept"
        )
    if os.path.exists(log) and not os.path.isfile(log):
        raise InputError(f"--log {options.log} is not a regular file")
    check_is_log(options.log)
    write_file(Path(log), b"", rehearse=True)


def check_is_log(path: str) -> None:
    """Raises InputError for a file that is there, and holds other things than a training logs."""
    wrong = f"--log {path} is there, and is no log of a training"
    try:
        with open(path, "rb") as file:
            line = file.readline(1_000_000)
    except FileNotFoundError:
        return
    except OSError:
        raise InputError(wrong) from None
    if line and not RECORD.fullmatch(line):
        raise InputError(wrong)
