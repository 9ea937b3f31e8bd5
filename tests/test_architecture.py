"""The house's rules: imports flow one way, files stay short, a mechanism is said once."""

import ast
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import minidact
from minidact.mechanisms import MECHANISMS
from minidact.mechanisms.record import knobs_of

PACKAGE = Path(minidact.__file__).parent
# a file or folder may import from those above it, and from no other
ROOMS = [
    {"signals"},
    {"errors"},
    {"files", "ragged", "tensors"},
    {"ops"},
    {"mechanisms"},
    {"config"},
    {"bert"},
    {"fast"},
    {"network"},
    {"soft", "hard"},
    {"checkpoint", "data", "optim", "metrics", "show", "gradcheck"},
    {"model"},
    {"options", "plot"},
    {"study"},
    {"infer", "train"},
    {"evaluate", "bulk"},
    {"bench"},
]
# and so it is inside of a folder
FOLDERS = {
    "mechanisms": [
        {"record"}, {"dact", "planning", "token_gates", "selection"}, {"exits"}, {"__init__"},
    ],
    "fast": [
        {"threads"}, {"host"}, {"jit"}, {"fork"}, {"__init__"}, {"special", "tile"}, {"gemm"},
        {"int8", "attention"}, {"kernels"}, {"decisions"}, {"packed"}, {"packed_int8"}, {"layers"},
    ],
    "train": [{"start", "guide", "teach", "told"}, {"learn"}, {"__main__"}],
    "study": [
        {"sweep", "scores", "report", "risk", "holdout", "augment", "soup", "methods"},
        {"certify", "bootstrap", "explore"}, {"compare"}, {"__main__"},
    ],
    "bulk": [{"rows"}, {"part"}, {"__main__"}],
    "plot": [{"__init__"}, {"__main__"}],
    "bench": [{"peers", "limits"}, {"contenders"}, {"workers"}, {"cases"}, {"__main__"}],
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
MECHANISM_FILES = [file for file in FILES if file.parent.name == "mechanisms"]


def name_of(file):
    return str(file.relative_to(PACKAGE).with_suffix("")).replace("/", ".")


def imports(file):
    """(folder or file at the top, file in it or "") of every import from the package itself."""
    folder = file.parent.name if file.parent != PACKAGE else ""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        inside = folder and node.level == 1
        for alias in node.names:
            path = [*([folder] if inside else []), *(node.module or alias.name).split(".")]
            if node.module in FOLDERS and (PACKAGE / node.module / f"{alias.name}.py").exists():
                path.append(alias.name)
            if inside and node.module is None and alias.name not in inner_names(folder):
                path = [folder, "__init__"]
            yield path[0], path[1] if len(path) > 1 else ""


def inner_names(folder):
    return {file.stem for file in (PACKAGE / folder).glob("*.py")}


def floors(rooms):
    return {name: i for i, names in enumerate(rooms) for name in names}


def test_every_file_has_a_room():
    top = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__"}
    assert top | set(FOLDERS) == set(floors(ROOMS))
    for folder, rooms in FOLDERS.items():
        assert inner_names(folder) - set(floors(rooms)) <= {"__init__"}, folder


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_flow_one_way(file):
    if file == PACKAGE / "__init__.py":
        return
    floor, here = floors(ROOMS), name_of(file).split(".")
    for top, inner in imports(file):
        if top == here[0] and len(here) > 1:
            rooms = floors(FOLDERS[top])
            assert rooms[inner] < rooms[here[1]], f"{name_of(file)} imports {top}.{inner}"
        else:
            assert floor[top] < floor[here[0]], f"{name_of(file)} imports {top}"


def test_the_mechanisms_know_arrays_only():
    for file in MECHANISM_FILES:
        assert {top for top, _ in imports(file)} <= {"ops", "ragged", "errors", "mechanisms"}


def test_the_top_of_the_package_can_be_taken_in_at_a_glance():
    assert len(list(PACKAGE.glob("*.py"))) <= 22


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_and_functions_are_short(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 420
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{name_of(file)}.{node.name} has {length} lines"


def test_every_forward_stands_above_its_backward():
    for file in (PACKAGE / "ops.py", PACKAGE / "bert.py", *MECHANISM_FILES):
        tree = ast.parse(file.read_text())
        names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
        for before, after in pairwise(names):
            if after.endswith("_backward") and not after.startswith("_"):
                assert before == after.replace("_backward", "_forward"), f"{file.stem}.{after}"


def test_options_of_mechanisms_have_names_of_their_own():
    names = [
        name
        for record in MECHANISMS.values()
        for knobs in (record.knobs, knobs_of(record.shape), knobs_of(record.prices))
        for name in knobs
    ]
    assert len(set(names)) == len(names)
    prefixes = [record.prefix for record in MECHANISMS.values()]
    assert not any(a.startswith(b) for a in prefixes for b in prefixes if a is not b)


def test_a_mechanism_is_named_where_it_acts_and_nowhere_else():
    """By a string, that is: in the two passes, in training's schedules, and in what compares."""
    may = {
        "soft",
        "hard",
        "train.guide",
        "train.learn",
        "train.start",
        "train.told",
        "train.__main__",
    }
    may |= {name_of(file) for file in MECHANISM_FILES}
    may |= {
        "study.sweep",
        "study.methods",
        "study.explore",
        "bench.cases",
        "bench.peers",
        "fast.decisions",
    }
    for file in FILES:
        strings = {
            n.value for n in ast.walk(ast.parse(file.read_text())) if type(n) is ast.Constant
        }
        named = strings & ({*MECHANISMS} - {"tokens"})  # that is a key of answers and logs, too
        assert not named or name_of(file) in may, f"{name_of(file)} names {named}"


def test_no_framework_is_imported_at_run_time():
    project = (PACKAGE.parent / "pyproject.toml").read_text()
    declared = re.search(r"\ndependencies = \[(.*?)\]", project, re.S)[1]
    allowed = {name.replace("-", "_") for name in re.findall(r'"([\w-]+)', declared)}
    allowed |= {"llvmlite"}  # what Numba compiles with, and brings along
    # inside a function these may ask for more
    optional = ("bench.peers", "plot.__init__", "bulk.__main__", "bulk.rows")
    for file in FILES:
        tree = ast.parse(file.read_text())
        for node in tree.body if name_of(file) in optional else ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{file.stem}: {name}"


def test_tests_import_no_other_test():
    for file in Path(__file__).parent.glob("*.py"):
        assert not re.search(r"^\s*(from|import) test_", file.read_text(), re.M), file.name
