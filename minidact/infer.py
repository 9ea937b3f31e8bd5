"""Answers: `python -m minidact.infer "a gripping, funny, humane film"`."""

import argparse
import codecs
import gc
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count, islice
from typing import Any, BinaryIO

from . import data
from .errors import InputError, run_command
from .fast import jit, threads
from .fast.layers import kernel_for
from .model import Model, Prediction
from .options import add_model_options, how_to_answer
from .show import terminal
from .signals import ending
from .tensors import unread

PIECE = 2**16  # bytes of a line that are read at once


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m minidact.infer",
        description="Classifies a text, or one text per line of stdin.",
    )
    add = p.add_argument
    add(
        "text", help="the text, or - to read one text per line from standard input; answers come "
        "batch by batch: with --batch-size 1, line by line",
    )  # fmt: skip
    add("--pair", help="a second text, for tasks on two")
    add("--pairs", action="store_true", help="with -: a line holds two texts, a tab between them")
    add("--json", action="store_true", help="one JSON object per text")
    add("--trace", action="store_true", help="show what every layer did")
    add_model_options(p)
    return p


def load_model(name: str | None, how: dict[str, Any], bits: int | None = None) -> Model:
    """The model, its kernels compiled for answers such as those asked for."""
    slow = load_slow(name, how, bits)
    jit.before_compiling(say_compiling)
    return load_fast(slow, how, bits)


def load_slow(name: str | None, how: dict[str, Any], bits: int | None) -> Model:
    """The model with the NumPy reference, which needs nothing compiled; how is checked."""
    with ending():
        model = Model.from_pretrained(name, reference=True, bits=bits)
        model.knobs(**how)
        return model


def is_compiled(bits: int | None) -> bool:
    """Are the kernels there that answer in this precision, or will there never be any?"""
    return not jit.is_on() or jit.is_compiled(kernel_for(bits))


def load_fast(slow: Model, how: dict[str, Any], bits: int | None) -> Model:
    """The same model with its kernels, compiled for answers such as those asked for."""
    with ending(), nothing_collected():
        model = Model(slow.config, unread(slow.params), slow.tokenizer, bits=bits)
        model("warm", **how)  # compiles, touches the weights
    if jit.is_on() and threads.are_slow():
        print(
            "note: Numba finds neither OpenMP nor TBB here, and wakes threads ten times slower "
            "without them, which short texts feel; installing OpenMP (libgomp, on macOS libomp) or "
            "tbb mends it",
            file=sys.stderr,
        )
    return model


@contextmanager
def nothing_collected() -> Iterator[None]:
    """No search for garbage while Numba and a model are loaded, nor among them ever after.

    All of it stays to the end, and the searches would take a fifth of a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def say_compiling() -> None:
    print(compiling(), file=sys.stderr, flush=True)


def compiling() -> str:
    """What to say before kernels are compiled."""
    if jit.is_kept():
        return "compiling kernels; this happens once and takes some seconds ..."
    return (
        "compiling kernels, which takes some seconds, at every start: no directory can be written "
        "to that would keep them (NUMBA_CACHE_DIR may name one) ..."
    )


def compile_now(model: Model, how: dict[str, Any], bits: int | None) -> Model:
    """The first answers of an installation are NumPy's; now it has the time to compile."""
    sys.stdout.flush()
    told = f"answered by NumPy; for what comes next: {compiling()} (Ctrl-C does no harm)"
    print(told, file=sys.stderr, flush=True)
    return load_fast(model, how, bits)


def main() -> None:
    options = parser().parse_args()
    if options.text == "-" and options.pair is not None:
        raise InputError("--pair goes with one text, not with texts from standard input")
    if options.pairs and options.text != "-":
        raise InputError("--pairs is for texts from standard input; --pair takes a second text")
    if options.text == "-" and sys.stdin is None:
        raise InputError("there is nothing to read: standard input is closed")
    how = how_to_answer(options)
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    model, bits = load_slow(options.model, how, options.bits), options.bits
    ready = is_compiled(bits)
    if ready:  # but for kernels of mechanisms, perhaps, that are used for the first time
        jit.before_compiling(say_compiling)
        model = load_fast(model, how, bits)
    if model.config.text_pairs and not options.pairs and options.pair is None:
        wanted = (
            "--pairs reads two from each line" if options.text == "-" else "--pair gives the second"
        )
        print(f"note: the model was trained on two texts at a time; {wanted}", file=sys.stderr)
    if options.text != "-":
        show(model(options.text, options.pair, **how), options)
        if not ready and jit.is_kept():
            compile_now(model, how, bits)
        return
    numbers, most = count(1), data.most_characters(model.tokenizer) + 1
    for texts in batched(lines(sys.stdin.buffer, most, options.pairs), options.batch_size):
        wrong = [why_not(text, options.pairs) for text in texts]
        readable = [text or "" for text, why in zip(texts, wrong, strict=True) if not why]
        pairs = None
        if options.pairs:
            readable, pairs = ([line.split("\t")[i] for line in readable] for i in (0, 1))
        predictions = iter(model(readable, pairs, batch_size=options.batch_size, **how))
        for why, number in zip(wrong, numbers, strict=False):
            if why:
                refuse(f"line {number}: {why}", options)
            else:
                show(next(predictions), options)
        sys.stdout.flush()
        if not ready:
            model, ready = compile_now(model, how, bits), True


def batched(texts: Iterator[str | None], size: int) -> Iterator[list[str | None]]:
    while batch := list(islice(texts, size)):
        yield batch


def lines(stream: BinaryIO, most: int, paired: bool = False) -> Iterator[str | None]:
    """Every line as text, without its end; None for one that is not UTF-8.

    Of a longer line than `most` characters these are kept, and never is all of it in memory.
    paired: so many are kept of what is before and of what is behind a tab, and two tabs.
    """
    while first := stream.readline(PIECE):
        texts, valid, decoder = [""], True, codecs.getincrementaldecoder("utf-8")("surrogateescape")
        for piece in chain([first], rest_of_line(stream, first), [b""]):
            more = decoder.decode(piece, final=not piece)
            valid = valid and not data.ESCAPED.search(more)
            first_part, *others = more.split("\t", 3 - len(texts)) if paired else [more]
            texts[-1] += first_part[: most - len(texts[-1])]
            texts += [part[:most] for part in others]
        yield "\t".join(texts).rstrip("\r\n") if valid else None


def rest_of_line(stream: BinaryIO, piece: bytes) -> Iterator[bytes]:
    """The pieces of a line that follow its first one."""
    while not piece.endswith(b"\n") and (piece := stream.readline(PIECE)):
        yield piece


def why_not(line: str | None, paired: bool) -> str:
    """Why a line cannot be answered; "" if it can."""
    if line is None:
        return "not valid UTF-8"
    if paired and line.count("\t") != 1:
        return "one tab must separate two texts"
    return ""


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
