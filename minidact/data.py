"""Files -> examples -> token ids -> ragged batches."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from . import ragged
from .config import Config
from .errors import InputError
from .ragged import Batch

# columns that hold the first text, the second, the label: the first name that a header has wins.
# "question" stands before "sentence": QNLI has both, and SST-2, TREC and SUBJ the latter alone.
TEXT = ("text", "sentence1", "#1 String", "question", "sentence")
PAIR = ("text_pair", "sentence2", "#2 String", "sentence")
LABEL = ("label", "Quality", "score")


class Examples(NamedTuple):
    """A labelled file: texts, second texts or None, labels as the file writes them, its metric."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[str]
    metric: str  # "accuracy", "matthews" (CoLA), "f1" (MRPC), "pearson_spearman" (STS-B)


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
    numbered = [(i, line.split("\t")) for i, line in enumerate(lines, 1) if line.strip()]
    header = numbered[0][1]
    if len(header) == 4 and header[1] in ("0", "1") and header[2] in ("", "*"):  # CoLA: no header
        return numbered, ["source", "label", "mark", "sentence"]
    return numbered[1:], header


def _csv_rows(path, lines):
    reader, numbered, start = csv.reader(f"{line}\n" for line in lines), [], 1
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
        if not all(isinstance(value, str | int | float) for value in row.values()):
            raise InputError(f"{path}, line {number}: a value is neither a text nor a number")
        numbered.append((number, [str(row[key]) for key in header]))
    return numbered, header


def _examples(path, rows, header) -> Examples:
    text, label = _column(header, TEXT), _column(header, LABEL)
    pair = _column([name if i != text else "" for i, name in enumerate(header)], PAIR)
    if text is None or label is None:
        raise InputError(
            f"{path}, line 1: the header needs a text (or sentence) and a label column; it has "
            + ", ".join(repr(name) for name in header[:10])
        )
    if not rows:
        raise InputError(f"{path} has a header but no rows")
    for number, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}, line {number}: {len(row)} columns, the header has {len(header)}"
            )
        if not row[label].strip():
            raise InputError(f"{path}, line {number}: the label is empty")
    metric = {
        ("source", "label", "mark", "sentence"): "matthews",
        ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"): "f1",
    }.get(tuple(header), "pearson_spearman" if header[label] == "score" else "accuracy")
    return Examples(
        [row[text] for _, row in rows],
        None if pair is None else [row[pair] for _, row in rows],
        [row[label].strip() for _, row in rows],
        metric,
    )


def _column(header, names):
    return next((header.index(name) for name in names if name in header), None)


# ---------------------------------------------------------------------------- labels


def label_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels of a file, numbers in their order, else alphabetically."""
    distinct = set(labels)
    numeric = all(label.isascii() and label.isdigit() for label in distinct)
    return tuple(sorted(distinct, key=int if numeric else None))


def label_ids(labels: Sequence[str], config: Config, path: str | Path = "the data") -> np.ndarray:
    """Labels as the file writes them -> (N,) int64 classes, or float32 scores of a regression.

    A file may write a label's name or its number (GLUE's SST-2 writes 0 for "negative").
    """
    if config.problem_type == "regression":
        try:
            scores = np.array(labels, np.float32)
        except ValueError:
            raise InputError(
                f"{path}: a label is not a number, and the model predicts one"
            ) from None
        if not np.isfinite(scores).all():
            raise InputError(f"{path}: a label is not a finite number")
        return scores
    table = {str(i): i for i in range(config.num_labels)}
    table |= {name: i for i, name in enumerate(config.id2label)}
    for number, label in enumerate(labels, 1):
        if label not in table:
            known = ", ".join(config.id2label[:10])
            raise InputError(
                f"{path}, example {number}: unknown label {label!r}; known are {known}"
            )
    return np.array([table[label] for label in labels], np.int64)


# ---------------------------------------------------------------------------- token ids


class Encoded(NamedTuple):
    """One text as the model reads it: ids (n,), segments (n,), token strings, was it cut?"""

    ids: np.ndarray
    segments: np.ndarray
    tokens: list[str]
    truncated: bool


def encode(tokenizer: Tokenizer, texts, pairs=None) -> list[Encoded]:
    """Texts (and their second texts) -> [CLS] text [SEP] (pair [SEP]), each of them."""
    texts = [_clean(text) for text in texts]
    inputs = texts if pairs is None else list(zip(texts, map(_clean, pairs), strict=True))
    if len(inputs) == 1:  # encode_batch would wake a pool of threads
        one = inputs[0]
        encodings = [tokenizer.encode(*one) if pairs is not None else tokenizer.encode(one)]
    else:
        encodings = tokenizer.encode_batch(inputs)
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
