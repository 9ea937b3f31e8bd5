"""Inside other programs: pickled, copied, forked, spawned, and asked by many threads at once."""

import asyncio
import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from answers import TEXTS, ask_shipped, close, figures
from conftest import ROOT, TINY, importing

from minidact import Model


@pytest.mark.parametrize("bits", [None, 8])
def test_a_model_is_pickled_and_copied(bits):
    model = Model.from_pretrained(bits=bits)
    expected, size = figures(model), len(pickle.dumps(model))
    weights = ROOT / "weights" / "sst2-minilm-l6" / "model.safetensors"
    assert size < 1.1 * (weights.stat().st_size + 30_000 * 100)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert other.bits == bits
        assert figures(other) == expected
        assert other.digest == model.digest


def test_a_copy_keeps_what_was_changed():
    model = Model.from_pretrained(TINY, reference=True)
    name = next(iter(model.params))
    model.params[name][0] += 1
    again = pickle.loads(pickle.dumps(model))
    assert again.reference
    assert (again.params[name] == model.params[name]).all()
    assert figures(again) == figures(model)


def in_a_program(code: str) -> str:
    """What a program prints that is started anew, so that its first use of kernels is its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True,
        cwd=ROOT / "tests", env=importing(ROOT), timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("bits", [None, pytest.param(8, marks=pytest.mark.long)])
def test_a_fork_after_use(bits):
    """Two children of a process that has answered, in a pool, answer as their parent did."""
    out = in_a_program(f"""
        import multiprocessing
        from answers import TEXTS, close, figures
        from minidact import Model

        model = Model.from_pretrained(bits={bits})
        expected = figures(model)  # starts the parent's threads

        def ask(text):
            return figures(model, [text])[0]

        with multiprocessing.get_context("fork").Pool(2) as pool:
            answers = pool.map(ask, TEXTS * 3)
        assert close(answers, expected * 3)
        assert figures(model) == expected  # and the parent goes on as before
        print("as before")
    """)
    assert out == "as before\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_compiles():
    """It waits for it; else the compiler would be locked in the child for ever."""
    out = in_a_program("""
        import os, signal, threading, time
        from numba.core.compiler_lock import global_compiler_lock
        import minidact.fast

        held = threading.Event()

        def compiles():
            with global_compiler_lock:
                held.set()
                time.sleep(0.5)

        threading.Thread(target=compiles).start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            with global_compiler_lock:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with global_compiler_lock:
            print("as before")
    """)
    assert out == "as before\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_that_trains():
    """All kernels are replaced in a child, those of the backward pass, too."""
    out = in_a_program("""
        import os
        import numpy as np
        from networks import random_batch, random_params, small_config, prices
        from minidact import soft
        from minidact.network import Network, calculus

        rng = np.random.default_rng(0)
        config = small_config(layers=2)
        params = {n: p.astype(np.float32) for n, p in random_params(config, rng).items()}
        batch, labels = random_batch(np.array([0, 4, 7]), config, rng), np.array([0, 1])
        net = Network(params, config, calculus(params))

        def gradients():
            return soft.soft_backward(soft.soft_forward(net, batch, labels, prices())[-1])

        expected, child = gradients(), os.fork()
        if child == 0:
            found = gradients()
            same = all(np.allclose(found[n], expected[n], atol=1e-5) for n in expected)
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
        print("as before")
    """)
    assert out == "as before\n"


def test_spawned_processes():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        answers = list(pool.map(ask_shipped, TEXTS))
        sent = list(pool.map(figures, [Model.from_pretrained()] * 2))
    expected = figures(Model.from_pretrained())
    assert close(answers, expected)
    assert close(sent[0], expected)
    assert sent[0] == sent[1]


def test_sixteen_threads_with_different_knobs():
    model = Model.from_pretrained()
    knobs = [{"use": ()}, {"use": ("halting",)}, {"slack": 0.5}, {"use": ("tokens",)}] * 4
    expected = [figures(model, **some) for some in knobs]
    start = threading.Barrier(16)

    def ask(some):
        start.wait()
        return [figures(model, **some) for _ in range(5)]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, knobs))
    assert answers == [[one] * 5 for one in expected]


def test_asyncio():
    model = Model.from_pretrained()

    async def ask():
        return await asyncio.gather(*(asyncio.to_thread(figures, model) for _ in range(4)))

    assert asyncio.run(ask()) == [figures(model)] * 4


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_joblib(backend):
    joblib = pytest.importorskip("joblib")
    model = Model.from_pretrained()
    asked = joblib.Parallel(2, backend=backend)(joblib.delayed(figures)(model) for _ in range(3))
    assert all(close(one, figures(model)) for one in asked)
