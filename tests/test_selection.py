"""Learned selection: its parts' gradients, and what REINFORCE promises of the whole."""

import json
import shutil
import subprocess
import sys
import time
from itertools import product

import numpy as np
import pytest
from conftest import TINY, offsets_strategy, run, seeds
from hypothesis import given
from hypothesis import strategies as st
from networks import Counting, prices, random_batch, random_params, small_config
from safetensors import safe_open
from training import arguments, same, weights

from minidact import Model, hard, ops, ragged, show, soft
from minidact.config import Config
from minidact.errors import InputError
from minidact.fast.layers import Reference
from minidact.fast.packed import Encoder
from minidact.fast.packed_int8 import EncoderInt8
from minidact.gradcheck import check_gradient, check_op
from minidact.hard import Knobs
from minidact.mechanisms import exits, selection, together
from minidact.mechanisms.exits import Halting
from minidact.mechanisms.planning import Planning
from minidact.mechanisms.selection import Selection
from minidact.network import Network
from minidact.options import STATE
from minidact.ragged import Batch
from minidact.study import sweep
from minidact.train import guide

sizes = st.integers(1, 6)


# ---------------------------------------------------------------------------- the parts


@given(seeds, sizes, sizes, sizes)
def test_policy(seed, rows, size, width):
    rng = np.random.default_rng(seed)
    table = selection.shapes("selection.layer.1", size, width)
    params = {name: rng.standard_normal(shape) for name, shape in table.items()}
    x = rng.standard_normal((rows, size))
    z, cache = selection.policy_forward(x, params, "selection.layer.1")
    assert z.shape == (rows,)

    def value(x, params):
        return selection.policy_forward(x, params, "selection.layer.1")[0]

    check_gradient(
        lambda x: value(x, params), lambda v: selection.policy_backward(v, cache, {}), x, rng, "x"
    )
    for name in table:

        def gradient(v, name=name):
            grads = {}
            selection.policy_backward(v, cache, grads)
            return grads[name]

        swapped = lambda p, name=name: value(x, {**params, name: p})  # noqa: E731
        check_gradient(swapped, gradient, params[name], rng, name)


@given(seeds, offsets_strategy(4, 6), sizes)
def test_choices_and_what_leaves(seed, offsets, columns):
    rng = np.random.default_rng(seed)
    rows, count = offsets[-1], len(offsets) - 1
    asked, stays = rng.random((2, rows)) < 0.6
    stays |= ~asked
    stays[offsets[:-1]] = True
    choice = {"z": rng.standard_normal(rows), "stays": stays, "asked": asked, "offsets": offsets}
    check_op(selection.log_prob_forward, selection.log_prob_backward, choice, rng)
    mean = {"mean": rng.standard_normal((count, columns)), "dropped": rng.random((count, columns))}
    mean |= {"left": np.full(count, 2), "whole": ragged.lengths(offsets) + 2}
    check_op(selection.whole_mean_forward, selection.whole_mean_backward, mean, rng)
    # what leaves: x goes on, or into the sum of what has left
    x, before = rng.standard_normal((rows, columns)), rng.standard_normal((count, columns))
    v, w = rng.standard_normal((stays.sum(), columns)), rng.standard_normal((count, columns))

    def value(x):
        out, after, dropped, _ = selection.leave_forward(x, offsets, stays, before)
        assert len(out) == after[-1]
        return np.sum(v * out) + np.sum(w * dropped)

    cache = selection.leave_forward(x, offsets, stays, before)[-1]
    check_gradient(value, lambda c: selection.leave_backward(c * v, c * w, cache), x, rng)
    plain = selection.leave_backward(v, None, cache)
    assert (plain[stays] == v).all()
    assert not plain[~stays].any()


def test_the_chance_of_a_choice():
    z, offsets = np.log([1 / 3, 3.0, 1.0, 9.0]), np.array([0, 2, 4])  # pi 1/4, 3/4, 1/2, 9/10
    asked, stays = np.array([0, 1, 1, 1], bool), np.array([1, 0, 1, 0], bool)
    log_p, _ = selection.log_prob_forward(z, stays, asked, offsets)
    np.testing.assert_allclose(np.exp(log_p), [1 / 4, 1 / 2 * 1 / 10])
    big, _ = selection.log_prob_forward(1e3 * z, stays, asked, offsets)
    assert np.isfinite(big).all()


def test_words_are_drawn_with_the_policys_probability(rng):
    z = np.repeat([-2.0, 0.0, 1.0], 20_000)
    asked = np.ones(len(z), bool)
    stays = selection.draw(z, asked, rng)
    expected = 1 / (1 + np.exp([2.0, 0.0, -1.0]))
    np.testing.assert_allclose(stays.reshape(3, -1).mean(1), expected, atol=0.02)
    assert selection.draw(z[::20_000], asked[:3], None).tolist() == [False, True, True]
    assert selection.draw(z[::20_000], asked[:3], None, 0.6).tolist() == [False, False, True]
    assert selection.draw(z[::20_000], ~asked[:3], rng).all()


def test_a_guide_chooses_as_many_as_the_policy_would():
    offsets, z = np.array([0, 5, 9]), np.full(9, 0.0)  # pi 1/2: 2 of 4, and 2 (1.5) of 3
    scores = np.array([9, 1, 4, 2, 3, 9, 0, 5, 6.0])
    stays = selection.top_tokens(z, selection.asked(offsets), scores, offsets)
    assert stays.tolist() == [True, False, True, False, True, True, False, True, True]
    none = selection.top_tokens(
        z, selection.asked(offsets, np.array([False, True])), scores, offsets
    )
    assert none[:5].all()


def test_the_places_of_policies():
    assert selection.places(6, 2) == [1, 3]
    assert selection.places(12, 2) == [1, 6]
    assert selection.places(2, 2) == [1]
    assert selection.places(6, 1) == [1]
    assert selection.places(6, 3) == [1, 2, 4]
    assert selection.places(3, 9) == [1, 2]


def test_an_advantage_is_what_the_others_are_not(rng):
    costs = rng.standard_normal((5, 3))
    others = [np.delete(costs, k, 0).mean(0) for k in range(5)]
    np.testing.assert_allclose(selection.advantages(costs), costs - others)
    assert not selection.advantages(costs[:1]).any()


# ---------------------------------------------------------------------------- the estimate

CARRIED = {
    "plain": {},
    "halting": {"halting": Halting(3, False)},
    "halting planning": {"halting": Halting(3, False), "planning": Planning("steps", 2)},
    "path": {"planning": Planning("path", 2)},
}


@pytest.mark.parametrize("kind", CARRIED)
@given(
    seeds, offsets_strategy(3, 4), st.sampled_from(["cls", "mean"]),
    st.sampled_from(["last", "left"]), st.integers(2, 3),
)  # fmt: skip
def test_the_gradient_is_that_of_costs_and_log_probs(kind, seed, offsets, summary, pool, samples):
    """Of mean_k [ task_k + advantage_k log p_k ], with choices and advantages held.

    Layers are included to the share pi, as in test_whole_loss.
    """
    rng = np.random.default_rng(seed)
    config = small_config(
        layers=3, summary=summary, selection=Selection(3, 2, pool), **CARRIED[kind]
    )
    params, batch = random_params(config, rng), random_batch(offsets, config, rng)
    labels = rng.integers(0, 2, len(offsets) - 1)
    costs = prices(tau=0.3, alpha=0.7, layer_cost=0.6, selection_cost=0.9, samples=samples)
    held, log_probs = [], []
    draw, forward_of_chance = selection.draw, selection.log_prob_forward

    def forward(params):
        turns = iter(range(99))
        log_probs.clear()

        def drawn(*given):
            turn, stays = next(turns), draw(*given)  # in any case, for dropout draws after it
            if turn == len(held):
                held.append(stays)
            return held[turn]

        def chance(*given):
            log_probs.append(forward_of_chance(*given)[0])
            return forward_of_chance(*given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selection, "draw", drawn)
            patch.setattr(selection, "log_prob_forward", chance)
            patch.setattr("minidact.mechanisms.planning.draw", lambda pi, *_: pi)
            net = Network(params, config, rng=np.random.default_rng(seed))
            return soft.soft_forward(net, batch, labels, costs)

    cache = forward(params)[-1]
    advantages = selection.advantages(cache[-1]["selection"]).ravel()
    grads = soft.soft_backward(cache)
    assert set(grads) == set(params)

    def value(params):
        loss = forward(params)[1]["loss"]
        return loss + sum((advantages * log_p).mean() for log_p in log_probs)

    for name in grads:
        swapped = lambda x, name=name: value({**params, name: x})  # noqa: E731
        check_gradient(swapped, lambda c, name=name: c * grads[name], params[name], rng, name)


def tiny(rng, **carried):
    """A network so small that all its choices can be tried."""
    config = small_config(
        layers=3, summary="mean", selection=Selection(2, 2), hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **carried,
    )  # fmt: skip
    batch = random_batch(np.array([0, 3]), config, rng)
    return config, random_params(config, rng), batch, np.array([1])


def choosing(*actions):
    """Policies that choose these: for each of their turns an array over all rows but [CLS]'s."""
    turns = iter(actions)

    def draw(z, asked, rng, threshold=0.5):
        stays = ~asked
        stays[asked] = next(turns)[: asked.sum()]
        return stays

    return draw


def choices_of(count):
    """Every choice of two policies about a text of 1 + count tokens."""
    for first in product([False, True], repeat=count):
        for second in product([False, True], repeat=sum(first)):
            yield np.array(first, bool), np.array(second, bool)


def test_the_estimate_is_unbiased(rng):
    """Over all pairs of choices, each weighted by its chance, it is the gradient of J."""
    config, params, batch, labels = tiny(rng)
    costs = prices(selection_cost=0.8, samples=2)

    def tried(pair, params):
        """Costs (2,), chances (2,) of two samples' choices, and the estimate from them."""
        chances, forward_of_chance = [], selection.log_prob_forward

        def chance(*given):
            chances.append(forward_of_chance(*given)[0])
            return forward_of_chance(*given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selection, "log_prob_forward", chance)
            actions = [np.concatenate([a[turn] for a in pair]) for turn in (0, 1)]
            patch.setattr(selection, "draw", choosing(*actions))
            cache = soft.soft_forward(Network(params, config, rng=rng), batch, labels, costs)[-1]
        return cache[-1]["selection"].ravel(), np.exp(sum(chances)), cache

    def expected_cost(params):
        total, mass = 0.0, 0.0
        for choice in choices_of(2):
            cost, chance, _ = tried((choice, choice), params)
            total, mass = total + cost[0] * chance[0], mass + chance[0]
        assert mass == pytest.approx(1)
        return total

    estimate = dict.fromkeys(params, 0.0)
    for pair in product(choices_of(2), repeat=2):
        _, chances, cache = tried(pair, params)
        for name, gradient in soft.soft_backward(cache).items():
            estimate[name] = estimate[name] + chances.prod() * gradient
    for name in params:
        swapped = lambda x, name=name: expected_cost({**params, name: x})  # noqa: E731
        check_gradient(swapped, lambda c, name=name: c * estimate[name], params[name], rng, name)


def test_the_mean_of_many_samples_is_the_gradient_and_a_baseline_calms_it(rng, monkeypatch):
    """Of the policies: against all choices; with the baseline the spread is smaller."""
    config, params, batch, labels = tiny(rng)
    params = {k: v + (4.0 if k == "classifier.bias" else 0) for k, v in params.items()}
    net, costs = Network(params, config, rng=rng), prices(policy_only=True, guided=0.0, samples=3)
    name = "selection.layer.1.gate.bias"

    def drawn(count):
        caches = (soft.soft_forward(net, batch, labels, costs)[-1] for _ in range(count))
        return np.array([soft.soft_backward(cache)[name][0] for cache in caches])

    with_baseline = drawn(1500)
    monkeypatch.setattr(selection, "advantages", lambda costs: costs)
    without = drawn(1500)
    error = np.hypot(with_baseline.std(), without.std()) / np.sqrt(1500)
    assert abs(with_baseline.mean() - without.mean()) < 4 * error
    assert with_baseline.std() < 0.7 * without.std()


@pytest.mark.parametrize("heads", exits.HEADS)
def test_the_policy_alone_learns_alone(heads, rng):
    """Also on heads whose own training leaves the backbone as it is."""
    halting = Halting(3, True, trained=heads)
    config = small_config(layers=4, selection=Selection(3, 2), halting=halting)
    params, batch = random_params(config, rng), random_batch(np.array([0, 4, 9]), config, rng)
    for estimator in ("reinforce", "gumbel"):
        costs = prices(policy_only=True, estimator=estimator, guided=0.0)
        net = Network(params, config, rng=rng)
        grads = soft.soft_backward(soft.soft_forward(net, batch, np.array([0, 1]), costs)[-1])
        assert set(grads) == {name for name in params if name.startswith("selection.")}


# ---------------------------------------------------------------------------- the guide


def test_the_guide_scores_what_the_loss_would_feel(rng):
    """Against finite differences: each token's state before the last layer, set back a little."""
    config = small_config(layers=3, selection=Selection(3, 2), summary="mean")
    params, batch = random_params(config, rng), random_batch(np.array([0, 4, 6]), config, rng)
    labels = np.array([0, 1])
    scores = guide.scores(Network(params, config), batch, labels)
    assert sorted(scores) == [1, 2]
    states = [soft.bert.embeddings_forward(params, config, batch)[0]]
    for layer in range(2):
        states.append(soft.bert.layer_forward(params, config, layer, states[-1], batch.offsets)[0])

    def losses(x):
        x = soft.bert.layer_forward(params, config, 2, x, batch.offsets)[0]
        s, _ = soft.bert.summary_forward(x, batch.offsets, "mean")
        return soft.bert.classifier_loss_forward(s, params, config, labels)[0].sum()

    for token in range(6):
        step = np.zeros_like(states[2])
        step[token] = (states[2] - states[1])[token] * 1e-5
        felt = abs(losses(states[2] + step) - losses(states[2] - step)) / 2e-5
        np.testing.assert_allclose(scores[1][token], felt, rtol=1e-4, atol=1e-8)
    assert not scores[2].any()


def test_a_guided_sample_keeps_what_the_guide_puts_first(rng):
    config = small_config(layers=3, selection=Selection(3, 1), summary="mean")
    params, batch = random_params(config, rng), random_batch(np.array([0, 6]), config, rng)
    scores = {1: np.array([0, 5, 4, 3, 2, 1.0])}
    params["selection.layer.1.gate.weight"][:] = 0
    params["selection.layer.1.gate.bias"][:] = 0  # pi = 1/2: 2 of 5 (2.5, to even) stay
    costs, seen = prices(policy_only=True, samples=2), []
    with pytest.MonkeyPatch.context() as patch:
        leave = selection.leave_forward
        patch.setattr(selection, "leave_forward", lambda *a: seen.append(a[2]) or leave(*a))
        net = Network(params, config, rng=rng)
        soft.soft_forward(net, batch, np.array([1]), costs, scores)
    assert seen[0][6:].tolist() == [True, True, True, False, False, False]


# ---------------------------------------------------------------------------- in a pass


@given(seeds, offsets_strategy(4, 6), st.sampled_from(["cls", "mean"]))
def test_a_dropped_token_has_no_influence(seed, offsets, summary):
    """It may be any other word; layer 1 is made to mix nothing, so that nobody heard it before."""
    rng = np.random.default_rng(seed)
    config = small_config(layers=4, summary=summary, selection=Selection(3, 1, "left"))
    params, batch = random_params(config, rng), random_batch(offsets, config, rng)
    params["bert.encoder.layer.0.attention.output.dense.weight"][:] = 0
    chances = rng.random(offsets[-1])

    class Deaf(Reference):
        """Its policy chooses without looking."""

        def policy(self, name, x):
            return chances[: len(x)]

    net, knobs = Network(params, config), hard.Knobs(("selection",))
    once = hard.hard_forward(net, batch, knobs, Deaf(params, config))
    gone = once.stayed == 1
    assert (gone == np.isin(np.arange(len(gone)), np.flatnonzero(once.chances[:, 1] < 0.5))).all()
    other = batch._replace(segments=np.where(gone, 1 - batch.segments, batch.segments))
    again = hard.hard_forward(net, other, knobs, Deaf(params, config))
    np.testing.assert_array_equal(again.probs, once.probs)
    if gone.any():  # and words that stayed have an influence
        plain = hard.hard_forward(net, batch, hard.Knobs()).probs
        changed = hard.hard_forward(net, other, hard.Knobs()).probs
        assert not np.array_equal(plain, changed)


def test_a_higher_threshold_keeps_fewer_words(rng):
    config = small_config(layers=4, selection=Selection(3, 2))
    net, offsets = Network(random_params(config, rng), config), np.array([0, 7, 9])
    batch = random_batch(offsets, config, rng)
    kept = []
    for threshold in (0.0, 0.3, 0.5, 0.7, 1.01):
        knobs = hard.Knobs(("selection",), selection_threshold=threshold)
        kept.append(hard.hard_forward(net, batch, knobs).lengths[:, 1:].sum())
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 9 * 3
    assert kept[-1] == 2 * 3  # [CLS] stays


def test_chances_are_those_of_the_tokens_that_were_asked(rng):
    config = small_config(layers=4, selection=Selection(3, 2))
    net = Network(random_params(config, rng), config)
    batch = random_batch(np.array([0, 7, 9]), config, rng)
    answers = hard.hard_forward(net, batch, hard.Knobs(("selection",)))
    assert answers.chances.shape == (9, 4)
    assert np.isnan(answers.chances[[0, 7]]).all()  # [CLS]
    others = np.delete(np.arange(9), [0, 7])
    none, first, second, last = answers.chances[others].T
    assert np.isnan([none, last]).all()
    assert ((first < 0.5) == (answers.stayed[others] == 1)).all()
    assert (np.isnan(second) == (first < 0.5)).all()
    assert np.isnan(hard.hard_forward(net, batch).chances).all()


def test_a_policys_questions_are_counted(rng):
    config, counting = small_config(layers=4, selection=Selection(3, 2)), Counting()
    net = Network(random_params(config, rng), config, counting)
    batch = random_batch(np.array([0, 7, 9]), config, rng)
    answers = hard.hard_forward(net, batch, hard.Knobs(("selection",)))
    assert (~np.isnan(answers.chances)).sum() > 6  # [CLS] is not asked about
    assert answers.macs.sum() == counting.macs


@given(seeds, offsets_strategy(4, 9), st.sampled_from([3, 40]))
def test_the_compiled_policy(seed, offsets, width):
    """It says what its definition says, and of a token the same whoever is beside it."""
    rng = np.random.default_rng(seed)
    config = small_config(layers=3, selection=Selection(width, 2))
    params = {name: p.astype(np.float32) for name, p in random_params(config, rng).items()}
    fast, reference = Encoder(params, config), Reference(params, config)
    x = rng.standard_normal((offsets[-1], config.hidden_size)).astype(np.float32) * 3
    for layer in (1, 2):
        pi = fast.policy(selection.policy_name(layer), x)
        expected = reference.policy(selection.policy_name(layer), x)
        np.testing.assert_allclose(pi, expected, rtol=2e-5, atol=2e-6)
        alone = [fast.policy(selection.policy_name(layer), x[t : t + 1])[0] for t in range(len(x))]
        np.testing.assert_array_equal(pi, alone)


@pytest.mark.parametrize("kind", [Encoder, EncoderInt8])
@given(seeds, offsets_strategy(5, 8))
def test_a_text_alone_and_in_a_batch(kind, seed, offsets):
    """The same words are selected, and in eight bits the answers are equal bit for bit."""
    rng = np.random.default_rng(seed)
    config = small_config(layers=4, halting=Halting(4, True), selection=Selection(8, 2))
    params = {name: p.astype(np.float32) for name, p in random_params(config, rng).items()}
    net, layers, knobs = Network(params, config), kind(params, config), hard.Knobs(("selection",))
    batch = random_batch(offsets, config, rng)
    together = hard.hard_forward(net, batch, knobs, layers)
    parts = zip(*(ragged.split(array, offsets) for array in batch[:2]), strict=True)
    stayed = []
    for b, (ids, segments) in enumerate(parts):
        alone = Batch(ids, segments, np.array([0, len(ids)]))
        answer = hard.hard_forward(net, alone, knobs, layers)
        np.testing.assert_allclose(answer.probs[0], together.probs[b], atol=1e-5)
        if kind is EncoderInt8:
            np.testing.assert_array_equal(answer.probs[0], together.probs[b])
        stayed += answer.stayed.tolist()
    assert together.stayed.tolist() == stayed


# ---------------------------------------------------------------------------- by the commands


@pytest.fixture(scope="module")
def trained(task, tmp_path_factory):
    """A model that halts, then its policy alone, then everything, taught by the first."""
    directory = tmp_path_factory.mktemp("selection")
    plain, policy, joint = (directory / name for name in ("plain", "policy", "joint"))
    stages = [
        arguments(task, plain, use="halting", epochs=6, summary="mean"),
        arguments(task, policy, "--policy-only", init=plain, use="halting,selection", epochs=4,
                  log=directory / "log.jsonl", samples=4, **{"selection-cost": 0.5}),
        arguments(task, joint, init=policy, teacher=plain, epochs=2, estimator="gumbel"),
    ]  # fmt: skip
    for stage in stages:
        result = run("train", *stage)
        assert result.returncode == 0, result.stderr
    return directory


def test_the_policy_learns_alone_and_then_everything(trained, task):
    plain, policy, joint = (weights(trained / name) for name in ("plain", "policy", "joint"))
    for name, array in policy.items():
        assert name.startswith("selection.") or np.array_equal(array, plain[name]), name
    assert not same({n: policy[n] for n in plain}, {n: joint[n] for n in plain})
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert records[-1]["kept"] < records[0]["kept"]
    config = json.loads((trained / "joint" / "config.json").read_text())
    assert config["minidact"]["selection"] == vars(Selection())
    done = run("evaluate", "--model", trained / "joint", "--data", task / "dev.tsv", "--json")
    result = json.loads(done.stdout)
    assert result["value"] >= 0.9
    assert result["tokens_fraction"] < 1


def test_every_command_knows_it(trained, task):
    model = trained / "joint"
    how = ["--model", model, "--json", "the good film"]
    full, half = run("infer", "--full", *how), run("infer", "--selection-threshold", 1.01, *how)
    assert json.loads(half.stdout)["macs"] < json.loads(full.stdout)["macs"]
    assert json.loads(half.stdout)["tokens_per_layer"][1:] in ([], [1])
    swept = run("evaluate", "--model", model, "--data", task / "dev.tsv", "--sweep", "--json",
                "--curves", "selection,all")  # fmt: skip
    points = json.loads(swept.stdout)["points"]
    shares = [p["macs_fraction"] for p in points if p["curve"] == "selection"]
    assert len(shares) == len(selection.THRESHOLD.sweep)
    assert shares[0] >= shares[-1]
    for options, sentence in (
        (["infer", "--selection-threshold", 2, "x"], "--selection-threshold is 2.0; it must lie"),
        (["infer", "--model", TINY, "--use", "selection", "x"], "does not carry 'selection'"),
        (["train", *arguments(task, model.parent / "no", "--policy-only", use="halting")],
         "--policy-only needs --use selection"),
        (["train", *arguments(task, model.parent / "no", "--policy-only", use="selection")],
         "--policy-only leaves all else as it is, but --init lacks classifier.weight for these"),
        (["train", *arguments(task, model.parent / "no", use="selection,tokens")],
         "selection and tokens exclude each other"),
        (["train", *arguments(task, model.parent / "no", use="", teacher="sst2-minilm-l6")],
         "--teacher sst2-minilm-l6 answers negative, positive; what is trained answers no, yes"),
        (["train", *arguments(task, model.parent / "no", use="", teacher=",")],
         "--teacher names none"),
    ):  # fmt: skip
        result = run(*options)
        assert (result.returncode, "Traceback" in result.stderr) == (2, False)
        assert sentence in result.stderr


def test_a_taught_run_goes_on_without_its_teachers(trained, task, tmp_path):
    """What they said is kept with the run, and the weights are those of a run never stopped."""
    for name in ("whole", "cut", "teacher"):
        (tmp_path / name).mkdir()
    shutil.copytree(trained / "plain", tmp_path / "teacher", dirs_exist_ok=True)
    how = {"init": trained / "plain", "teacher": tmp_path / "teacher", "use": "halting,selection"}
    how |= {"epochs": 2, "save-every": 3}
    result = run("train", *arguments(task, tmp_path / "whole", **how))
    assert result.returncode == 0, result.stderr
    command = [sys.executable, "-m", "minidact.train", *arguments(task, tmp_path / "cut", **how)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        state = tmp_path / "cut" / STATE
        while process.poll() is None and not (state.exists() and done_of(state) >= 3):
            time.sleep(0.01)
        process.kill()
    shutil.rmtree(tmp_path / "teacher")
    if state.exists():
        result = run("train", "--out", tmp_path / "cut", "--resume")
        assert result.returncode == 0, result.stderr
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def done_of(state):
    with safe_open(state, "np") as file:
        return int(file.metadata()["done"])


def test_a_trace_says_how_sure_the_policy_was(trained):
    model = Model.from_pretrained(trained / "joint")
    told = model("the good film", use=("selection",), selection_threshold=1.01)
    assert list(told.chances) == [1]
    assert [pi is None for pi in told.chances[1]] == [True, *[False] * (told.tokens - 1)]
    lines = list(show.terminal(told))
    (line,) = (line for line in lines if line.strip().startswith("chances:"))
    word, chance = told.pieces[1], told.chances[1][1]
    assert f"{word} {chance:.2f}" in line
    assert f"dropped before layer 2, with a chance of {chance:.2f}" in told._repr_html_()
    assert not model("the good film", use=()).chances
    assert "chances" not in told.to_dict()


def test_a_policy_learns_on_heads_with_a_frozen_backbone(task, tmp_path):
    first, out = tmp_path / "first", tmp_path / "out"
    heads = {"use": "halting", "heads": "deebert", "epochs": 1}
    result = run("train", *arguments(task, first, **heads))
    assert result.returncode == 0, result.stderr
    options = {"init": first, "use": "selection", "epochs": 1}
    result = run("train", *arguments(task, out, "--policy-only", **options))
    assert result.returncode == 0, result.stderr
    before, after = weights(first), weights(out)
    assert same(before, {name: after[name] for name in before})
    assert after["selection.layer.1.gate.bias"] != selection.GATE_BIAS


def test_a_policy_that_learns_alone_joins_a_model_as_it_is(task, tmp_path):
    """Token gates, planners and halting stay, bit for bit; the policy learns without the gates."""
    first, out = tmp_path / "first", tmp_path / "out"
    gates = "halting,planning,tokens"
    result = run("train", *arguments(task, first, use=gates, epochs=2, summary="mean"))
    assert result.returncode == 0, result.stderr
    alone = ["--policy-only", "--estimator=gumbel"]
    options = {"init": first, "use": "halting,planning,selection", "epochs": 1}
    result = run("train", *arguments(task, out, *alone, **options))
    assert result.returncode == 0, result.stderr
    named = options | {"use": "selection"}
    heads = run("train", *arguments(task, tmp_path / "heads", *alone, **named))
    assert heads.returncode == 0, heads.stderr  # those that answer are used, named or not
    assert "halting" in Model.from_pretrained(tmp_path / "heads").config.mechanisms
    nobody = run("train", *arguments(task, tmp_path / "nobody", *alone, init=out, use="halting"))
    assert nobody.returncode == 2
    assert "--estimator needs --use selection" in nobody.stderr
    both = {"init": first, "use": "halting,tokens,selection"}
    refused = run("train", *arguments(task, tmp_path / "both", *alone, **both))
    assert refused.returncode == 2
    assert "selection and tokens exclude each other: choose one (--use says" in refused.stderr
    before, after = weights(first), weights(out)
    assert same({name: after[name] for name in before}, before)
    assert {n.split(".")[0] for n in set(after) - set(before)} == {"selection"}
    model = Model.from_pretrained(out)
    assert list(model.config.mechanisms) == ["halting", "planning", "tokens", "selection"]
    with_gates = Model.from_pretrained(first)
    assert model("the good film").probs == with_gates("the good film").probs
    assert model("the good film", use=["halting", "selection"]).chances


def test_it_excludes_token_gates():
    """A model may carry both. Where nothing is said it uses the first."""
    both = {"halting": {}, "selection": {}, "tokens": {}}
    config = Config.from_dict({"num_hidden_layers": 4, "minidact": both})
    assert together(config.mechanisms) == ("halting", "tokens")
    with pytest.raises(InputError, match="selection and tokens exclude each other"):
        hard.check_knobs(config, Knobs(("selection", "tokens")))
    curves = {}
    for name, knobs in sweep.settings(config):
        curves.setdefault(name, set()).add(knobs["use"])
    assert curves["all"] == {("halting", "tokens")}
    assert curves["all+selection"] == {("halting", "selection")}
    with pytest.raises(InputError, match="selection_pool"):
        Config.from_dict({"minidact": {"selection": {"selection_pool": "first"}}})
    assert ops.sigmoid_forward(np.array([selection.GATE_BIAS]))[0] > 0.5  # at first all stay
