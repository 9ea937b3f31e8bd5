"""The benchmark as a command, small: its figures are there, and belong together."""

import json
import subprocess
import sys
from contextlib import closing

import pytest
from conftest import FIXTURES, run

from minidact import InputError
from minidact.bench.cases import add_shares
from minidact.bench.workers import Worker
from minidact.config import Config


@pytest.fixture(scope="module")
def result():
    data = FIXTURES / "reviews.tsv"
    options = ["--rounds", 1, "--layers", 1, "--only", "numpy,minidact,minidact 8 bits"]
    result = run("bench", "--json", "--data", data, *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_no_more_threads_than_may_run():
    result = run("bench", "--threads", 2, env={"NUMBA_NUM_THREADS": "1"})
    assert result.returncode == 2
    assert "--threads is 2; it must be 1 to 1" in result.stderr


def test_limits_and_startup(result):
    assert result["limits"]["gflops"] > 1
    assert result["limits"]["gb_per_s"] > 0.1
    start = result["startup"]
    assert all(start[key] > 0 for key in ("import_s", "infer_s", "first_ever_s"))
    assert 50 < start["infer_mb"] < 400


def test_contenders_answer_alike(result):
    assert [row["kind"] for row in result["rows"]] == ["answer"] * 7 + ["train"] * 2
    for row in result["rows"]:
        assert row["ratio"]["minidact"] == 1
        assert all(ms > 0 for ms in row["ms"].values())
        assert row["shares"]["minidact"]["products"] > 0
        if row["kind"] == "answer":
            assert row["difference"] < 1e-5
            assert row["ratio_8_bits"]["minidact 8 bits"] == 1
            assert set(row["ms"]) == {"numpy", "minidact", "minidact 8 bits"}
        else:
            assert set(row["ms"]) == {"numpy", "minidact"}


def test_from_text_to_label(result):
    assert [row["batch_size"] for row in result["labels"]] == [1, 32]
    ways = [
        f"minidact{bits}, {way}" for bits in ("", " 8 bits") for way in ("full", "halting", "all")
    ]
    for row in result["labels"]:
        assert list(row["ms"]) == ways
        assert row["accuracy"]["minidact, full"] == row["accuracy"]["minidact, halting"]
        assert min(row["accuracy"].values()) > 0.9
    one = result["labels"][0]
    assert all(one["p50"][way] <= one["p95"][way] <= one["p99"][way] for way in ways)


def test_adaptive_and_growth(result):
    ways = ("halting", "halting, slack 0.4", "all")
    assert [(row["bits"], row["batch_size"], row["how"]) for row in result["adaptive"]] == [
        (bits, size, way) for bits in (None, 8) for size in (1, 32) for way in ways
    ]
    for row in result["adaptive"]:
        assert 0 < row["macs_fraction"] < 1
        assert row["time_fraction"] > 0
    tokens = [row for row in result["growth"] if row["grows"] == "tokens"]
    assert [row["tokens"] for row in tokens] == [16, 32, 64, 128, 256, 512]
    assert all(row["ms"] > 0 and row["attention_ms"] > 0 for row in result["growth"])


def test_shares_of_the_limits_by_hand():
    """One text of 8 tokens, one layer of C = 2, F = 3, in 1 ms."""
    config = Config(hidden_size=2, num_hidden_layers=1, num_attention_heads=1, intermediate_size=3)
    row = {"kind": "answer", "lengths": [8], "ms": {"minidact": 1.0, "minidact 8 bits": 0.5}}
    add_shares(row, config, {"gflops": 1e-3, "gb_per_s": 1e-3, "gops_int8": 4e-3})
    weights = 4 * 2 * 2 + 2 * 2 * 3
    macs = 8 * weights + 2 * 8 * 8 * 2 + 2 * (2 + 2)
    single, eight = row["shares"]["minidact"], row["shares"]["minidact 8 bits"]
    assert single["products"] == pytest.approx(2 * macs / 1e-3 / 1e9 / 1e-3)
    assert single["memory"] == pytest.approx(4 * weights / 1e-3 / 1e9 / 1e-3)
    assert eight["products"] == pytest.approx(single["products"] / 2)
    assert eight["memory"] == pytest.approx(single["memory"] / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds is 0; it must be 1 to 1000"),
        (["--threads", "0"], "--threads is 0; it must be 1 to"),
        (["--layers", "101"], "--layers is 101; it must be 1 to 100"),
        (["--only", "tensorflow"], "--only 'tensorflow' is unknown; there are: numpy, minidact"),
        (["--only", ","], "--only names none; there are: numpy, minidact"),
        (["--data", "nowhere.tsv"], "nowhere.tsv"),
        (["--data", FIXTURES / "steps.tsv"], "unknown label"),
    ],
)
def test_bad_options(options, message, refused):
    refused(message, "bench", *options)


def test_a_contender_that_dies_is_named():
    """Also where what it was asked last could not be sent any more."""
    worker = Worker.__new__(Worker)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    worker.name, worker.process = "PyTorch", subprocess.Popen([sys.executable, "-c", ""], **pipes)
    worker.process.wait()
    with pytest.raises(InputError, match="PyTorch ended unexpectedly"), closing(worker):
        worker.ask(kind="answer")
    worker.process.stdout.close()
