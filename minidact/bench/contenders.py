"""The programs that are timed, minidact among them, each as a process of its own.

In one process, the thread pools of different libraries would take the cores from each other. So
each contender is a process that answers requests, one JSON object a line (workers.py sends them):

    {"kind": "answer" | "train", "batches": [[[id, ..], ..], ..], "repeat": n}
    {"kind": "label", "batches": [[text, ..], ..], "repeat": n, "how": {knob: value, ..}}
    -> {"ms": [[ms of each batch], .. n times], "out": probabilities of the first batch, or null;
        of "label" the classes of all texts}
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .. import hard, optim, ragged
from ..model import Model
from ..train.learn import learn
from .peers import OnnxRuntime, OpenVino, PyTorch


class Minidact:
    """minidact on the model in a directory. bits and reference: as Model's."""

    def __init__(self, directory, threads, bits=32, reference=False):
        del threads  # workers.py sets their number in the environment
        self.model = Model.from_pretrained(directory, reference=reference, bits=bits)
        self.moments, self.step = None, 0

    def prepare(self, sentences):
        """Returns lists of token ids as one ragged batch."""
        ids, offsets = ragged.concatenate([np.array(ids) for ids in sentences])
        return ragged.Batch(ids, np.zeros_like(ids), offsets)

    def answer(self, batch):
        """Returns the probabilities (B, Y)."""
        return hard.hard_forward(self.model.net, batch, layers=self.model.layers).probs

    def train(self, batch):
        """Does one step of AdamW on all parameters."""
        net = self.model.net._replace(rng=np.random.default_rng(self.step))
        self.moments = self.moments or optim.zero_moments(net.params)
        labels, rates = np.arange(len(batch.offsets) - 1) % 2, dict.fromkeys(net.params, 1e-6)
        learn(net, batch, labels, None, self.moments, self.step, rates)
        self.step += 1

    def label(self, texts, **how):
        """From texts to classes (B,)."""
        answers = self.model(texts, batch_size=len(texts), **how)
        return [self.model.config.id2label.index(answer.label) for answer in answers]


CONTENDERS: dict[str, Callable[[str, int], Any]] = {
    "numpy": partial(Minidact, reference=True),
    "minidact": Minidact,
    "minidact 16 bits": partial(Minidact, bits=16),
    "minidact 8 bits": partial(Minidact, bits=8),
    "PyTorch": PyTorch,
    "PyTorch bf16": partial(PyTorch, bfloat16=True),
    "ONNX Runtime": OnnxRuntime,
    "ONNX Runtime int8": partial(OnnxRuntime, int8=True),
    "OpenVINO": OpenVino,
    "OpenVINO bf16": partial(OpenVino, precision="bf16"),
    "OpenVINO int8": partial(OpenVino, precision="int8"),
}
FLOAT32 = ("numpy", "minidact", "PyTorch", "ONNX Runtime", "OpenVINO")  # must answer alike
TRAINED = ("numpy", "minidact", "PyTorch")  # can train
TORCH = ("torch", "transformers")
NEEDS = {  # by the first word
    "PyTorch": TORCH,
    "ONNX": (*TORCH, "onnx", "onnxruntime"),
    "OpenVINO": (*TORCH, "onnx", "openvino", "nncf"),
}


def needs(name: str) -> tuple[str, ...]:
    """The packages that a contender needs beside minidact's own."""
    return NEEDS.get(name.split()[0], ())


def serve(name: str, directory: str, threads: int) -> None:
    """Answers requests from standard input until it ends. directory: the model."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print, but that is no answer
    contender = CONTENDERS[name](directory, threads)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        kind, given = request["kind"], request["batches"]
        run = partial(getattr(contender, kind), **request.get("how", {}))
        batches = given if kind == "label" else [contender.prepare(batch) for batch in given]
        out, ms = run(batches[0]), []
        for _ in range(request["repeat"]):
            outs, times = [], []
            for batch in batches:
                begin = time.perf_counter()
                outs.append(run(batch))
                times.append((time.perf_counter() - begin) * 1e3)
            ms.append(times)
        if kind == "label":
            out = np.concatenate(outs)
        answer = {"ms": ms, "out": None if out is None else np.asarray(out).tolist()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
