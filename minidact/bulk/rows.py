"""The rows of a file, one after the other, in constant memory; a bad one does not end them."""

import bz2
import csv
import glob
import gzip
import lzma
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..data import ESCAPED, TEXTS, parse_json
from ..errors import InputError

Columns = dict[str, Any]
OPENERS: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class BadHeader(Exception):
    """No row of the file can be read."""


class Place(NamedTuple):
    """Where a row begins: the byte, in the file without its compression, and the line, from 1 on.

    In a parquet file both count rows.
    """

    offset: int = 0
    line: int = 1


BEGIN = Place()


class Row(NamedTuple):
    """A text with all that stands beside it.

    error: why there is no text, or "". others: the columns that are no text of the model's.
    """

    place: Place
    text: str = ""
    text_pair: str | None = None
    others: Columns = {}  # noqa: RUF012  nobody writes to it
    error: str = ""


def inputs(pattern: str, out: Path) -> list[Path]:
    """The files that a directory, a file's name or a glob stands for, sorted by name.

    Not those in out, where the answers go.
    """
    path, out = Path(pattern), out.resolve()
    found: Iterable[Path]
    if os.path.isdir(pattern):
        found = path.rglob("*")
    elif os.path.isfile(pattern):  # also where its name could be a glob
        found = [path]
    else:
        found = map(Path, glob.glob(pattern, recursive=True))
    shown = (p for p in found if p.is_file() and not p.name.startswith("."))
    files = sorted(Path(os.path.abspath(p)) for p in shown)
    files = [p for p in files if not p.resolve().is_relative_to(out)]
    files = [p for p in files if not path.is_dir() or layout_of(p) in LAYOUTS]
    if not files:
        raise InputError(f"--data {pattern}: there is no such file, nor one in such a directory")
    for file in files:
        if layout_of(file) not in LAYOUTS:
            packed = ", ".join(OPENERS)
            names = ", ".join(LAYOUTS)
            raise InputError(f"{file}: the name must end in {names} (and perhaps in {packed})")
    return files


def base_of(pattern: str) -> Path:
    """The directory from which the files' places are told: another file does not change it."""
    path = Path(pattern)
    while glob.has_magic(str(path)) or not path.is_dir():
        path = path.parent
    return Path(os.path.abspath(path))


def layout_of(file: Path) -> str:
    """ ".jsonl" of "a.jsonl" and of "a.jsonl.gz"."""
    return Path(file.stem).suffix if file.suffix in OPENERS else file.suffix


def read(file: Path, begin: Place = BEGIN) -> Iterator[Row]:
    """Yields the rows, from the one on that begins there; what is before it is not read.

    Raises InputError if the file cannot be read at all.
    """
    try:
        for place, columns in LAYOUTS[layout_of(file)](file, begin):
            yield Row(place, error=columns) if isinstance(columns, str) else _row(place, columns)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, BadHeader) as error:
        raise InputError(f"{file} cannot be read: {error}") from None


def _row(place: Place, columns: Columns) -> Row:
    text = next((name for name in TEXTS if name in columns), None)
    if text is None:
        return Row(place, others=columns, error="there is no text (or sentence)")
    pair = TEXTS[text]
    others = {key: value for key, value in columns.items() if key not in (text, pair)}
    first, second = columns[text], columns.get(pair)
    for name, value in ((text, first), (pair, "" if second is None else second)):
        if not isinstance(value, str | int | float):
            return Row(place, others=others, error=f"{name} is neither a text nor a number")
    return Row(place, str(first), None if second is None else str(second), others)


# ---------------------------------------------------------------------------- layouts

# what a layout yields: the place, and the row's columns or why there are none
Found = Iterator[tuple[Place, Columns | str]]
Lines = Iterator[tuple[Place, str]]  # a byte that is not UTF-8 is in it as a lone surrogate
Records = Iterator[tuple[Place, list[str] | str]]  # the cells, or what is wrong


def _lines(file: Path, begin: Place) -> Lines:
    opened: BinaryIO
    with OPENERS.get(file.suffix, open)(file, "rb") as opened:
        opened.seek(begin.offset)
        place = begin
        for line in opened:
            text = line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
            yield place, text.removeprefix("\ufeff") if place == BEGIN else text
            place = Place(place.offset + len(line), place.line + 1)


def _txt(file: Path, begin: Place) -> Found:
    for place, line in _lines(file, begin):
        yield place, NOT_UTF8 if ESCAPED.search(line) else {"text": line}


def _jsonl(file: Path, begin: Place) -> Found:
    for place, line in _lines(file, begin):
        if ESCAPED.search(line):
            yield place, NOT_UTF8
        elif line.strip():
            try:
                row = parse_json(line)
            except (ValueError, RecursionError) as error:
                yield place, f"not JSON ({error})"
            else:
                yield place, row if isinstance(row, dict) else "not a JSON object"


def _tsv(file: Path, begin: Place) -> Found:
    def records(lines: Lines) -> Records:
        return ((place, line.split("\t")) for place, line in lines if line)

    return _table(records, file, begin)


def _csv(file: Path, begin: Place) -> Found:
    return _table(_csv_records, file, begin)


def _csv_records(lines: Lines) -> Records:
    first: Place | None = None  # where the record begins that is being read

    def noted() -> Iterator[str]:
        nonlocal first
        for place, line in lines:
            first = first or place
            yield f"{line}\n"

    reader = csv.reader(noted(), strict=True)
    while True:
        first = None
        record: list[str] | str
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            record = str(error)
        if record:  # else the line is blank
            yield first or BEGIN, record


def _table(records: Callable[[Lines], Records], file: Path, begin: Place) -> Found:
    """Rows under a header, which is read first wherever the rows begin. records: no blank lines."""
    top, header = next(records(_lines(file, BEGIN)), (BEGIN, []))
    if isinstance(header, str) or ESCAPED.search("".join(header)):
        raise BadHeader(f"its header: {header if isinstance(header, str) else NOT_UTF8}")
    if len(set(header)) < len(header):
        raise BadHeader("its header names a column twice")
    for place, record in records(_lines(file, begin)):
        if place <= top:
            continue
        if isinstance(record, str):
            yield place, record
        elif ESCAPED.search("".join(record)):
            yield place, NOT_UTF8
        elif len(record) == len(header):
            yield place, dict(zip(header, record, strict=True))
        else:
            yield place, f"{len(record)} columns, the header has {len(header)}"


def _parquet(file: Path, begin: Place) -> Found:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{file}: parquet needs pip install 'minidact[cluster]'") from None
    try:
        table, row = pyarrow.parquet.ParquetFile(file), 0  # row: how many are before
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if row + rows <= begin.offset:
                row += rows
                continue
            for batch in table.iter_batches(1000, row_groups=[group]):
                for columns in _values(batch):
                    if row >= begin.offset:
                        yield Place(row, row + 1), columns
                    row += 1
    except pyarrow.ArrowException as error:
        raise InputError(f"{file} cannot be read: {error}") from None


def _values(batch: Any) -> list[Columns | str]:
    """The rows of one of Arrow's batches; for one that Python cannot have, why."""
    try:
        return _finite(batch.to_pylist())
    except (ValueError, OverflowError) as error:  # no UTF-8; a time beyond Python's
        if len(batch) == 1:
            return [f"cannot be read: {error}"]
    return [row for at in range(len(batch)) for row in _values(batch.slice(at, 1))]


def _finite(value: Any) -> Any:
    """NaN is no JSON: such a number becomes null, also inside lists, structs and maps."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


NOT_UTF8 = "not valid UTF-8"
LAYOUTS: dict[str, Callable[..., Found]] = {
    ".jsonl": _jsonl, ".csv": _csv, ".tsv": _tsv, ".txt": _txt, ".parquet": _parquet,
}  # fmt: skip
