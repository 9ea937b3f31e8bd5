"""Compares all methods on the same tasks.

    python -m minidact.study --data GLUE --init DIR --out DIR

A study consists of trainings, sweeps and clocks. Each is a command of this package, runs in a
process of its own, and is printed before it starts. What is finished is not run again. So a study
can be stopped at any time, and widened later by more tasks and seeds. At the end it prints the
tables, with intervals over texts and seeds.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from ..errors import InputError, run_command
from ..files import make_directory, write_file
from ..options import STATE, choose, comma_list
from . import compare
from .bootstrap import COSTS
from .methods import CHOICES, EVERY, METHODS, SMALLER, TASKS, training


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minidact.study",
        description="Trains and compares the mechanisms and related methods. Takes hours.",
    )
    add = p.add_argument
    add("--data", required=True, help="directory of tasks: GLUE's folders, TREC and IMDB")
    add("--init", required=True, help="the backbone: a directory, a hub id, or a name in weights/")
    add("--out", required=True, help="directory for the models, logs and figures")
    add("--tasks", default=",".join(TASKS), help="separated by commas (default: %(default)s)")
    others = f"separated by commas (default: %(default)s; there are also: {', '.join(CHOICES)})"
    add("--methods", default=",".join(METHODS), help=others)
    add("--seeds", default="0", help="separated by commas (default: %(default)s)")
    add("--finished", action="store_true", help="train nothing, print only what is finished")
    add("--json", action="store_true", help="print the figures as one JSON array, not as tables")
    return p


def main() -> None:
    o = parser().parse_args()
    tasks = choose("tasks", o.tasks, TASKS)
    methods = choose("methods", o.methods, EVERY)
    if "plain" not in methods and any(name.split("-")[0] in SMALLER for name in methods):
        raise InputError("smaller networks' costs are shares of plain's: --methods needs plain")
    try:
        seeds = [int(seed) for seed in comma_list(o.seeds)]
    except ValueError:
        raise InputError(
            f"--seeds is {o.seeds!r}; it must be numbers, separated by commas"
        ) from None
    if not seeds:
        raise InputError("--seeds names none")
    if not o.finished:
        remember(o)
        for seed in seeds:
            for task in tasks:
                for method in methods:
                    study(o, task, method, seed)
    rows = []
    for task in tasks:
        found: dict[str, dict[int, dict[str, compare.Found]]] = {}
        for method in methods:
            for seed in seeds:
                out = place(o, task, method, seed)
                if compare.is_finished(out):
                    found.setdefault(method, {})[seed] = compare.found_in(out)
        rows += compare.rows(task, TASKS[task], found)
    if not rows:
        print(f"nothing of this is finished in {o.out}", file=sys.stderr)
    print(json.dumps(rows, indent=1) if o.json else compare.table(rows))


def remember(o) -> None:
    """Notes what a study in --out is of; raises InputError if another one is there."""
    path = make_directory(o.out) / "study.json"
    given = {"data": os.path.abspath(o.data)}
    given["init"] = os.path.abspath(o.init) if os.path.exists(o.init) else o.init
    if not path.exists():
        write_file(path, json.dumps(given).encode())
    before = compare.read(path)
    for name, value in given.items():
        if before.get(name) != value:
            raise InputError(
                f"{o.out} holds a study with --{name} {before.get(name)}; choose another --out"
            )


def place(o, task: str, method: str, seed: int) -> Path:
    return Path(o.out) / task / f"{method}-{seed}"


def study(o, task: str, method: str, seed: int) -> None:
    """Trains a method on a task, sweeps it and times it, unless that is done.

    Times are of the first seed alone. Raises InputError if a command fails.
    """
    start, _, curves, asked = EVERY[method]
    folder, out = Path(o.data) / task, place(o, task, method, seed)
    dev = folder / TASKS[task].dev
    if (out / STATE).exists() or not (out / "config.json").exists():
        if start:
            study(o, task, start, seed)
        init = place(o, task, start, seed) if start else o.init
        command = f"train --out {shlex.quote(str(out))} --resume"
        if not (out / STATE).exists():
            options = training(method, TASKS[task], shlex.quote(str(place(o, task, "plain", seed))))
            files = {"data": folder / "train.tsv", "dev": dev, "init": init, "out": out}
            paths = " ".join(f"--{name} {shlex.quote(str(path))}" for name, path in files.items())
            command = f"train {paths} --seed {seed} {options}"
        call(command, sys.stderr)
    evaluate = f"evaluate --model {shlex.quote(str(out))} --data {shlex.quote(str(dev))} --json"
    evaluate = f"{evaluate} {asked}".rstrip()
    if not compare.is_finished(out):
        kind = f"--sweep --curves {','.join(curves)}" if curves else ""
        texts = shlex.quote(str(out / compare.TEXTS))
        text = call(f"{evaluate} {kind} --texts {texts}", subprocess.PIPE)
        write_file(out / compare.SWEEP, text.encode())
    first = seed == int(comma_list(o.seeds)[0])
    if first and curves and not (out / compare.TIMES).exists():
        points = compare.read(out / compare.SWEEP)["points"]
        told = list(times(evaluate, curves, points))
        write_file(out / compare.TIMES, json.dumps(told).encode())


def times(evaluate: str, curves: tuple[str, ...], points: list[dict]) -> Iterator[dict[str, Any]]:
    """Yields the time of the best settings for COSTS, at batch 1 and 32: shares of the full one."""
    for curve, cost in product(curves, COSTS):
        own = [p for p in points if p["curve"] == curve and p["macs_fraction"] <= cost]
        if not own:
            continue
        knobs = max(own, key=lambda p: p["value"])["knobs"]
        for size in (1, 32):
            said = f"{evaluate} --batch-size {size} {options_of(knobs)}"
            r = json.loads(call(said, subprocess.PIPE))
            share = r["ms_per_text"] / r["ms_per_text_full"]
            about = {"curve": curve, "cost": cost, "batch_size": size, "knobs": knobs}
            yield about | {"macs_fraction": r["macs_fraction"], "time_fraction": share}


def options_of(knobs: dict[str, Any]) -> str:
    """The knobs as a command's options."""
    words = {name: ",".join(v) if name == "use" else v for name, v in knobs.items()}
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in words.items())


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


if __name__ == "__main__":
    run_command(main)
