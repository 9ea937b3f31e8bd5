"""What several test files share: Hypothesis profiles, the fixtures' paths, drawn ragged batches.

And the notebooks, which run beside all other tests.
"""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st

from minidact.errors import run_command

# a shell without job control starts what is in the background with Ctrl-C ignored, and what that
# starts inherits it: the tests of interrupts would wait forever
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
TINY = FIXTURES / "tiny"

# no deadline: Numba compiles on the first call. The short profile draws the same cases every time.
settings.register_profile("short", deadline=None, max_examples=25, derandomize=True)
first = (Phase.explicit, Phase.generate)  # a failure is enough, it need not become a small one
settings.register_profile("few", deadline=None, max_examples=8, derandomize=True, phases=first)
settings.register_profile("long", deadline=None, max_examples=1000)
settings.register_profile("fuzz", deadline=None, max_examples=25_000, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


@st.composite
def offsets_strategy(draw, most_sentences=4, most_tokens=7):
    """Offsets of a ragged batch; one-token sentences and one-sentence batches are common."""
    n = draw(st.lists(st.integers(1, most_tokens), min_size=1, max_size=most_sentences))
    return np.concatenate([[0], np.cumsum(n)]).astype(np.int64)


seeds = st.integers(0, 2**32 - 1)


def importing(directory) -> dict[str, str]:
    """The environment, for a process that imports from the directory first."""
    before = os.environ.get("PYTHONPATH")
    paths = [str(directory), *([before] if before else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run(module: str, *args, stdin=None, env=None, cwd=ROOT):
    """A command as a user types it: `python -m minidact.MODULE ARGS`."""
    args = [arg if isinstance(arg, bytes) else str(arg) for arg in args]
    return subprocess.run(
        [sys.executable, "-m", f"minidact.{module}", *args],
        input=stdin, capture_output=True, text=True, cwd=cwd, env={**os.environ, **(env or {})},
    )  # fmt: skip


LAUNCHER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def memory(module: str, *args):
    """A command's exit code, what it says of errors, and the most memory that it took, in bytes.

    A small process starts it: to one that a large process starts, Linux ascribes that one's memory.
    """
    command = [sys.executable, "-m", f"minidact.{module}", *map(str, args)]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *command], cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode, done.stderr, int(done.stdout) * 1024


@pytest.fixture
def rng():
    return np.random.default_rng(0)


WORDS = ["good", "bad", "film", "the", "!", "."]


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """Is there a "good" in the sentence? Easy, but not from one word's place."""
    directory, rng = tmp_path_factory.mktemp("task"), np.random.default_rng(0)
    for name, count in (("train", 200), ("dev", 60)):
        rows = []
        for _ in range(count):
            words = rng.choice(WORDS[1:], rng.integers(1, 8)).tolist()
            if rng.random() < 0.5:
                words[rng.integers(len(words))] = "good"
            rows.append(f"{' '.join(words)}\t{'yes' if 'good' in words else 'no'}")
        (directory / f"{name}.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    return directory


@pytest.fixture
def copy(tmp_path):
    """A copy of tiny/ to damage."""
    directory = tmp_path / "model"
    directory.mkdir()
    for file in ("config.json", "model.safetensors", "vocab.txt"):
        (directory / file).write_bytes((TINY / file).read_bytes())
    return directory


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs a command, which must end with code 2 and one line that holds the sentence."""

    def run(sentence, module, *arguments):
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        folder = (ROOT / "minidact" / module).is_dir()
        name = f"minidact.{module}{'.__main__' if folder else ''}"
        with pytest.raises(SystemExit) as end:
            run_command(importlib.import_module(name).main)
        out, err = capsys.readouterr()
        err = err[err.index("error: ") :]  # before it, perhaps, that kernels are compiled
        assert (end.value.code, out) == (2, "")
        assert err.count("\n") == 1
        assert sentence in err

    return run


RUN = """
import json, os, shutil, sys
import nbclient, nbformat

tutorials, scratch, *names = sys.argv[1:]
for name in names:
    here = os.path.join(scratch, name, "tutorials")  # a copy: some write files
    shutil.copytree(tutorials, here)
    cells = nbformat.read(os.path.join(here, name), as_version=4)
    how = {"timeout": 3600, "kernel_name": "python3", "resources": {"metadata": {"path": here}}}
    try:
        nbclient.NotebookClient(cells, **how).execute()
        error = ""
    except Exception as e:
        error = str(e) or repr(e)
    print(json.dumps([name, error]), flush=True)
"""


@pytest.fixture(scope="session", autouse=True)
def notebooks_that_run(request, tmp_path_factory):
    """The name and the error of each notebook that a test asks for, a line of JSON, in their order.

    They run one by one, on one thread, from the start of the session: no test waits for long.
    """
    asked = [i for i in request.session.items if getattr(i, "originalname", "") == "test_runs"]
    if not asked:
        yield
        return
    names = [item.callspec.params["notebook"].name for item in asked]
    command = [
        sys.executable,
        "-c",
        RUN,
        ROOT / "tutorials",
        tmp_path_factory.mktemp("run"),
        *names,
    ]
    env = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout
        process.terminate()
