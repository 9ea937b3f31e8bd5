"""Files -> examples -> token ids -> ragged batches."""

import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from . import ragged
from .config import Config
from .errors import InputError
from .ragged import Batch

# columns that hold the text and, on the right, the second text that goes with it; the first pair
# whose left name is in the header wins
TEXTS = {
    "text": "text_pair",
    "sentence1": "sentence2",
    "#1 String": "#2 String",
    "question": "sentence",
    "sentence": "text_pair",
}
LABELS = ("label", "Quality", "score")
# headers of GLUE's that have a metric of their own
COLA = ("source", "label", "mark", "sentence")
MRPC = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")

csv.field_size_limit(2**31 - 1)  # a text may be long


class Examples(NamedTuple):
    """A labelled file: texts, second texts or None, labels as the file writes them, its metric."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[str]
    metric: str  # "accuracy", "matthews" (CoLA), "f1" (MRPC), "pearson_spearman" (STS-B)
    lines: list[int]  # where each example begins in the file, from 1


# ---------------------------------------------------------------------------- files


def read_examples(path: str | Path) -> Examples:
    """Reads GLUE's own .tsv layouts, or a .tsv, .csv or .jsonl with text, (text_pair,) label.

    GLUE's tsv files are split at tabs, and quotes in them are ordinary characters. Raises
    InputError with the line's number for a row that cannot be read.
    """
    path = Path(path)
    layouts = {".tsv": _tsv_rows, ".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix not in layouts:
        raise InputError(f"{path}: the name must end in .tsv, .csv or .jsonl")
    rows = layouts[path.suffix](path, _lines(path))
    _, header = next(rows, (0, None))
    if header is None:
        raise InputError(f"{path} is empty")
    return _examples(path, header, rows)


def _lines(path) -> Iterator[tuple[int, str]]:
    """(number, line without its end), for every line, from 1."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError:
        raise InputError(f"{path}, line {number}: not valid UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _tsv_rows(path, lines) -> Iterator[tuple[int, list[str]]]:
    """(line, columns), the header's first; so do the other two."""
    for place, (number, line) in enumerate((n, line) for n, line in lines if line):
        row = line.split("\t")
        if place == 0 and len(row) == 4 and row[1] in ("0", "1") and row[2] in ("", "*"):
            yield 0, list(COLA)  # its files have no header
        yield number, row


def _csv_rows(path, lines):
    reader, start = csv.reader((f"{line}\n" for _, line in lines), strict=True), 1
    try:
        for row in reader:
            if row:
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {start}: {error}") from None


def _json_rows(path, lines):
    header = None
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: not a JSON object")
        if header is None:
            header = list(row)
            yield 0, header
        if set(row) != set(header):
            raise InputError(f"{path}, line {number}: its keys differ from the first line's")
        yield number, [row[key] for key in header]


def _examples(path, header, rows) -> Examples:
    text = next((name for name in TEXTS if name in header), None)
    label = next((name for name in LABELS if name in header), None)
    if text is None or label is None:
        names = ", ".join(repr(name) for name in header[:10])
        raise InputError(
            f"{path}, line 1: the header needs a text (or sentence) and a label; it has {names}"
        )
    wanted = [text, label] + ([TEXTS[text]] if TEXTS[text] in header else [])
    columns, lines = {name: [] for name in wanted}, []
    for number, row in rows:
        if len(row) != len(header):
            columns_of = f"{len(row)} columns, the header has {len(header)}"
            raise InputError(f"{path}, line {number}: {columns_of}")
        for name in wanted:
            value = row[header.index(name)]
            if not isinstance(value, str | int | float):
                raise InputError(f"{path}, line {number}: {name} is neither a text nor a number")
            columns[name].append(str(value))
        columns[label][-1] = sys.intern(columns[label][-1].strip())  # few labels, many rows
        if not columns[label][-1]:
            raise InputError(f"{path}, line {number}: the label is empty")
        lines.append(number)
    if not lines:
        raise InputError(f"{path} has a header but no rows")
    metric = {COLA: "matthews", MRPC: "f1"}.get(tuple(header))
    metric = metric or ("pearson_spearman" if label == "score" else "accuracy")
    return Examples(columns[text], columns.get(TEXTS[text]), columns[label], metric, lines)


# ---------------------------------------------------------------------------- labels


def label_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels of a file, numbers in their order, else alphabetically."""
    distinct = sorted(set(labels))
    return tuple(sorted(distinct, key=int) if all(map(_is_number, distinct)) else distinct)


def label_ids(examples: Examples, config: Config, path: str | Path = "the data") -> np.ndarray:
    """Labels of a file -> (N,) int64 classes, or float32 scores of a regression.

    A file may write a label's name; or its number, as GLUE's SST-2 writes 0 for "negative", unless
    names are numbers themselves. Raises InputError with the line of a label that is neither.
    """
    if config.problem_type == "regression":
        return np.array([_score(*item, path) for item in _labelled(examples)], np.float32)
    table = {name: i for i, name in enumerate(config.id2label)}
    if not any(map(_is_number, table)):
        table |= {str(i): i for i in range(config.num_labels)}
    for line, label in _labelled(examples):
        if label not in table:
            known = ", ".join(config.id2label[:10])
            raise InputError(f"{path}, line {line}: unknown label {label!r}; known are {known}")
    return np.array([table[label] for label in examples.labels], np.int64)


def _labelled(examples):
    return zip(examples.lines, examples.labels, strict=True)


def _score(line, label, path) -> float:
    try:
        score = float(label)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(
            f"{path}, line {line}: {label!r} is not a number, and the model predicts one"
        )
    return score


def _is_number(label: str) -> bool:
    return label.lstrip("-").isascii() and label.lstrip("-").isdigit()


# ---------------------------------------------------------------------------- token ids


class Encoded(NamedTuple):
    """One text as the model reads it: ids (n,), segments (n,), token strings, was it cut?"""

    ids: np.ndarray
    segments: np.ndarray
    tokens: list[str]
    truncated: bool


def encode(tokenizer: Tokenizer, texts, pairs=None) -> list[Encoded]:
    """Texts (and their second texts) -> [CLS] text [SEP] (pair [SEP]), each of them.

    Raises InputError if the tokenizer cannot: its vocabulary may lack what it needs.
    """
    texts = [_clean(text) for text in texts]
    inputs = texts if pairs is None else list(zip(texts, map(_clean, pairs), strict=True))
    try:
        if len(inputs) == 1:  # encode_batch would wake a pool of threads
            one = inputs[0]
            encodings = [tokenizer.encode(*one) if pairs is not None else tokenizer.encode(one)]
        else:
            encodings = tokenizer.encode_batch(inputs)
    except Exception as error:  # the Rust side raises bare Exception
        raise InputError(f"the model's tokenizer fails on a text: {error}") from None
    return [
        Encoded(np.array(e.ids), np.array(e.type_ids), e.tokens, bool(e.overflowing))
        for e in encodings
    ]


def _clean(text: str) -> str:
    """Half a character (a lone surrogate, from a broken terminal) becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def to_batch(sentences: Sequence[Encoded]) -> Batch:
    """Encoded texts -> one ragged batch."""
    ids, offsets = ragged.concatenate([s.ids for s in sentences])
    segments, _ = ragged.concatenate([s.segments for s in sentences])
    return Batch(ids, segments, offsets)
