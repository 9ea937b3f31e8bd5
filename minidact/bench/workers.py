"""Contenders as processes, asked in turn: round after round, so a slow moment hits all of them."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import InputError
from .contenders import FLOAT32

OURS = ("minidact", "minidact 8 bits")  # whose time is given as a share of the others'


class Worker:
    """A contender in a process of its own (contenders.py)."""

    def __init__(self, name: str, directory: str, threads: int):
        self.name = name
        count = dict.fromkeys(
            ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
        )
        self.process: Any = subprocess.Popen(
            [sys.executable, "-m", "minidact.bench.contenders", name, directory, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **count},
        )  # fmt: skip
        self.ask()

    def ask(self, **request):
        """Returns the answer to a request; raises InputError if the process has ended."""
        with suppress(BrokenPipeError):  # then nothing can be read, either
            if request:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise InputError(f"{self.name} ended unexpectedly; leave it out with --only")
        return json.loads(line)

    def close(self):
        """Ends the process and waits for it."""
        with suppress(BrokenPipeError):  # it has ended, and what was asked last is still unsent
            self.process.stdin.close()
        self.process.wait()


@contextmanager
def workers(save, names, threads: int, calibration=()) -> Iterator[list[Worker]]:
    """Yields the contenders as Workers on one model; ends them with the block.

    save(directory) writes the model. calibration: lists of token ids from which those find their
    scales that quantise before they see a text.
    """
    with tempfile.TemporaryDirectory() as directory:
        save(directory)
        (Path(directory) / "calibration.json").write_text(json.dumps(list(calibration)))
        all_of_them: list[Worker] = []
        try:
            for name in tqdm(names, desc="starting", disable=None, leave=False):
                all_of_them.append(Worker(name, directory, threads))
            yield all_of_them
        finally:
            for worker in all_of_them:
                worker.close()


def in_turn(asked: dict, text: str, rounds: int, **request) -> tuple[dict, dict]:
    """Asks each worker `rounds` times: {name: ms (rounds, repeat, batches)}, {name: out}.

    asked: {name: (worker, what its request holds beside the others')}. text: what the progress bar
    calls it.
    """
    ms: dict[str, list] = {name: [] for name in asked}
    outs: dict[str, Any] = {}
    for _ in tqdm(range(rounds), desc=text, disable=None):
        for name, (worker, own) in asked.items():
            answer = worker.ask(**request, **own)
            ms[name].append(answer["ms"])
            outs[name] = answer["out"]
            time.sleep(0.3)  # by then its threads have stopped spinning
    return {name: np.array(times) for name, times in ms.items()}, outs


def measure(workers, text: str, kind: str, batches, repeat: int, rounds: int) -> dict:
    """Returns one row: the times of every contender on all batches.

    kind: "answer" or "train". repeat: how often a contender runs the batches in one turn.
    """
    asked: dict = {w.name: (w, {}) for w in workers}
    ms, outs = in_turn(asked, text, rounds, kind=kind, batches=batches, repeat=repeat)
    turns = {name: np.median(times.sum(2), 1) for name, times in ms.items()}  # (rounds,)
    alike = [outs[name] for name in FLOAT32 if name in outs]
    return {
        "case": text,
        "kind": kind,
        "lengths": [len(sentence) for batch in batches for sentence in batch],
        "ms": {name: float(np.median(times)) for name, times in turns.items()},
        "ratio": ratios(turns, OURS[0]),
        "ratio_8_bits": ratios(turns, OURS[1]),
        "difference": float(np.ptp(alike, axis=0).max()) if kind == "answer" and alike else None,
    }


def ratios(turns: dict, ours: str) -> dict[str, float]:
    """{name: our time as a share of theirs}, taken in each turn; {} if we are not among them."""
    if ours not in turns:
        return {}
    return {n: median((turns[ours] / times).tolist()) for n, times in turns.items()}
