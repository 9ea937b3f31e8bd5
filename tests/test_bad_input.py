"""Bad input through the commands: one sentence on stderr, exit code 2, nothing written.

The commands' own main() is called, in this process; that they are what `python -m` runs is seen
elsewhere. What damages a model is test_checkpoint's list, what a file test_data's.
"""

import dataclasses
import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, TINY, memory
from damage import BAD, BROKEN, edit_config
from safetensors.numpy import load_file, save_file
from tokenizers import processors

from minidact import InputError, Model, checkpoint
from minidact.study import sweep

REVIEWS = FIXTURES / "reviews.tsv"
# what is no harm to a backbone: train makes a new classifier, and new mechanisms
NOT_FOR_TRAINING = {
    "no_classifier", "unexpected", "misshapen", "not_a_number", "infinite", "integers",
    "beyond_float32",
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


@pytest.mark.parametrize("reference", [False, True])
def test_more_tokens_than_places(reference):
    """A Model's tokenizer cuts texts; whoever tells it not to is told."""
    model = Model.from_pretrained(TINY, reference=reference)
    model.tokenizer.no_truncation()
    with pytest.raises(InputError, match="a text has 42 tokens, and the model knows 24 places"):
        model("good " * 40)


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
        code, error, most = memory("infer", "--model", copy, "a text")
        assert code == 2
        assert sentence in error
        assert most < 2 * size + 200 * 2**20  # Python and Numba themselves


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"texts": 3}, "neither a str nor a list"),
        ({"texts": "good", "at": 0.3}, "at is a knob of halting, which is not in use"),
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
        ({"texts": "a", "batch_size": 2.5}, "batch_size is 2.5; it must be a whole number"),
        ({"texts": "a", "batch_size": "3"}, "batch_size is '3'; it must be a whole number"),
        ({"texts": "a", "threshold": None}, "threshold is None; it must be a number"),
        ({"texts": "a", "threshold": 10**400}, "threshold is 10000"),
        ({"texts": "a", "keep": float("inf")}, "keep is inf"),
        ({"texts": "a", "slack": float("nan")}, "slack is nan"),
        ({"texts": "a", "budget": "0.5"}, "budget is '0.5'; it must be a number"),
        ({"texts": "a", "use": 3}, "use is 3, neither a mechanism's name nor a list of them"),
        ({"texts": "a", "use": [["halting"]]}, "does not carry ['halting']"),
        ({"texts": "a", "rule": ["fixed"]}, "rule is ['fixed']; there are: dact"),
    ],
)
def test_from_python_the_same_mistakes_raise_one_type(arguments, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        Model.from_pretrained(TINY)(**arguments)


def test_names_and_dtypes_that_are_none(tmp_path):
    model = Model.from_pretrained(TINY)
    for call, sentence in (
        (lambda: Model.from_pretrained(3), "named by a str or a path, not by 3"),
        (lambda: Model.from_pretrained("a" * 5000), "no model directory 'aaa"),
        (lambda: Model.from_pretrained("a\0b"), "no model directory"),
        (lambda: model.save_pretrained(3), "3 cannot be made a directory"),
        (lambda: model.save_pretrained("a\0b"), "cannot be made a directory"),
        (lambda: model.save_pretrained(tmp_path, np.int32), "dtype is 'int32'; there are: float32"),
        (lambda: model.save_pretrained(tmp_path, "foo"), "dtype is 'foo'; there are: float32"),
    ):
        with pytest.raises(InputError, match=sentence):
            call()
    assert not list(tmp_path.iterdir())


def test_two_texts_of_which_nothing_is_left(copy, refused):
    """A template for one text alone puts nothing around two."""
    tokenizer = checkpoint.read_tokenizer(copy, checkpoint.read_config(copy))
    ids = [("[CLS]", tokenizer.token_to_id("[CLS]"))]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A", "$A $B", ids)
    tokenizer.save(str(copy / "tokenizer.json"))
    sentence = "the model's tokenizer adds no [CLS] and [SEP] to two texts"
    refused(sentence, "infer", "--model", copy, "", "--pair", "")


def test_more_tokens_than_positions(copy, refused):
    """Two texts need three special tokens; a template may add many, or use a text twice."""
    Model.from_pretrained(copy)("good")  # compiled, infer asks for a short text first
    tensors = load_file(copy / "model.safetensors")
    name = "bert.embeddings.position_embeddings.weight"
    two = tensors | {name: np.ascontiguousarray(tensors[name][:2])}
    whole = checkpoint.read_tokenizer(copy, checkpoint.read_config(copy))
    save_file(two, copy / "model.safetensors")
    edit_config(copy, max_position_embeddings=2)
    refused("makes 5 tokens where 2 fit", "infer", "--model", copy, "a", "--pair", "b")
    save_file(tensors, copy / "model.safetensors")
    edit_config(copy, max_position_embeddings=24)
    for template, sentence in (
        ("[CLS] " * 30 + "$A", "makes 34 tokens where 24 fit"),
        ("[CLS] $A $A", "makes 47 tokens where 24 fit"),
    ):
        ids = [("[CLS]", whole.token_to_id("[CLS]"))]
        whole.post_processor = processors.TemplateProcessing(template, None, ids)
        whole.no_truncation()
        (copy / "tokenizer.json").write_text(whole.to_str())
        refused(sentence, "infer", "--model", copy, "good " * 50)


def test_a_sweep_sees_first_that_its_place_cannot_be_written(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(sweep, "sweep", lambda *_: pytest.fail("it has begun"))
    what = ["evaluate", "--data", REVIEWS, "--sweep"]
    refused("x.foo: the name must end in one of .", *what, "--plot", tmp_path / "x.foo")
    refused("could not be written", *what, "--plot", tmp_path / "nowhere" / "x.png")
    (tmp_path / "x.npz").mkdir()
    refused("x.npz could not be written: Is a directory", *what, "--texts", tmp_path / "x.npz")
    shipped, there = ROOT / "weights" / "sst2-minilm-l6", tmp_path / "model"
    shutil.copytree(shipped, there)
    no_space = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(no_space))
    refused("config.json could not be written: No space", *what, "--calibrate", "--model", there)
    assert (there / "config.json").read_bytes() == (shipped / "config.json").read_bytes()


def test_a_linked_config_stays_a_link(copy):
    """As in a hub's cache."""
    (copy / "config.json").rename(copy / "blob")
    (copy / "config.json").symlink_to("blob")
    config = checkpoint.read_config(copy)
    checkpoint.save_config(copy, dataclasses.replace(config, summary="mean"))
    assert (copy / "config.json").is_symlink()
    assert checkpoint.read_config(copy).summary == "mean"
