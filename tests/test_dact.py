"""Halting as DACT promises it: exact, monotone, the tight bound never later than the paper's."""

import numpy as np
import pytest
from conftest import seeds
from hypothesis import given
from hypothesis import strategies as st

from minidact import ops
from minidact.mechanisms import dact


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
