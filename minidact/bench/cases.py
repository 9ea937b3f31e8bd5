"""What is measured: answers, trainings, text to label, halting, whole processes, growth."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import product
from statistics import median
from typing import Any

import numpy as np

from .. import checkpoint, data, network
from ..fast import kernels
from ..fast.packed import Encoder
from ..model import Model
from ..study import scores
from .contenders import TRAINED
from .limits import quickest
from .workers import in_turn, measure, workers

TEXT = "a gripping, funny, humane film"
LONG = 512  # tokens, the most that the model reads
# how minidact answers with the model that ships: in full, exactly halted, with all mechanisms
WAYS: dict[str, dict] = {"full": {"use": []}, "halting": {"use": ["halting"]}, "all": {}}

# ---------------------------------------------------------------------------- texts


def token_ids(shipped, examples):
    """Returns the token ids of 256 sentences and 16 long texts to answer, and of 128 phrases.

    Phrases are to train on. They and the long texts are random, and so are the sentences, unless
    examples are given: then they are the first 256 texts. Random lengths are like SST-2's (25
    tokens a sentence as in its dev set, 13 a phrase as in its training set) and IMDB's (280).
    """
    rng = np.random.default_rng(0)

    def draw(count, mean, sigma, most=66):
        lengths = np.clip(rng.lognormal(mean, sigma, count), 3, most).astype(int)
        return [rng.integers(1000, shipped.config.vocab_size, n).tolist() for n in lengths]

    phrases, sentences = draw(128, 2.4, 0.65), draw(256, 3.1, 0.5)
    long = draw(16, 5.5, 0.5, LONG)
    if examples:
        encoded = data.encode(shipped.tokenizer, examples.texts[:256], None)
        sentences = [[int(i) for i in e.ids] for e in encoded]
    return sentences, long, phrases


def in_batches(texts, size=32):
    """Returns the texts cut into lists of `size`; the last may be shorter."""
    return [texts[i : i + size] for i in range(0, len(texts), size)]


def random_config(config, layers):
    """Returns the config of a plain BERT classifier with the sizes of the model that ships."""
    nothing: dict[str, Any] = {"mechanisms": {}, "budgets": ()}
    return replace(config, num_hidden_layers=layers, summary="cls", **nothing)


def saved_at_random(config, tokenizer):
    """A function that writes a model of that config, with random weights, to a directory."""
    params = network.init_params(config, np.random.default_rng(0))
    return lambda directory: checkpoint.save(directory, config, params, tokenizer)


# ---------------------------------------------------------------------------- contenders


def answering(config, tokenizer, names, threads, texts, rounds) -> list[dict]:
    """Returns the rows for answering: one text of 8 to 512 tokens, sentences and long texts."""
    sentences, long, _ = texts
    words = np.concatenate(sentences).tolist()
    # (how often in a turn, how many turns): a machine's speed changes, so turns are short and many
    single = dict.fromkeys((8, 16, 32), (20, 4 * rounds)) | {128: (20, rounds), LONG: (5, rounds)}
    with workers(saved_at_random(config, tokenizer), names, threads, sentences[:128]) as ws:
        rows = [
            measure(ws, f"1 x {n} tokens", "answer", [[words[:n]]], *often)
            for n, often in single.items()
        ]
        for group, what, size in ((sentences, "texts", 32), (long, "long texts", 8)):
            name = f"{len(group)} {what}, batches of {size}"
            rows.append(measure(ws, name, "answer", in_batches(group, size), 1, rounds))
        return rows


def training(config, tokenizer, names, threads, phrases, rounds) -> list[dict]:
    """Returns the rows for training by AdamW: phrases as they come, and sorted by length."""
    names, layers = [name for name in names if name in TRAINED], config.num_hidden_layers
    with workers(saved_at_random(config, tokenizer), names, threads) as ws:
        return [
            measure(ws, f"training {layers} layers, {how}", "train", in_batches(texts), 1, rounds)
            for how, texts in (("shuffled", phrases), ("by length", sorted(phrases, key=len)))
        ]


def labelling(shipped: Model, names, threads, examples, rounds) -> list[dict]:
    """Returns the rows for the model that ships, from text to label, at batch 1 and 32.

    minidact answers in full, with exact halting, and with all mechanisms; the others in full. ms is
    per text; p50, p95 and p99 are over texts and rounds, at batch 1.
    """
    labels = data.label_ids(examples, shipped.config, "the data")
    names = [name for name in names if name not in ("numpy", "minidact 16 bits")]
    found = data.encode(shipped.tokenizer, examples.texts[:128])
    known, rows = [e.ids.tolist() for e in found], []
    with workers(lambda d: shipped.save_pretrained(d, np.float16), names, threads, known) as ws:
        for size in (1, 32):
            batches = in_batches(examples.texts, size)
            ways = {
                f"{w.name}, {way}": (w, {"how": how})
                for w in ws if w.name.startswith("minidact") for way, how in WAYS.items()
            } | {w.name: (w, {}) for w in ws if not w.name.startswith("minidact")}  # fmt: skip
            request = {"kind": "label", "batches": batches, "repeat": 1}
            ms, outs = in_turn(ways, f"text to label, batch {size}", rounds, **request)
            row: dict[str, Any] = {"batch_size": size, "texts": len(labels)}
            totals = {name: times.sum((1, 2)) / len(labels) for name, times in ms.items()}
            row["ms"] = {name: float(np.median(times)) for name, times in totals.items()}
            row["accuracy"] = {
                n: float((np.array(out) == labels).mean()) for n, out in outs.items()
            }
            if size == 1:
                for p in (50, 95, 99):
                    row[f"p{p}"] = {n: float(np.percentile(t, p)) for n, t in ms.items()}
            rows.append(row)
    return rows


def add_shares(row, config, limits) -> None:
    """Adds "shares" to a row: which share of the machine's limits minidact reaches, from 0 to 1.

    products counts them. memory, for a single text, counts the weights, which are read once.
    """
    lengths, row["shares"] = np.array(row["lengths"]), {}
    operations = 2 * network.full_macs(config, lengths).sum() * (3 if row["kind"] == "train" else 1)
    c, f = config.hidden_size, config.intermediate_size
    weights = config.num_hidden_layers * (4 * c * c + 2 * c * f)
    for name, most, size in (
        ("minidact", "gflops", 4), ("minidact 16 bits", "gflops", 2),
        ("minidact 8 bits", "gops_int8", 1),
    ):  # fmt: skip
        if name in row["ms"]:
            seconds = row["ms"][name] / 1e3
            shares = {"products": operations / seconds / 1e9 / limits[most]}
            if len(lengths) == 1:
                shares["memory"] = size * weights / seconds / 1e9 / limits["gb_per_s"]
            row["shares"][name] = shares


# ---------------------------------------------------------------------------- whole processes


def startup(rounds: int) -> dict:
    """Returns seconds and MB of whole processes: import, the first answer ever, later answers.

    first_ever_s: until the answer is there; compiled_s: until the kernels are, too.
    """

    def run(*command, **env):
        begin = time.perf_counter()
        process: Any = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **env},
        )  # fmt: skip
        with process.stdout:
            process.stdout.readline()
            answered = time.perf_counter() - begin
        _, _, usage = os.wait4(process.pid, 0)
        return answered, time.perf_counter() - begin, usage.ru_maxrss / 1024

    infer = ("-m", "minidact.infer", TEXT)
    with tempfile.TemporaryDirectory() as empty:
        first, compiled, _ = run(*infer, NUMBA_CACHE_DIR=empty)
    again = [run(*infer) for _ in range(rounds + 1)][1:]
    return {
        "import_s": median(run("-c", "import minidact")[1] for _ in range(rounds)),
        "first_ever_s": first,
        "compiled_s": compiled,
        "infer_s": median(seconds for _, seconds, _ in again),
        "infer_mb": max(mb for _, _, mb in again),
    }


# ---------------------------------------------------------------------------- adaptive, growth


def adaptive(shipped, examples, rounds) -> list[dict]:
    """Returns what the mechanisms save on real texts with the shipped model: time, multiply-adds.

    bits: None for the precision that a model has if none is asked for.
    """
    labels, out = data.label_ids(examples, shipped.config, "the data"), []
    for bits, batch_size in product((None, 8), (1, 32)):
        model = Model(shipped.config, shipped.params, shipped.tokenizer, bits=bits)
        for name, how in (
            ("halting", {"use": ("halting",)}),
            ("halting, slack 0.4", {"use": ("halting",), "slack": 0.4}),
            ("all", {}),
        ):
            runs = [
                scores.measure(model, examples, labels, None, batch_size, how)[0]
                for _ in range(max(1, rounds // 2))
            ]
            ratio = median(r["ms_per_text"] / r["ms_per_text_full"] for r in runs)
            full = median(r["ms_per_text_full"] for r in runs)
            row = {k: runs[0][k] for k in ("value", "value_full", "layers_mean", "macs_fraction")}
            row |= {"ms_per_text_full": full, "time_fraction": ratio}
            out.append({"bits": bits, "batch_size": batch_size, "how": name, **row})
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
