"""Answers: `python -m minidact.infer "a gripping, funny, humane film"`."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from itertools import count, islice

import numba

from .config import MECHANISMS
from .errors import InputError, run_command
from .exits import RULES
from .jit import is_compiled
from .predict import Model, Prediction
from .show import terminal

# options that Model takes as they are
KNOBS = ("slack", "bound", "threshold", "keep", "rule", "at", "budget")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minidact.infer",
        description="Classifies a text, or one text per line of stdin.",
    )
    add = p.add_argument
    add("text", help="the text, or - to read one text per line from standard input")
    add("--pair", help="a second text, for tasks on two")
    add("--json", action="store_true", help="one JSON object per text")
    add("--trace", action="store_true", help="show what every layer did")
    add("--batch-size", type=int, default=32, help="texts per batch with - (default 32)")
    add_model_options(p)
    return p


def add_model_options(p: argparse.ArgumentParser) -> None:
    """The options that say which model, and what of it is adaptive: shared with evaluate."""
    add = p.add_argument
    add(
        "--model", help="a directory, a hub id, or a name in weights/ (default: the one that ships)"
    )
    add("--full", action="store_true", help="nothing adaptive: every layer runs")
    add("--use", help=f"mechanisms to switch on, by commas: {', '.join(MECHANISMS)} (default: all)")
    add("--slack", type=float, default=0.0, help="0 (default): halt only when the answer cannot "
        "change; more halts earlier, 1 after the first layer; 0.5 or so is useful")  # fmt: skip
    add("--bound", choices=("tight", "paper"), default="tight", help="which exact bound to halt by")
    add("--threshold", type=float, default=0.5, help="planning: a layer is included if its gate is "
        "at least this (default 0.5); more leaves out more layers")  # fmt: skip
    add("--keep", type=float, default=1.0, help="token gates: more than 1 (default) keeps more "
        "tokens, less keeps fewer")  # fmt: skip
    add("--budget", type=float, help="instead of all these: the share of the full multiply-adds to "
        "spend at most, on average, such as 0.5")  # fmt: skip
    add(
        "--rule",
        choices=RULES,
        help="halt by a neighbour's rule instead, for comparison; with --use halting",
    )
    add("--at", type=float, help="that rule's knob (exits.py)")


def load_model(options) -> tuple[Model, dict]:
    """The model, its kernels compiled, and the keyword arguments for calling it."""
    if options.full and options.use:
        raise InputError("--full switches everything off, and --use something on: choose one")
    model = Model.from_pretrained(options.model)
    use = () if options.full else None
    if options.use is not None:
        use = [name.strip() for name in options.use.split(",") if name.strip()]
    if not is_compiled("inference._layer"):
        note = "compiling kernels; this happens once and takes some seconds ..."
        print(note, file=sys.stderr, flush=True)
    how = {key: getattr(options, key) for key in KNOBS}
    how["use"] = use if options.budget is not None else model.knobs(use, **how).use
    model("warm", **how)  # compiles, touches the weights
    if numba.threading_layer() == "workqueue":
        print(
            "note: Numba finds neither OpenMP nor TBB here, and wakes threads ten times slower "
            "without them, which short texts feel; installing libgomp (or tbb) mends it",
            file=sys.stderr,
        )
    return model, how


def main() -> None:
    options = parser().parse_args()
    if options.text == "-" and options.pair is not None:
        raise InputError("--pair goes with one text, not with texts from standard input")
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    model, how = load_model(options)
    if options.text != "-":
        show(model(options.text, options.pair, **how), options)
        return
    numbers = count(1)
    for lines in batched(sys.stdin.buffer, options.batch_size):
        texts = [decoded(line) for line in lines]
        readable = [text for text in texts if text is not None]
        predictions = iter(model(readable, batch_size=options.batch_size, **how))
        for text, number in zip(texts, numbers, strict=False):
            if text is None:
                refuse(f"line {number}: not valid UTF-8", options)
            else:
                show(next(predictions), options)
        sys.stdout.flush()


def batched(lines: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    if size < 1:
        raise InputError(f"--batch-size is {size}; it must be at least 1")
    while batch := list(islice(lines, size)):
        yield batch


def decoded(line: bytes) -> str | None:
    """A line as text, without its end; None if it is not UTF-8."""
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        return None


def refuse(reason: str, options) -> None:
    """Stands in the output where the answer to a line would."""
    print(json.dumps({"error": reason}) if options.json else f"error: {reason}")


def show(prediction: Prediction, options) -> None:
    if options.json:
        answer = prediction.to_dict()
        if options.trace:
            keys = ("layer", "answer", "doubt", "margin")
            steps = zip(prediction.layers_run, prediction.steps, strict=False)
            answer["trace"] = [dict(zip(keys, (n, *step), strict=True)) for n, step in steps]
        print(json.dumps(answer, ensure_ascii=False, allow_nan=False))
        return
    if options.trace:
        seen = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if seen else None
        colour = seen and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        print("\n".join(terminal(prediction, width, colour)))
    if prediction.truncated:
        print(f"note: only the first {prediction.tokens} tokens were read", file=sys.stderr)
    print(prediction)


if __name__ == "__main__":
    run_command(main)
