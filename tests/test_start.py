"""Where a training starts: what it keeps of the model that it continues, and what it says of it."""

import json
import shutil

import numpy as np
import pytest
from conftest import FIXTURES, TINY, run
from safetensors.numpy import load_file
from training import arguments, same, weights

from minidact import Model

STILL = {"lr": 0, "head-lr": 0, "epochs": 1}
KINDS = {
    "plain": {},
    "halting": {"use": "halting", "trunk-size": 6},
    "all": {"use": "halting,planning,tokens", "trunk-size": 6, "planner": "path", "bins": 5},
}


def still(kind):
    """Options with which nothing of a model of that kind moves."""
    return STILL | ({"gate-lr": 0} if kind == "all" else {})


def train(*args):
    result = run("train", *args)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope="module", params=KINDS)
def trained(request, task, tmp_path_factory):
    """A model whose labels are (yes, no): not the order in which a file's own names come."""
    directory = tmp_path_factory.mktemp(request.param)
    for name in ("train", "dev"):
        text = (task / f"{name}.tsv").read_text().replace("\tyes", "\t0").replace("\tno", "\t1")
        (directory / f"{name}.tsv").write_text(text)
    options = KINDS[request.param] | {"label-names": "yes, no", "summary": "mean"}
    train(*arguments(directory, directory / "model", **options))
    return request.param, directory / "model"


def test_with_rates_0_and_the_same_labels_nothing_changes(trained, task, tmp_path):
    """Nor is it necessary to say again which mechanisms, how large, and which summary."""
    kind, model = trained
    lines = train(*arguments(task, tmp_path / "out", init=model, **still(kind)))
    parts = {"plain": ["pooler", "classifier"], "halting": ["halting"]}
    parts["all"] = ["halting", "planning", "tokens"]
    assert lines[1] == f"kept of --init: {', '.join(['encoder', *parts[kind]])}"
    assert same(weights(model), weights(tmp_path / "out"))
    a, b = (json.loads((path / "config.json").read_text()) for path in (model, tmp_path / "out"))
    assert a == b
    assert a["id2label"] == {"0": "yes", "1": "no"}
    texts = ["the good film", "bad", "!", "film . the"]
    answers = [[p.probs for p in Model.from_pretrained(path)(texts)]
               for path in (model, tmp_path / "out")]  # fmt: skip
    assert answers[0] == answers[1]


@pytest.mark.parametrize("form", ["LABEL_{}", "{}"])
def test_a_hugging_face_classifier_goes_on(form, tmp_path):
    """Its labels have no names; a file may write LABEL_1, or 1."""
    labels = [form.format(i) for i in (2, 0, 1)]
    rows = [f"the good film {'!' * i}\t{label}" for i, label in enumerate(labels * 3)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    shutil.copy(tmp_path / "train.tsv", tmp_path / "dev.tsv")
    lines = train(*arguments(tmp_path, tmp_path / "out", **STILL))
    assert lines[1] == "kept of --init: encoder, pooler, classifier"
    before = {
        name: array.astype(np.float32)
        for name, array in load_file(TINY / "model.safetensors").items()
    }
    assert same(before, weights(tmp_path / "out"))
    assert Model.from_pretrained(tmp_path / "out").config.id2label == (
        "LABEL_0",
        "LABEL_1",
        "LABEL_2",
    )


def test_label_names_say_what_a_number_is_whatever_the_models_order(trained, task, tmp_path):
    """The model says (yes, no); in this file 0 means no."""
    kind, model = trained
    for name in ("train", "dev"):
        text = (task / f"{name}.tsv").read_text().replace("\tno", "\t0").replace("\tyes", "\t1")
        (tmp_path / f"{name}.tsv").write_text(text)
    names = {"label-names": "no,yes"}
    by_number = train(*arguments(tmp_path, tmp_path / "a", init=model, **still(kind) | names))
    by_name = train(*arguments(task, tmp_path / "b", init=model, **still(kind)))
    scores = [
        [line for line in lines if line.startswith("epoch")] for lines in (by_number, by_name)
    ]
    assert scores[0] == scores[1]
    said = Model.from_pretrained(tmp_path / "a")
    assert said.config.id2label == ("no", "yes")  # so evaluate reads the file as the training did
    texts = ["the good film", "bad", "!"]
    for a, b in zip(said(texts), Model.from_pretrained(tmp_path / "b")(texts), strict=True):
        assert a.probs == pytest.approx(b.probs, abs=1e-6)


def test_other_labels_start_heads_anew_and_say_so(trained, task, tmp_path):
    kind, model = trained
    for name in ("train", "dev"):
        text = (task / f"{name}.tsv").read_text().replace("\tno", "\tmaybe")
        (tmp_path / f"{name}.tsv").write_text(text)
    lines = train(*arguments(tmp_path, tmp_path / "out", init=model, **still(kind)))
    new = {"plain": "kept of --init: encoder, pooler; new: classifier"}
    new["halting"] = "kept of --init: encoder; new: halting"
    new["all"] = "kept of --init: encoder, planning, tokens; new: halting"
    assert lines[1:3] == [new[kind], "labels: maybe, yes (--init's: yes, no)"]
    assert Model.from_pretrained(tmp_path / "out").config.id2label == ("maybe", "yes")
    before, after = weights(model), weights(tmp_path / "out")
    heads = [name for name in after if name.startswith(("classifier.", "dact."))]
    assert heads
    for name in after:
        kept = name not in heads
        assert np.array_equal(before[name], after[name]) == kept or not after[name].any(), name


def test_what_is_not_used_any_more_is_said(trained, task, tmp_path):
    kind, model = trained
    lines = train(*arguments(task, tmp_path / "out", init=model, use="", **STILL))
    dropped = {"halting": "halting", "all": "halting, planning, tokens"}
    if kind == "plain":
        assert "dropped" not in lines[1]
    else:
        assert lines[1].endswith(f"new: pooler, classifier; dropped: {dropped[kind]}")
    assert not Model.from_pretrained(tmp_path / "out").config.mechanisms


def test_ten_steps_from_a_classifier_give_pytorchs_losses(tmp_path):
    golden = load_file(FIXTURES / "golden.safetensors")["step_losses"]
    steps, log = FIXTURES / "steps.tsv", tmp_path / "log.jsonl"
    how = ["--warmup", "0", "--schedule", "constant", "--dropout", "0", "--no-shuffle"]
    how += ["--batch-size", "4", "--epochs", "2", "--lr", "1e-3", "--log", str(log)]
    train("--data", steps, "--dev", steps, "--init", TINY, "--out", tmp_path / "out", *how)
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    np.testing.assert_allclose(losses, golden, rtol=0, atol=2e-5)
    assert len(losses) == 10
    assert np.mean(losses[5:]) < np.mean(losses[:5])


def test_options_beside_resume_are_refused(tmp_path):
    result = run("train", "--out", tmp_path, "--resume", "--lr", "3e-5", "--blind")
    assert result.returncode == 2
    assert result.stderr == (
        "error: --resume goes on with the run's own options: leave out --lr, --blind\n"
    )
