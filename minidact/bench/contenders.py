"""The programs that bench/__main__.py times: minidact, and the frameworks beside it.

In one process, the thread pools of different libraries would take the cores from each other. So
each contender is a process of its own that answers requests, one JSON object a line:

    {"kind": "answer" | "train", "batches": [[[id, ..], ..], ..], "repeat": n}
    -> {"ms": [n times, of all batches once], "out": probabilities of the first batch, or null}

The frameworks are optional (`pip install "minidact[bench]"`). Only this file imports them.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoint, hard, ops, optim, ragged
from ..fast import kernels
from ..fast.packed import Encoder
from ..network import Network
from ..train.learn import learn


class Minidact:
    """Runs minidact with its Numba kernels, on the model in a directory.

    half: round the weights to float16 first, so that they are packed in 16 bits.
    """

    calc = kernels

    def __init__(self, directory, threads, half=False):
        del threads  # bench/__main__.py sets their number in the environment
        self.config, self.params, _ = checkpoint.load(directory)
        if half:
            self.params = {k: p.astype(np.float16).astype(p.dtype) for k, p in self.params.items()}
        self.encoder, self.moments, self.step = None, None, 0
        if self.calc is kernels:
            self.encoder = Encoder(self.params, self.config)

    def prepare(self, sentences):
        """Returns lists of token ids as one ragged batch."""
        ids, offsets = ragged.concatenate([np.array(ids) for ids in sentences])
        return ragged.Batch(ids, np.zeros_like(ids), offsets)

    def answer(self, batch):
        """Returns the probabilities (B, Y)."""
        net = Network(self.params, self.config, self.calc)
        return hard.hard_forward(net, batch, encoder=self.encoder).probs

    def train(self, batch):
        """Does one step of AdamW on all parameters."""
        self.moments = self.moments or optim.zero_moments(self.params)
        labels, rng = np.arange(len(batch.offsets) - 1) % 2, np.random.default_rng(self.step)
        net = Network(self.params, self.config, self.calc, rng)
        learn(net, batch, labels, None, self.moments, self.step, dict.fromkeys(self.params, 1e-6))
        self.step += 1


class Reference(Minidact):
    """Runs minidact in plain NumPy (ops.py)."""

    calc = ops


class PyTorch:
    """Runs transformers' BertForSequenceClassification, in eager mode.

    Its attention is PyTorch's scaled_dot_product_attention.
    """

    def __init__(self, directory, threads):
        import torch
        from transformers import BertForSequenceClassification

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = BertForSequenceClassification.from_pretrained(directory)
        assert self.model.config._attn_implementation == "sdpa"
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)

    def prepare(self, sentences):
        """Returns the model's inputs, padded to the longest sentence, as its users pad them."""
        longest = max(map(len, sentences))
        ids = self.torch.tensor([ids + [0] * (longest - len(ids)) for ids in sentences])
        lengths = self.torch.tensor([len(ids) for ids in sentences])
        return {
            "input_ids": ids,
            "attention_mask": (self.torch.arange(longest) < lengths[:, None]).long(),
        }

    def answer(self, batch):
        """Returns the probabilities (B, Y)."""
        self.model.eval()
        with self.torch.inference_mode():
            return self.model(**batch).logits.softmax(-1).numpy()

    def train(self, batch):
        """Does one step of AdamW on all parameters."""
        self.model.train()
        labels = self.torch.arange(len(batch["input_ids"])) % 2
        self.model(**batch, labels=labels).loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class OnnxRuntime(PyTorch):
    """Runs PyTorch's model, exported to ONNX, on ONNX Runtime's CPU provider."""

    def __init__(self, directory, threads):
        import onnxruntime

        super().__init__(directory, threads)
        path = Path(directory) / "model.onnx"
        self._export(path)
        del self.model, self.optimizer
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def _export(self, path):
        """Writes the model to path in ONNX."""
        torch, model = self.torch, self.model.eval()
        model.set_attn_implementation("eager")  # the exporter understands this attention

        class Logits(torch.nn.Module):  # type: ignore[name-defined]
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, input_ids, attention_mask):
                return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

        ids = torch.ones((2, 8), dtype=torch.long)
        names = ["input_ids", "attention_mask"]
        axes = {name: {0: "batch", 1: "tokens"} for name in names}
        torch.onnx.export(
            Logits(), (ids, ids), path, input_names=names, dynamic_axes=axes, dynamo=False,
            opset_version=17,
        )  # fmt: skip

    def prepare(self, sentences):
        """Returns the model's inputs as NumPy arrays, padded to the longest sentence."""
        return {name: tensor.numpy() for name, tensor in super().prepare(sentences).items()}

    def answer(self, batch):
        """Returns the probabilities (B, Y)."""
        logits = self.session.run(None, batch)[0]
        return ops.softmax_forward(logits)[0]


CONTENDERS: dict[str, Callable[[str, int], Any]] = {
    "numpy": Reference,
    "minidact": Minidact,
    "minidact 16 bits": lambda directory, threads: Minidact(directory, threads, half=True),
    "PyTorch": PyTorch,
    "ONNX Runtime": OnnxRuntime,
}
NEEDS = {"PyTorch": ("torch", "transformers"), "ONNX Runtime": ("onnxruntime", "onnx", "torch")}


def serve(name: str, directory: str, threads: int) -> None:
    """Answers requests from standard input until it ends. directory: the model."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print, but that is no answer
    contender = CONTENDERS[name](directory, threads)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        run = getattr(contender, request["kind"])
        batches = [contender.prepare(sentences) for sentences in request["batches"]]
        out, ms = run(batches[0]), []
        for _ in range(request["repeat"]):
            begin = time.perf_counter()
            for batch in batches:
                run(batch)
            ms.append((time.perf_counter() - begin) * 1e3)
        out = None if out is None else out.tolist()
        print(json.dumps({"ms": ms, "out": out}), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
