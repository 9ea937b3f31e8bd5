"""The mean of several models' weights."""

import json
import shutil

import numpy as np
from conftest import TINY, run
from safetensors.numpy import load_file, save_file

from minidact import Model

WEIGHTS = "model.safetensors"


def changed(directory, rng, **config):
    """A copy of the tiny model with other weights, and with these entries in its config.json."""
    shutil.copytree(TINY, directory)
    tensors = load_file(directory / WEIGHTS)
    noise = {n: rng.normal(scale=0.1, size=a.shape).astype(a.dtype) for n, a in tensors.items()}
    save_file({name: array + noise[name] for name, array in tensors.items()}, directory / WEIGHTS)
    read = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(read | config))
    return directory


def test_the_mean_is_the_mean_of_every_weight(tmp_path, rng):
    parts = [TINY, changed(tmp_path / "a", rng), changed(tmp_path / "b", rng)]
    result = run("study.soup", "--models", ",".join(map(str, parts)), "--out", tmp_path / "mean")
    assert result.returncode == 0, result.stderr
    assert f"saved {tmp_path / 'mean'}, the mean of 3 models" in result.stdout
    models = [Model.from_pretrained(part) for part in parts]
    mean = Model.from_pretrained(tmp_path / "mean")
    assert mean.config == models[0].config
    for name, array in mean.params.items():
        expected = np.mean([m.params[name].astype(np.float64) for m in models], axis=0)
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-7)


def test_what_has_no_mean(tmp_path, rng):
    deeper = changed(tmp_path / "deeper", rng, layer_norm_eps=1e-6)
    words = changed(tmp_path / "words", rng)
    vocabulary = (words / "vocab.txt").read_text().splitlines()
    vocabulary[-2:] = vocabulary[:-3:-1]
    (words / "vocab.txt").write_text("\n".join(vocabulary))
    for models, sentence in (
        (f"{TINY}", "two models or more"),
        (f"{TINY},{deeper}", "have different config.json"),
        (f"{TINY},{words}", "number their words in different ways"),
        (f"{TINY},nowhere", "nowhere"),
    ):
        result = run("study.soup", "--models", models, "--out", tmp_path / "out")
        assert result.returncode == 2
        assert sentence in result.stderr
        assert not (tmp_path / "out").exists()
    result = run("study.soup", "--models", f"{TINY},{TINY}", "--out", "")
    assert (result.returncode, result.stderr) == (2, "error: --out names none\n")
    before = (words / WEIGHTS).read_bytes()
    result = run("study.soup", "--models", f"{TINY},{TINY}", "--out", words)
    assert result.returncode == 2
    assert "holds a model already (config.json); choose another --out" in result.stderr
    assert (words / WEIGHTS).read_bytes() == before
