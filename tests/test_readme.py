"""The README's console blocks: what they print is what the program prints."""

import re
import shlex
import shutil

import pytest
from conftest import ROOT, run

BLOCKS = re.findall(r"^```console\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
COMMANDS = [
    (command.split("&& ")[-1].strip(), output)
    for block in BLOCKS
    for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M)
]
INFER = [(c, o) for c, o in COMMANDS if c.startswith("python -m minidact.")]


def without_times(text):
    text = re.sub(r"\d+\.\d+ ms", "N ms", text)
    return re.sub(r"(^(?:full|adaptive) .*%) +\d+\.\d+", r"\1 N", text, flags=re.M)


@pytest.fixture(scope="module")
def my_model(tmp_path_factory):
    """A copy of the model that ships, as `cp -r weights/sst2-minilm-l6 certified` makes it."""
    return shutil.copytree(ROOT / "weights/sst2-minilm-l6", tmp_path_factory.mktemp("m") / "model")


@pytest.mark.parametrize(("command", "output"), INFER, ids=lambda v: v.splitlines()[0][:60])
def test_printed_output_is_real(command, output, my_model):
    _, _, module, *arguments = shlex.split(command.replace("certified", shlex.quote(str(my_model))))
    result = run(module.removeprefix("minidact."), *arguments)
    assert result.returncode == 0, result.stderr
    assert without_times(result.stdout) == without_times(output)


def test_the_first_block_installs_answers_and_tests():
    assert INFER, "no command is checked"
    first = BLOCKS[0].splitlines()
    commands = [line for line in first if line.startswith("$ ")]
    assert commands[0].startswith("$ pip install -q -e . && python -m minidact.infer ")
    assert commands[1] == '$ pip install -q -e ".[test,tutorials]" && python -m pytest'


def test_it_is_read_in_one_go_and_its_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "minidact/README.md", *(ROOT / "tutorials").glob("*.md")]
    assert pages[0].read_text().count("\n") <= 250
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#]*)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_every_file_has_its_line_in_the_tree():
    tree = (ROOT / "minidact" / "README.md").read_text()
    for path in (ROOT / "minidact").rglob("*"):
        if path.is_dir() and list(path.glob("*.py")):
            assert re.search(rf"^ +{path.name}/ ", tree, re.M), path.name
        elif path.suffix == ".py" and not path.name.startswith("__"):
            assert re.search(rf"\b{path.name}\b", tree), path.name
