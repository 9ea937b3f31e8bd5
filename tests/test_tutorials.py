"""The notebooks: stored as they ran, with pictures; and they run here, with their answers."""

import json
import re

import pytest
from conftest import ROOT

TUTORIALS = ROOT / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))


def load(notebook):
    return json.loads(notebook.read_text())


def code_cells(notebook):
    return [cell for cell in load(notebook)["cells"] if cell["cell_type"] == "code"]


def test_they_are_numbered_and_named_in_the_readme():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n:02}" for n in range(1, 12)]
    readme = (ROOT / "README.md").read_text()
    for path in NOTEBOOKS:
        assert f"(tutorials/{path.name})" in readme, path.name


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_as_it_ran(notebook):
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert any("image/png" in o.get("data", {}) for o in outputs), "no picture"
    text = notebook.read_text()
    assert len(text) < 400_000, "its outputs are not small"
    assert not re.search(r"/(tmp|home|root|work|Users)/", text), "a path of somebody's machine"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_three_exercises_with_checked_answers(notebook):
    cells = load(notebook)["cells"]
    answers = [cell for cell in cells if "answer" in cell["metadata"].get("tags", [])]
    assert len(answers) == 3
    for number, answer in enumerate(answers, 1):
        source = "".join(answer["source"])
        assert source.startswith(f"# Answer {number}")
        assert "assert " in source  # which test_runs executes
        task = "".join(cells[cells.index(answer) - 1]["source"])
        assert f"### Exercise {number}" in task


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(notebook, notebooks_that_run):
    for package in ("matplotlib", "ipykernel", "nbclient", "nbformat"):
        pytest.importorskip(package)
    name, error = json.loads(notebooks_that_run.readline())
    assert name == notebook.name
    assert not error, error[-3000:]
