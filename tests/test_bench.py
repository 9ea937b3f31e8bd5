"""The benchmark as a command, small: its figures are there, and belong together."""

import json

import pytest
from conftest import FIXTURES, run


@pytest.fixture(scope="module")
def result():
    data = FIXTURES / "reviews.tsv"
    options = ["--rounds", 1, "--layers", 1, "--only", "numpy,minidact,minidact 16 bits"]
    result = run("bench", "--json", "--data", data, *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_limits_and_startup(result):
    assert result["limits"]["gflops"] > 1
    assert result["limits"]["gb_per_s"] > 0.1
    start = result["startup"]
    assert 0 < start["import_s"] < start["infer_s"] < start["first_ever_s"]
    assert 50 < start["infer_mb"] < 400


def test_contenders_answer_alike(result):
    assert [row["kind"] for row in result["rows"]] == ["answer"] * 5 + ["train"] * 2
    for row in result["rows"]:
        assert row["ratio"]["minidact"] == 1
        assert all(ms > 0 for ms in row["ms"].values())
        assert 0 < row["share_of_flops"] < 1.1
        if row["kind"] == "answer":
            assert row["difference"] < 2e-3
            assert set(row["ms"]) == {"numpy", "minidact", "minidact 16 bits"}
        else:
            assert set(row["ms"]) == {"numpy", "minidact"}


def test_adaptive_and_growth(result):
    assert [(row["batch_size"], row["slack"]) for row in result["adaptive"]] == [
        (size, slack) for size in (1, 32) for slack in (0, 0.2, 0.4)
    ]
    for row in result["adaptive"]:
        assert 0 < row["macs_fraction"] < 1
        assert 0 < row["time_fraction"] < 1.5
    tokens = [row for row in result["growth"] if row["grows"] == "tokens"]
    assert [row["tokens"] for row in tokens] == [16, 32, 64, 128, 256, 512]
    assert tokens[-1]["ms"] > tokens[0]["ms"]
    assert tokens[-1]["attention_ms"] > 8 * tokens[2]["attention_ms"]  # quadratic: 64 times


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds is 0; it must be 1 to 1000"),
        (["--threads", "0"], "--threads is 0; it must be 1 to"),
        (["--layers", "101"], "--layers is 101; it must be 1 to 100"),
        (["--only", "tensorflow"], "no contender 'tensorflow'; there are: numpy, minidact"),
        (["--data", "nowhere.tsv"], "nowhere.tsv"),
    ],
)
def test_bad_options(options, message):
    result = run("bench", *options)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
