"""The study: trains, sweeps, does nothing twice, and prints a table."""

import json

import pytest
from conftest import TINY, run

from minidact.study import __main__ as study


@pytest.fixture(scope="module")
def options(task, tmp_path_factory):
    """Of a study in which one small task stands for TREC, already run once."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("study")
    (data / "TREC").mkdir()
    for name, copy in (("train", "train"), ("dev", "test")):
        text = (task / f"{name}.tsv").read_text()
        (data / "TREC" / f"{copy}.tsv").write_text(text)
    return ["--data", data, "--init", TINY, "--out", out, "--tasks", "TREC", "--seeds", "0,1"]


def test_it_trains_sweeps_and_compares(options):
    first = run("study", *options, "--methods", "all,deebert", "--json")
    assert first.returncode == 0, first.stderr
    commands = [line for line in first.stderr.splitlines() if line.startswith("python -m")]
    trained = [line.split("/")[-1] for line in commands if "train" in line.split()[2]]
    assert len(trained) == 8  # dact, all, plain and deebert, twice
    figures = {(row["method"], row["curve"]): row["TREC"] for row in json.loads(first.stdout)}
    curves = {("all", curve) for curve in ("full", *study.METHODS["all"][2])}
    assert set(figures) == {*curves, ("deebert", "full"), ("deebert", "entropy")}
    assert all(
        len(values) == 2 and 0 < min(values) <= max(values) <= 1 for values in figures.values()
    )

    again = run("study", *options, "--methods", "all,deebert")
    assert again.returncode == 0, again.stderr
    assert "python -m" not in again.stderr  # all is there
    lines = again.stdout.splitlines()
    assert lines[0] == "| model | curve | TREC |"
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| " + method, curve] for method, curve in figures
    ]
    assert all("±" in line for line in lines[2:])

    more = run("study", *options, "--methods", "pabee,deebert", "--seeds", "0,7", "--finished")
    assert more.returncode == 0, more.stderr
    assert "python -m" not in more.stderr
    rows = [line.split(" | ")[:2] for line in more.stdout.splitlines()[2:]]
    assert rows == [["| deebert", "full"], ["| deebert", "entropy"]]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--tasks", "WNLI"], "--tasks 'WNLI' is unknown; there are: SST-2"),
        (["--methods", "magic"], "--methods 'magic' is unknown"),
        (["--seeds", "one"], "it must be numbers"),
        (["--tasks", "RTE", "--methods", "plain"], "the same study goes on from here"),
    ],
)
def test_what_cannot_work(options, more, sentence):
    result = run("study", *options, *more)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
