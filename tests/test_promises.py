"""What is promised when something goes wrong: tutorials/when-something-goes-wrong.md, row by row.

Here are the rows on streams, settings and what a terminal obeys; the page names the other tests.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from contextlib import suppress

import pytest
from conftest import FIXTURES, ROOT, run
from hypothesis import given
from hypothesis import strategies as st
from training import arguments, weights

from minidact import InputError, infer
from minidact.errors import visible
from minidact.fast import host, threads

PAGE = ROOT / "tutorials" / "when-something-goes-wrong.md"
SHIPPED = ROOT / "weights" / "sst2-minilm-l6"
INFER = f"{sys.executable} -m minidact.infer"


def shell(command, **env):
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env}
    )


def test_every_row_names_tests_that_there_are():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if "Held by" not in row]
    assert len(rows) > 15
    for row in rows:
        *_, last, _ = row.split("|")
        names = re.findall(r"`(test_\w+)\.(test_\w+)`", last)
        assert names, row
        for file, function in names:
            assert f"def {function}(" in (ROOT / "tests" / f"{file}.py").read_text(), row


# ---------------------------------------------------------------------------- streams


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("good >&-", "there is nowhere to write to: standard output is closed"),
        ("- <&-", "there is nothing to read: standard input is closed"),
        ("good > /dev/full", "input or output failed: No space left on device"),
    ],
)
def test_streams_that_cannot_be_used(command, sentence):
    result = shell(f"{INFER} {command}")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == f"error: {sentence}"
    assert "Traceback" not in result.stderr


def test_a_sweep_whose_figures_nobody_takes_stores_and_draws_first(tmp_path):
    pytest.importorskip("matplotlib")
    there = shutil.copytree(ROOT / "weights" / "sst2-minilm-l6", tmp_path / "model")
    told = json.loads((there / "config.json").read_text())
    told["minidact"]["budgets"] = []
    (there / "config.json").write_text(json.dumps(told))
    files = f"--data tests/fixtures/reviews.tsv --model {there} --plot {tmp_path / 'x.png'}"
    evaluate = f"{sys.executable} -m minidact.evaluate --sweep --curves halting --calibrate {files}"
    result = shell(f"{evaluate} > /dev/full")
    assert result.returncode == 2
    assert "input or output failed: No space left on device" in result.stderr
    assert json.loads((there / "config.json").read_text())["minidact"]["budgets"]
    assert (tmp_path / "x.png").exists()


def test_without_stderr_it_answers_all_the_same():
    result = shell(f"{INFER} good 2>&-")
    assert result.returncode == 0
    assert result.stdout.count("\n") == 1


def test_a_training_whose_output_nobody_takes_saves_first(task, tmp_path):
    options = arguments(task, tmp_path / "out", epochs=2000, **{"save-every": 10**6})
    command = " ".join(map(str, [sys.executable, "-m", "minidact.train", *options]))
    result = shell(f"set -o pipefail; {command} | head -n 4")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    said = (
        r"error: output failed: Broken pipe; saved after step (\d+); go on from the last checkpoint"
    )
    (step,) = re.findall(said, result.stderr)
    resumed = shell(
        f"{sys.executable} -m minidact.train --out {tmp_path / 'out'} --resume | head -n 2"
    )
    assert resumed.stdout.splitlines()[-1] == f"goes on after step {step}"


def test_letters_that_the_output_has_not(task, tmp_path):
    out = tmp_path / "modèle"
    result = run("train", *arguments(task, out, epochs=1), env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("mod\\xe8le\n")
    assert weights(out)


@given(st.lists(st.binary(max_size=30) | st.text(max_size=12).map(str.encode)), st.integers(1, 20))
def test_lines_are_what_splitting_gives(parts, most):
    raw = b"\n".join(parts)
    expected = []
    for line in raw.split(b"\n")[: -1 if raw.endswith(b"\n") or not raw else None]:
        expected.append(None)
        with suppress(UnicodeDecodeError):
            expected[-1] = line.decode()[:most].rstrip("\r")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer, "PIECE", 3)
        assert list(infer.lines(io.BytesIO(raw), most)) == expected


class Endless(io.RawIOBase):
    """A line of many megabytes that is never in memory."""

    def __init__(self, size):
        self.left = size

    def readable(self):
        return True

    def readinto(self, buffer):
        count = min(len(buffer), self.left)
        buffer[:count] = b"x" * count
        self.left -= count
        return count


def test_a_line_takes_no_more_memory_the_longer_it_is():
    tracemalloc.start()
    try:
        (text,) = infer.lines(io.BufferedReader(Endless(10**8)), 1000)
        assert text == "x" * 1000
        assert tracemalloc.get_traced_memory()[1] < 3 * 10**6
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("MINIDACT_VECTOR_WIDTH", "foo", "MINIDACT_VECTOR_WIDTH is 'foo'; there are: 16, 8, 4"),
        ("NUMBA_NUM_THREADS", "0", "NUMBA_NUM_THREADS is '0'; it must be a whole number"),
        ("NUMBA_THREADING_LAYER", "foo", "Numba cannot start its threads: The threading layer"),
    ],
)
def test_settings_that_cannot_be(name, value, sentence):
    result = run("infer", "good", env={name: value})
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {sentence}")
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(host.ARM, reason="of x86's instructions")
def test_another_processor_than_this_one_may_be_compiled_for():
    said = "from minidact.fast.host import HALVES, HOST, WIDTH; print(WIDTH, HALVES, HOST)"
    for name, features, expected in (
        ("generic", None, "4 False {}"),
        ("haswell", "+avx2,+fma,-f16c", "8 False {'avx2': True, 'fma': True, 'f16c': False}"),
    ):
        env = {"NUMBA_CPU_NAME": name} | ({"NUMBA_CPU_FEATURES": features} if features else {})
        done = subprocess.run(
            [sys.executable, "-c", said],
            env={**os.environ, **env},
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert done.stdout.decode() == f"{expected}\n"


def test_without_a_compiler_it_answers_too():
    plain = json.loads(run("infer", "--json", "a good film").stdout)
    slow = run("infer", "--json", "a good film", env={"NUMBA_DISABLE_JIT": "1"})
    assert "compiling" not in slow.stderr
    assert json.loads(slow.stdout)["score"] == pytest.approx(plain["score"], abs=1e-5)
    refused = run("bench", env={"NUMBA_DISABLE_JIT": "1"})
    assert refused.stderr.startswith("error: bench times compiled kernels")


def test_without_openmp_it_says_what_to_install():
    """An order of Numba's threads in which its own come first stands for a machine without."""
    found = run("infer", "good", env={"NUMBA_THREADING_LAYER_PRIORITY": "workqueue omp tbb"})
    assert "note: Numba finds neither OpenMP nor TBB here" in found.stderr
    chosen = run("infer", "good", env={"NUMBA_THREADING_LAYER": "workqueue"})
    assert "note:" not in chosen.stderr
    assert chosen.stdout.split()[:2] == found.stdout.split()[:2]


def test_threads_are_no_more_than_the_processors_that_may_be_used(tmp_path, monkeypatch):
    here = threads.cores(tmp_path)  # no quota
    assert 1 <= here <= os.cpu_count()
    (tmp_path / "cpu").mkdir()
    for quota, expected in (("max", here), ("50000", 1), ("100000", 1), ("9999999", here)):
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
        assert threads.cores(tmp_path) == expected
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for quota, expected in (("-1", here), ("50000", 1)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert threads.cores(tmp_path) == expected
    for wish, expected in (("1", 1), (" 1000000 ", here), ("", here)):
        monkeypatch.setenv("NUMBA_NUM_THREADS", wish)
        threads.limit_threads()
        assert int(os.environ["NUMBA_NUM_THREADS"]) == expected
    monkeypatch.setenv("NUMBA_NUM_THREADS", "two")
    with pytest.raises(InputError, match="NUMBA_NUM_THREADS is 'two'"):
        threads.limit_threads()


# ---------------------------------------------------------------------------- terminals


def test_what_a_terminal_would_obey_is_written_out(tmp_path):
    assert visible("a\x1b[2Jb\n\x9b\u202e é🎬") == r"a\x1b[2Jb\n\x9b\u202e é🎬"
    shutil.copytree(SHIPPED, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["id2label"] = {"0": "bad\x1b[2J", "1": "good\npositive  1.000"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    out = run("infer", "--model", tmp_path / "model", "--trace", "a good film").stdout
    assert "\x1b" not in out
    assert out.splitlines()[-1].startswith(r"good\npositive  1.000  ")
    (tmp_path / "data.tsv").write_text("text\tlabel\na\t\x1b[2J\n")
    how = ["--model", tmp_path / "model", "--data", tmp_path / "data.tsv"]
    err = run("evaluate", *how).stderr
    assert "\x1b" not in err
    assert r"unknown label '\x1b[2J'; there are: bad\x1b[2J, good\npositive" in err


def test_labels_in_a_trainings_output(task, tmp_path):
    shutil.copytree(FIXTURES / "tiny", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["id2label"] = {"0": "\x1b[2J", "1": "b", "2": "c"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    how = arguments(task, tmp_path / "out", init=tmp_path / "model", epochs=1)
    out = run("train", *how).stdout
    assert "\x1b" not in out
    assert r"(--init's: \x1b[2J, b, c)" in out
