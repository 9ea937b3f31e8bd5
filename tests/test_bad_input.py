"""Bad input through the commands: one sentence on stderr, exit code 2, nothing written.

The commands' own main() is called, in this process; that they are what `python -m` runs is seen
elsewhere. What damages a model is test_checkpoint's list, what a file test_data's.
"""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import FIXTURES, ROOT, TINY
from damage import BAD, BROKEN
from safetensors.numpy import load_file, save_file

from minidact import InputError, Model, checkpoint

REVIEWS = FIXTURES / "reviews.tsv"
# what is no harm to a backbone: train makes a new classifier, and new mechanisms
NOT_FOR_TRAINING = {
    "no_classifier", "unexpected", "misshapen", "not_a_number", "infinite", "integers",
}  # fmt: skip


@pytest.mark.parametrize(("damage", "sentence"), BROKEN, ids=lambda v: getattr(v, "__name__", ""))
def test_broken_models(damage, sentence, copy, refused, tmp_path):
    damage(copy)
    refused(sentence, "infer", "--model", copy, "a text")
    refused(sentence, "evaluate", "--model", copy, "--data", REVIEWS)
    if damage.__name__ not in NOT_FOR_TRAINING and "lacks dact" not in sentence:
        files = ["--data", REVIEWS, "--dev", REVIEWS, "--out", tmp_path / "out"]
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


def test_labels_that_the_model_does_not_know(refused, tmp_path):
    (tmp_path / "new.tsv").write_text("text\tlabel\na\tpositive\nb\tmaybe\n")
    refused("new.tsv, line 3: unknown label 'maybe'", "evaluate", "--data", tmp_path / "new.tsv")


def test_ids_that_the_model_has_no_row_for(copy, refused):
    """Not of words, which are checked when it is read, but added: [SEP], or a second segment."""
    raw = json.loads(checkpoint.read_tokenizer(copy, checkpoint.read_config(copy)).to_str())
    raw["post_processor"]["sep"][1] = 10**9
    (copy / "tokenizer.json").write_text(json.dumps(raw))
    refused("ids up to 1000000000 and segments up to 0", "infer", "--model", copy, "a text")
    (copy / "tokenizer.json").unlink()
    tensors = load_file(copy / "model.safetensors")
    segments = "bert.embeddings.token_type_embeddings.weight"
    save_file(tensors | {segments: tensors[segments][:1]}, copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text()) | {"type_vocab_size": 1}
    (copy / "config.json").write_text(json.dumps(config))
    assert Model.from_pretrained(copy)("a text").tokens
    refused("segments up to 1, but", "infer", "--model", copy, "--pair", "another", "a text")


def test_a_large_file_takes_no_more_than_twice_its_size(copy, tmp_path):
    """Of model.safetensors: valid, but it is not what config.json says, or it ends too early."""
    size, whole = 256 * 2**20, tmp_path / "whole"
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"bert.large": entry}).encode()
    for bytes_there, sentence in ((size, "lacks bert.embeddings"), (size - 1, "is damaged")):
        with open(whole, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + bytes_there)
        whole.replace(copy / "model.safetensors")
        command = [sys.executable, "-m", "minidact.infer", "--model", copy, "a text"]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        error = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 2
        assert sentence in error
        assert usage.ru_maxrss * 1024 < 2 * size + 200 * 2**20  # Python and Numba themselves


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"texts": 3}, "neither a str nor a list"),
        ({"texts": "good", "at": 0.3}, "knob of a rule"),
        ({"texts": [None]}, "text 0 is of type NoneType, not str"),
        ({"texts": b"bytes"}, "texts are of type bytes, neither a str nor a list"),
        ({"texts": ["a", "b"], "text_pairs": ["c"]}, "2 texts, but 1 second texts"),
        ({"texts": "a", "text_pairs": [3]}, "second text 0 is of type int, not str"),
        ({"texts": "a", "text_pairs": 5}, "second texts are of type int, neither"),
        ({"texts": "a", "slak": 1}, "knob is 'slak'; there are: slack, bound"),
        ({"texts": "a", "budget": 0.5, "slak": 1}, "knob is 'slak'"),
        ({"texts": "a", "slack": "0.3"}, "slack is '0.3'; it must be a number"),
        ({"texts": "a", "batch_size": 0}, "batch_size is 0"),
        ({"texts": "a", "slack": -1}, "slack is -1"),
        ({"texts": "a", "bound": "loose"}, "bound is 'loose'"),
        ({"texts": "a", "use": "magic"}, "does not carry 'magic'"),
        ({"texts": "a", "rule": "coin"}, "rule is 'coin'"),
        ({"texts": "a", "budget": 0.5}, "has no budgets"),
    ],
)
def test_from_python_the_same_mistakes_raise_one_type(arguments, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        Model.from_pretrained(TINY)(**arguments)
