"""Answers: `python -m minidact.infer "a gripping, funny, humane film"`."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import numba

from .errors import InputError, run_command
from .fast.jit import is_compiled
from .model import Model, Prediction
from .options import add_model_options, how_to_answer
from .show import terminal
from .signals import ending


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
    add_model_options(p)
    return p


def load_model(name: str | None, how: dict[str, Any]) -> Model:
    """The model, its kernels compiled for answers such as those asked for."""
    with ending():
        model = Model.from_pretrained(name)
        model.knobs(**how)  # what cannot be is said before anything is compiled
        if not is_compiled("packed._layer"):
            note = "compiling kernels; this happens once and takes some seconds ..."
            print(note, file=sys.stderr, flush=True)
        model("warm", **how)  # compiles, touches the weights
    if numba.threading_layer() == "workqueue":
        print(
            "note: Numba finds neither OpenMP nor TBB here, and wakes threads ten times slower "
            "without them, which short texts feel; installing libgomp (or tbb) mends it",
            file=sys.stderr,
        )
    return model


def main() -> None:
    options = parser().parse_args()
    if options.text == "-" and options.pair is not None:
        raise InputError("--pair goes with one text, not with texts from standard input")
    how = how_to_answer(options)
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    model = load_model(options.model, how)
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
