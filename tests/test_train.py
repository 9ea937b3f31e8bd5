"""Fine-tuning by the command: it learns, it logs, it can be stopped, killed and repeated."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TINY, run
from networks import prices, random_batch, random_params, small_config
from safetensors import safe_open
from safetensors.numpy import save_file
from training import arguments, same, weights

from minidact import InputError, Model, data, ops, optim, soft
from minidact.mechanisms import dact, token_gates
from minidact.mechanisms.exits import Halting
from minidact.mechanisms.planning import Planning
from minidact.mechanisms.token_gates import TokenGates
from minidact.network import Network
from minidact.options import STATE, training_options
from minidact.train import __main__ as train_main
from minidact.train import start, told
from minidact.train.learn import are_settled, learn


@pytest.mark.parametrize("use", ["", "halting", "halting,planning,tokens"])
def test_it_learns_and_the_log_says_so(use, task, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log.jsonl"
    result = run("train", *arguments(task, out, use=use, log=log, epochs=6, summary="mean"))
    assert result.returncode == 0, result.stderr
    last = [line for line in result.stdout.splitlines() if line.startswith("epoch 6: dev accuracy")]
    assert float(last[0].split()[4].rstrip(",")) >= 0.95
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(42))
    keys = {"step", "loss", "lr", "tokens", "tokens_per_s"}
    keys |= {"answer", "ponder", "heads", "tau"} if use else set()
    keys |= {"layer_cost", "token_cost", "bimodal", "undecided"} if "planning" in use else set()
    assert all(set(r) == keys for r in records)
    term = "answer" if use else "loss"  # in the loss are the prices of layers and tokens, too
    assert records[-1][term] < 0.6 * records[0][term]
    for r in records if use == "halting" else []:
        parts = r["answer"] + r["tau"] * r["ponder"] + 1.0 * r["heads"]
        assert r["loss"] == pytest.approx(parts, rel=1e-5)
    assert max(r["lr"] for r in records) <= 3e-3

    model = Model.from_pretrained(out)
    assert tuple(model.config.mechanisms) == tuple(filter(None, use.split(",")))
    assert model.config.summary == "mean"
    assert model("the good film").label == "yes"
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json"
    ]  # fmt: skip


def test_same_seed_same_bits_and_another_seed_others(task, tmp_path):
    """The first training compiles all kernels, the others find them compiled."""
    use, env = "halting,planning,tokens", {"NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        result = run("train", *arguments(task, tmp_path / name, use=use, seed=seed), env=env)
        assert result.returncode == 0, result.stderr
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


LONG = {"use": "halting,planning,tokens", "epochs": 40, "save-every": 20}
LONG |= {"schedule": "constant", "explore-share": 0.05, "average": 0.9}


@pytest.fixture(scope="module")
def undisturbed(task, tmp_path_factory):
    """The weights of a training that nothing stops."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    result = run("train", *arguments(task, out, **LONG))
    assert result.returncode == 0, result.stderr
    return weights(out)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("moment", [0, 45, 130])
def test_stopped_or_killed_it_goes_on_to_the_same_bits(how, moment, task, undisturbed, tmp_path):
    out, log, init = tmp_path / "out", tmp_path / "log.jsonl", tmp_path / "init"
    shutil.copytree(TINY, init)
    options = LONG | {"init": init}
    state = out / "training.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-m", "minidact.train", *arguments(task, out, log=log, **options)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while not state.exists() or log.read_bytes().count(b"\n") < moment:
        assert process.poll() is None, "ended before its first checkpoint"
        time.sleep(0.002)
    process.send_signal(how)
    stdout, _ = process.communicate()
    assert (out / "training.safetensors").exists(), "it had ended already: make the run longer"
    assert not (out / "model.safetensors").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert f"checkpoint with: python -m minidact.train --out {out} --resume" in stdout
    (out / ".training.safetensors.left").write_bytes(b"half a checkpoint")
    out = out.rename(tmp_path / "moved")
    shutil.rmtree(init)  # all that is needed is in the checkpoint
    resumed = run("train", "--out", out, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert same(weights(out), undisturbed)
    assert not list(out.glob(".*"))
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(280))


def test_a_log_is_cut_back_to_whole_records_of_steps_that_are_done(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 0, "loss": 1}\n{"step": 2, "loss": 3}\n{"step": 3, "lo')
    with train_main.open_log(
        log, 4
    ) as file:  # the disk was full, and what could not be written is missing
        file.write('{"step": 4, "loss": 2}\n')
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [0, 2, 4]
    train_main.open_log(log, 1).close()
    assert log.read_text() == '{"step": 0, "loss": 1}\n'


def test_data_that_changed_meanwhile_end_it(task, tmp_path):
    here = shutil.copytree(task, tmp_path / "task")
    process = subprocess.Popen(
        [sys.executable, "-m", "minidact.train", *arguments(here, tmp_path / "out", epochs=4000)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "examples" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate()
    rows = (here / "dev.tsv").read_text().splitlines(keepends=True)
    (here / "dev.tsv").write_text("".join(rows[:-1]))
    result = run("train", "--out", tmp_path / "out", "--resume")
    assert result.returncode == 2
    assert "dev.tsv has changed since the run began, so it cannot go on" in result.stderr
    (here / "dev.tsv").write_text("".join(rows))
    assert len(train_main.go_on(tmp_path / "out").dev_labels) == len(rows) - 1


def test_another_run_may_have_ended_meanwhile(task, tmp_path, monkeypatch, refused):
    begin = train_main.begin

    def while_another_ends(options):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("{}")
        return begin(options)

    monkeypatch.setattr(train_main, "begin", while_another_ends)
    refused("holds a model already (config.json)", "train", *arguments(task, tmp_path / "out"))


def test_an_average_has_seen_the_last_steps(task, tmp_path):
    """Of 7 steps each moves it by a tenth: it is the mean that they make, not the start."""
    for name, decay in (("mean", 0.9), ("last", 0)):
        result = run("train", *arguments(task, tmp_path / name, epochs=1, average=decay))
        assert result.returncode == 0, result.stderr
    start, mean, last = (weights(path) for path in (TINY, tmp_path / "mean", tmp_path / "last"))
    for name in ("bert.encoder.layer.0.output.dense.weight", "bert.embeddings.LayerNorm.bias"):
        expected = 0.9**7 * start[name].astype(float) + (1 - 0.9**7) * last[name]
        np.testing.assert_allclose(mean[name], expected, rtol=1e-5, atol=1e-7)


def test_an_average_has_seen_all_steps_of_an_epoch(task, tmp_path):
    """One that forgets at once scores in each epoch as the weights themselves do."""
    said = []
    for name, decay in (("forgets", 1e-6), ("none", 0)):
        more = {"epochs": 4, "average": decay, "batch-size": 64}  # 4 steps an epoch
        result = run("train", *arguments(task, tmp_path / name, **more))
        assert result.returncode == 0, result.stderr
        said.append([line for line in result.stdout.splitlines() if line.startswith("epoch")])
    assert len(set(said[1])) > 1
    assert said[0] == said[1]


def test_the_best_epoch_is_one_whose_gates_are_set(task, tmp_path):
    """What scores best before is another model, that leaves nothing out yet."""
    more = {"use": "tokens", "keep": "best", "token-cost": 5, "lr": 0}
    result = run("train", *arguments(task, tmp_path / "out", **more))
    assert result.returncode == 0, result.stderr
    assert set(np.unique(weights(tmp_path / "out")[token_gates.NAME])) <= {0.0, 1.0}


def test_keep_best_keeps_the_best_epoch(task, tmp_path):
    """The dev labels are the wrong way round: the more it learns, the lower it scores."""
    lines = (task / "dev.tsv").read_text().replace("\tyes", "\t-").replace("\tno", "\tyes")
    dev = tmp_path / "dev.tsv"
    dev.write_text(lines.replace("\t-", "\tno"))
    result = run("train", *arguments(task, tmp_path / "best", dev=dev, keep="best", epochs=6))
    assert result.returncode == 0, result.stderr
    epochs = [line for line in result.stdout.splitlines() if line.startswith("epoch")]
    scores = [line.split()[4].rstrip(",") for line in epochs]
    assert scores[-1] < max(scores), "nothing to choose from"
    got = run("evaluate", "--model", tmp_path / "best", "--data", dev, "--json")
    assert f"{json.loads(got.stdout)['value']:.4f}" == max(scores)


def test_a_pondernet_starts_as_its_prior(task, tmp_path):
    chosen = arguments(task, tmp_path / "out", "--heads", "pondernet", use="halting", prior=0.25)
    options = training_options(chosen)
    config, params, *_ = start.build(options, start.read_examples(options, options.data))
    for layer in range(config.num_hidden_layers):
        bias = params[f"{dact.unit_name(layer)}.halting.bias"]
        np.testing.assert_allclose(1 / (1 + np.exp(-bias)), 1 - 0.25, rtol=1e-6)


def test_label_names_and_half_precision(task, tmp_path):
    for name in ("train", "dev"):  # the same task with numbers for labels
        text = (task / f"{name}.tsv").read_text().replace("\tyes", "\t1").replace("\tno", "\t0")
        (tmp_path / f"{name}.tsv").write_text(text)
    out = tmp_path / "out"
    more = {"label-names": "absent,present", "dtype": "float16", "epochs": 1}
    result = run("train", *arguments(tmp_path, out, **more))
    assert result.returncode == 0, result.stderr
    assert Model.from_pretrained(out).config.id2label == ("absent", "present")
    assert {a.dtype for a in weights(out).values()} == {np.dtype(np.float16)}
    # a file may write the numbers still, but not names that the model never saw
    for file, code in ((tmp_path / "dev.tsv", 0), (task / "dev.tsv", 2)):
        result = run("evaluate", "--model", out, "--data", file)
        assert result.returncode == code, result.stderr
    assert "unknown label" in result.stderr


def test_regression(tmp_path):
    rng = np.random.default_rng(0)
    for name, column in (("own", "label"), ("stsb", "score")):  # --regression, and by layout
        rows = [f"text\t{column}"]
        for _ in range(150):
            words = rng.choice(["good", "bad", "film"], rng.integers(1, 7))
            rows.append(f"{' '.join(words)}\t{np.mean(words == 'good'):.3f}")
        data = tmp_path / f"{name}.tsv"
        data.write_text("\n".join(rows) + "\n")
        options = {"data": data, "dev": data, "epochs": 12, "summary": "mean"}
        more = ["--regression"] if name == "own" else []
        out = tmp_path / name
        result = run("train", *arguments(tmp_path, out, *more, **options))
        assert result.returncode == 0, result.stderr
        result = run("evaluate", "--model", out, "--data", data, "--json")
        assert result.returncode == 0, result.stderr
        record = json.loads(result.stdout)
        assert record["metric"] == "pearson_spearman"
        assert record["value"] > 0.9


def test_pairs_order_dropout_and_the_other_switches(tmp_path):
    """A task on two texts, as they come, without dropout, with the paper's own unit and cost."""
    rng, rows = np.random.default_rng(0), ["sentence1\tsentence2\tlabel"]
    for _ in range(200):
        a, b = rng.choice(["good", "bad"], 2)
        rows.append(f"{a} film\tthe {b}\t{'same' if a == b else 'other'}")
    (tmp_path / "train.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "dev.tsv").write_text("\n".join(rows[:60]) + "\n")
    switches = ["--no-shuffle", "--blind", "--ponder=h", "--dropout=0", "--distill=0.5"]
    options = {"use": "halting", "epochs": 20, "schedule": "constant"}
    out = tmp_path / "out"
    result = run("train", *arguments(tmp_path, out, *switches, **options))
    assert result.returncode == 0, result.stderr
    trained = Model.from_pretrained(out)
    assert not trained.config.mechanisms["halting"].sees_confidence
    assert trained.config.hidden_dropout_prob == 0.1  # --dropout is of the training alone
    assert trained("good film", "the good").label == "same"
    assert trained("good film", "the bad").label == "other"
    # infer says where a second text is wanted, and takes two from a line
    alone = run("infer", "good film", "--model", out)
    assert (
        "note: the model was trained on two texts at a time; --pair gives the second"
        in alone.stderr
    )
    assert alone.returncode == 0
    lines = "good film\tthe good\nno second text\ngood film\tthe bad\n"
    streamed = run("infer", "-", "--pairs", "--model", out, "--json", stdin=lines)
    said = [json.loads(line) for line in streamed.stdout.splitlines()]
    assert [answer.get("label") for answer in said] == ["same", None, "other"]
    assert said[1]["error"] == "line 2: one tab must separate two texts"
    assert streamed.stderr == ""
    refused = run("infer", "good film", "--pairs", "--model", out)
    long = "good film " * 4000 + "\tthe bad"
    for tabs, expected in (("", "the bad"), ("\t", "one tab")):
        line = run("infer", "-", "--pairs", "--model", out, "--json", stdin=long + tabs)
        assert expected in line.stdout
    assert refused.returncode == 2
    assert "--pairs is for texts from standard input" in refused.stderr


def test_gates_close_and_a_second_stage_leaves_them_as_they_are(task, tmp_path):
    """Few layers and few tokens are enough here, and the price of both is high."""
    first, second = tmp_path / "first", tmp_path / "second"
    price = {"layer-cost": 20, "layer-target": 0, "token-cost": 20, "gate-lr": 0.05}
    options = {"use": "planning,tokens", "epochs": 20, "explore-share": 0.1, "pool": "left"} | price
    result = run("train", *arguments(task, first, **options))
    assert result.returncode == 0, result.stderr
    gates = weights(first)["tokens.gates"]
    assert gates.min() == 0
    answer = Model.from_pretrained(first)("the good film")
    assert answer.label == "yes"
    assert answer.layers_run == [0]
    options = {"use": "tokens", "init": first, "epochs": 2, "pool": "left"}
    result = run("train", *arguments(task, second, "--freeze-gates", **options))
    assert result.returncode == 0, result.stderr
    assert np.array_equal(weights(second)["tokens.gates"], gates >= 0.5)
    answer = Model.from_pretrained(second)("the good film")
    assert answer.label == "yes"
    assert answer.tokens_per_layer[1] < answer.tokens_per_layer[0]
    for extra in (["--use", "tokens"], ["--use", "tokens", "--bins", "3", "--init", str(first)]):
        result = run("train", *arguments(task, tmp_path / "no", "--freeze-gates"), *extra)
        assert result.returncode == 2
        assert "--freeze-gates needs" in result.stderr


# ---------------------------------------------------------------------------- what cannot work


def test_wrong_options_are_named(task, tmp_path, refused):
    full = tmp_path / "full"
    full.mkdir()
    (full / "config.json").write_text("{}")
    one = tmp_path / "one.tsv"
    one.write_text("text\tlabel\na\tx\nb\tx\n")
    new = tmp_path / "new.tsv"
    new.write_text("text\tlabel\na\tmaybe\n")
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("text\ttext_pair\tlabel\na\tb\tyes\n")
    for options, sentence in [
        ({"use": "tokenss"}, "--use 'tokenss' is unknown"),
        ({"use": "halting", "token-cost": 1}, "--token-cost needs --use tokens"),
        ({"use": "planning", "heads": "pabee"}, "--heads needs --use halting"),
        ({"epochs": 0}, "--epochs is 0; it must lie in 1..10000"),
        ({"lr": -1}, "--lr is -1"),
        ({"lr": "nan"}, "--lr is nan"),
        ({"dropout": 1}, "--dropout is 1"),
        ({"label-names": "a,b,c"}, "--label-names gives 3 names, the file has 2 labels"),
        ({"label-names": "a,b"}, "--label-names is for labels 0, 1, ..; the file's are no, yes"),
        ({"label-names": "a,"}, "--label-names gives 1 names, the file has 2 labels"),
        ({"label-names": "a,a"}, "has one name twice"),
        ({"out": full}, "holds a model already"),
        ({"out": one / "below"}, "cannot be made a directory"),
        ({"log": tmp_path / "none" / "log.jsonl"}, "could not be written"),
        ({"metric": "pearson_spearman"}, "does not fit: the model predicts classes"),
        ({"seed": "9" * 400}, "it must lie in"),
        ({"init": tmp_path / "nothing"}, "no model directory"),
        ({"data": tmp_path / "nothing.tsv"}, "cannot be read"),
        ({"data": one}, "there is nothing to learn"),
        ({"dev": new}, "unknown label 'maybe'"),
        ({"dev": pairs}, "one has pairs of texts, one has not"),
        ({"tau": 0.1}, "--tau needs --use halting"),
    ]:
        refused(
            sentence, "train", *arguments(task, options.pop("out", tmp_path / "out"), **options)
        )
    result = run("train", "--out", tmp_path / "out")
    assert (result.returncode, result.stderr) == (2, "error: --data is missing\n")
    result = run("train", "--out", tmp_path / "out", "--resume")
    assert result.returncode == 2
    assert "no unfinished run" in result.stderr
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "training.safetensors").write_bytes(b"nonsense")
    result = run("train", "--out", tmp_path / "out", "--resume")
    assert result.returncode == 2
    assert "is damaged" in result.stderr


def test_a_loss_that_is_not_finite_stops(task, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in ("config.json", "vocab.txt"):
        (broken / file).write_bytes((TINY / file).read_bytes())
    huge = {n: t.astype(np.float32) * np.float32(1e30) for n, t in weights(TINY).items()}
    save_file(huge, broken / "model.safetensors")
    result = run("train", *arguments(task, tmp_path / "out", init=broken))
    assert result.returncode == 2
    assert "is nan at step 0: training stops" in result.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert "Traceback" not in result.stderr


def test_without_a_dev_file_a_tenth_of_every_class_is_held_out(task, tmp_path):
    rows = [f"good {i}\tyes" for i in range(60)] + [f"bad {i}\tno" for i in range(30)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *rows, "odd\tmaybe"]) + "\n")
    options = training_options(arguments(tmp_path, tmp_path / "none", epochs=1, seed=3))
    options.dev, examples = None, start.read_examples(options, tmp_path / "train.tsv")
    kept, held = start.split(options, examples)
    assert sorted(held.labels) == ["no"] * 3 + ["yes"] * 6
    assert sorted(kept.texts + held.texts) == sorted(examples.texts)
    assert start.split(options, examples) == (kept, held)
    command = arguments(tmp_path, tmp_path / "out", epochs=1)
    at = command.index("--dev")
    result = run("train", *command[:at], *command[at + 2 :])
    assert result.returncode == 0, result.stderr
    assert "scored on 9 examples; always 'yes' scores accuracy 0.6667" in result.stdout
    small = start.chosen(examples, range(3))
    with pytest.raises(InputError, match="too small to hold any out"):
        start.split(options, small)


def test_a_class_of_five_has_one_held_out(task, tmp_path):
    rows = [f"text {i}\t{i % 2}" for i in range(10)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    options = training_options(arguments(tmp_path, tmp_path / "none"))
    options.dev = None
    kept, held = start.split(options, start.read_examples(options, tmp_path / "train.tsv"))
    assert sorted(held.labels) == ["0", "1"]
    assert len(kept.labels) == 8


def test_the_first_layers_of_a_model_with_every_mechanism(task, tmp_path):
    shipped = ROOT / "weights" / "sst2-minilm-l6"
    for use in ("", "halting"):
        out = tmp_path / f"out{use}"
        options = {"init": shipped, "use": use, "epochs": 1, "lr": 0, "head-lr": 0, "layers": 2}
        command = [word for word in arguments(task, out, **options) if word]
        if not use:
            command[command.index("--use") + 1 : command.index("--use") + 1] = [""]
        result = run("train", *command)
        assert result.returncode == 0, result.stderr
        config = Model.from_pretrained(out).config
        assert config.num_hidden_layers == 2
        assert set(config.mechanisms) == ({use} if use else set())
    before, after = weights(shipped), weights(out)
    name = "bert.encoder.layer.1.output.dense.weight"
    np.testing.assert_array_equal(before[name].astype(np.float32), after[name])
    more = run("train", *arguments(task, tmp_path / "more", init=shipped, layers=7))
    assert more.returncode == 2
    assert "--layers is 7, and --init has 6" in more.stderr


def test_epochs_without_gain_count_once_all_is_settled():
    priced = prices(explore_share=0.3, guided=0.2)
    for use, first in (((), 0.0), (("halting",), 0.0), (("planning",), 0.3), (("tokens",), 0.9),
                       (("halting", "planning", "selection"), 0.3)):  # fmt: skip
        assert are_settled(first, use, priced) == (first == 0)
        assert are_settled(first + 0.01, use, priced)
    policies = {"policy_only": True, "guided": 0.2, "freeze_gates": True}
    for estimator, use, first in (("reinforce", ("selection",), 0.2), ("gumbel", ("selection",), 0),
                                  ("gumbel", ("tokens",), 0)):  # fmt: skip
        priced = prices(estimator=estimator, **policies)
        assert not are_settled(first, use, priced)
        assert are_settled(first + 0.01, use, priced)


def test_it_stops_early_where_nothing_gets_better(task, tmp_path):
    never = {"lr": 0, "head-lr": 0, "epochs": 9}
    result = run("train", *arguments(task, tmp_path / "out", **never), "--early-stop", "2")
    assert result.returncode == 0, result.stderr
    assert "epoch 3: " in result.stdout
    assert "no better for 2 epochs, so this is the end" in result.stdout
    assert "epoch 4: " not in result.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_balanced_weights_and_what_they_do(rng):
    labels = np.array([0, 0, 0, 1])
    np.testing.assert_allclose(start.balanced(labels), [2 / 3] * 3 + [2])
    # the gradient is a sum over the sentences, each as often as its weight says
    config = small_config(halting=Halting(3, True), planning=Planning(width=3))
    net = Network(random_params(config, rng), config)
    batch, labels = random_batch(np.array([0, 2, 5, 6]), config, rng), np.array([0, 1, 1])

    def gradients(weights):
        *_, cache = soft.soft_forward(net, batch, labels, prices(), weights=weights)
        return soft.soft_backward(cache)

    each, mixed = [gradients(row) for row in np.eye(3)], gradients(np.array([1, 2, 0.5]))
    for name, g in mixed.items():
        expected = each[0][name] + 2 * each[1][name] + each[2][name] / 2
        np.testing.assert_allclose(g, expected, atol=1e-12)
    for name, g in gradients(None).items():
        np.testing.assert_allclose(g, sum(e[name] for e in each), atol=1e-12)


@pytest.mark.parametrize(
    ("labels", "like"),
    [
        (["0", "1"], False),
        (["1.5", "2"], True),
        ([str(i) for i in range(11)], True),
        (["a"], False),
    ],
)
def test_labels_that_look_like_numbers(labels, like):
    assert data.look_like_scores(labels, start.MANY) == like


def test_depths_that_are_all_alike_are_said():
    config = small_config(layers=4, halting=Halting(3, True))
    use = ("halting",)
    alike = told.spread(config, use, np.array([2] * 19 + [4]))
    assert alike.startswith("layers that the dev texts ran: 19 in 2, 1 in 4\nnearly all are alike")
    assert told.spread(config, use, np.array([1, 2, 3, 4])).count("\n") == 0
    for use, layers in (((), [2]), (("tokens",), [4, 4]), (("halting",), [])):
        assert told.spread(config, use, np.array(layers, int)) == ""


def test_schedule():
    rates = [optim.schedule(step, 100, 0.1) for step in range(100)]
    assert np.argmax(rates) in (9, 10)
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[-1] < 0.02
    assert optim.schedule(0, 10, 0.0) == 1
    assert optim.schedule(9, 10, 0.0, "constant") == 1


def test_moments_are_corrected_by_a_parameters_own_steps():
    """A gradient that comes late moves its parameter as one that was there at first."""
    rates, g = {"a": 0.1, "b": 0.1}, np.array([0.3])
    moved = {}
    for first in (1, 50):
        params = {"a": np.zeros(1), "b": np.zeros(1)}
        moments = optim.zero_moments(params)
        for step in range(1, 53):
            grads = {"a": g, "b": g} if step >= first else {"a": g}
            if step < first + 3:
                optim.adamw(params, grads, moments, step, rates, ops, weight_decay=0.0)
        moved[first] = params["b"][0]
    assert moved[1] == moved[50] == pytest.approx(-0.3)


def test_what_no_longer_moves_is_not_clipped_with_the_rest(rng):
    """Gates that are set have a gradient, which took its share of the norm that is clipped."""
    config = small_config(tokens=TokenGates(3))
    batch = random_batch(np.array([0, 4, 9]), config, rng)
    drawn, after = random_params(config, rng), {}
    for cost in (0.0, 1e6):
        params = {name: p.copy() for name, p in drawn.items()}
        rates = dict.fromkeys(params, 0.1) | {token_gates.NAME: 0.0}
        costly = prices(token_cost=cost)
        learn(
            Network(params, config),
            batch,
            np.array([0, 1]),
            costly,
            optim.zero_moments(params),
            0,
            rates,
        )
        after[cost] = params
    assert same(after[0.0], after[1e6])
    assert not same(after[0.0], drawn)


def test_clipping():
    grads = {"a": np.full(4, 3.0), "b": np.full(4, 4.0)}
    assert optim.gradient_norm(grads, ops) == pytest.approx(10)
    assert optim.clip_scale(10.0) == pytest.approx(0.1)
    assert optim.clip_scale(0.5) == 1


def test_wrong_labels_to_score_on_are_found_before_a_teacher_is_asked(task, tmp_path, refused):
    (tmp_path / "dev.tsv").write_text("text\tlabel\nthe film\tmaybe\n")
    options = {"dev": tmp_path / "dev.tsv", "teacher": "nowhere", "use": ""}
    refused(
        "dev.tsv, line 2: unknown label 'maybe'",
        "train",
        *arguments(task, tmp_path / "o", **options),
    )


def test_a_checkpoint_with_a_damaged_tokenizer(task, tmp_path, refused):
    out = tmp_path / "out"
    out.mkdir()
    train_main.begin(training_options(arguments(task, out, use=""))).save_state()
    with safe_open(out / STATE, "np") as file:
        about = file.metadata() | {"tokenizer": "{"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, out / STATE, about)
    refused("training.safetensors is damaged: tokenizer", "train", "--out", out, "--resume")
