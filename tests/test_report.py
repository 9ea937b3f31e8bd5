"""What a score is made of, by hand and through the command."""

import csv
import json

import numpy as np
import pytest
from conftest import ROOT, TINY, run

from minidact import InputError, Model, metrics
from minidact.study import report

REVIEWS = ROOT / "tutorials" / "data" / "reviews.tsv"


def test_classes_by_hand():
    labels, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
    found = report.report("accuracy", predicted, labels, ("a", "b", "c"))
    assert found["baseline"] == {"label": "a", "value": pytest.approx(0.6)}
    assert found["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    a, b, c = found["per_class"]
    assert (a["precision"], a["recall"], a["f1"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (b["precision"], b["recall"], b["f1"]) == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert c == {"label": "c", "precision": 0, "recall": 0, "f1": 0, "texts": 0}
    assert metrics.macro_f1(predicted, labels) == pytest.approx((a["f1"] + b["f1"]) / 2)
    lines = report.classes(found).splitlines()
    assert [line.split()[0] for line in lines] == ["precision", "a", "b", "c"]
    assert lines[1].split()[-3:] == ["2", "1", "0"]


@pytest.mark.parametrize(
    ("metric", "label", "value"),
    [
        ("accuracy", 0, 0.7),
        ("f1", 1, 6 / 13),
        ("macro_f1", 0, 7 / 17),
        ("matthews", 0, 0),
    ],
)
def test_what_always_the_same_answer_scores(metric, label, value):
    assert metrics.baseline(metric, np.array([0] * 7 + [1] * 3)) == (label, pytest.approx(value))


def test_f1_is_of_two_classes():
    with pytest.raises(InputError, match="the model has 3 classes; 'macro_f1' is"):
        metrics.choose("f1", "accuracy", False, 3)
    assert metrics.choose(None, "f1", False, 3) == "macro_f1"
    assert metrics.choose("macro_f1", "f1", False, 3) == "macro_f1"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_predictions_of_every_text(kind, tmp_path):
    out = tmp_path / f"said.{kind}"
    result = run("evaluate", "--data", REVIEWS, "--predictions", out, "--classes")
    assert result.returncode == 0, result.stderr
    assert "always 'negative' scores 0.5000" in result.stdout
    assert "precision" in result.stdout
    lines = out.read_text().splitlines()
    rows = list(csv.DictReader(lines)) if kind == "csv" else [json.loads(line) for line in lines]
    given = [line.split("\t") for line in REVIEWS.read_text().splitlines()]
    columns = ["level", "text", "label", "predicted", "p(negative)", "p(positive)", "layers"]
    assert list(rows[0]) == [*columns, "macs_fraction"]
    for row, line in zip(rows, given[1:], strict=True):
        assert [row[name] for name in ("text", "label", "level")] == line
        assert (row["predicted"] == "positive") == (float(row["p(positive)"]) > 0.5)
        assert 0 < float(row["macs_fraction"]) <= 1.1
    told = json.loads(run("evaluate", "--data", REVIEWS, "--json").stdout)
    names = {"0": "negative", "1": "positive"}
    right = np.mean([row["predicted"] == names[row["label"]] for row in rows])
    assert told["value"] == pytest.approx(right)
    assert told["layers_mean"] == pytest.approx(np.mean([int(row["layers"]) for row in rows]))
    assert sum(map(sum, told["confusion"])) == 240


def test_texts_are_cut(tmp_path):
    """Six tokens are [CLS], four words and [SEP]."""
    model = Model.from_pretrained(TINY)
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "a b c d e f g h\tLABEL_0\n" * 2)
    options = ["--data", tmp_path / "a.tsv", "--model", TINY, "--max-length", "6", "--full"]
    result = run("evaluate", *options, "--predictions", tmp_path / "b.jsonl")
    assert result.returncode == 0, result.stderr
    said = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    whole, short = model("a b c d e f g h", use=()), model("a b c d", use=())
    assert said["p(LABEL_0)"] == pytest.approx(short.probs["LABEL_0"], rel=1e-5)
    assert said["p(LABEL_0)"] != pytest.approx(whole.probs["LABEL_0"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--predictions", "x.txt"], "--predictions x.txt: the name must end in .csv or .jsonl"),
        (["--predictions", ""], "--predictions : the name must end in .csv or .jsonl"),
        (["--predictions", "nowhere/x.csv"], "nowhere/x.csv could not be written"),
        (["--predictions", REVIEWS.with_suffix(".csv")], "are the same file"),
        (["--texts", "x.tsv"], "--texts x.tsv: the name must end in .npz"),
        (["--classes", "--sweep"], "--classes and --predictions are of one setting"),
        (
            ["--texts", "x", "--certify", "--risk", "0.1", "--loss", "accuracy"],
            "--texts and --max-length do not go with --certify",
        ),
        (["--max-length", "2"], "--max-length is 2; it must be at least 3"),
    ],
)
def test_what_cannot_be_told(options, sentence, tmp_path):
    data = REVIEWS
    if "same file" in sentence:
        data = options[1] = tmp_path / "a.csv"
        data.write_text("text,label\ngood,1\nbad,0\n")
    result = run("evaluate", "--data", data, *options)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stdout == ""


def test_odd_texts_come_back_from_a_csv(tmp_path):
    odd = {"text": 'a\rb,"c"\nd', "label": "LABEL_0", "more": {"x": [1]}}
    (tmp_path / "a.jsonl").write_text(
        json.dumps(odd) + "\n" + json.dumps(odd | {"label": "LABEL_1"})
    )
    out = tmp_path / "b.csv"
    result = run("evaluate", "--data", tmp_path / "a.jsonl", "--model", TINY, "--predictions", out)
    assert result.returncode == 0, result.stderr
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert [row["text"] for row in rows] == [odd["text"]] * 2
    assert json.loads(rows[0]["more"]) == {"x": [1]}


def test_a_column_is_never_overwritten(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\tpredicted\ngood\tLABEL_0\tx\nbad\tLABEL_1\ty\n")
    options = ["--data", tmp_path / "a.tsv", "--model", TINY, "--predictions", tmp_path / "b.csv"]
    result = run("evaluate", *options)
    assert result.returncode == 2
    assert "has a column 'predicted' already" in result.stderr
    assert not (tmp_path / "b.csv").exists()


def test_pairs_for_a_model_of_single_texts_are_noted(tmp_path):
    (tmp_path / "pairs.tsv").write_text("text\ttext_pair\tlabel\na film\tgood\t1\nb\tbad\t0\n")
    result = run("evaluate", "--data", tmp_path / "pairs.tsv", "--full")
    assert result.returncode == 0, result.stderr
    assert "the model was trained on one text at a time" in result.stderr
    assert "note" not in run("evaluate", "--data", REVIEWS, "--full").stderr
