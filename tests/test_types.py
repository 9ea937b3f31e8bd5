"""Types, completion and help: what tools and people are told of the package."""

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY

import minidact
from minidact import InputError, Model
from minidact.mechanisms import KNOBS


def mypy(*arguments):
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", *map(str, arguments)]
    here = Path(__file__).parent  # away from the sources: the package is what is installed
    return subprocess.run(command, cwd=here, capture_output=True, text=True)


def test_a_users_program_passes_the_strictest_checks():
    result = mypy("--strict", Path(__file__).parent / "typing_example.py")
    assert result.returncode == 0, result.stdout


def test_a_wrong_program_does_not(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from minidact import Model\nlabel: int = Model.from_pretrained()('a').label\n"
    )
    result = mypy("--strict", wrong)
    assert result.returncode == 1
    assert 'expression has type "str", variable has type "int"' in result.stdout


def test_the_package_lists_what_it_offers():
    assert {"Model", "Prediction", "InputError"} <= set(dir(minidact))


def test_help_and_completion_know_every_knob():
    for function in (Model.__call__, Model.knobs):
        parameters = inspect.signature(function).parameters
        for name, knob in KNOBS.items():
            assert parameters[name].default == knob.usual
            assert f"{name} (default {knob.usual}): {knob.help}" in function.__doc__
        assert "budget" in parameters


class Series:
    """As pandas has them: iterable, looked up by labels, neither true nor false."""

    def __init__(self, texts):
        self.texts = texts

    def __iter__(self):
        return iter(self.texts)

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, label):
        raise KeyError(label)

    def __bool__(self):
        raise ValueError("the truth value of a Series is ambiguous")


def test_any_iterable_of_texts_is_a_list_of_texts():
    model = Model.from_pretrained(TINY)
    texts, backwards = ["the good film", "bad", "!"], ["!", "a", "b"]
    expected = [answer.probs for answer in model(texts, backwards, batch_size=2)]
    for kind in (Series, iter, tuple):
        answers = model(kind(texts), kind(backwards), batch_size=2)
        assert [answer.probs for answer in answers] == expected
    for table in ({"text": "good"}, SimpleNamespace(columns=["text"])):  # as DataFrames have
        with pytest.raises(InputError, match="neither a str nor a list"):
            model(table)
    with pytest.raises(InputError, match="of type ndarray"):
        model(np.array("good"))
    with pytest.raises(InputError, match="3 texts, but 2 second texts"):
        model(Series(texts), Series(backwards[:2]))
