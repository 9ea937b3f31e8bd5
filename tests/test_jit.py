"""Machine code on disk: processes that compile at once, and places that cannot be written to."""

import os
import shutil
import signal
import subprocess
import sys

import numba
import pytest
from conftest import ROOT, TINY, run
from numba import types
from numba.extending import intrinsic

from minidact import infer
from minidact.fast import jit

ANSWER = """
import sys
from minidact import Model
model = Model.from_pretrained(sys.argv[1])
if sys.argv[2] == "float32":  # weights that 16 bits do not hold: other machine code
    params = {name: p * p.dtype.type(1.0001) for name, p in model.params.items()}
    model = Model(model.config, params, model.tokenizer)
print(model("the good film").label, model.layers.packed(0)[0].dtype)
"""


def test_two_processes_may_compile_at_once(tmp_path):
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    answers = []
    for _ in range(2):  # cold, then with what they left
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", ANSWER, str(TINY), dtype],
                env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for dtype in ("float32", "float16")
        ]  # fmt: skip
        for process in processes:
            out, err = process.communicate()
            assert process.returncode == 0, err
            answers.append(out)
    assert answers[:2] == answers[2:]
    assert answers[0].split()[1] == "float32"
    assert list(tmp_path.rglob("*.nbi"))


KERNEL = """
import sys
import numpy as np
from minidact.fast import kernels
x, gamma = np.ones((300, 100), np.float32), np.ones(100, np.float32)
getattr(kernels, sys.argv[1])(x, x.copy(), gamma, gamma, np.float32(1e-3))
print(x.sum())
"""


def call(name, directory, before=""):
    return subprocess.run(
        [sys.executable, "-c", before + KERNEL, name],
        env={**os.environ, "NUMBA_CACHE_DIR": str(directory)}, capture_output=True, text=True,
    )  # fmt: skip


def test_code_on_disk_is_whole_whatever_was_compiled_before_it(tmp_path):
    """The second kernel calls the first, whose code it finds on disk; the third process crashed."""
    for name in (
        "_add_layer_norm_many",
        "add_layer_norm",
        "add_layer_norm",
        "_add_layer_norm_many",
    ):
        result = call(name, tmp_path)
        assert (result.returncode, result.stderr) == (0, ""), name
        assert float(result.stdout) == 30_000  # an even row: all is gamma
    kept = {path.name.split("-")[0] for path in tmp_path.rglob("*.nbi")}
    assert kept == {"kernels._add_layer_norm_many", "kernels.add_layer_norm"}


def test_it_says_so_before_it_compiles(tmp_path):
    """Also what is compiled later than the rest, as the kernels of a mechanism may be."""
    say = "from minidact.fast import jit\njit.before_compiling(lambda: print('compiling'))"
    for name, said in (
        ("_add_layer_norm_many", ["compiling"]),
        ("_add_layer_norm_many", []),
        ("add_layer_norm", ["compiling"]),
    ):
        assert call(name, tmp_path, say).stdout.split()[:-1] == said


def test_a_file_that_was_cut_short_is_compiled_anew(tmp_path):
    for _ in range(2):
        for kind in ("nbi", "nbc"):
            assert call("_add_layer_norm_many", tmp_path).returncode == 0
            (file,) = tmp_path.rglob(f"*.{kind}")
            file.write_bytes(file.read_bytes()[:20])
            result = call("_add_layer_norm_many", tmp_path)
            assert (result.returncode, result.stderr) == (0, ""), kind
            assert len(file.read_bytes()) > 20


def test_a_directory_that_disappears_is_no_harm(tmp_path):
    gone = "import shutil\nfrom minidact.fast import jit\nshutil.rmtree(jit._DIRECTORY)"
    result = call("_add_layer_norm_many", tmp_path, gone)
    assert (result.returncode, result.stderr) == (0, "")


def test_older_machine_code_goes_and_that_of_other_machines_stays(tmp_path):
    call("_add_layer_norm_many", tmp_path)
    (own,) = tmp_path.iterdir()
    start, host, _ = own.name.rsplit("-", 2)
    older, others = (tmp_path / f"{start}-{of}-0123456789ab" for of in (host, "a" * len(host)))
    older.mkdir()
    others.mkdir()
    call("_add_layer_norm_many", tmp_path)
    assert set(tmp_path.iterdir()) == {own, others}


def test_without_a_place_for_machine_code_it_still_answers(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    env = {"NUMBA_CACHE_DIR": str(blocked), "XDG_CACHE_HOME": str(blocked)}
    result = run("infer", "--model", TINY, "the good film", env=env)
    assert result.returncode == 0, result.stderr


def test_a_user_without_a_home_gets_no_directory_of_that_name(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(blocked))
    monkeypatch.setattr(jit, "__file__", str(blocked / "jit.py"))
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert jit._cache_directory() is None
    assert os.listdir() == ["file"]


def test_machine_code_knows_the_constants_that_it_holds(tmp_path, monkeypatch):
    package = tmp_path / "minidact"
    shutil.copytree(ROOT / "minidact", package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "__file__", str(package / "fast" / "jit.py"))
    before = jit._cache_directory()
    assert jit._cache_directory() == before
    file = package / "mechanisms" / "token_gates.py"
    file.write_text(file.read_text().replace("OPEN = 0.5", "OPEN = 0.3"))
    assert jit._cache_directory() != before


def test_it_says_that_it_will_compile_at_every_start(monkeypatch):
    assert infer.compiling().endswith("this happens once and takes some seconds ...")
    monkeypatch.setattr(jit, "_DIRECTORY", None)
    assert "at every start: no directory can be written to" in infer.compiling()


@intrinsic
def interrupting(typing):
    """Ctrl-C while it is compiled."""

    def codegen(context, builder, signature, arguments):
        signal.raise_signal(signal.SIGINT)
        return context.get_constant(types.int64, 3)

    return types.int64(), codegen


def test_ctrl_c_waits_until_a_kernel_is_compiled():
    """Numba swallows KeyboardInterrupt in places. Afterwards the kernel is there and works."""

    @jit.jit()
    def inner():
        return interrupting()

    @jit.jit()
    def outer():
        return inner() + 1

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert len(outer.overloads) == len(inner.overloads) == 1
    assert outer() == 4
