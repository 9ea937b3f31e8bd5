"""Bad input through the commands: one sentence on stderr, exit code 2, nothing written.

The commands' own main() is called, in this process; that they are what `python -m` runs is seen
elsewhere. What damages a model is test_checkpoint's list, what a file test_data's.
"""

import importlib
import sys

import pytest
from conftest import FIXTURES, TINY
from test_checkpoint import BROKEN, copy  # noqa: F401  copy is a fixture
from test_data import BAD

from minidact.errors import run_command

REVIEWS = FIXTURES / "reviews.tsv"
# what is no harm to a backbone: train makes a new classifier, and new mechanisms
NOT_FOR_TRAINING = {
    "no_classifier", "unexpected", "misshapen", "not_a_number", "infinite", "integers",
}  # fmt: skip


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs a command, which must end with code 2 and one line that holds the sentence."""

    def run(sentence, module, *arguments):
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run_command(importlib.import_module(f"minidact.{module}").main)
        out, err = capsys.readouterr()
        assert (end.value.code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert sentence in err

    return run


@pytest.mark.parametrize(("damage", "sentence"), BROKEN, ids=lambda v: getattr(v, "__name__", ""))
def test_broken_models(damage, sentence, copy, refused, tmp_path):  # noqa: F811
    damage(copy)
    refused(sentence, "infer", "--model", copy, "a text")
    refused(sentence, "evaluate", "--model", copy, "--data", REVIEWS)
    if damage.__name__ not in NOT_FOR_TRAINING and "halting" not in sentence:
        files = ["--data", REVIEWS, "--dev", REVIEWS, "--out", tmp_path / "out"]
        if "lacks dact" not in sentence:
            refused(sentence, "train", "--init", copy, *files)
            assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name, refused, tmp_path):
    content, sentence = BAD[name]
    file, out = tmp_path / name, tmp_path / "out"
    file.write_bytes(content)
    refused(sentence, "evaluate", "--data", file)
    refused(sentence, "bench", "--only", "minidact", "--data", file)
    refused(sentence, "train", "--init", TINY, "--out", out, "--data", file, "--dev", REVIEWS)
    refused(sentence, "train", "--init", TINY, "--out", out, "--data", REVIEWS, "--dev", file)
    assert not out.exists()
