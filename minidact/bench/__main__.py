"""Times minidact beside the frameworks and the machine's limits: `python -m minidact.bench`.

The contenders take turns, round after round, so a slow moment of the machine hits all of them. A
time is the median over the rounds. A ratio is taken within each round; then the median is taken.
The model is a random BERT with 12 layers, 384 wide (21 M weights in its layers). All contenders get
the same token ids. The frameworks need `pip install "minidact[bench]"`. Without them, only
minidact's own columns are there.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import checkpoint, data, evaluate, network
from ..errors import InputError, run_command
from ..fast import jit, kernels
from ..fast.packed import Encoder
from ..fast.threads import cores, kind_of_threads, use
from ..model import Model
from ..options import comma_list
from .contenders import CONTENDERS, NEEDS
from .limits import limits, quickest

TEXT = "a gripping, funny, humane film"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minidact.bench",
        description="Times of minidact, of PyTorch and ONNX Runtime where they are installed, and "
        "of the machine's limits.",
    )
    add = p.add_argument
    add("--json", action="store_true", help="print one JSON object")
    add("--data", help="a labelled file, such as SST-2/dev.tsv: take its texts' lengths, and time "
        "halting on it")  # fmt: skip
    add("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    add("--threads", type=int, default=cores(), help="of each contender (default: all)")
    add("--layers", type=int, default=12, help="of the random model (default 12)")
    add("--only", help="contenders, separated by commas (default: all that are installed)")
    return p


def main() -> None:
    options = parser().parse_args()
    if not jit.is_on():
        raise InputError(
            "bench times compiled kernels, and NUMBA_DISABLE_JIT forbids to compile any"
        )
    bounds = (("rounds", 1, 1000), ("threads", 1, cores()), ("layers", 1, 100))
    for name, least, highest in bounds:
        if not least <= getattr(options, name) <= highest:
            value = getattr(options, name)
            raise InputError(f"--{name} is {value}; it must be {least} to {highest}")
    names = installed() if options.only is None else comma_list(options.only)
    for name in names:
        if name not in CONTENDERS:
            raise InputError(f"no contender {name!r}; there are: {', '.join(CONTENDERS)}")
        if name not in installed():
            raise InputError(f'{name} is not installed; try: pip install "minidact[bench]"')
    use(options.threads)
    result = bench(names, options.rounds, options.threads, options.layers, options.data)
    print(json.dumps(result) if options.json else table(result))


def installed() -> list[str]:
    """Returns the names of the contenders whose packages are installed."""
    return [
        name
        for name in CONTENDERS
        if all(importlib.util.find_spec(module) for module in NEEDS.get(name, ()))
    ]


def bench(names, rounds, threads, layers, path=None) -> dict:
    """Returns the object that `bench --json` prints. Times are in ms, or in s if a key ends in _s.

    names: contenders; path: a labelled file, or None. Raises InputError if the file cannot be read.
    """
    examples = data.read_examples(path) if path else None
    # this comes first, while this process is small: a child's memory begins as its parent's
    start = startup(rounds)
    shipped = Model.from_pretrained()
    sentences, phrases = token_ids(shipped, examples)
    result = {"threads": threads, "layers": layers, "limits": limits(), "startup": start}
    result["threading_layer"] = kind_of_threads()
    deep, shallow = (random_config(shipped.config, n) for n in (layers, min(layers, 6)))
    result["rows"] = answering(deep, shipped.tokenizer, names, threads, sentences, rounds)
    result["rows"] += training(shallow, shipped.tokenizer, names, threads, phrases, rounds)
    for row in result["rows"]:
        add_shares(row, deep if row["kind"] == "answer" else shallow, result["limits"])
    result["adaptive"] = adaptive(shipped, examples, rounds) if examples else []
    result["growth"] = growth(deep)
    return result


def token_ids(shipped, examples):
    """Returns the token ids of 256 sentences to answer, and of 128 phrases to train on.

    The phrases are random. So are the sentences, unless examples are given: then they are the first
    256 texts. Random lengths are like SST-2's: 25 tokens a sentence as in its dev set, 13 a phrase
    as in its training set, both with a long tail.
    """
    rng = np.random.default_rng(0)

    def draw(count, mean, sigma):
        lengths = np.clip(rng.lognormal(mean, sigma, count), 3, 66).astype(int)
        return [rng.integers(1000, shipped.config.vocab_size, n).tolist() for n in lengths]

    phrases, sentences = draw(128, 2.4, 0.65), draw(256, 3.1, 0.5)
    if examples:
        encoded = data.encode(shipped.tokenizer, examples.texts[:256], None)
        sentences = [[int(i) for i in e.ids] for e in encoded]
    return sentences, phrases


def random_config(config, layers):
    """Returns the config of a plain BERT classifier with the sizes of the model that ships."""
    nothing: dict[str, Any] = {"mechanisms": {}, "budgets": ()}
    return replace(config, num_hidden_layers=layers, summary="cls", **nothing)


# ---------------------------------------------------------------------------- whole processes


def startup(rounds: int) -> dict:
    """Returns seconds and MB of whole processes: import, the first answer ever, later answers."""

    def run(*command, **env):
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **env},
        )  # fmt: skip
        _, _, usage = os.wait4(process.pid, 0)
        return time.perf_counter() - begin, usage.ru_maxrss / 1024

    infer = ("-m", "minidact.infer", TEXT)
    with tempfile.TemporaryDirectory() as empty:
        first, _ = run(*infer, NUMBA_CACHE_DIR=empty)
    again = [run(*infer) for _ in range(rounds + 1)][1:]
    return {
        "import_s": median(run("-c", "import minidact")[0] for _ in range(rounds)),
        "first_ever_s": first,
        "infer_s": median(seconds for seconds, _ in again),
        "infer_mb": max(mb for _, mb in again),
    }


# ---------------------------------------------------------------------------- contenders


class Worker:
    """A contender in a process of its own (bench/contenders.py)."""

    def __init__(self, name, directory, threads):
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
        if request:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise InputError(f"{self.name} ended unexpectedly; leave it out with --only")
        return json.loads(line)

    def close(self):
        """Ends the process and waits for it."""
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def workers(config, tokenizer, names, threads):
    """Yields the contenders as Workers with the same random weights; ends them with the block."""
    with tempfile.TemporaryDirectory() as directory:
        params = network.init_params(config, np.random.default_rng(0))
        checkpoint.save(directory, config, params, tokenizer)
        all_of_them = [Worker(name, directory, threads) for name in names]
        try:
            yield all_of_them
        finally:
            for worker in all_of_them:
                worker.close()


def answering(config, tokenizer, names, threads, sentences, rounds) -> list[dict]:
    """Returns the rows for answering: one text of 8 to 128 tokens, and all sentences in batches."""
    words = np.concatenate(sentences).tolist()
    with workers(config, tokenizer, names, threads) as ws:
        rows = [
            measure(ws, f"1 x {n} tokens", "answer", [[words[:n]]], 20, rounds)
            for n in (8, 16, 32, 128)
        ]
        name = f"{len(sentences)} texts, batches of 32"
        return [*rows, measure(ws, name, "answer", in_batches(sentences), 1, rounds)]


def training(config, tokenizer, names, threads, phrases, rounds) -> list[dict]:
    """Returns the rows for training by AdamW: phrases as they come, and sorted by length."""
    names = [name for name in names if name != "minidact 16 bits" and name != "ONNX Runtime"]
    layers = config.num_hidden_layers
    with workers(config, tokenizer, names, threads) as ws:
        return [
            measure(ws, f"training {layers} layers, {how}", "train", in_batches(texts), 1, rounds)
            for how, texts in (("shuffled", phrases), ("by length", sorted(phrases, key=len)))
        ]


def in_batches(sentences, size=32):
    """Returns the sentences cut into lists of `size`; the last may be shorter."""
    return [sentences[i : i + size] for i in range(0, len(sentences), size)]


def measure(workers, text, kind, batches, repeat, rounds) -> dict:
    """Returns one row: the times of every contender on the batches, in turn, `rounds` times.

    kind: "answer" or "train". repeat: how often a contender runs the batches in one turn.
    """
    ms: dict[str, list[float]] = {w.name: [] for w in workers}
    outs: dict[str, list] = {}
    for _ in tqdm(range(rounds), desc=text, disable=not sys.stderr.isatty()):
        for worker in workers:
            answer = worker.ask(kind=kind, batches=batches, repeat=repeat)
            ms[worker.name].append(median(answer["ms"]))
            outs[worker.name] = answer["out"]
            time.sleep(0.3)  # by then its threads have stopped spinning
    ours = ms.get("minidact", next(iter(ms.values())))
    return {
        "case": text,
        "kind": kind,
        "lengths": [len(sentence) for batch in batches for sentence in batch],
        "ms": {name: median(values) for name, values in ms.items()},
        # minidact's time as a share of the contender's
        "ratio": {
            name: median(a / b for a, b in zip(ours, values, strict=True))
            for name, values in ms.items()
        },
        "difference": max_difference(outs) if kind == "answer" else None,
    }


def max_difference(outs) -> float:
    """Returns the largest difference between two contenders' probabilities of the same class."""
    stacked = np.array(list(outs.values()))
    return float(np.ptp(stacked, axis=0).max())


def add_shares(row, config, limits) -> None:
    """Adds to a row which share of the machine's limits minidact reaches, from 0 to 1.

    share_of_flops counts the products. share_of_bandwidth, for a single text, counts the weights,
    which are read once.
    """
    lengths, seconds = np.array(row["lengths"]), row["ms"].get("minidact", np.inf) / 1e3
    passes = 3 if row["kind"] == "train" else 1
    flop = 2 * passes * network.full_macs(config, lengths).sum()
    row["share_of_flops"] = flop / seconds / 1e9 / limits["gflops"]
    if len(lengths) == 1:
        c, f = config.hidden_size, config.intermediate_size
        read = 4 * config.num_hidden_layers * (4 * c * c + 2 * c * f)
        row["share_of_bandwidth"] = read / seconds / 1e9 / limits["gb_per_s"]


# ---------------------------------------------------------------------------- adaptive, growth


def adaptive(shipped, examples, rounds) -> list[dict]:
    """Returns what halting saves on real texts with the shipped model: time and multiply-adds."""
    labels, out = data.label_ids(examples, shipped.config, "the data"), []
    for batch_size in (1, 32):
        for slack in (0.0, 0.2, 0.4):
            how = {"use": ("halting",), "slack": slack}
            runs = [
                evaluate.evaluate(shipped, examples, labels, None, batch_size, how)
                for _ in range(max(1, rounds // 2))
            ]
            ratio = median(r["ms_per_text"] / r["ms_per_text_full"] for r in runs)
            full = median(r["ms_per_text_full"] for r in runs)
            row = {k: runs[0][k] for k in ("value", "value_full", "layers_mean", "macs_fraction")}
            row |= {"ms_per_text_full": full, "time_fraction": ratio}
            out.append({"batch_size": batch_size, "slack": slack, **row})
    return out


def growth(config) -> list[dict]:
    """Returns milliseconds, in all and of attention, as tokens, sentences and layers grow.

    Attention grows with the square of a sentence's tokens.
    """
    out, params = [], network.init_params(config, np.random.default_rng(0))
    for what, sentences, tokens, layers in (
        *(("tokens", 1, n, config.num_hidden_layers) for n in (16, 32, 64, 128, 256, 512)),
        *(("sentences", b, 16, config.num_hidden_layers) for b in (1, 2, 4, 8, 16, 32)),
        *(("layers", 1, 64, n) for n in (1, 2, 4, 8) if n < config.num_hidden_layers),
    ):
        encoder = Encoder(params, replace(config, num_hidden_layers=layers))
        offsets = np.arange(sentences + 1) * tokens
        x = np.ones((offsets[-1], config.hidden_size), np.float32)
        workspace = encoder.workspace(offsets)

        def run(encoder=encoder, x=x, offsets=offsets, workspace=workspace, layers=layers):
            for layer in range(layers):
                encoder.layer(layer, x, offsets, workspace)

        def attention(offsets=offsets, workspace=workspace, layers=layers):
            qkv, mixed, _, _, received = workspace
            none, scale = np.empty(0, np.float32), np.float32(0.1)
            for _ in range(layers):
                heads = config.num_attention_heads
                kernels.attend(qkv, offsets, heads, none, none, scale, mixed, received, none)

        row = {"grows": what, "sentences": sentences, "tokens": tokens, "layers": layers}
        out.append({**row, "ms": quickest(run) * 1e3, "attention_ms": quickest(attention) * 1e3})
    return out


# ---------------------------------------------------------------------------- as text


def table(r: dict) -> str:
    """Returns what `bench` returned as text."""
    names = list(r["rows"][0]["ms"])
    start, limit = r["startup"], r["limits"]
    lines = [
        f"{r['threads']} threads ({r['threading_layer']}); products in the first cache "
        f"{limit['gflops']:.0f} GFLOP/s; memory read {limit['gb_per_s']:.1f} GB/s",
        f"import {start['import_s']:.2f} s; infer, whole process: {start['infer_s']:.2f} s, "
        f"{start['infer_mb']:.0f} MB; the first ever, compiling: {start['first_ever_s']:.1f} s",
        "",
        f"{r['layers']} layers, 384 wide, float32; milliseconds; in brackets: minidact's time as a "
        "share of theirs",
    ]
    lines.append(f"{'':38}" + "".join(f"{name:>20}" for name in names) + "   of the limit")
    for row in r["rows"]:
        cells = [
            f"{row['ms'][n]:.2f} ({row['ratio'][n]:.2f})" if n in row["ms"] else "" for n in names
        ]
        share = f"{row['share_of_flops']:.0%} of products"
        if "share_of_bandwidth" in row:
            share += f", {row['share_of_bandwidth']:.0%} of memory"
        lines.append(f"{row['case']:38}" + "".join(f"{c:>20}" for c in cells) + f"   {share}")
    for row in r["adaptive"]:
        lines.append(
            f"shipped model, batches of {row['batch_size']}, slack {row['slack']}: accuracy "
            f"{row['value']:.4f} (full {row['value_full']:.4f}), {row['layers_mean']:.2f} layers, "
            f"MACs {row['macs_fraction']:.3f}, time {row['time_fraction']:.3f} of full's "
            f"{row['ms_per_text_full']:.2f} ms"
        )
    lines += ["", "how time grows: ms, and attention's part of it"]
    for row in r["growth"]:
        lines.append(
            f"  {row['sentences']:3} x {row['tokens']:3} tokens, {row['layers']:2} layers"
            f"{row['ms']:9.2f}{row['attention_ms']:8.2f} ({row['attention_ms'] / row['ms']:.0%})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
