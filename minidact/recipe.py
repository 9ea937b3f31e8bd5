"""The recipe of a training: every option that there is, its usual range, and what cannot work."""

import argparse
import os
from pathlib import Path

from . import metrics
from .config import MECHANISMS, SUMMARIES, TRAINED
from .errors import InputError

STATE = "training.safetensors"  # in --out while a run is under way: all that resuming needs


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Prints a default where there is one."""

    def _get_help_string(self, action):
        return super()._get_help_string(action) if action.default else action.help


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minidact.train",
        description="Fine-tunes a BERT, with the mechanisms you choose, on a labelled file.",
        formatter_class=Help,
    )
    for add_options in (_files, _material, _pace, _halting, _planning, _tokens, _saving):
        add_options(p.add_argument)
    return p


def _files(add) -> None:
    """From where, to where, and what of."""
    add("--data", help="training file: .tsv (GLUE's layouts or your own), .csv or .jsonl")
    add("--dev", help="file to score after every epoch")
    add("--init", help="model to start from: a directory, a hub id, or a name in weights/")
    add("--out", required=True, help="directory to write the model to")
    add("--use", default="", help=f"mechanisms to train, by commas: {', '.join(MECHANISMS)}")
    add("--resume", action="store_true", help="go on with the run in --out; its options count")


def _material(add) -> None:
    """What to learn from."""
    add("--label-names", help="names for a file's labels 0, 1, .., by commas")
    add("--metric", choices=metrics.METRICS, help="default: by the file's layout, else accuracy")
    add("--regression", action="store_true", help="labels are numbers to predict, not classes")
    add("--max-length", type=int, default=128, help="longer texts are cut to so many tokens")


def _pace(add) -> None:
    """How long and how fast."""
    add("--epochs", type=int, default=3, help="1..10; small data sets need more")
    add("--batch-size", type=int, default=32, help="16 or 32 are usual")
    add("--lr", type=float, default=3e-5, help="peak rate of the backbone; 2e-5..1e-4")
    add("--head-lr", type=float, default=1e-3, help="peak rate of what is new: units, classifier")
    add("--schedule", choices=("linear", "constant"), default="linear", help="after the warm-up")
    add("--warmup", type=float, default=0.1, help="share of the steps with a rising rate")
    add("--weight-decay", type=float, default=0.01, help="of matrices")
    add("--dropout", type=float, help="default: as the backbone's config.json says (0.1)")
    add("--average", type=float, default=0.0, help="score and save a moving average of the weights "
        "that decays so much a step: 0.999 is some 1000 steps")  # fmt: skip
    add("--seed", type=int, default=0)
    add("--no-shuffle", action="store_true", help="take the examples as they come")


def _halting(add) -> None:
    """DACT halting, and its neighbours."""
    add("--summary", choices=SUMMARIES, help="what the heads read; default: as config.json says")
    add(
        "--tau", type=float, default=0.05, help="price of thinking on; 0..0.3, higher stops earlier"
    )
    add("--tau-ramp", type=float, default=0.5, help="share of the steps in which tau grows from 0")
    add("--alpha", type=float, default=1.0, help="weight of the loss on every layer's own answer")
    add("--distill", type=float, default=0.0, help="share of the last layer's answer in its target")
    add("--ponder", choices=("p", "h"), default="p", help="ponder cost: sum of p_n, or of h_n")
    add("--trunk-size", type=int, default=128, help="width of a DACT unit")
    add("--blind", action="store_true", help="h does not see how sure y is")
    add("--heads", choices=TRAINED, default="dact", help="or as a neighbour's, to compare with; "
        "deebert and fastbert leave the backbone as it is")  # fmt: skip
    add("--beta", type=float, default=0.01, help="pondernet: weight of the prior")
    add("--prior", type=float, default=0.3, help="pondernet: the prior's chance to stop at a layer")


def _planning(add) -> None:
    """Planning gates."""
    add("--layer-cost", type=float, default=0.5, help="price of including layers; 0..5")
    add("--layer-target", type=float, help="share of layers to aim at; the price is of missing it")
    add("--planner", choices=("steps", "path"), default="steps", help="one a layer, or one for all")
    add("--planner-width", type=int, default=64, help="width of a planner")
    add(
        "--explore", type=float, default=0.2, help="at first, layers are left out so often, blindly"
    )
    add("--explore-share", type=float, default=0.3, help="share of the steps in which they are")


def _tokens(add) -> None:
    """Token gates."""
    add("--token-cost", type=float, default=0.5, help="price of keeping tokens (lambda_1); 0..5")
    add("--bimodal", type=float, default=0.5, help="price of a gate between 0 and 1 (lambda_2); in "
        "the last tenth of the steps gates are 0 or 1")  # fmt: skip
    add("--gate-lr", type=float, help="peak rate of the token gates; default: 10 / steps, at most "
        "0.1, so that a gate can close and open again in a run of any length")  # fmt: skip
    add("--bins", type=int, default=16, help="gates of a layer")
    add("--ranks", choices=("relative", "absolute"), default="relative", help="what a gate is for")
    add("--pool", choices=("last", "left"), default="last", help="the mean of a sentence's rows "
        "counts a dropped one as it last was, or only those left")  # fmt: skip
    add("--freeze-gates", action="store_true", help="second of two stages: --init's token gates, "
        "set to 0 or 1, stay as they are")  # fmt: skip


def _saving(add) -> None:
    """What is written."""
    add("--dtype", choices=("float32", "float16"), default="float32", help="of the saved weights")
    add("--keep", choices=("last", "best"), default="last", help="the epoch whose weights to save")
    add("--save-every", type=int, default=500, help="steps between two checkpoints")
    add("--log", help="a .jsonl file, one object per step")


def check(options) -> None:
    """Raises InputError for options that cannot work, before anything is read or written."""
    for name in ("data", "dev", "init"):
        if getattr(options, name) is None:
            raise InputError(f"--{name} is missing")
    limits = {
        "epochs": (1, 10_000), "batch_size": (1, 100_000), "max_length": (3, 1_000_000),
        "lr": (0, 1), "head_lr": (0, 1), "warmup": (0, 1), "weight_decay": (0, 1),
        "dropout": (0, 0.99), "average": (0, 1), "seed": (0, 2**63), "tau": (0, 100),
        "tau_ramp": (0, 1), "alpha": (0, 100), "distill": (0, 1), "trunk_size": (1, 65_536),
        "save_every": (1, 10**9),
        "layer_cost": (0, 1000), "layer_target": (0, 1), "planner_width": (1, 65_536),
        "explore": (0, 1), "explore_share": (0, 1), "token_cost": (0, 1000), "bimodal": (0, 1000),
        "gate_lr": (0, 1), "bins": (1, 4_096), "beta": (0, 1000), "prior": (0.001, 0.999),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option} is {value}; it must lie in {low}..{high}")
    for name in filter(None, options.use.split(",")):
        if name not in MECHANISMS:
            raise InputError(f"--use {name!r} is unknown; there is {', '.join(MECHANISMS)}")
    for name in ("config.json", STATE):
        if (Path(options.out) / name).exists():
            raise InputError(
                f"{options.out} holds a model already ({name}); choose another --out, or --resume"
            )
    for name in ("data", "dev", "out", "log"):  # so that --resume works from any directory
        if getattr(options, name) is not None:
            setattr(options, name, os.path.abspath(getattr(options, name)))
    if os.path.exists(options.init):
        options.init = os.path.abspath(options.init)
