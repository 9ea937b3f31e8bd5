"""From files to examples, from examples to token ids, from token ids to ragged batches."""

import csv
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from . import ragged
from .config import Config
from .errors import InputError, of_rust
from .ragged import Batch

# {column of the text: column of the second text}; the first text column that the header has is used
TEXTS = {
    "text": "text_pair",
    "sentence1": "sentence2",
    "#1 String": "#2 String",
    "question1": "question2",
    "question": "sentence",
    "sentence": "text_pair",
}
ESCAPED = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are no UTF-8
LABELS = ("label", "Quality", "score", "gold_label", "is_duplicate")
LARGEST = float(np.finfo(np.float32).max)  # of a score
# GLUE's headers that have a metric of their own
COLA = ("source", "label", "mark", "sentence")
MRPC = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")

csv.field_size_limit(2**31 - 1)  # a text may be long


class Examples(NamedTuple):
    """The rows of a file. pairs: second texts or None; labels: as the file has them, or none."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[str]
    metric: str  # "accuracy", "matthews" (CoLA), "f1" (MRPC), "pearson_spearman" (STS-B)
    lines: list[int]  # the line where each example begins in the file, from 1
    others: list[dict[str, Any]] | None = None  # each row's other columns, if they were asked for


# ---------------------------------------------------------------------------- files


def read_examples(path: str | Path, labelled: bool = True, others: bool = False) -> Examples:
    """Reads a file: GLUE's .tsv, or a .tsv, .csv or .jsonl of your own.

    Your own file has the columns text, label and, for tasks on two texts, text_pair. A .tsv is
    split at tabs, and quotes in it are ordinary characters. labelled: False reads no labels, so
    none need to be there. others: True keeps the other columns, too. Raises InputError if the file
    cannot be read; for a bad row, the message says its line.
    """
    path = Path(path)
    layouts = {".tsv": _tsv_rows, ".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix not in layouts:
        raise InputError(f"{path}: the name must end in .tsv, .csv or .jsonl")
    rows = layouts[path.suffix](path, _lines(path))
    _, header = next(rows, (0, None))
    if header is None:
        raise InputError(f"{path} is empty")
    return _examples(path, header, rows, labelled, others)


def _lines(path) -> Iterator[tuple[int, str]]:
    """Yields (number, text without the line's end) for every line; numbers start at 1."""
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
    """Yields (line number, columns) for every row, the header first."""
    for place, (number, line) in enumerate((n, line) for n, line in lines if line):
        row = line.split("\t")
        if place == 0 and len(row) == 4 and row[1] in ("0", "1") and row[2] in ("", "*"):
            yield 0, list(COLA)  # CoLA's files have no header
        yield number, row


def _csv_rows(path, lines):
    """Yields (line number, columns) for every row, the header first."""
    reader, start = csv.reader((f"{line}\n" for _, line in lines), strict=True), 1
    try:
        for row in reader:
            if row:
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {start}: {error}") from None


def _json_rows(path, lines):
    """Yields (line number, values) for every object; first the keys, as a header."""
    header = None
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = parse_json(line)
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


def parse_json(line: str | bytes) -> Any:
    """Returns the value; raises ValueError also for what Python would take for NaN or Infinity."""
    return json.loads(line, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not of JSON")
    return value


def _examples(path, header, rows, labelled, others) -> Examples:
    """Returns the examples in the rows; raises InputError, with the line, for a bad one."""
    if twice := [name for name in header if header.count(name) > 1]:
        raise InputError(f"{path}, line 1: the header names the column {twice[0]!r} twice")
    text = next((name for name in TEXTS if name in header), None)
    label = next((name for name in LABELS if name in header), None) if labelled else None
    if text is None or (labelled and label is None):
        names = ", ".join(repr(name) for name in header[:10])
        needs = "a text (or sentence)" + (" and a label" if labelled else "")
        raise InputError(f"{path}, line 1: the header needs {needs}; it has {names}")
    wanted = [text] + ([TEXTS[text]] if TEXTS[text] in header else [])
    wanted += [label] if label else []
    columns: dict[str, list[str]] = {name: [] for name in wanted}
    lines: list[int] = []
    beside: list[dict[str, Any]] = []
    for number, row in rows:
        if len(row) != len(header):
            columns_of = f"{len(row)} columns, the header has {len(header)}"
            raise InputError(f"{path}, line {number}: {columns_of}")
        for name in wanted:
            value = row[header.index(name)]
            if not isinstance(value, str | int | float):
                raise InputError(f"{path}, line {number}: {name} is neither a text nor a number")
            columns[name].append(str(value))
        if label:
            columns[label][-1] = sys.intern(columns[label][-1].strip())  # few labels, many rows
            if not columns[label][-1]:
                raise InputError(f"{path}, line {number}: the label is empty")
        lines.append(number)
        if others:
            pairs = zip(header, row, strict=True)
            beside.append({name: value for name, value in pairs if name not in wanted})
    if not lines:
        raise InputError(f"{path} has a header but no rows")
    metric = {COLA: "matthews", MRPC: "f1"}.get(tuple(header))
    metric = metric or ("pearson_spearman" if label == "score" else "accuracy")
    labels = columns[label] if label else []
    return Examples(
        columns[text], columns.get(TEXTS[text]), labels, metric, lines, beside if others else None
    )


# ---------------------------------------------------------------------------- labels


def label_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns a file's distinct labels: sorted as numbers if all are, else alphabetically."""
    distinct = sorted(set(labels))
    return tuple(sorted(distinct, key=float) if all(map(_is_number, distinct)) else distinct)


def label_ids(examples: Examples, config: Config, path: str | Path = "the data") -> np.ndarray:
    """Returns a file's labels as classes, (N,) int64, or as a regression's scores, (N,) float32.

    A file may write the name of a label. It may also write the number, as GLUE's SST-2 writes 0 for
    "negative", unless the names are numbers themselves. path: what messages call the file. Raises
    InputError, with the line, for an unknown label, or for a score that is no finite number.
    """
    if config.problem_type == "regression":
        return np.array([_score(*item, path) for item in _labelled(examples)], np.float32)
    table = {name: i for i, name in enumerate(config.id2label)}
    if not any(map(_is_number, table)):
        table |= {str(i): i for i in range(config.num_labels)}
    for line, label in _labelled(examples):
        if label not in table:
            known = ", ".join(config.id2label[:10])
            raise InputError(f"{path}, line {line}: unknown label {label!r}; there are: {known}")
    return np.array([table[label] for label in examples.labels], np.int64)


def _labelled(examples: Examples) -> Iterator[tuple[int, str]]:
    """Returns an iterator over (line number, label)."""
    return zip(examples.lines, examples.labels, strict=True)


def _score(line, label, path) -> float:
    """Returns a label as a number; raises InputError, with the line, if it is no finite one."""
    score = _number(label)
    if not abs(score) <= LARGEST:  # nor is NaN
        raise InputError(
            f"{path}, line {line}: {label!r} is not a number, and the model predicts one"
        )
    return score


def look_like_scores(names: Sequence[str], most: int) -> bool:
    """Are these numbers, with digits after the point or more than `most` of them?"""
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return False
    return len(numbers) > most or any(not number.is_integer() for number in numbers)


def _is_number(label: str) -> bool:
    return math.isfinite(_number(label))


def _number(label: str) -> float:
    """Returns the number that a label is; NaN if it is none."""
    try:
        return float(label)
    except ValueError:
        return math.nan


# ---------------------------------------------------------------------------- token ids


class Encoded(NamedTuple):
    """One text as the model reads it: n token ids, segments and tokens (word pieces).

    ids and segments are (n,) int64. truncated: was the text longer than the model reads?
    """

    ids: np.ndarray
    segments: np.ndarray
    tokens: list[str]
    truncated: bool


def _most_tokens(tokenizer) -> int:
    return tokenizer.truncation["max_length"] if tokenizer.truncation else 2**31


def most_characters(tokenizer: Tokenizer) -> int:
    """Returns how many characters of a text are read at most: 64 for every token.

    Words are shorter. Without a bound, memory and time would grow with what is cut off anyway.
    """
    return 64 * _most_tokens(tokenizer)


def encode(tokenizer: Tokenizer, texts, pairs=None) -> list[Encoded]:
    """Returns each text as [CLS] text [SEP], or as [CLS] text [SEP] pair [SEP].

    texts, pairs: str sequences of the same length; pairs, the second texts, may be None. Of each
    only the first most_characters(tokenizer) are read.
    Raises InputError if the tokenizer fails, because its vocabulary may lack what it needs, or if
    it makes more tokens than it should cut at, or none.
    """
    most, characters = _most_tokens(tokenizer), most_characters(tokenizer)
    columns = [texts] if pairs is None else [texts, pairs]
    cut = [max(map(len, row)) > characters for row in zip(*columns, strict=True)]
    columns = [[_clean(text[:characters]) for text in column] for column in columns]
    inputs = columns[0] if pairs is None else list(zip(*columns, strict=True))
    with of_rust("the model's tokenizer fails on a text"):
        if len(inputs) == 1:  # encode_batch would wake a pool of threads
            one = inputs[0]
            encodings = [tokenizer.encode(*one) if pairs is not None else tokenizer.encode(one)]
        else:
            encodings = tokenizer.encode_batch(inputs)
    if not all(e.ids for e in encodings):  # a text alone was looked at when it was loaded
        raise InputError("the model's tokenizer adds no [CLS] and [SEP] to two texts")
    longest = max((len(e.ids) for e in encodings), default=0)
    if longest > most:
        raise InputError(
            f"the model's tokenizer makes {longest} tokens where {most} fit: too many special "
            "tokens, or a text that it uses twice"
        )
    return [
        Encoded(np.array(e.ids), np.array(e.type_ids), e.tokens, bool(e.overflowing) or short)
        for e, short in zip(encodings, cut, strict=True)
    ]


def _clean(text: str) -> str:
    """Returns text with each half character (a lone surrogate) replaced by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def to_batch(sentences: Sequence[Encoded]) -> Batch:
    """Returns the encoded texts as one ragged batch."""
    ids, offsets = ragged.concatenate([s.ids for s in sentences])
    return Batch(ids, np.concatenate([s.segments for s in sentences]), offsets)
