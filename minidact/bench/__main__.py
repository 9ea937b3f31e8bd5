"""Times minidact beside the frameworks and the machine's limits: `python -m minidact.bench`.

The contenders take turns, round after round, so a slow moment of the machine hits all of them. A
time is the median over the rounds. A ratio is taken within each round; then the median is taken.
The model is a random BERT with 12 layers, 384 wide (21 M weights in its layers). All contenders get
the same token ids. With --data the model that ships is timed, too, from text to label. The
frameworks need `pip install "minidact[bench]"`. Without them, only minidact's own lines are there.
"""

import argparse
import importlib.util
import json

import numba

from .. import checkpoint, data
from ..errors import InputError, run_command
from ..fast import jit
from ..fast.threads import kind_of_threads, use
from ..model import Model
from ..options import choose
from . import cases
from .contenders import CONTENDERS, needs
from .limits import limits

MOST = numba.config.NUMBA_NUM_THREADS  # that may run: of processors, and of a wish for fewer


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minidact.bench",
        description="Times of minidact, of PyTorch, ONNX Runtime and OpenVINO where they are "
        "installed, and of the machine's limits.",
    )
    add = p.add_argument
    add("--json", action="store_true", help="print one JSON object")
    add("--data", help="a labelled file, such as SST-2/dev.tsv: take its texts' lengths, and time "
        "halting on it")  # fmt: skip
    add("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    add("--threads", type=int, default=MOST, help="of each contender (default: all)")
    add("--layers", type=int, default=12, help="of the random model (default 12)")
    add("--only", help="contenders, separated by commas (default: all that are installed)")
    return p


def main() -> None:
    options = parser().parse_args()
    if not jit.is_on():
        raise InputError(
            "bench times compiled kernels, and NUMBA_DISABLE_JIT forbids to compile any"
        )
    bounds = (("rounds", 1, 1000), ("threads", 1, MOST), ("layers", 1, 100))
    for name, least, highest in bounds:
        if not least <= getattr(options, name) <= highest:
            value = getattr(options, name)
            raise InputError(f"--{name} is {value}; it must be {least} to {highest}")
    names = installed() if options.only is None else choose("only", options.only, CONTENDERS)
    for name in names:
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
        if all(importlib.util.find_spec(module) for module in needs(name))
    ]


def bench(names, rounds, threads, layers, path=None) -> dict:
    """Returns the object that `bench --json` prints. Times are in ms, or in s if a key ends in _s.

    names: contenders; path: a labelled file, or None. Raises InputError if the file cannot be read.
    """
    examples = data.read_examples(path) if path else None
    if examples and path:  # a wrong label is found before anything takes long
        data.label_ids(examples, checkpoint.read_config(checkpoint.resolve(None)), path)
    # this comes first, while this process is small: a child's memory begins as its parent's
    start = cases.startup(rounds)
    shipped = Model.from_pretrained()
    texts = cases.token_ids(shipped, examples)
    result = {"threads": threads, "layers": layers, "limits": limits(), "startup": start}
    result["threading_layer"] = kind_of_threads()
    deep, shallow = (cases.random_config(shipped.config, n) for n in (layers, min(layers, 6)))
    tokenizer = shipped.tokenizer
    result["rows"] = cases.answering(deep, tokenizer, names, threads, texts, rounds)
    result["rows"] += cases.training(shallow, tokenizer, names, threads, texts[2], rounds)
    for row in result["rows"]:
        cases.add_shares(row, deep if row["kind"] == "answer" else shallow, result["limits"])
    result["labels"] = result["adaptive"] = []
    if examples:
        result["labels"] = cases.labelling(shipped, names, threads, examples, rounds)
        result["adaptive"] = cases.adaptive(shipped, examples, rounds)
    result["growth"] = cases.growth(deep)
    return result


# ---------------------------------------------------------------------------- as text


def table(r: dict) -> str:
    """Returns what `bench` returned as text."""
    start, limit = r["startup"], r["limits"]
    lines = [
        f"{r['threads']} threads ({r['threading_layer']}); products in the first cache "
        f"{limit['gflops']:.0f} GFLOP/s, in eight bits {limit['gops_int8']:.0f} G operations/s; "
        f"memory read {limit['gb_per_s']:.1f} GB/s",
        f"import {start['import_s']:.2f} s; infer, whole process: {start['infer_s']:.2f} s, "
        f"{start['infer_mb']:.0f} MB; the first answer ever {start['first_ever_s']:.1f} s, "
        f"kernels compiled after it: {start['compiled_s']:.1f} s",
    ]
    return "\n".join([*lines, *against(r), *labelled(r), *adaptive(r), *grown(r)])


def against(r: dict) -> list[str]:
    """Every contender a line, every case a column."""
    lines = []
    for row in r["rows"]:
        layers = f", {r['layers']} layers" * (row["kind"] == "answer")  # training says how many
        lines += ["", f"{row['case']}{layers}, 384 wide"]
        for name, ms in row["ms"].items():
            shares = [
                f"{ours} takes {row[key][name]:.2f} of it"
                for key, ours in (("ratio", "minidact"), ("ratio_8_bits", "in 8 bits"))
                if row[key] and name not in ("minidact", "minidact 8 bits")
            ]
            limits = ", ".join(
                f"{v:.0%} of {what}" for what, v in row["shares"].get(name, {}).items()
            )
            lines.append(f"  {name:20}{ms:10.2f} ms   {', '.join(shares)}{limits}")
    return lines


def labelled(r: dict) -> list[str]:
    """The model that ships, from text to label."""
    lines = []
    for row in r["labels"]:
        lines += ["", f"the model that ships, text to label, {row['texts']} texts, batches of "
                  f"{row['batch_size']}: ms per text, accuracy"]  # fmt: skip
        for name, ms in row["ms"].items():
            spread = "".join(
                f"  p{p} {row[f'p{p}'][name]:.2f}" for p in (50, 95, 99) if f"p{p}" in row
            )
            lines.append(f"  {name:26}{ms:8.2f}  {row['accuracy'][name]:.4f}{spread}")
    return lines


def adaptive(r: dict) -> list[str]:
    lines = [""] if r["adaptive"] else []
    for row in r["adaptive"]:
        lines.append(
            f"shipped model{', 8 bits' if row['bits'] else ''}, batches of {row['batch_size']}, "
            f"{row['how']}: accuracy {row['value']:.4f} (full {row['value_full']:.4f}), "
            f"{row['layers_mean']:.2f} layers, MACs {row['macs_fraction']:.3f}, time "
            f"{row['time_fraction']:.3f} of full's {row['ms_per_text_full']:.2f} ms"
        )
    return lines


def grown(r: dict) -> list[str]:
    lines = ["", "how time grows: ms, and attention's part of it"]
    for row in r["growth"]:
        lines.append(
            f"  {row['sentences']:3} x {row['tokens']:3} tokens, {row['layers']:2} layers"
            f"{row['ms']:9.2f}{row['attention_ms']:8.2f} ({row['attention_ms'] / row['ms']:.0%})"
        )
    return lines


if __name__ == "__main__":
    run_command(main)
