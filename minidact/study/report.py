"""What a score is made of: every class, every text, and what always the same answer would score."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from .. import metrics
from ..data import Examples
from ..errors import InputError, visible
from ..files import write_file


def always(metric: str, labels, names: tuple[str, ...]) -> dict[str, Any]:
    """The class that scores best if it is always said, "label", and its score, "value"."""
    best, value = metrics.baseline(metric, labels)
    return {"label": names[best], "value": value}


def report(metric: str, predicted, labels, names: tuple[str, ...]) -> dict[str, Any]:
    """{"baseline", "per_class", "confusion"} of a classifier's answers.

    predicted, labels: classes, (N,) int; names: theirs, (Y,). confusion[i][j]: how many texts of
    class i were taken for class j. What would be 0 / 0 is 0.
    """
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, predicted), 1)
    hits, support, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    precision, recall = hits / np.maximum(said, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(said + support, 1)
    columns = zip(names, precision, recall, f1, support, strict=True)
    return {
        "baseline": always(metric, labels, names),
        "per_class": [
            {"label": n, "precision": float(p), "recall": float(r), "f1": float(f), "texts": int(s)}
            for n, p, r, f, s in columns
        ],
        "confusion": counts.tolist(),
    }


def classes(r: dict[str, Any]) -> str:
    """What `report` returned, as a table: a line for each class."""
    labels = [visible(row["label"]) for row in r["per_class"]]
    width = max(map(len, labels)) + 2
    heads = "".join(f"{label:>{max(width, 8)}}" for label in labels)
    lines = [f"{'':{width}}{'precision':>10}{'recall':>8}{'F1':>8}{'texts':>8}  taken for{heads}"]
    for label, row, counts in zip(labels, r["per_class"], r["confusion"], strict=True):
        cells = "".join(f"{count:>{max(width, 8)}}" for count in counts)
        lines.append(
            f"{label:{width}}{row['precision']:10.3f}{row['recall']:8.3f}{row['f1']:8.3f}"
            f"{row['texts']:8}{'':11}{cells}"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------------------- every text


def check(examples: Examples, names: tuple[str, ...]) -> None:
    """Raises InputError if the input has a column of the name of one that is written."""
    given = set(examples.others[0]) if examples.others else set()
    if taken := given & set(columns(names, bool(examples.pairs))):
        raise InputError(f"the input has a column {sorted(taken)[0]!r} already")


def columns(names: tuple[str, ...], paired: bool) -> list[str]:
    """The columns that predictions have beside the input's others."""
    given = ["text", "label", *(["text_pair"] if paired else []), "predicted"]
    probs = [f"p({name})" for name in names] if len(names) > 1 else []
    return [*given, *probs, "layers", "macs_fraction"]


def predictions(examples: Examples, result: dict[str, Any], names: tuple[str, ...]) -> list[dict]:
    """A row for every text: the input's other columns, and those that `columns` says.

    result: of scores.measure, with what it tells of every text. names: the classes', (Y,), or of a
    regression's single number.
    """
    rows = []
    for i, text in enumerate(examples.texts):
        probs = [float(p) for p in result["probs"][i]]
        pair = [examples.pairs[i]] if examples.pairs else []
        said = [names[int(np.argmax(probs))], *probs] if len(names) > 1 else probs
        share = float(result["macs"][i] / result["macs_full"][i])
        values = [text, examples.labels[i], *pair, *said, int(result["layers"][i]), share]
        ours = zip(columns(names, bool(pair)), values, strict=True)
        rows.append((examples.others[i] if examples.others else {}) | dict(ours))
    return rows


def write(rows: list[dict], file: Path) -> None:
    """Writes predictions, by the file's name as .csv or .jsonl."""
    if file.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        written = io.StringIO()
        table = csv.DictWriter(written, list(rows[0]))
        table.writeheader()
        for row in rows:  # what is nested in JSON stays JSON
            table.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v
                            for k, v in row.items()})  # fmt: skip
        text = written.getvalue()
    write_file(file, text.encode("utf-8", "replace"))
