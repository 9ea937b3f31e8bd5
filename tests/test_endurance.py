"""What must survive: kills, full disks, long streams, many threads.

    python -m pytest -s -m long tests/test_endurance.py

kills a training 50 times and streams 200,000 texts, and prints what it saw; without -m long, a few.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, run
from training import arguments, same, weights

LONG = pytest.mark.long


def start(module, *args, **options):
    command = [sys.executable, "-m", f"minidact.{module}", *map(str, args)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **quiet | options)


# ---------------------------------------------------------------------------- training


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=LONG)])
def test_killed_at_random_it_goes_on_to_the_same_bits(kills, task, tmp_path):
    options = {"use": "halting,tokens", "epochs": 30 + 12 * kills, "save-every": 5, "average": 0.9}
    begin = time.perf_counter()
    whole = run("train", *arguments(task, tmp_path / "whole", **options))
    lasts = time.perf_counter() - begin
    assert whole.returncode == 0, whole.stderr
    out, moments, survived = tmp_path / "out", random.Random(0), 0
    first = arguments(task, out, **options)
    while survived < kills:
        held = (out / "training.safetensors").exists()
        process = start("train", *(["--out", out, "--resume"] if held else first))
        time.sleep(moments.uniform(0.2, 1.2 + lasts / kills / 2))  # starting takes most of a second
        assert process.poll() is None, f"ended by itself: {process.communicate()[1]}"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        survived += 1
    resumed = run("train", "--out", out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert same(weights(out), weights(tmp_path / "whole"))
    assert not list(out.glob(".*"))
    print(f"\n{survived} kills survived: the same weights, bit for bit")


def test_a_full_disk_leaves_the_checkpoint_before(task, tmp_path):
    """A limit on the size of files stands for the disk, lowered once a checkpoint is there."""
    out = tmp_path / "out"
    state = out / "training.safetensors"
    slow = {"epochs": 4000, "save-every": 20, "use": "halting"}
    process = start("train", *arguments(task, out, **slow))
    while not state.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
    _, err = process.communicate()
    assert process.returncode == 2
    assert "training.safetensors could not be written: File too large" in err
    assert f"go on from the last checkpoint with: python -m minidact.train --out {out}" in err
    assert "Traceback" not in err
    assert [file.name for file in out.iterdir()] == ["training.safetensors"]
    process = start("train", "--out", out, "--resume", stdout=subprocess.PIPE)
    assert "examples" in process.stdout.readline()  # the checkpoint is whole
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130


def test_two_runs_into_one_directory_refuse_each_other(task, tmp_path):
    out = tmp_path / "out"
    first = start("train", *arguments(task, out, epochs=4000), stdout=subprocess.PIPE)
    assert "examples" in first.stdout.readline()
    second = run("train", *arguments(task, out))
    assert second.returncode == 2
    assert "holds a model already" in second.stderr
    third = run("train", "--out", out, "--resume")
    assert third.returncode == 2
    assert f"another run is writing to {out}" in third.stderr
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    assert "go on from the last checkpoint with" in first.communicate()[0]


# ---------------------------------------------------------------------------- streams


@pytest.mark.parametrize("count", [3_000, pytest.param(200_000, marks=LONG)])
def test_a_stream_takes_no_more_memory_the_longer_it_is(count):
    def stream(texts):
        """Answers texts of all lengths -> how many came out, peak memory in MB."""
        process = start("infer", "-", "--json", stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        def feed():
            for i in range(texts):
                process.stdin.write("good " * (i % 50 + 1) + f"film {i}\n")
            process.stdin.close()

        feeder = threading.Thread(target=feed)
        feeder.start()
        for i, line in enumerate(process.stdout):
            assert json.loads(line)["text"].endswith(f"film {i}")
        feeder.join()
        _, _, usage = os.wait4(process.pid, 0)
        return i + 1, usage.ru_maxrss / 1024

    (few, before), (many, after) = stream(1_000), stream(count)
    assert (few, many) == (1_000, count)
    assert after < before + 30
    print(f"\n{few} texts: at most {before:.0f} MB; {many}: {after:.0f} MB")


def test_a_line_that_is_not_utf8_is_answered_by_an_error_and_the_stream_goes_on():
    lines = b"good film\n\xff\xfe\nbad film\n\xc3"
    command = [sys.executable, "-m", "minidact.infer", "-", "--batch-size", "2"]
    options = {"input": lines, "capture_output": True, "cwd": ROOT}
    result = subprocess.run([*command, "--json"], **options)
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [a.get("text") for a in answers] == ["good film", None, "bad film", None]
    assert answers[1] == {"error": "line 2: not valid UTF-8"}
    assert answers[3] == {"error": "line 4: not valid UTF-8"}
    plain = subprocess.run(command, **options).stdout.decode().splitlines()
    assert [line.split()[0] for line in plain] == ["positive", "error:", "negative", "error:"]


# ---------------------------------------------------------------------------- threads


THREADS = """
import sys, threading
from minidact import Model
model = Model.from_pretrained(sys.argv[1])
texts = [f"{'good ' * (i % 7)}film {i}" for i in range(40)]
alone = [model(text).probs for text in texts]
found = [None] * len(texts)
def work(first):
    for i in range(first, len(texts), 4):
        found[i] = model(texts[i]).probs
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for t in threads: t.start()
for t in threads: t.join()
assert found == alone
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_threads_may_share_a_model(layer):
    env = {**os.environ, "NUMBA_THREADING_LAYER": layer}
    directory = ROOT / "weights" / "sst2-minilm-l6"
    command = [sys.executable, "-c", THREADS, str(directory)]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    if "threading layer could not be loaded" in result.stderr:
        pytest.skip(f"Numba has no {layer} here")
    assert result.returncode == 0, result.stderr
