"""Halting as DACT promises it: exact, monotone, the tight bound never later than the paper's."""

import numpy as np
import pytest
from conftest import seeds
from hypothesis import given
from hypothesis import strategies as st
from networks import small_config

from minidact import ops
from minidact.mechanisms import dact
from minidact.mechanisms.exits import Halting, Prices
from minidact.network import init_params


def trajectories(rng, count, layers, classes):
    """Random y (L, N, Y) and h (L, N), from indecisive to sharp, from eager to patient."""
    sharpness = 10 ** rng.uniform(-1, 1.5, (1, count, 1))
    y, _ = ops.softmax_forward(rng.standard_normal((layers, count, classes)) * sharpness)
    h = rng.beta(*10 ** rng.uniform(-1, 1, (2, 1, count)), (layers, count))
    return y, h


def test_neither_bound_ever_changes_the_class_on_a_million_trajectories():
    rng, stopped = np.random.default_rng(0), {"paper": 0, "tight": 0}
    for layers, classes in [(2, 2), (3, 3), (6, 2), (6, 5), (12, 2), (12, 10), (24, 3), (4, 4)] * 5:
        count = 25_000
        y, h = trajectories(rng, count, layers, classes)
        final = dact.accumulate_forward(y, h)[0].argmax(1)
        a, p = np.zeros((count, classes)), np.ones(count)
        halted = {bound: np.zeros(count, bool) for bound in stopped}
        for n in range(layers):
            a, p = dact.accumulate_step(a, p, y[n], h[n])
            for bound in stopped:
                safe = dact.halts(dact.margin(a, p, layers - n - 1, bound), dact.lead(a))
                assert (a.argmax(1)[safe] == final[safe]).all(), (bound, layers, classes, n)
                halted[bound] |= safe
                stopped[bound] += int(halted[bound].sum()) if n < layers - 1 else 0
            assert not (halted["paper"] & ~halted["tight"]).any()  # tight: at least as early
        assert halted["tight"].all()  # after the last layer everything is settled
    assert stopped["tight"] > 1.01 * stopped["paper"] > 0  # and the bounds really do fire


@given(seeds, st.integers(1, 12), st.integers(2, 6))
def test_the_bounds_hold_against_the_worst_future(seed, left, classes):
    """All that is left goes to the runner-up, at the greatest doubt: h = 1."""
    rng = np.random.default_rng(seed)
    a = rng.dirichlet(np.ones(classes), 200)
    p = rng.uniform(size=200) ** 4
    worst = np.eye(classes)[np.argsort(a, 1)[:, -2]]
    end = a.copy()
    for _ in range(left):
        end, _ = dact.accumulate_step(end, p, worst, np.ones(200))
    for bound in ("paper", "tight"):
        safe = dact.halts(dact.margin(a, p, left, bound), dact.lead(a))
        assert (end.argmax(1) == a.argmax(1))[safe].all()
    changed = end.argmax(1) != a.argmax(1)
    assert (dact.margin(a, p, left)[changed] < 0).all()
    assert (dact.margin(a, p, left)[~changed] >= -1e-12).all()  # the tight one is exactly tight


@given(seeds, st.integers(1, 8), st.integers(1, 5), st.integers(2, 4))
def test_doubt_never_rises_and_answers_sum_to_one(seed, layers, rows, classes):
    rng = np.random.default_rng(seed)
    y, h = trajectories(rng, rows, layers, classes)
    a, p, cache = dact.accumulate_forward(y, h)
    assert (np.diff(p, axis=0) <= 0).all()
    np.testing.assert_allclose(a.sum(1), 1)
    first = cache[-1][1][0] if layers > 1 else a
    np.testing.assert_allclose(first, y[0])  # a_1 = y_1


@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_more_slack_never_stops_later(seed, one, two):
    rng = np.random.default_rng(seed)
    a, p = rng.dirichlet(np.ones(3), 50), rng.uniform(size=50)
    less, more = sorted((one, two))
    for bound in ("paper", "tight"):
        margins, leads = dact.margin(a, p, 3, bound), dact.lead(a)
        assert (margins <= leads).all()
        assert not (dact.halts(margins, leads, less) & ~dact.halts(margins, leads, more)).any()
        assert (dact.halts(margins, leads, 0) == (margins >= 0)).all()
        assert dact.halts(margins, leads, 1).all()


def test_ponder_cost_by_hand():
    h = np.array([[0.5], [0.4]])
    _, p, _ = dact.accumulate_forward(np.full((2, 1, 2), 0.5), h)
    np.testing.assert_allclose(p, [[0.5], [0.2]])
    assert dact.ponder_cost_forward(p, h, "p")[0].tolist() == pytest.approx([0.7])
    assert dact.ponder_cost_forward(p, h, "h")[0].tolist() == pytest.approx([0.9])


def test_halting_does_not_teach_y_to_doubt(rng):
    """What h sees of y's confidence carries no gradient back to y."""
    params = {
        name: rng.standard_normal(shape) for name, shape in dact.shapes("u", 4, 3, 2, True).items()
    }
    params["u.halting.weight"][:, :-1] = 0  # h reads nothing but the confidence
    *_, cache = dact.unit_forward(rng.standard_normal((5, 4)), params, "u")
    grads = {}
    ds = dact.unit_backward(np.zeros((5, 2)), np.zeros((5, 2)), np.ones(5), cache, grads)
    assert not ds.any()
    assert not grads["u.classifier.weight"].any()
    assert grads["u.halting.weight"][0, -1] != 0


# ---------------------------------------------------------------------------- by hand


def test_h_sees_how_sure_y_is_down_to_a_floor():
    """h = sigmoid(w_h [t, log(1 - max y)] + b_h), with 1 - max y not below a millionth."""
    s = np.array([[1.0, -2.0], [0.5, 3.0]])
    params = {
        "u.trunk.weight": np.eye(2), "u.trunk.bias": np.zeros(2),
        "u.classifier.weight": np.diag([0.5, 40.0]), "u.classifier.bias": np.zeros(2),
        "u.halting.weight": np.array([[0.3, -0.2, 0.7]]), "u.halting.bias": np.array([0.1]),
    }  # fmt: skip
    _, y, h, _ = dact.unit_forward(s, params, "u")
    t = np.array([[1.0, 0.0], [0.5, 3.0]])  # ReLU
    least = np.array([1 - 1 / (1 + np.exp(-0.5)), 1e-6])
    assert 1 - y[1].max() < 1e-6  # the floor holds for the second
    g = t @ [0.3, -0.2] + 0.7 * np.log(least) + 0.1
    np.testing.assert_allclose(h, 1 / (1 + np.exp(-g)), rtol=1e-12)


def test_an_answer_without_any_probability_costs_what_the_floor_says():
    a = np.array([[1.0, 0.0], [0.5, 0.5], [1 - 1e-8, 1e-8]])
    labels = np.array([1, 0, 1])
    losses, cache = dact.answer_loss_forward(a, labels)
    np.testing.assert_allclose(losses, [-np.log(1e-8), np.log(2), -np.log(1e-8)])
    da = dact.answer_loss_backward(np.ones(3), cache)
    np.testing.assert_array_equal(da, [[0, 0], [-2, 0], [0, 0]])  # at the floor nothing pulls


def test_what_the_heads_learn_is_the_mean_over_layers():
    rng = np.random.default_rng(0)
    z, labels = rng.standard_normal((3, 4, 2)), np.array([0, 1, 1, 0])
    y, _ = ops.softmax_forward(z)
    plain = np.eye(2)[labels]
    mixed = dact.targets(y, labels, 0.25)
    for n in (0, 1):
        np.testing.assert_allclose(mixed[n], 0.75 * plain + 0.25 * y[2])
    np.testing.assert_array_equal(mixed[2], plain)
    np.testing.assert_array_equal(dact.targets(y, labels, 0.0), np.stack([plain] * 3))
    np.testing.assert_array_equal(dact.targets(y[:1], labels, 0.25), [plain])  # a single layer
    losses, _ = dact.heads_loss_forward(z, mixed)
    np.testing.assert_allclose(losses, -(mixed * np.log(y)).sum(2).mean(0))


def test_the_terms_are_means_of_the_sentences():
    rng = np.random.default_rng(1)
    z, h = rng.standard_normal((3, 4, 2)), rng.random((3, 4))
    (y, _), labels = ops.softmax_forward(z), np.array([0, 1, 1, 0])
    prices = Prices(tau=0.3, alpha=0.7)
    losses, terms, _ = dact.loss_forward(z, y, h, None, labels, prices)
    a, p, _ = dact.accumulate_forward(y, h)
    answers = -np.log(a[np.arange(4), labels])
    heads, _ = dact.heads_loss_forward(z, dact.targets(y, labels, prices.distill))
    np.testing.assert_allclose(losses, answers + 0.3 * p.sum(0) + 0.7 * heads)
    means = {"answer": answers.mean(), "ponder": p.sum(0).mean(), "heads": heads.mean()}
    assert terms == pytest.approx(means)


def test_a_layer_that_was_left_out_costs_nothing():
    rng = np.random.default_rng(1)
    z, h = rng.standard_normal((3, 1, 2)), rng.random((3, 1))
    (y, _), u = ops.softmax_forward(z), np.array([[1.0], [0.0], [1.0]])
    for kind, per_layer in (("p", [h[0, 0], h[0, 0] * h[2, 0]]), ("h", [h[0, 0], h[2, 0]])):
        _, terms, _ = dact.loss_forward(z, y, h, u, np.array([0]), Prices(ponder=kind))
        assert terms["ponder"] == pytest.approx(sum(per_layer))


def test_lead():
    np.testing.assert_allclose(dact.lead([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0]]), [0.2, 1.0])


def test_a_training_starts_by_thinking_on():
    config = small_config(layers=2, halting=Halting(5, True))
    params = init_params(config, np.random.default_rng(0))
    for layer in range(2):
        bias = params[f"{dact.unit_name(layer)}.halting.bias"]
        assert 1 / (1 + np.exp(-bias)) == pytest.approx(0.924, abs=1e-3)  # of h


def test_slack_lets_the_lead_count():
    """(1 - slack) margin + slack lead, at least 0."""
    margins, leads = np.array([0.0, -0.3, -0.5]), np.array([0.1, 0.4, 0.4])
    assert dact.halts(margins, leads, 0.0).tolist() == [True, False, False]
    assert dact.halts(margins, leads, 0.5).tolist() == [True, True, False]
    assert dact.halts(margins, leads, 1.0).all()
