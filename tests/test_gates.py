"""Gates of layers and of tokens, selection too, alone and with halting: what they promise."""

from itertools import pairwise

import numpy as np
import pytest
from conftest import offsets_strategy, seeds
from hypothesis import given
from hypothesis import strategies as st
from networks import Counting, prices, random_batch, random_params, small_config

from minidact import InputError, bert, hard, network, ops, ragged, soft
from minidact.config import Config
from minidact.fast import kernels
from minidact.fast.layers import Reference
from minidact.fast.packed import Encoder
from minidact.hard import Knobs
from minidact.mechanisms import MECHANISMS, planning, selection, token_gates
from minidact.mechanisms.exits import Halting
from minidact.mechanisms.planning import Planning
from minidact.mechanisms.record import Sizes
from minidact.mechanisms.selection import Selection
from minidact.mechanisms.token_gates import TokenGates
from minidact.network import Network
from minidact.ragged import Batch

uses = st.lists(st.sampled_from(list(MECHANISMS)), unique=True).map(tuple)
planners, ranks = st.sampled_from(["steps", "path"]), st.sampled_from(["relative", "absolute"])
pools, summaries = st.sampled_from(["last", "left"]), st.sampled_from(["cls", "mean"])


@st.composite
def gated_models(draw, layers=4, halting=True):
    """A model whose gates are 0 or 1, and that plans and halts one way here, another there.

    Its words are dropped by token gates, or selected.
    """
    rng = np.random.default_rng(draw(seeds))
    words = draw(st.one_of(
        st.builds(TokenGates, st.just(4), ranks, pools),
        st.builds(Selection, st.just(3), st.integers(1, 4), pools),
    ))  # fmt: skip
    name = "tokens" if isinstance(words, TokenGates) else "selection"
    config = small_config(
        layers=layers, summary=draw(summaries), halting=Halting(4, True) if halting else None,
        planning=Planning(draw(planners), 3), **{name: words},
    )  # fmt: skip
    params = random_params(config, rng)
    if name == "tokens":
        params[token_gates.NAME] = rng.integers(0, 2, params[token_gates.NAME].shape).astype(float)
    for name in params:
        if name.endswith("classifier.weight"):
            params[name] *= 6
        if name.endswith("halting.bias"):
            params[name] -= 3
    return config, params, rng


def gates_of(config):
    """All that the model carries, but halting."""
    return tuple(name for name in config.mechanisms if name != "halting")


# ---------------------------------------------------------------------------- the two passes


@given(
    gated_models(halting=True), offsets_strategy(4, 6), st.sampled_from(["both", *MECHANISMS]),
    st.sampled_from(["reinforce", "gumbel"]),
)  # fmt: skip
def test_soft_and_hard_pass_agree_for_gates_at_0_and_1(gated, offsets, which, estimator):
    config, params, rng = gated
    if which == "planning" and token_gates.NAME in params:
        params[token_gates.NAME][:] = 1
    if which in ("tokens", "selection"):
        params = {k: np.where(k.startswith("planning."), 9, p) for k, p in params.items()}
    batch = random_batch(offsets, config, rng)
    labels = rng.integers(0, 2, len(offsets) - 1)
    net, price = Network(params, config), prices(tau=0.0, alpha=0.0, estimator=estimator)
    losses, terms, _ = soft.soft_forward(net, batch, labels, price)
    answers = hard.hard_forward(net, batch, Knobs(gates_of(config)))
    picked = np.maximum(answers.probs[np.arange(len(labels)), labels], 1e-8)
    np.testing.assert_allclose(losses, -np.log(picked), rtol=1e-9)
    np.testing.assert_allclose(terms["answer"], -np.log(picked).mean(), rtol=1e-9)
    soft_probs = soft.soft_answers(net, batch)
    np.testing.assert_allclose(soft_probs, answers.probs, rtol=1e-9, atol=1e-12)


@given(gated_models(halting=False), offsets_strategy(4, 6))
def test_soft_and_hard_pass_agree_without_halting(gated, offsets):
    config, params, rng = gated
    batch, labels = random_batch(offsets, config, rng), rng.integers(0, 2, len(offsets) - 1)
    net = Network(params, config)
    losses, terms, _ = soft.soft_forward(net, batch, labels, prices())
    probs = hard.hard_forward(net, batch, Knobs(gates_of(config))).probs
    expected = -np.log(probs[np.arange(len(labels)), labels])
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    np.testing.assert_allclose(terms["loss"], expected.mean(), rtol=1e-9)
    np.testing.assert_allclose(soft.soft_answers(net, batch), probs, rtol=1e-9)


@given(gated_models(), offsets_strategy(4, 6), uses, st.sampled_from(["tight", "paper"]))
def test_halting_changes_no_class_whatever_the_gates_do(gated, offsets, use, bound):
    config, params, rng = gated
    batch = random_batch(offsets, config, rng)
    others = tuple(name for name in use if name in gates_of(config))
    through = hard.hard_forward(Network(params, config), batch, Knobs(others))
    halted = hard.hard_forward(
        Network(params, config), batch, Knobs((*others, "halting"), bound=bound)
    )
    assert (halted.probs.argmax(1) == through.probs.argmax(1)).all()
    assert (halted.macs <= through.macs).all()
    assert (halted.layers_run <= through.layers_run).all()


@given(gated_models(), offsets_strategy(4, 6), uses, st.floats(0, 1), st.floats(0.3, 0.7))
def test_macs_reported_are_macs_executed(gated, offsets, use, slack, threshold):
    config, params, rng = gated
    batch, counting = random_batch(offsets, config, rng), Counting()
    use = tuple(name for name in use if name in config.mechanisms)
    knobs = Knobs(use, slack=slack, threshold=threshold, selection_threshold=threshold)
    answers = hard.hard_forward(Network(params, config, counting), batch, knobs)
    assert answers.macs.sum() == counting.macs
    # what is reported as a token's last layer is what the layers worked on
    sentence = np.repeat(np.arange(len(offsets) - 1), ragged.lengths(offsets))
    for layer in range(config.num_hidden_layers):
        there = np.bincount(sentence[answers.stayed > layer], minlength=len(offsets) - 1)
        assert (answers.lengths[:, layer] == there * answers.layers_run[:, layer]).all()


@given(gated_models())
def test_a_unit_speaks_where_its_layer_ran(gated):
    config, params, rng = gated
    batch = random_batch(np.array([0, 2, 5, 9, 14, 15, 18, 23]), config, rng)
    answers = hard.hard_forward(Network(params, config), batch, Knobs(("planning",)))
    assert (np.isnan(answers.so_far[..., 0]) == ~answers.layers_run).all()


@given(gated_models(), offsets_strategy(5, 6), uses)
def test_a_sentence_does_not_depend_on_its_neighbours(gated, offsets, use):
    config, params, rng = gated
    use = tuple(name for name in use if name in config.mechanisms)
    batch = random_batch(offsets, config, rng)
    together = hard.hard_forward(Network(params, config), batch, Knobs(use))
    parts = [ragged.split(array, offsets) for array in batch[:2]]
    for b in range(len(offsets) - 1):
        alone = Batch(parts[0][b], parts[1][b], np.array([0, len(parts[0][b])]))
        answer = hard.hard_forward(Network(params, config), alone, Knobs(use))
        np.testing.assert_allclose(answer.probs[0], together.probs[b], atol=1e-9)
        assert answer.macs[0] == together.macs[b]


def test_a_layer_left_out_is_not_called(rng, monkeypatch):
    config = small_config(layers=5, planning=Planning())
    params = random_params(config, rng)
    for layer in range(1, 5):  # nobody takes the layers 1 and 3
        params[f"planning.layer.{layer}.gate.weight"][:] = 0
        params[f"planning.layer.{layer}.gate.bias"][:] = 1 if layer % 2 == 0 else -1
    called, layer_forward = [], bert.layer_forward

    def spy(params, config, layer, x, *rest):
        called.append((layer, len(x)))
        return layer_forward(params, config, layer, x, *rest)

    monkeypatch.setattr(bert, "layer_forward", spy)
    batch = random_batch(np.array([0, 2, 5]), config, rng)
    answers = hard.hard_forward(Network(params, config), batch, Knobs(("planning",)))
    assert called == [(0, 5), (2, 5), (4, 5)]
    assert (answers.layers_run == [True, False, True, False, True]).all()
    # and a layer that some take runs on their rows only
    batch = random_batch(np.arange(13) * 3, config, rng)
    x, _ = bert.embeddings_forward(params, config, batch)
    s = bert.layer_forward(params, config, 0, x, batch.offsets)[0][::3]
    some = "planning.layer.1"
    params[f"{some}.gate.weight"] = rng.standard_normal((1, 64))
    pi, _ = planning.planner_forward(s, params, some)
    params[f"{some}.gate.bias"] -= np.median(np.log(pi / (1 - pi)))
    called.clear()
    answers = hard.hard_forward(Network(params, config), batch, Knobs(("planning",)))
    took = answers.layers_run[:, 1].sum()
    assert 0 < took < 12
    assert called[1] == (1, 3 * took)


# ---------------------------------------------------------------------------- planning


def test_the_gradient_goes_straight_through(rng, monkeypatch):
    config = small_config(layers=3, planning=Planning(width=3))
    params, offsets = random_params(config, rng), np.array([0, 2, 5, 6])
    batch, labels = random_batch(offsets, config, rng), np.array([0, 1, 1])
    seen = {"dpi": [], "dw": []}
    planner_backward, mix_backward = planning.planner_backward, planning.mix_backward

    def spy_planner(dpi, *rest):
        seen["dpi"].append(dpi[:, 0])
        return planner_backward(dpi, *rest)

    def spy_mix(dout, cache):
        f, x, _ = cache
        seen["dw"].append(np.add.reduceat((dout * (f - x)).sum(1), offsets[:-1]))
        return mix_backward(dout, cache)

    monkeypatch.setattr(planning, "planner_backward", spy_planner)
    monkeypatch.setattr(planning, "mix_backward", spy_mix)
    cache = soft.soft_forward(Network(params, config, rng=rng), batch, labels, prices())[-1]
    soft.soft_backward(cache)
    for dpi, dw in zip(seen["dpi"], seen["dw"], strict=False):  # layers 2 and 1; then layer 0
        np.testing.assert_allclose(dpi, dw)  # du = <dx_{l+1}, F_l(x_l) - x_l>
    assert len(seen["dpi"]) == 2


@pytest.mark.parametrize("planner", planning.PLANNERS)
def test_while_exploring_a_planner_learns_nothing(planner, rng):
    config = small_config(layers=3, planning=Planning(planner, 3))
    params, batch = random_params(config, rng), random_batch(np.array([0, 2, 5]), config, rng)
    net, blind = Network(params, config, rng=rng), prices(explore=0.5)
    cache = soft.soft_forward(net, batch, np.array([0, 1]), blind)[-1]
    grads = soft.soft_backward(cache)
    assert not any(name.startswith("planning.") for name in grads)
    blind = prices(explore=0.5, layer_cost=0.3)
    cache = soft.soft_forward(net, batch, np.array([0, 1]), blind)[-1]
    assert any(name.startswith("planning.") for name in soft.soft_backward(cache))


def test_layers_are_drawn_with_the_planners_probability(rng):
    pi = np.repeat([0.1, 0.5, 0.9], 20_000)
    u = planning.draw(pi, rng)
    assert set(u) == {0, 1}
    np.testing.assert_allclose(u.reshape(3, -1).mean(1), [0.1, 0.5, 0.9], atol=0.02)
    assert planning.draw(np.array([0.4, 0.5, 0.6]), None).tolist() == [0, 1, 1]
    assert planning.draw(np.array([0.4, 0.5, 0.6]), None, 0.55).tolist() == [0, 0, 1]


# ---------------------------------------------------------------------------- token gates


@given(seeds, offsets_strategy(4, 9), st.integers(1, 6), ranks)
def test_bins(seed, offsets, bins, ranks):
    rng = np.random.default_rng(seed)
    significance, there = rng.random(offsets[-1]), rng.random(offsets[-1]) < 0.7
    there[offsets[:-1]] = True
    index = token_gates.bins_of(significance, there, offsets, bins, ranks)
    for lo, hi in pairwise(offsets):
        assert index[lo] == -1  # [CLS]
        rows = lo + 1 + np.flatnonzero(there[lo + 1 : hi])
        assert (np.delete(index[lo:hi], rows - lo) == -1).all()  # who is gone is not asked
        by_rank = index[rows[np.argsort(-significance[rows])]]
        k = np.arange(len(rows))
        expected = k * bins // max(len(rows), 1) if ranks == "relative" else np.minimum(k, bins - 1)
        assert (by_rank == expected).all()
    # with gates that fall with the rank, a larger `keep` keeps more
    gates = np.linspace(1, 0, bins)
    stays = [
        token_gates.stays(gates, token_gates.bins_of(significance, there, offsets, bins, ranks, k))
        for k in (1e-30, 0.5, 1, 2, 1e30)
    ]
    assert all((less <= more).all() for less, more in pairwise(stays))


@pytest.mark.parametrize("calc", [ops, kernels])
def test_a_gate_of_0_is_the_same_as_removing_the_row(calc, rng):
    offsets, gates = np.array([0, 40, 45]), np.ones(45)
    gates[[3, 7, 8, 39, 42]] = 0
    qkv = rng.standard_normal((45, 3 * 8))
    if calc is kernels:
        qkv, gates = qkv.astype(np.float32), gates.astype(np.float32)
    out, received, _ = calc.attention_forward(qkv, offsets, 2, None, gates)
    rows, fewer = ragged.thin(offsets, gates > 0)
    expected, expected_received, _ = calc.attention_forward(qkv[rows], fewer, 2)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if calc is kernels else {"rtol": 1e-12}
    np.testing.assert_allclose(out[rows], expected, **tolerance)
    np.testing.assert_allclose(received[rows], expected_received, **tolerance)
    assert not received[gates == 0].any()
    qkv[[3, 7, 8, 39, 42]] = 5  # nobody looks there
    again, _, _ = calc.attention_forward(qkv, offsets, 2, None, gates)
    np.testing.assert_allclose(again[rows], out[rows], **tolerance)


@pytest.mark.parametrize("calc", [ops, kernels])
def test_a_closed_key_may_be_ahead_of_all_open_ones(calc, rng):
    """By 300 here: in float32, e^-300 is 0."""
    qkv = np.zeros((5, 6), np.float32)
    qkv[:, 0], qkv[:, 2:] = 1, rng.standard_normal((5, 4))
    qkv[:, 2], gates = [0, 0, 600, 0, -600], np.array([1, 1, 0, 0.5, 1], np.float32)
    out, _, cache = calc.attention_forward(qkv, np.array([0, 5]), 1, None, gates)
    for q in range(5):
        np.testing.assert_allclose(
            out[q], (qkv[0, 4:] + qkv[1, 4:] + qkv[3, 4:] / 2) / 2.5, rtol=1e-5
        )
    dqkv, dgates = calc.attention_backward(np.ones_like(out), cache)
    assert np.isfinite(dqkv).all()
    assert np.isfinite(dgates).all()


def test_attention_is_summed_over_heads(rng):
    """What a word receives is of all heads together, in the compiled layers, too."""
    config = small_config(heads=4, layers=4, tokens=TokenGates(8))
    params = {name: p.astype(np.float32) for name, p in random_params(config, rng).items()}
    params[token_gates.NAME] = np.repeat(np.float32([[1, 0]]), 4, 1).repeat(3, 0)
    batch, knobs = random_batch(np.arange(6) * 9, config, rng), Knobs(("tokens",))
    net = Network(params, config)
    compiled = hard.hard_forward(net, batch, knobs, Encoder(params, config))
    assert (compiled.stayed == hard.hard_forward(net, batch, knobs).stayed).all()
    assert 0 < (compiled.stayed == 1).mean() < 1


def test_early_gates_save_more_and_so_cost_more():
    shares = token_gates.depth_shares(6)
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(shares) < 0).all()
    gates = np.ones((5, 8))
    assert token_gates.l1_forward(gates)[0] == pytest.approx(1)
    assert token_gates.bimodal_forward(gates)[0] == 0
    assert token_gates.undecided(np.array([0.1, 0.95, 0.0, 1.0])) == pytest.approx(0.0375)
    assert token_gates.decided(np.array([0.1, 0.5, 0.95])).tolist() == [0, 1, 1]


def test_a_new_model_has_open_gates_and_hardly_any_layer_left_out(rng):
    config = small_config(layers=3, planning=Planning(), tokens=TokenGates())
    params = network.init_params(config, rng)
    assert (params[token_gates.NAME] == 1).all()
    batch = random_batch(np.array([0, 2, 5]), config, rng)
    answers = hard.hard_forward(Network(params, config), batch, Knobs(("planning", "tokens")))
    assert answers.layers_run.all()
    assert (answers.lengths == [[2] * 3, [3] * 3]).all()
    assert answers.chances.shape == (5, 0)  # no policy was asked


def test_first_values_of_planners_and_policies(rng):
    """They say "stay"; a policy's first matrix has He's scale, since a kind of ReLU follows."""
    mechanisms = {"planning": Planning(width=50), "selection": Selection(50, 2)}
    params = network.init_params(small_config(heads=20, layers=4, **mechanisms), rng)
    own = {n: p for n, p in params.items() if n.startswith((planning.PREFIX, selection.PREFIX))}
    for name, array in own.items():
        if name.endswith(".gate.bias"):
            assert (array == 2).all()
        elif name.endswith(".bias"):
            assert not array.any()
        else:
            scale = np.sqrt(2 / 60) if "selection" in name and "hidden" in name else 0.02
            assert np.std(array) == pytest.approx(scale, rel=0.3 if array.size < 200 else 0.08)


def test_a_question_costs_a_multiply_add_for_every_weight_of_a_matrix():
    sizes = Sizes(4, 60, 3)
    for name, shape, questions in (
        ("planning", Planning(width=5), 3), ("selection", Selection(5, 2), 2),
    ):  # fmt: skip
        table = MECHANISMS[name].shapes(shape, sizes).values()
        weights = sum(np.prod(shape) for shape in table if len(shape) == 2)
        assert MECHANISMS[name].macs(shape, sizes) * questions == weights
    assert MECHANISMS["tokens"].macs(TokenGates(), sizes) == 0


@pytest.mark.parametrize("name", ["planning", "tokens", "selection"])
def test_two_layers_are_enough_to_leave_one_out(name):
    raw = small_config(layers=2, **{name: MECHANISMS[name].shape()}).to_dict()
    assert name in Config.from_dict(raw).mechanisms
    with pytest.raises(InputError, match=f"{name} needs 2 layers, and there are 1"):
        Config.from_dict(raw | {"num_hidden_layers": 1})


def test_a_gate_of_one_half_is_open(rng):
    gates, chosen = np.array([0.49, 0.5]), np.array([0, 1, -1])
    assert token_gates.stays(gates, chosen).tolist() == [False, True, True]

    class Undecided(Reference):
        def policy(self, name, x):
            return np.full(len(x), 0.5)

    config = small_config(layers=4, selection=Selection(3, 2))
    params, batch = random_params(config, rng), random_batch(np.array([0, 2, 5]), config, rng)
    layers = Undecided(params, config)
    answers = hard.hard_forward(Network(params, config), batch, Knobs(("selection",)), layers)
    assert (answers.stayed == 4).all()


def test_the_mean_counts_all_rows_or_those_left():
    for module in (token_gates, selection):
        assert module.counts_what_is_left("left")
        assert not module.counts_what_is_left("last")


# ---------------------------------------------------------------------------- training's pass


def still(**mechanisms):
    """A config without dropout, so that gates alone are drawn."""
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return small_config(layers=4, **none, **mechanisms)


def with_bias(params, prefix, bias):
    """The same parameters with planners or policies that say one thing for sure; 0: one half."""
    out = dict(params)
    for name in params:
        if name.startswith(prefix):
            out[name] = np.zeros_like(params[name])
            out[name] += bias if name.endswith(".gate.bias") else 0
    return out


def test_exploring_leaves_out_as_many_layers_as_it_says(rng):
    config = still(planning=Planning(width=3))
    params, batch = random_params(config, rng), random_batch(np.array([0, 2, 5]), config, rng)

    def losses(bias, explore):
        net = Network(with_bias(params, planning.PREFIX, bias), config, rng=rng)
        return soft.soft_forward(net, batch, np.array([0, 1]), prices(explore=explore))[0]

    np.testing.assert_array_equal(losses(0, 1.0), losses(-40, None))
    np.testing.assert_array_equal(losses(0, 0.0), losses(40, None))
    assert not np.array_equal(losses(-40, None), losses(40, None))


@pytest.mark.parametrize("policy_only", [False, True])
def test_planners_are_drawn_unless_the_policy_learns_alone(rng, policy_only):
    config = still(planning=Planning(width=3), selection=Selection(3, 1))
    params, batch = random_params(config, rng), random_batch(np.arange(21) * 2, config, rng)
    params = with_bias(with_bias(params, planning.PREFIX, 0), selection.PREFIX, 40)
    cost = prices(policy_only=policy_only, estimator="gumbel")
    first, second = (
        soft.soft_forward(Network(params, config, rng=np.random.default_rng(seed)), batch,
                          np.arange(20) % 2, cost)[0]
        for seed in (0, 1)
    )  # fmt: skip
    assert np.array_equal(first, second) == policy_only


def test_a_token_at_one_half_is_ranked_again(rng):
    config = still(tokens=TokenGates(1))
    params, batch = random_params(config, rng), random_batch(np.array([0, 3, 7]), config, rng)
    params[token_gates.NAME][:] = 0.5
    cache = soft.soft_forward(Network(params, config), batch, np.array([0, 1]), prices())[-1]
    slopes = soft.soft_backward(cache)[token_gates.NAME][:, 0]
    assert (slopes != 0).tolist() == [True, True, False]  # then a quarter is there: it has left


def test_losses_are_means_over_samples_and_kept_is_a_share(rng):
    config = still(selection=Selection(3, 2))
    params, batch = random_params(config, rng), random_batch(np.array([0, 3, 7]), config, rng)
    cost = prices(samples=3, selection_cost=2.0, estimator="reinforce")
    net, labels = Network(params, config, rng=rng), np.array([0, 1])
    losses, terms, _ = soft.soft_forward(net, batch, labels, cost)
    assert losses.shape == (2,)
    assert terms["loss"] == pytest.approx(losses.mean() + 2 * terms["kept"])
    assert 0 < terms["kept"] < 1
    all_stay = net._replace(params=with_bias(params, selection.PREFIX, 40))
    assert soft.soft_forward(all_stay, batch, labels, cost)[1]["kept"] == pytest.approx(1)
