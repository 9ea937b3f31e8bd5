"""Any amount of text: every format, bad rows, parts that are there, workers that are lost."""

import bz2
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, memory, run

from minidact import InputError, Model
from minidact.bulk import rows

REVIEWS = (ROOT / "tutorials" / "data" / "reviews.tsv").read_text().splitlines()[1:]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same three texts in every layout, and what can be wrong with a row."""
    data = tmp_path_factory.mktemp("bulk") / "in"
    (data / "deep").mkdir(parents=True)
    (data / "a.jsonl").write_text(
        '{"id": 7, "text": "good film"}\n\n{"id": 8, "text": "bad, bad film"}\nnonsense\n[1]\n'
        '{"id": 9}\n{"id": 10, "text": ["no"]}\n{"id": 11, "text": 5}\n'
    )
    (data / "b.csv").write_bytes(
        b'id,text\n1,good film\n2,"bad, ""bad""\nfilm"\n3\n4,\xff\n5,the end\n'
    )
    with gzip.open(data / "deep" / "c.tsv.gz", "wb") as file:
        file.write(b'sentence\tid\ngood "film\t1\nbad\t2\t3\n')
    (data / "d.txt.bz2").write_bytes(bz2.compress("good film\n\nbad film é\n\n".encode()))
    (data / "notes.md").write_text("no data")
    return data


@pytest.mark.parametrize("row", [b'1,"two\nlines \xff"', b'1,"two \xff\nlines"'])
def test_a_bad_byte_between_quotes_costs_its_row_alone(row, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,text\n" + row + b"\n2,good film\n3,the end\n")
    found = [(r.place.line, r.error or r.text) for r in rows.read(tmp_path / "a.csv")]
    assert found == [(2, "not valid UTF-8"), (4, "good film"), (5, "the end")]


def answers(out):
    found = sorted(out.rglob("*.jsonl"))
    return [json.loads(line) for file in found for line in file.read_text().splitlines()]


def test_reading_begins_at_any_row(files):
    for file in rows.inputs(str(files), files / "answers"):
        found = list(rows.read(file))
        for i, row in enumerate(found):
            assert list(rows.read(file, row.place)) == found[i:]


def test_every_layout_and_every_bad_row(files):
    found = {
        file.name: list(rows.read(file)) for file in rows.inputs(str(files), files / "answers")
    }
    assert sorted(found) == ["a.jsonl", "b.csv", "c.tsv.gz", "d.txt.bz2"]

    def short(name):
        return [(row.place.line, row.error or row.text, row.others) for row in found[name]]

    assert short("a.jsonl") == [
        (1, "good film", {"id": 7}), (3, "bad, bad film", {"id": 8}),
        (4, "not JSON (Expecting value: line 1 column 1 (char 0))", {}),
        (5, "not a JSON object", {}), (6, "there is no text (or sentence)", {"id": 9}),
        (7, "text is neither a text nor a number", {"id": 10}), (8, "5", {"id": 11}),
    ]  # fmt: skip
    assert short("b.csv") == [
        (2, "good film", {"id": "1"}), (3, 'bad, "bad"\nfilm', {"id": "2"}),
        (5, "1 columns, the header has 2", {}), (6, "not valid UTF-8", {}),
        (7, "the end", {"id": "5"}),
    ]  # fmt: skip
    assert short("c.tsv.gz") == [
        (2, 'good "film', {"id": "1"}), (3, "3 columns, the header has 2", {}),
    ]  # fmt: skip
    assert short("d.txt.bz2") == [
        (1, "good film", {}),
        (2, "", {}),
        (3, "bad film é", {}),
        (4, "", {}),
    ]


def test_no_number_is_nan_however_deep():
    row = {"x": float("nan"), "y": [1.5, {"z": float("-inf")}], "n": 3, "t": "nan"}
    assert rows._finite(row) == {"x": None, "y": [1.5, {"z": None}], "n": 3, "t": "nan"}
    assert rows._finite({"map": [("k", float("nan"))]}) == {"map": [["k", None]]}


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.csv", b"\n\ntext\nfine\n1,good\rfilm\nthe end\n", [(4, ""), (5, "new-line"), (6, "")]),
        ("a.csv", b'text\nfine\n"open\ngood\n', [(2, ""), (3, "unexpected end of data")]),
        ("a.csv", b'text\ngood\n""\n\nbad\n""\n', [(2, ""), (3, ""), (5, ""), (6, "")]),
        ("a.tsv", b"\ntext\nfine\n\nbad\n", [(3, ""), (5, "")]),
        ("a.jsonl", b'{"text": "a", "text_pair": null}\n{"text": NaN}\n', [(1, ""), (2, "NaN")]),
        ("a.jsonl", b'{"text": "a", "x": [1e999]}\n{"text": "b"}\n', [(1, "1e999"), (2, "")]),
    ],
)
def test_odd_rows(name, content, lines, tmp_path):
    (tmp_path / name).write_bytes(content)
    found = list(rows.read(tmp_path / name))
    assert [row.place.line for row in found] == [line for line, _ in lines]
    for row, (_, error) in zip(found, lines, strict=True):
        assert (error in row.error) if error else not row.error


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"te\xffxt,label\n", "its header: not valid UTF-8"),
        ("a.csv", b"text,text\na,b\n", "its header names a column twice"),
        ("a.txt.gz", gzip.compress(b"good film\n" * 99, mtime=0)[:-6], "cannot be read"),
        ("a.txt.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03nonsense", "cannot be read"),
        ("a.txt.xz", b"nonsense", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(name, content, sentence, tmp_path):
    (tmp_path / name).write_bytes(content)
    result = run("bulk", "--data", tmp_path / name, "--out", tmp_path / "out", "--model", TINY)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert name in result.stderr


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["good film", None], "text_pair": ["so", "so"], "id": [1, 2]})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = list(rows.read(tmp_path / "a.parquet"))
    assert found[0] == rows.Row(rows.Place(0, 1), "good film", "so", {"id": 1})
    assert found[1].error == "text is neither a text nor a number"
    parquet.write_table(pyarrow.table({"text": ["a", "b", "c"]}), tmp_path / "c.parquet", 2)
    whole = list(rows.read(tmp_path / "c.parquet"))
    for i in range(3):
        assert list(rows.read(tmp_path / "c.parquet", whole[i].place)) == whole[i:]
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(InputError, match=r"b\.parquet cannot be read"):
        list(rows.read(tmp_path / "b.parquet"))


def test_a_value_that_python_cannot_have_costs_one_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = pyarrow.array([b"good", b"caf\xe9", b"bad", b"fine"]).view(pyarrow.string())
    times = pyarrow.array([0, 0, 2**60, 0], pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table({"text": texts, "when": times}), tmp_path / "a.parquet")
    found = list(rows.read(tmp_path / "a.parquet"))
    assert [row.text for row in found] == ["good", "", "", "fine"]
    assert [row.place.line for row in found] == [1, 2, 3, 4]
    assert all("cannot be read" in row.error for row in found[1:3])


def test_which_files(tmp_path, monkeypatch):
    """A name that is there is no glob, and --out is known by every name that leads to it."""
    data = tmp_path / "in"
    (data / "answers").mkdir(parents=True)
    for name in ("a[1].txt", "a1.txt", "answers/a.txt"):
        (data / name).write_text("good\n")
    assert rows.inputs(str(data / "a[1].txt"), tmp_path / "out") == [data / "a[1].txt"]
    assert rows.inputs(str(data / "a[12].txt"), tmp_path / "out") == [data / "a1.txt"]
    (tmp_path / "link").symlink_to(data / "answers")
    monkeypatch.chdir(data)
    for given, out in (("../in", "answers"), (str(data), tmp_path / "link")):
        assert rows.inputs(given, Path(out)) == [data / "a1.txt", data / "a[1].txt"]
    with pytest.raises(InputError, match="there is no such file"):
        rows.inputs("", tmp_path / "out")


def test_where_places_are_told_from_stays(tmp_path):
    """Another directory of texts beside the first is no reason to refuse the answers."""
    (tmp_path / "in" / "2024-01").mkdir(parents=True)
    for data in (tmp_path / "in", tmp_path / "in" / "*" / "[ab].txt"):
        assert rows.base_of(str(data)) == tmp_path / "in"
    assert rows.base_of(str(tmp_path / "in" / "a.txt")) == tmp_path / "in"


def test_answers_come_with_their_rows_and_are_not_done_twice(files, tmp_path):
    command = [
        "bulk",
        "--data",
        files,
        "--out",
        tmp_path / "out",
        "--part-size",
        2,
        "--model",
        TINY,
    ]
    result = run(*command)
    assert result.returncode == 0, result.stderr
    assert "11 texts, 7 errors" in result.stdout
    found = answers(tmp_path / "out")
    assert len(found) == 18
    model = Model.from_pretrained(TINY)
    for said in found:
        assert ("error" in said) != ("label" in said)
        if "label" in said:
            assert said["label"] == model(said["text"]).label
    wanted = [
        (s["line"], s["row"]["id"]) for s in found if s["file"].endswith("a.jsonl") and "row" in s
    ]
    assert wanted == [(1, 7), (3, 8), (6, 9), (7, 10), (8, 11)]
    assert any(
        s["file"].endswith("b.csv") and s["line"] == 6 and "UTF-8" in s["error"] for s in found
    )
    parts = sorted(file for file in (tmp_path / "out").rglob("*.jsonl"))
    assert (tmp_path / "out" / "deep" / "c.tsv.gz-00000.jsonl") in parts
    # again: nothing is done; without one part: that one
    assert "0 texts, 0 errors" in run(*command).stdout
    parts[1].unlink()
    again = run(*command)
    assert f"{len(parts) - 1} of {len(parts)} parts are there already" in again.stdout
    assert [s | {"ms": 0} for s in answers(tmp_path / "out")] == [s | {"ms": 0} for s in found]


def test_pairs(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one", "text_pair": "two"}\n{"text": "three"}\n{"text": "x", "text_pair": "y"}\n'
    )
    result = run("bulk", "--data", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--model", TINY)
    assert result.returncode == 0, result.stderr
    found = answers(tmp_path / "out")
    assert [(s["text"], s["text_pair"]) for s in found] == [
        ("one", "two"),
        ("three", None),
        ("x", "y"),
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data", "nowhere/*.jsonl"], "nowhere/*.jsonl: there is no such file"),
        (["--data", "README.md"], "README.md: the name must end in .jsonl, .csv"),
        (["--workers", "2", "--cluster", "tcp://127.0.0.1:1"], "leave out --workers"),
        (["--part-size", "0"], "--part-size is 0"),
        (["--slack", "-1"], "--slack is -1.0"),
        (["--model", "nowhere"], "no model directory 'nowhere'"),
        (["--out", "README.md"], "README.md cannot be made a directory"),
    ],
)
def test_what_cannot_work(options, sentence, tmp_path):
    usual = ["--data", ROOT / "tutorials" / "data" / "reviews.tsv", "--out", tmp_path / "out"]
    result = run("bulk", *usual, *options)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stdout == ""
    assert not list(tmp_path.rglob("*.jsonl"))


def test_other_options_need_another_directory(files, tmp_path):
    command = ["bulk", "--data", files / "a.jsonl", "--out", tmp_path / "out", "--model", TINY]
    assert run(*command).returncode == 0
    for options in (["--part-size", 3], ["--bits", 8], ["--batch-size", 3]):
        result = run(*command, *options)
        assert result.returncode == 2
        assert "choose another --out" in result.stderr


def test_answers_are_never_taken_for_those_of_other_files(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"film {name}\n")
    command = ["bulk", "--out", tmp_path / "out", "--model", TINY, "--data"]
    assert run(*command, tmp_path / "one").returncode == 0
    result = run(*command, tmp_path / "two")
    assert result.returncode == 2
    assert "choose another --out" in result.stderr
    for text in ("other\n", "film new\n", ""):  # the second is as long as what was answered
        (tmp_path / "one" / "a.txt").write_text(text)
        assert run(*command, tmp_path / "one").returncode == 2
    (tmp_path / "out" / "bulk.json").write_text("[]")
    assert "bulk.json is damaged" in run(*command, tmp_path / "one").stderr


def test_answers_inside_of_the_data_are_not_answered(tmp_path):
    (tmp_path / "a.txt").write_text("good film\n")
    for _ in range(2):
        result = run("bulk", "--data", tmp_path, "--out", tmp_path / "out", "--model", TINY)
        assert result.returncode == 0, result.stderr
    assert len(answers(tmp_path / "out")) == 1


# ---------------------------------------------------------------------------- on a cluster


def many(place, count):
    """So many texts, each with a number of its own."""
    rng, texts = np.random.default_rng(0), [line.split("\t")[0] for line in REVIEWS]
    words = sorted({word for text in texts for word in text.split()})
    with open(place, "w") as file:
        for i in range(count):
            text = " ".join(rng.choice(words, rng.integers(1, 6)))
            file.write(json.dumps({"id": i, "text": text}) + "\n")


def workers_of(parent):
    """Process ids of a command's Dask workers."""
    said = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True).stdout
    table = [line.split(maxsplit=2) for line in said.splitlines()[1:]]
    children = {parent}
    for _ in range(4):
        children |= {int(pid) for pid, of, _ in table if int(of) in children}
    return [int(pid) for pid, _, args in table if int(pid) in children and "spawn_main" in args]


@pytest.mark.long
def test_a_worker_is_killed_and_no_text_is_lost(tmp_path):
    pytest.importorskip("distributed")
    many(tmp_path / "texts.jsonl", 50_000)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "minidact.bulk", "--data", str(tmp_path / "texts.jsonl")]
    command += ["--out", str(out), "--workers", "2", "--part-size", "1000"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        while len(list(out.glob("*.jsonl"))) < 10:
            time.sleep(0.2)
            assert running.poll() is None
        victims = workers_of(running.pid)
        assert len(victims) == 2
        os.kill(victims[0], signal.SIGKILL)
        said, _ = running.communicate()
    assert running.returncode == 0
    assert "50000 texts, 0 errors" in said
    found = answers(out)
    assert sorted(s["row"]["id"] for s in found) == list(range(50_000))
    texts = "".join(f"{s['text']}\n" for s in found)
    streamed = run("infer", "-", "--json", stdin=texts).stdout.splitlines()
    for said_here, line in zip(found, streamed, strict=True):
        there = json.loads(line)
        assert said_here["label"] == there["label"]
        assert abs(said_here["score"] - there["score"]) < 1e-5
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "50 of 50 parts are there already" in again.stdout
    assert "0 texts, 0 errors" in again.stdout


@pytest.mark.long
def test_a_million_texts_in_constant_memory(tmp_path):
    sizes = []
    for count in (10_000, 1_000_000):
        many(tmp_path / f"{count}.jsonl", count)
        out = tmp_path / str(count)
        code, error, most = memory("bulk", "--data", tmp_path / f"{count}.jsonl", "--out", out)
        assert code == 0, error
        sizes.append(most / 2**20)
    print(f"{sizes[0]:.0f} MB for 10,000 texts, {sizes[1]:.0f} for 1,000,000")
    assert sizes[1] < sizes[0] + 50
