"""Compares all methods on the same tasks.

    python -m minidact.study --data GLUE --init DIR --out DIR

A study consists of trainings and sweeps. Each is a command of this package, runs in a process of
its own, and is printed before it starts. What is finished is not run again. So a study can be
stopped at any time, and widened later by more tasks and seeds. At the end it prints the table.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, run_command
from ..options import STATE, choose, comma_list

TASKS = {  # epochs of a first and of a second training, more options, the file to score on
    "SST-2": (1, 1, "--label-names negative,positive", "dev.tsv"),
    "CoLA": (3, 2, "", "dev.tsv"),
    "MRPC": (3, 2, "", "dev.tsv"),
    "RTE": (3, 2, "", "dev.tsv"),
    "TREC": (3, 2, "", "test.tsv"),
    "IMDB": (2, 2, "--max-length 512 --batch-size 16", "dev.tsv"),
}
ALWAYS = "--summary mean --lr 5e-5 --dtype float16"
DACT = "--use halting --tau 0.02 --distill 0.5"
ALL = (  # a gentle second training, which starts from DACT's model
    "--use halting,planning,tokens --epochs {again} --lr 2e-5 --head-lr 2e-4"
    " --tau 0.02 --distill 0.5 --layer-cost 1 --layer-target 0.35 --explore 0.1 --explore-share 0.1"
    " --token-cost 0.15 --bimodal 1"
)
STOPS, ALL_CURVES = ("halting", "confidence", "fixed"), ("halting", "planning", "tokens", "all")
# TR-BERT's order: the policies alone on a fine-tuned model, then everything, taught by that model
POLICY = (
    "--use selection --selection-pool left --policy-only --estimator gumbel --epochs 1"
    " --head-lr 1e-2 --selection-cost 0.5"
)
SELECTION = (
    "--use halting,selection --teacher {plain} --estimator gumbel --epochs {again}"
    " --selection-cost 0.3 --tau 0.02 --distill 0.5"
)
METHODS = {  # the method it starts from (None: the backbone), training options, curves to sweep
    "plain": (None, "--use ''", ()),
    "dact": (None, DACT, STOPS),
    # the paper's order: plain fine-tuning comes first
    "dact-after": ("plain", f"{DACT} --lr 2e-5", STOPS),
    "pabee": (None, "--use halting --heads pabee", ("patience",)),
    "pondernet": (None, "--use halting --heads pondernet", ("cumulated",)),
    "deebert": ("plain", "--use halting --heads deebert", ("entropy",)),
    "fastbert": ("plain", "--use halting --heads fastbert", ("uncertainty",)),
    "all": ("dact", ALL, ALL_CURVES),
    "all-after": ("dact-after", ALL, ALL_CURVES),
    "policy": ("plain", POLICY, ("selection",)),
    "selection": ("policy", SELECTION, ("halting", "selection", "all")),
}
CHOICES = {  # the same methods with one choice changed; they run only if --methods names them
    "all-left": ("dact", f"{ALL} --pool left", ("tokens", "all")),
    "all-absolute": ("dact", f"{ALL} --ranks absolute", ("tokens", "all")),
    "all-path": ("dact", f"{ALL} --planner path", ("planning", "all")),
    "all-frozen": ("all", f"{ALL} --freeze-gates", ("tokens", "all")),
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minidact.study",
        description="Trains and compares the mechanisms and their neighbours. Takes hours.",
    )
    add = p.add_argument
    add("--data", required=True, help="directory of tasks: GLUE's folders, and TREC")
    add("--init", required=True, help="the backbone: a directory, a hub id, or a name in weights/")
    add("--out", required=True, help="directory for the models, logs and figures")
    add("--tasks", default=",".join(TASKS), help="separated by commas (default: %(default)s)")
    others = f"separated by commas (default: %(default)s; there are also: {', '.join(CHOICES)})"
    add("--methods", default=",".join(METHODS), help=others)
    add("--seeds", default="0", help="separated by commas (default: %(default)s)")
    add("--finished", action="store_true", help="train nothing, print only what is finished")
    add("--json", action="store_true", help="print the figures as one JSON array, not as a table")
    return p


def main() -> None:
    o = parser().parse_args()
    tasks = choose("tasks", o.tasks, TASKS)
    methods = choose("methods", o.methods, METHODS | CHOICES)
    try:
        seeds = [int(seed) for seed in comma_list(o.seeds)]
    except ValueError:
        raise InputError(
            f"--seeds is {o.seeds!r}; it must be numbers, separated by commas"
        ) from None
    results: dict[tuple[str, str], dict[str, list[float]]] = {}
    for seed in seeds:
        for task in tasks:
            for method in methods:
                found = study(o, task, method, seed)
                for curve, value in found.items():
                    results.setdefault((method, curve), {}).setdefault(task, []).append(value)
    figures = [{"method": m, "curve": c, **values} for (m, c), values in results.items()]
    print(json.dumps(figures) if o.json else table(figures, tasks))


def study(o, task: str, method: str, seed: int) -> dict[str, float]:
    """Trains a method on a task and sweeps it, unless that is done; returns the figures.

    They are {"full": the full model's metric, curve: its area, ...}. With --finished (o.finished)
    nothing is trained, and {} is returned for what is not finished. Raises InputError if a command
    fails.
    """
    start, options, curves = (METHODS | CHOICES)[method]
    (epochs, again, more, dev), folder = TASKS[task], Path(o.data) / task
    out = Path(o.out) / task / f"{method}-{seed}"
    scores = out / "sweep.json"
    if o.finished and not scores.exists():
        return {}
    if not (out / "config.json").exists():
        if start:
            study(o, task, start, seed)
        init = out.with_name(f"{start}-{seed}") if start else o.init
        command = f"train --out {shlex.quote(str(out))} --resume"
        if not (out / STATE).exists():
            plain = shlex.quote(str(out.with_name(f"plain-{seed}")))
            own = options.format(again=again, plain=plain)
            options = f"{ALWAYS} --epochs {epochs} {more} {own}"
            files = {"data": folder / "train.tsv", "dev": folder / dev, "init": init, "out": out}
            paths = " ".join(f"--{name} {shlex.quote(str(path))}" for name, path in files.items())
            command = f"train {paths} --seed {seed} {options}"
        call(command, sys.stderr)
    if not scores.exists():
        kind = f"--sweep --curves {','.join(curves)}" if curves else ""
        paths = f"--model {shlex.quote(str(out))} --data {shlex.quote(str(folder / dev))}"
        text = call(f"evaluate {paths} {kind} --json", subprocess.PIPE)
        unfinished = scores.with_suffix(".part")
        unfinished.write_text(text)
        os.replace(unfinished, scores)
    result = json.loads(scores.read_text())
    full = result["points"][0]["value_full"] if curves else result["value_full"]
    return {"full": full} | result.get("areas", {})


def call(command: str, stdout) -> Any:
    """Runs a command of this package, without its "python -m minidact.".

    Its output goes to the file stdout. If stdout is subprocess.PIPE, it is returned, as str. Raises
    InputError if the command fails.
    """
    print(f"python -m minidact.{command}", file=sys.stderr, flush=True)
    name, *rest = shlex.split(command)
    words = [sys.executable, "-m", f"minidact.{name}", *rest]
    run = subprocess.run(words, stdout=stdout, text=True)
    if run.returncode:
        raise InputError(
            f"this command ended with code {run.returncode}; the same study goes on from here"
        )
    return run.stdout


def table(figures: list[dict], tasks: list[str]) -> str:
    """Returns the figures as a Markdown table with a line for every curve.

    A cell has the mean over the seeds and the standard deviation, both times 100.
    """
    lines = [f"| model | curve | {' | '.join(tasks)} |", "|---" * (len(tasks) + 2) + "|"]
    for row in figures:
        cells = [cell(row[task]) if task in row else "" for task in tasks]
        lines.append(f"| {row['method']} | {row['curve']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    """Returns the mean, and for several values their standard deviation, both times 100."""
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


if __name__ == "__main__":
    run_command(main)
