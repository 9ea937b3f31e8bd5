"""The rows of a file, one after the other, in constant memory; a bad one does not end them."""

import bz2
import csv
import glob
import gzip
import json
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..data import TEXTS, no_constant
from ..errors import InputError

Columns = dict[str, Any]
OPENERS: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class BadHeader(Exception):
    """No row of the file can be read."""


class Row(NamedTuple):
    """A text with all that stands beside it. line: where it begins in its file, from 1 on.

    error: why there is no text, or "". others: the columns that are no text of the model's.
    """

    line: int
    text: str = ""
    text_pair: str | None = None
    others: Columns = {}  # noqa: RUF012  nobody writes to it
    error: str = ""


def inputs(pattern: str, out: Path) -> list[Path]:
    """The files that a directory, a file's name or a glob stands for, sorted by name.

    Not those in out, where the answers go.
    """
    path = Path(pattern)
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(pattern, recursive=True))
    files = sorted(p.absolute() for p in found if p.is_file() and not p.name.startswith("."))
    files = [p for p in files if not p.is_relative_to(out.absolute())]
    files = [p for p in files if not path.is_dir() or layout_of(p) in LAYOUTS]
    if not files:
        raise InputError(f"--data {pattern}: there is no such file, nor one in such a directory")
    for file in files:
        if layout_of(file) not in LAYOUTS:
            packed = ", ".join(OPENERS)
            names = ", ".join(LAYOUTS)
            raise InputError(f"{file}: the name must end in {names} (and perhaps in {packed})")
    return files


def layout_of(file: Path) -> str:
    """ ".jsonl" of "a.jsonl" and of "a.jsonl.gz"."""
    return Path(file.stem).suffix if file.suffix in OPENERS else file.suffix


def read(file: Path) -> Iterator[Row]:
    """Yields the rows; raises InputError if the file cannot be read at all."""
    try:
        if layout_of(file) == ".parquet":
            rows = _parquet(file)
        else:
            rows = LAYOUTS[layout_of(file)](_lines(file))
        for line, columns in rows:
            yield Row(line, error=columns) if isinstance(columns, str) else _row(line, columns)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, BadHeader) as error:
        raise InputError(f"{file} cannot be read: {error}") from None


def _row(line: int, columns: Columns) -> Row:
    text = next((name for name in TEXTS if name in columns), None)
    if text is None:
        return Row(line, others=columns, error="there is no text (or sentence)")
    pair = TEXTS[text]
    others = {key: value for key, value in columns.items() if key not in (text, pair)}
    first, second = columns[text], columns.get(pair)
    for name, value in ((text, first), (pair, "" if second is None else second)):
        if not isinstance(value, str | int | float):
            return Row(line, others=others, error=f"{name} is neither a text nor a number")
    return Row(line, str(first), None if second is None else str(second), others)


# ---------------------------------------------------------------------------- layouts

# what a layout yields: the line, and the row's columns or why there are none
Found = Iterator[tuple[int, Columns | str]]
Lines = Iterator[tuple[int, str | None]]  # None: not UTF-8


def _lines(file: Path) -> Lines:
    opened: BinaryIO
    with OPENERS.get(file.suffix, open)(file, "rb") as opened:
        for number, line in enumerate(opened, 1):
            try:
                text = line.rstrip(b"\r\n").decode("utf-8")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
            except UnicodeDecodeError:
                yield number, None


def _txt(lines: Lines) -> Found:
    for number, line in lines:
        yield number, NOT_UTF8 if line is None else {"text": line}


def _jsonl(lines: Lines) -> Found:
    for number, line in lines:
        if line is None:
            yield number, NOT_UTF8
        elif line.strip():
            try:
                row = json.loads(line, parse_constant=no_constant)
            except (ValueError, RecursionError) as error:
                yield number, f"not JSON ({error})"
            else:
                yield number, row if isinstance(row, dict) else "not a JSON object"


def _tsv(lines: Lines) -> Found:
    return _table((number, line if line is None else line.split("\t")) for number, line in lines)


def _csv(lines: Lines) -> Found:
    place = 0

    def counted() -> Iterator[str]:
        nonlocal place
        for number, line in lines:
            place = number
            yield f"{line}\n" if line is not None else "\udcff\n"

    def records() -> Iterator[tuple[int, Any]]:
        reader = csv.reader(counted(), strict=True)
        while True:
            before = place
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield before + 1, str(error)
            else:
                yield before + 1, None if "\udcff" in "".join(row) else row

    return _table(records())


def _table(records: Iterator[tuple[int, Any]]) -> Found:
    """Rows under a header. A record is a list, or None if not UTF-8, or else what is wrong."""
    header: list[str] | None = None
    for number, record in records:
        if record in ([], [""]):
            continue
        if record is None or isinstance(record, str):
            if header is None:
                raise BadHeader(f"its header: {record or NOT_UTF8}")
            yield number, record or NOT_UTF8
        elif header is None:
            header = record
            if len(set(header)) < len(header):
                raise BadHeader("its header names a column twice")
        else:
            if len(record) == len(header):
                yield number, dict(zip(header, record, strict=True))
            else:
                yield number, f"{len(record)} columns, the header has {len(header)}"


def _parquet(file: Path) -> Found:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{file}: parquet needs pip install 'minidact[cluster]'") from None
    try:
        table, line = pyarrow.parquet.ParquetFile(file), 0
        for batch in table.iter_batches(1000):
            for row in batch.to_pylist():  # NaN is no JSON
                row = {
                    k: None if isinstance(v, float) and not math.isfinite(v) else v
                    for k, v in row.items()
                }
                yield (line := line + 1), row
    except pyarrow.ArrowException as error:
        raise InputError(f"{file} cannot be read: {error}") from None


NOT_UTF8 = "not valid UTF-8"
LAYOUTS: dict[str, Callable[..., Found]] = {
    ".jsonl": _jsonl, ".csv": _csv, ".tsv": _tsv, ".txt": _txt, ".parquet": _parquet,
}  # fmt: skip
