"""The recipes of CONTRIBUTING.md, tried: a fourth mechanism in four files, a new rule in one.

fixtures/fourth_mechanism.patch adds "dimming". It is applied to copies of the files that it names,
and to nothing else: all other files are the package's own.
"""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import FIXTURES, ROOT, importing
from training import arguments

PATCH = FIXTURES / "fourth_mechanism.patch"
FOUR = {"mechanisms/dimming.py", "mechanisms/__init__.py", "soft.py", "hard.py"}

RULE = '''

def hesitant(known: Known, layers: float):
    """Stops after so many layers with a probability below 0.9."""
    return (known.y.max(2) < 0.9).sum(0) >= layers


RULES["hesitant"] = Rule(hesitant, Knob(2.0, "layers", sweep=(0, 1, 2)))
'''


def overlay(directory):
    """A package of that name in which files of its own come first, then the real ones."""
    for folder in ("", "mechanisms"):
        (directory / "minidact" / folder).mkdir(exist_ok=True, parents=True)
        init = directory / "minidact" / folder / "__init__.py"
        shutil.copy(ROOT / "minidact" / folder / "__init__.py", init)
    return directory


def look_further(directory):
    for folder in ("", "mechanisms"):
        init = directory / "minidact" / folder / "__init__.py"
        lines = init.read_text().splitlines(keepends=True)
        # before anything is imported while __init__.py itself runs
        first = next(i for i, line in enumerate(lines) if line.startswith(("from ", "import ")))
        lines.insert(first, f"__path__.append({str(ROOT / 'minidact' / folder)!r})\n")
        init.write_text("".join(lines))


def run_in(directory):
    def run(*command):
        return subprocess.run(
            [sys.executable, *map(str, command)], cwd=directory, capture_output=True, text=True,
            env=importing(directory),
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def fourth(tmp_path_factory):
    """Runs Python with a package that has a fourth mechanism."""
    if shutil.which("git") is None:
        pytest.skip("git applies the patch")
    directory = overlay(tmp_path_factory.mktemp("fourth"))
    for name in ("soft.py", "hard.py"):
        shutil.copy(ROOT / "minidact" / name, directory / "minidact" / name)
    command = ["git", "apply", "-C1", "--recount", str(PATCH)]
    applied = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert applied.returncode == 0, applied.stderr
    look_further(directory)
    return run_in(directory)


def test_the_patch_touches_four_files():
    named = re.findall(r"^\+\+\+ b/minidact/(\S+)", PATCH.read_text(), re.M)
    assert set(named) == FOUR


GRADIENT = """
import numpy as np
from networks import prices, random_batch, random_params, small_config
from minidact import hard, soft
from minidact.gradcheck import check_gradient
from minidact.mechanisms import MECHANISMS
from minidact.network import Network
rng = np.random.default_rng(0)
for others in ({}, {"halting": MECHANISMS["halting"].shape(4, False)}):
    config = small_config(layers=3, dimming=MECHANISMS["dimming"].shape(), **others)
    params, batch = random_params(config, rng), random_batch(np.array([0, 3, 4, 9]), config, rng)
    def forward(params):
        charged = prices(dim_cost=0.7, tau=0.3)
        return soft.soft_forward(Network(params, config), batch, np.array([0, 1, 1]), charged)
    grads = soft.soft_backward(forward(params)[-1])
    assert set(grads) == set(params)
    for name in params:
        check_gradient(lambda x: forward({**params, name: x})[1]["loss"],
                       lambda c: c * grads[name], params[name], rng, name)
    for gates, brightness in (([50.0, -800.0], 0.5), ([50.0, 50.0], 0.0)):  # 1 and 0; 1 and 1
        net = Network(params | {"dimming.gates": np.array(gates)}, config)
        free = prices(tau=0.0, alpha=0.0)
        losses, _, _ = soft.soft_forward(net, batch, np.array([0, 1, 1]), free)
        answers = hard.hard_forward(net, batch, hard.Knobs(("dimming",), brightness=brightness))
        np.testing.assert_allclose(losses, -np.log(answers.probs[range(3), [0, 1, 1]]), rtol=1e-9)
        assert answers.layers_run.sum(1).tolist() == [3 - (gates[1] < 0)] * 3
"""


def test_its_gradient_and_its_two_passes(fourth):
    result = fourth("-c", f"import sys; sys.path.append({str(ROOT / 'tests')!r}){GRADIENT}")
    assert result.returncode == 0, result.stderr


def test_every_command_knows_it(fourth, task, tmp_path):
    out, use = tmp_path / "out", "halting,dimming"
    more = {"use": use, "first": 1.5, "dim-cost": 0.2, "epochs": 2}
    result = fourth("-m", "minidact.train", *arguments(task, out, **more))
    assert result.returncode == 0, result.stderr
    assert "new: halting, dimming" in result.stdout
    config = json.loads((out / "config.json").read_text())
    assert config["minidact"]["dimming"] == {"first": 1.5}
    again = fourth("-m", "minidact.train", *arguments(task, tmp_path / "again", init=out, lr=0))
    assert "kept of --init: encoder, halting, dimming" in again.stdout, again.stderr

    def answer(*how):
        result = fourth("-m", "minidact.infer", "--model", out, "--json", *how, "the good film")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    full, dark = answer("--full"), answer("--use", "dimming", "--brightness", 1.01)
    assert full["layers_run"] == [0, 1]
    assert dark["layers_run"] == [0]
    assert dark["macs"] < 0.6 * full["macs"] == 0.6 * full["macs_full"]
    swept = fourth("-m", "minidact.evaluate", "--model", out, "--data", task / "dev.tsv",
                   "--sweep", "--curves", "dimming,all", "--json")  # fmt: skip
    assert swept.returncode == 0, swept.stderr
    points = json.loads(swept.stdout)["points"]
    shares = [p["macs_fraction"] for p in points if p["curve"] == "dimming"]
    assert len(shares) == 3
    assert shares[0] == 1 > shares[-1]
    for module, options, sentence in (
        ("infer", ["--model", out, "--brightness", -1, "x"], "--brightness is -1.0; it must be"),
        ("infer", ["--use", "dimming", "x"], "does not carry 'dimming'"),
        ("train", arguments(task, tmp_path / "no", use="dimming,planning"), "exclude each other"),
        ("train", arguments(task, tmp_path / "no", use="dim"), "there are: halting, planning"),
        ("train", arguments(task, tmp_path / "no", use="dimming", first=10), "--first is 10.0; it"),
    ):  # fmt: skip
        result = fourth("-m", f"minidact.{module}", *options)
        assert result.returncode == 2, result.stderr
        assert sentence in result.stderr
    assert (
        "brightness (default 0.5): dimming: a layer"
        in fourth("-c", "import minidact; help(minidact.Model)").stdout
    )


def test_a_rule_is_a_change_of_one_file(tmp_path):
    directory = overlay(tmp_path)
    text = (ROOT / "minidact" / "mechanisms" / "exits.py").read_text()
    place = text.index("\n\n# ----", text.index("RULES = {"))
    exits = directory / "minidact" / "mechanisms" / "exits.py"
    exits.write_text(text[:place] + RULE + text[place:])
    look_further(directory)
    run = run_in(directory)
    told = run(
        "-m", "minidact.infer", "--use", "halting", "--rule", "hesitant", "--at", 1, "a film"
    )
    assert told.returncode == 0, told.stderr
    data = FIXTURES / "reviews.tsv"
    how = ["--data", data, "--sweep", "--curves", "hesitant", "--json"]
    swept = run("-m", "minidact.evaluate", *how)
    assert swept.returncode == 0, swept.stderr
    layers = [point["layers_mean"] for point in json.loads(swept.stdout)["points"]]
    assert layers[0] == 1 < layers[1] < layers[2]
    wrong = run("-m", "minidact.infer", "--rule", "hesitan", "a film")
    assert "hesitant" in wrong.stderr
