"""Files -> examples -> token ids -> ragged batches."""

import csv
import json
import math
from collections.abc import Sequence
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
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    decoded = []
    for number, line in enumerate(lines, 1):
        try:
            decoded.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError:
            raise InputError(f"{path}, line {number}: not valid UTF-8") from None
    if not any(line.strip() for line in decoded):
        raise InputError(f"{path} is empty")
    decoded[0] = decoded[0].removeprefix("\ufeff")

    if path.suffix == ".jsonl":
        rows, header = _json_rows(path, decoded)
    elif path.suffix == ".csv":
        rows, header = _csv_rows(path, decoded)
    elif path.suffix == ".tsv":
        rows, header = _tsv_rows(path, decoded)
    else:
        raise InputError(f"{path}: the name must end in .tsv, .csv or .jsonl")
    return _examples(path, rows, header)


def _tsv_rows(path, lines):
    numbered = [(i, line.split("\t")) for i, line in enumerate(lines, 1) if line]
    header = numbered[0][1]
    if len(header) == 4 and header[1] in ("0", "1") and header[2] in ("", "*"):  # CoLA: no header
        return numbered, ["source", "label", "mark", "sentence"]
    return numbered[1:], header


def _csv_rows(path, lines):
    reader, numbered, start = csv.reader((f"{line}\n" for line in lines), strict=True), [], 1
    try:
        for row in reader:
            if row:
                numbered.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {start}: {error}") from None
    return numbered[1:], numbered[0][1]


def _json_rows(path, lines):
    numbered, header = [], None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: not a JSON object")
        header = header or list(row)
        if set(row) != set(header):
            raise InputError(f"{path}, line {number}: its keys differ from the first line's")
        numbered.append((number, [row[key] for key in header]))
    return numbered, header


def _examples(path, rows, header) -> Examples:
    text = next((name for name in TEXTS if name in header), None)
    label = next((name for name in LABELS if name in header), None)
    if text is None or label is None:
        names = ", ".join(repr(name) for name in header[:10])
        raise InputError(
            f"{path}, line 1: the header needs a text (or sentence) and a label; it has {names}"
        )
    if not rows:
        raise InputError(f"{path} has a header but no rows")
    wanted = [text, label] + ([TEXTS[text]] if TEXTS[text] in header else [])
    columns = {name: [] for name in wanted}
    for number, row in rows:
        if len(row) != len(header):
            columns_of = f"{len(row)} columns, the header has {len(header)}"
            raise InputError(f"{path}, line {number}: {columns_of}")
        for name in wanted:
            value = row[header.index(name)]
            if not isinstance(value, str | int | float):
                raise InputError(f"{path}, line {number}: {name} is neither a text nor a number")
            columns[name].append(str(value))
        if not columns[label][-1].strip():
            raise InputError(f"{path}, line {number}: the label is empty")
    metric = {
        ("source", "label", "mark", "sentence"): "matthews",
        ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"): "f1",
    }.get(tuple(header), "pearson_spearman" if label == "score" else "accuracy")
    labels = [value.strip() for value in columns[label]]
    lines = [number for number, _ in rows]
    return Examples(columns[text], columns.get(TEXTS[text]), labels, metric, lines)


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
