"""What a score is made of: every class, every text, and what always the same answer would score."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from .. import metrics
from ..data import Examples
from ..errors import InputError
from ..files import write_file

KINDS = (".csv", ".jsonl")


def report(metric: str, predicted, labels, names: tuple[str, ...]) -> dict[str, Any]:
    """{"baseline", "per_class", "confusion"} of a classifier's answers.

    predicted, labels: classes, (N,) int; names: theirs, (Y,). confusion[i][j]: how many texts of
    class i were taken for class j. What would be 0 / 0 is 0.
    """
    always, value = metrics.baseline(metric, labels)
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, predicted), 1)
    hits, support, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    precision, recall = hits / np.maximum(said, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(said + support, 1)
    columns = zip(names, precision, recall, f1, support, strict=True)
    return {
        "baseline": {"label": names[always], "value": value},
        "per_class": [
            {"label": n, "precision": float(p), "recall": float(r), "f1": float(f), "texts": int(s)}
            for n, p, r, f, s in columns
        ],
        "confusion": counts.tolist(),
    }


def classes(r: dict[str, Any]) -> str:
    """What `report` returned, as a table: a line for each class that texts have."""
    width = max(len(row["label"]) for row in r["per_class"]) + 2
    heads = "".join(f"{row['label']:>{max(width, 8)}}" for row in r["per_class"])
    lines = [f"{'':{width}}{'precision':>10}{'recall':>8}{'F1':>8}{'texts':>8}  taken for{heads}"]
    for row, counts in zip(r["per_class"], r["confusion"], strict=True):
        cells = "".join(f"{count:>{max(width, 8)}}" for count in counts)
        lines.append(
            f"{row['label']:{width}}{row['precision']:10.3f}{row['recall']:8.3f}{row['f1']:8.3f}"
            f"{row['texts']:8}{'':11}{cells}"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------------------- every text


def check(path: str) -> Path:
    """The path, if predictions can be written there; raises InputError if not."""
    file = Path(path)
    if file.suffix not in KINDS:
        raise InputError(f"--predictions {path}: the name must end in {' or '.join(KINDS)}")
    write_file(file, b"", rehearse=True)
    return file


def predictions(examples: Examples, result: dict[str, Any], names: tuple[str, ...]) -> list[dict]:
    """A row for every text: the input's columns, and what was predicted.

    result: of scores.measure, with what it tells of every text. names: the classes', (Y,), or of a
    regression's single number. Raises InputError if the input has a column of a name of ours.
    """
    rows = []
    for i, text in enumerate(examples.texts):
        row = dict(examples.others[i]) if examples.others else {}
        given = {"text": text, "label": examples.labels[i]}
        if examples.pairs:
            given["text_pair"] = examples.pairs[i]
        probs = [float(p) for p in result["probs"][i]]
        if len(names) == 1:
            ours: dict[str, Any] = {"predicted": probs[0]}
        else:
            ours = {"predicted": names[int(np.argmax(probs))]}
            ours |= {f"p({name})": p for name, p in zip(names, probs, strict=True)}
        ours["layers"] = int(result["layers"][i])
        ours["macs_fraction"] = float(result["macs"][i] / result["macs_full"][i])
        if taken := set(row) & {*given, *ours}:
            raise InputError(f"the input has a column {sorted(taken)[0]!r} already")
        rows.append(row | given | ours)
    return rows


def write(rows: list[dict], file: Path) -> None:
    """Writes predictions, by the file's name as .csv or .jsonl."""
    if file.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        written = io.StringIO()
        table = csv.DictWriter(written, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        text = written.getvalue()
    write_file(file, text.encode("utf-8", "replace"))
