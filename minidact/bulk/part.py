"""One part of the work: some rows of a file in, a file of answers out, whole or not at all."""

import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..files import written
from ..model import Model
from .rows import Place, Row, read


class Part(NamedTuple):
    """So many rows of a file, from a place on, and where their answers go."""

    file: Path
    begin: Place
    rows: int
    out: Path


class How(NamedTuple):
    """With what to answer: a model's name, bits, keyword arguments for calling it."""

    model: str | None
    bits: int | None
    arguments: dict[str, Any]


class Total(NamedTuple):
    """What was answered, and what it cost."""

    texts: int = 0
    errors: int = 0
    layers: int = 0
    macs: int = 0
    macs_full: int = 0

    def plus(self, other: "Total") -> "Total":
        return Total(*(a + b for a, b in zip(self, other, strict=True)))


def work(part: Part, how: How, model: Model | None = None) -> Total:
    """Answers a part. Raises InputError if its file or the model cannot be read.

    model: None: the process loads the one that how names, once.
    """
    model, total = model or loaded(how.model, how.bits), Total()
    rows = islice(read(part.file, part.begin), part.rows)
    part.out.parent.mkdir(parents=True, exist_ok=True)
    with written(part.out) as out:
        while batch := list(islice(rows, how.arguments["batch_size"])):
            for row, said in zip(batch, answers(model, batch, how.arguments), strict=True):
                total = total.plus(counted(said))
                about = {"file": str(part.file), "line": row.place.line}
                more = {"row": row.others} if row.others else {}
                line = json.dumps(about | said | more, ensure_ascii=False, default=str)
                out.write(line.encode("utf-8", "replace") + b"\n")
    return total


@lru_cache(maxsize=1)
def loaded(name: str | None, bits: int | None) -> Model:
    """The model; a process loads it once."""
    return Model.from_pretrained(name, bits=bits)


def answers(model: Model, batch: list[Row], arguments: dict[str, Any]) -> Iterator[dict]:
    """For every row what `infer --json` prints, or {"error": why not}."""
    said: dict[int, dict] = {i: {"error": row.error} for i, row in enumerate(batch) if row.error}
    for paired in (False, True):
        chosen = [
            i for i, row in enumerate(batch)
            if not row.error and (row.text_pair is not None) == paired
        ]  # fmt: skip
        texts = [batch[i].text for i in chosen]
        pairs = [batch[i].text_pair or "" for i in chosen] if paired else None
        try:
            found = [answer.to_dict() for answer in model(texts, pairs, **arguments)]
        except InputError as error:
            if len(batch) == 1:
                found = [{"error": str(error)}]
            else:  # one of them is to blame, and the others are not
                found = [next(answers(model, [batch[i]], arguments)) for i in chosen]
        said |= zip(chosen, found, strict=True)
    return (said[i] for i in range(len(batch)))


def counted(said: dict) -> Total:
    if "error" in said:
        return Total(errors=1)
    return Total(1, 0, len(said["layers_run"]), said["macs"], said["macs_full"])
