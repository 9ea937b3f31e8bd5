"""Ctrl-C at any moment: no traceback, and no step lost but the one under way.

    python -m pytest -s -m long tests/test_interrupts.py

interrupts each command 100 times; without -m long, a few times.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import FIXTURES, ROOT, TINY, run
from training import arguments

TIMES = [2, pytest.param(100, marks=pytest.mark.long)]
LOOP = """
import sys
from minidact import Model
model = Model.from_pretrained(sys.argv[1])
texts, interrupted = ["a gripping, funny, humane film"] * 40, 0
expected = model(texts[0]).probs
print("ready", flush=True)
while interrupted < int(sys.argv[2]):
    try:
        while True:
            model(texts, use=())
    except KeyboardInterrupt:
        interrupted += 1
        assert model(texts[0]).probs == expected
        print("again", flush=True)
"""


def start(*command, **streams):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, **streams)


@pytest.mark.parametrize("times", TIMES)
def test_from_python_it_is_a_keyboard_interrupt_and_the_model_answers_on(times):
    process = start("-c", LOOP, ROOT / "weights" / "sst2-minilm-l6", times)
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    moments = random.Random(0)
    for _ in range(times):
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "again\n", process.communicate()[1]
    assert process.communicate()[1] == ""
    assert process.returncode == 0


def test_where_it_is_ignored_it_stays_so():
    """As in a script's `infer - &`: Ctrl-C is for what runs in front."""
    process = subprocess.Popen(
        [sys.executable, "-m", "minidact.infer", "-", "--full", "--json", "--model", TINY],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    for text in ("good\n", "bad\n"):
        process.stdin.write(32 * text)
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert "label" in json.loads(process.stdout.readline())
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("command", ["infer", "evaluate"])
def test_a_command_ends_without_a_traceback(command, times, tmp_path):
    data = FIXTURES / "reviews.tsv"
    how = {"infer": ["-", "--full"], "evaluate": ["--data", data, "--sweep"]}[command]
    moments = random.Random(1)
    endless = tmp_path / "texts"
    endless.write_text("a gripping, funny, humane film\n" * 20_000)
    for _ in range(times):
        with open(endless) as given:
            process = start(
                "-m", f"minidact.{command}", *how, stdin=given, stdout=subprocess.DEVNULL
            )
            time.sleep(moments.uniform(0.05, 3))  # it starts, loads, answers
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        assert "Traceback" not in err
        assert "Error" not in err
        # 130; or ended by the signal while it was being started; or it had ended already
        assert process.returncode in (130, -signal.SIGINT, 0)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_training_saves_whatever_comes_and_however_often(first, times, task, tmp_path):
    """Two signals at a random distance: what was learnt is in the checkpoint, to the last step."""
    moments, log = random.Random(2), tmp_path / "log.jsonl"
    slow = {"use": "halting", "epochs": 2000, "save-every": 10**6, "log": log}
    for i in range(times):
        out = tmp_path / str(i)
        process = start("-m", "minidact.train", *arguments(task, out, **slow))
        while not log.exists() or log.read_bytes().count(b"\n") < 5:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(first)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert "Traceback" not in err
        ended = process.returncode
        assert ended in (128 + first, 130, -signal.SIGINT)
        steps = len(log.read_text().splitlines())
        resumed = start("-m", "minidact.train", "--out", out, "--resume")
        assert "examples" in resumed.stdout.readline()
        assert resumed.stdout.readline() == f"goes on after step {steps}\n"
        resumed.kill()
        resumed.communicate()
        log.unlink()


def test_a_log_replaces_nothing_but_a_log(task, tmp_path):
    before = (task / "train.tsv").read_bytes()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "notes.txt").write_text("not to be lost\n")
    (tmp_path / "rows.jsonl").write_text('{"step": "the first", "text": "not to be lost"}\n')
    (tmp_path / "model.safetensors").write_bytes((TINY / "model.safetensors").read_bytes())
    (tmp_path / "link.jsonl").symlink_to(task / "train.tsv")
    for log, sentence in (
        (task / "train.tsv", "--log and --data are the same file"),
        (task / "dev.tsv", "--log and --dev are the same file"),
        (tmp_path / "link.jsonl", "--log and --data are the same file"),
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path, "is not a regular file"),
        ("/dev/null", "is not a regular file"),
        (tmp_path / "out" / "log.jsonl", "lies in --out"),
        (tmp_path / "notes.txt", "is there, and is no log of a training"),
        (tmp_path / "rows.jsonl", "is there, and is no log of a training"),
        (tmp_path / "model.safetensors", "is there, and is no log of a training"),
    ):
        result = run("train", *arguments(task, tmp_path / "out", log=log))
        assert result.returncode == 2
        assert sentence in result.stderr
    assert (task / "train.tsv").read_bytes() == before
    assert (tmp_path / "notes.txt").read_text() == "not to be lost\n"
    real = tmp_path / "real.jsonl"
    link = tmp_path / "other.jsonl"
    link.symlink_to(real)
    for name in ("out", "again"):  # a log takes the place of a log
        result = run("train", *arguments(task, tmp_path / name, log=link, epochs=1))
        assert result.returncode == 0, result.stderr
    assert link.is_symlink()
    assert len([json.loads(line) for line in real.read_text().splitlines()]) == 7
