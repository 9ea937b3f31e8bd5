"""The shipped model through the commands, as a user types them."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import FIXTURES, ROOT, TINY, run

from minidact import Model, infer

REVIEW = "a gripping, funny, humane film"
KEYS = {
    "text", "text_pair", "label", "score", "probs", "num_layers", "layers_run", "tokens",
    "tokens_per_layer", "macs", "macs_full", "ms",
}  # fmt: skip
EVALUATION = {
    "metric", "value", "value_full", "examples", "num_layers", "layers_mean", "tokens_fraction",
    "macs_fraction", "ms_per_text", "ms_per_text_full",
}  # fmt: skip


def answers(*args, **kwargs):
    result = run("infer", "--json", *args, **kwargs)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_text():
    (answer,) = answers(REVIEW)
    assert set(answer) >= KEYS
    assert answer["text"] == REVIEW
    assert answer["text_pair"] is None
    assert answer["label"] == "positive"
    assert answer["probs"].keys() == {"negative", "positive"}
    assert answer["score"] == answer["probs"]["positive"] > 0.9
    assert answer["layers_run"] == list(range(len(answer["layers_run"])))
    assert len(answer["layers_run"]) < answer["num_layers"] == 6
    assert answer["tokens"] == 9
    assert answer["tokens_per_layer"] == [9] * len(answer["layers_run"])
    assert 0 < answer["macs"] < answer["macs_full"]

    (full,) = answers("--full", REVIEW)
    assert full["layers_run"] == list(range(6))
    assert full["macs"] == full["macs_full"] == answer["macs_full"]
    assert full["label"] == answer["label"]
    (off,) = answers("--use", "", REVIEW)
    assert off["probs"] == full["probs"]
    (early,) = answers("--slack", "2", REVIEW)
    assert early["layers_run"] == [0]
    (paper,) = answers("--bound", "paper", REVIEW)
    assert len(paper["layers_run"]) >= len(answer["layers_run"])


def test_plain_output_and_trace():
    result = run("infer", "--trace", REVIEW)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "[CLS] a gripping , funny , humane film [SEP]"
    assert [line.split("  ")[0] for line in lines[1:7]] == [f"layer {i}" for i in range(1, 7)]
    assert "(can change no more)" in result.stdout
    assert lines[6] == "layer 6  not run"
    assert lines[7].startswith("positive")
    (answer,) = answers("--trace", REVIEW)
    assert len(answer["trace"]) == len(answer["layers_run"])
    assert answer["trace"][-1]["margin"] >= 0


def test_the_first_answers_of_an_installation_are_numpys(tmp_path):
    """They do not wait for the compiler, which may be interrupted."""
    with subprocess.Popen(
        [sys.executable, "-m", "minidact.infer", "--json", "--model", TINY, "the good film"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
    ) as process:  # fmt: skip
        answer = json.loads(process.stdout.readline())
        told = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait() in (130, -signal.SIGINT)
    assert told.startswith("answered by NumPy; for what comes next: compiling kernels")
    assert answer["label"] == Model.from_pretrained(TINY, reference=True)("the good film").label


def test_so_it_is_with_lines(monkeypatch, capsys):
    monkeypatch.setattr(infer, "is_compiled", lambda bits: False)
    texts = ["the good film", "bad", "a long walk", "awful"]
    lines = io.TextIOWrapper(io.BytesIO("\n".join(texts).encode()))
    monkeypatch.setattr(sys, "stdin", lines)
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **how: None, raising=False)
    command = ["infer", "-", "--model", str(TINY), "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", command)
    slow, fast = [], []
    monkeypatch.setattr(infer, "load_slow", noting(infer.load_slow, slow))
    monkeypatch.setattr(infer, "load_fast", noting(infer.load_fast, fast))
    infer.main()
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [
        prediction.label for prediction in Model.from_pretrained(TINY)(texts)
    ]
    assert err.count("answered by NumPy") == 1
    assert len(slow) == len(fast) == 1


def noting(function, calls):
    def noted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return noted


def test_a_neighbours_rule_knows_no_margin():
    how = ("--use", "halting", "--rule", "entropy", "--at", "0.005", "--trace", REVIEW)
    result = run("infer", *how)
    assert result.returncode == 0, result.stderr
    assert "positive" in result.stdout.splitlines()[1]
    assert not any(word in result.stdout for word in ("doubt", "margin", "change"))
    (answer,) = answers(*how)
    assert all(step["doubt"] is step["margin"] is None for step in answer["trace"])


def test_a_plain_model_has_a_trace_too():
    result = run("infer", "--model", TINY, "--trace", "good")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1:3] == ["layer 1  3 tokens", "layer 2  3 tokens"]
    (answer,) = answers("--model", TINY, "--trace", "good")
    assert answer["trace"] == []


def test_lines_from_standard_input_come_out_in_order():
    texts = [f"the film number {i} is {'good' if i % 3 else 'awful'}" for i in range(70)] + [
        "",
        "end",
    ]
    got = answers("-", "--batch-size", "16", stdin="\n".join(texts) + "\n")
    assert [a["text"] for a in got] == texts
    assert sum(a["label"] == "negative" for a in got[:70:3]) >= 20
    assert answers("-", stdin="") == []


STRANGE = [
    "",
    "   ",
    "🎬🙂👍",
    "\x07\x1b[31m\t",
    "ß" * 300,
    "word " * 200_000,
    "x" * 1_000_000,
    "\udcff",  # a byte that is not UTF-8
]


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_strange_texts_are_answered(text):
    if len(text) > 100_000:  # longer than a command line may be
        (answer,) = answers("-", stdin=text + "\n")
    else:
        (answer,) = answers(text.encode("utf-8", "surrogateescape"))
    assert answer["truncated"] == (text in STRANGE[5:7])
    assert answer["label"] in ("negative", "positive")


def test_a_long_text_says_that_it_was_cut():
    result = run("infer", "-", stdin="word " * 3000 + "\n")
    assert result.returncode == 0
    assert "only the first 512 tokens were read" in result.stderr
    assert "cut to the model's limit" in result.stdout


BAD = [
    (["infer", "--model", "no/such/dir/at/all", "x"], "no model directory 'no/such/dir/at/all'"),
    (["infer", "--model", "/nowhere", "x"], "no model directory '/nowhere'"),
    (["infer", "--slack", "-1", "x"], "--slack is -1.0; it must be 0 or more"),
    (["infer", "--slack", "nan", "x"], "slack is nan"),
    (["infer", "--threshold", "-1", "x"], "threshold is -1.0; it must be 0 or more"),
    (["infer", "--keep", "0", "x"], "--keep is 0.0; it must be 0.001 or more"),
    (["infer", "--use", "planing", "x"], "does not carry 'planing'; it has halting"),
    (["infer", "--model", str(TINY), "--use", "halting", "x"], "it has no mechanism"),
    (["infer", "--full", "--use", "halting", "x"], "choose one"),
    (["infer", "--batch-size", "0", "-"], "--batch-size is 0"),
    (["infer", "--batch-size", "0", "--model", "/nowhere", "-"], "--batch-size is 0"),
    (["infer", "--pair", "y", "-"], "--pair goes with one text"),
    (["evaluate", "--data", "none.tsv"], "none.tsv cannot be read"),
    (["evaluate", "--data", "README.md"], "must end in .tsv, .csv or .jsonl"),
    (["evaluate", "--data", f"{FIXTURES}/reviews.tsv", "--batch-size", "0"], "--batch-size is 0"),
    (
        ["evaluate", "--data", f"{FIXTURES}/reviews.tsv", "--metric", "pearson_spearman"],
        "does not fit",
    ),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=lambda v: " ".join(v)[:40])
def test_bad_input_gets_one_clear_sentence(arguments, sentence, refused):
    refused(sentence, *arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--batch-size", "2.5", "-"], "invalid int value: '2.5'"),
        ([], "the following arguments are required: text"),
        (["--model", "/nowhere", "x"], "error: no model directory '/nowhere'"),
    ],
)
def test_so_it_does_in_a_process_of_its_own(arguments, sentence):
    result = run("infer", *arguments, stdin="a text\n")
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_evaluate(batch_size):
    args = ["--data", FIXTURES / "reviews.tsv", "--json", "--batch-size", batch_size]
    result = run("evaluate", *args, "--use", "halting")
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    r = json.loads(line)
    assert set(r) >= EVALUATION
    assert r["metric"] == "accuracy"
    assert r["examples"] == 16
    assert r["value"] == r["value_full"] >= 0.8
    assert 1 <= r["layers_mean"] < r["num_layers"] == 6
    assert 0 < r["macs_fraction"] < 1
    assert r["tokens_fraction"] == pytest.approx(r["macs_fraction"], abs=0.02)
    assert r["ms_per_text"] > 0
    full = json.loads(run("evaluate", *args, "--full").stdout)
    assert full["layers_mean"] == 6
    assert full["macs_fraction"] == full["tokens_fraction"] == 1


def test_evaluate_prints_a_table():
    result = run("evaluate", "--data", FIXTURES / "reviews.tsv")
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "16", "value", "full", "adaptive"
    ]  # fmt: skip


def test_a_reader_that_leaves_is_no_error():
    import subprocess
    import sys

    command = f'yes "a good film" | {sys.executable} -m minidact.infer - --batch-size 2 | head -n 3'
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=FIXTURES.parent.parent
    )
    assert len(result.stdout.splitlines()) == 3
    assert "Traceback" not in result.stderr
    assert "Broken pipe" not in result.stderr
