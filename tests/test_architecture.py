"""The house's rules: imports flow one way, files and functions stay short."""

import ast
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import minidact

PACKAGE = Path(minidact.__file__).parent
# each room may import from the rooms above it, and from no other
ROOMS = [
    {"errors"},
    {"config", "ragged"},
    {"ops", "jit"},
    {"special"},
    {"gemm"},
    {"attention"},
    {"kernels"},
    {"bert"},
    {"inference"},
    {"dact", "planning", "token_gates", "exits"},
    {"model", "macs"},
    {"soft", "hard"},
    {"checkpoint", "data", "optim", "metrics", "show"},
    {"predict", "recipe"},
    {"infer", "train", "contenders"},
    {"sweep", "plot"},
    {"evaluate"},
    {"bench", "study"},
]
FILES = sorted(PACKAGE.glob("*.py"))


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [alias.name for alias in node.names]


def test_imports_flow_one_way():
    floor = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}
    modules = {file.stem for file in FILES} - {"__init__"}
    assert modules == set(floor), "a file without a room, or a room without a file"
    for file in FILES:
        for name in imports(file):
            if file.stem != "__init__":
                assert floor[name] < floor[file.stem], f"{file.stem} imports {name}"


def test_the_mechanisms_know_arrays_only():
    for name in ("dact", "planning", "token_gates", "exits"):
        assert set(imports(PACKAGE / f"{name}.py")) <= {"ops", "ragged"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_and_functions_are_short(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 480
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 65, f"{file.stem}.{node.name} has {length} lines"


def test_every_forward_stands_above_its_backward():
    for stem in ("ops", "bert", "dact", "planning", "token_gates"):
        tree = ast.parse((PACKAGE / f"{stem}.py").read_text())
        names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
        backwards = [n for n in names if n.endswith("_backward") and not n.startswith("_")]
        for before, after in pairwise(names):
            if after in backwards:
                assert before == after.replace("_backward", "_forward"), f"{stem}.{after}"
        assert len(backwards) > 2


def test_no_framework_is_imported_at_run_time():
    allowed = {"numpy", "numba", "scipy", "tokenizers", "safetensors", "tqdm", "huggingface_hub"}
    allowed |= {"llvmlite"}  # what Numba compiles with, and brings along
    for file in FILES:
        tree = ast.parse(file.read_text())
        # contenders.py times the frameworks, plot.py draws: inside a function they may ask
        nodes = tree.body if file.stem in ("contenders", "plot") else ast.walk(tree)
        for node in nodes:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{file.stem}: {name}"
