"""The edges of ops.py by hand: what no gradient, and no comparison of two versions, would see."""

import numpy as np
import pytest

from minidact import ops
from minidact.fast import kernels

BOTH = pytest.mark.parametrize("calc", [ops, kernels], ids=["ops", "kernels"])


def test_relus_slope_at_0_is_0():
    x = np.array([[-1.0, 0.0, 2.0]])
    assert ops.relu_backward(np.ones_like(x), x).tolist() == [[0, 0, 1]]


@BOTH
def test_dropout_draws_what_it_needs_and_no_more(calc):
    """Which numbers come next depends on it, and so do all later ones of a training."""
    x = np.ones((3, 3), np.float32)
    for rate, draws in ((0.0, 0), (0.3, 3)):  # nine elements have 16 bits each: three times 64
        mine, other = np.random.default_rng(7), np.random.default_rng(7)
        out, mask = calc.dropout_forward(x, rate, mine)
        assert (mask is None) == (rate == 0)
        assert rate or out is x
        other.bit_generator.random_raw(draws)
        assert mine.bit_generator.random_raw() == other.bit_generator.random_raw()


@BOTH
@pytest.mark.parametrize(("rate", "least"), [(0.25, 16384), (0.5, 32768), (0.1, 6553)])
def test_an_element_is_kept_from_that_number_on(calc, rate, least, monkeypatch):
    assert ops.dropout_least(rate) == least
    bits = np.array([0, least - 1, least, 65535], np.uint16)
    for module in (ops, kernels):
        monkeypatch.setattr(module, "dropout_bits", lambda size, rng: bits)
    out, _ = calc.dropout_forward(np.ones(4, np.float32), rate, np.random.default_rng(0))
    np.testing.assert_allclose(out, np.array([0, 0, 1, 1]) / (1 - rate), rtol=1e-6)


def test_half_of_all_is_dropped_at_a_half():
    mask = ops.dropout_mask((200, 50), 0.5, np.random.default_rng(0), np.dtype(np.float64))
    assert set(np.unique(mask)) == {0, 2}
    assert abs(mask.mean() - 1) < 0.03


def test_softmax_never_overflows():
    x = np.array([[1000.0, 999.0, -1000.0], [-1000.0, -1001.0, -3000.0]])
    out, _ = ops.softmax_forward(x)
    share = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(out, [[share, 1 - share, 0]] * 2)


def test_softmax_is_over_the_last_axis_of_any_number():
    """Attention's has three: heads, queries, keys."""
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, 2, 3, 5))
    out, cache = ops.softmax_forward(x)
    np.testing.assert_allclose(out.sum(2), 1)
    dx = ops.softmax_backward(dout, cache)
    for head in (0, 1):
        flat, cache = ops.softmax_forward(x[head])
        np.testing.assert_array_equal(out[head], flat)
        np.testing.assert_allclose(dx[head], ops.softmax_backward(dout[head], cache))


def test_losses_by_hand():
    """Their gradients alone would not see a value that is wrong by a sign or a constant."""
    logits, labels = np.log([[0.2, 0.8], [0.5, 0.5]]), np.array([1, 0])
    losses, _ = ops.cross_entropy_forward(logits, labels)
    np.testing.assert_allclose(losses, -np.log([0.8, 0.5]))
    losses, _ = ops.cross_entropy_forward(np.array([[1000.0, 0.0], [-1000.0, 0.0]]), labels)
    np.testing.assert_allclose(losses, [1000, 1000])
    losses, _ = ops.squared_error_forward(np.array([[3.0], [-1.0]]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(losses, [4, 9])


@BOTH
def test_adamw_by_hand(calc):
    """The first step of one weight, with an eps that is not small."""
    p, g, m, v = (np.array([x], np.float32) for x in (2.0, 3.0, 0.0, 0.0))
    calc.adamw_update(p, g, m, v, 1, 0.1, 0.9, 0.99, 0.5, 0.01, 2.0)
    grad = 3.0 * 2.0  # scaled; both moments are corrected to it and to its square
    np.testing.assert_allclose(m, 0.1 * grad, rtol=1e-6)
    np.testing.assert_allclose(v, 0.01 * grad**2, rtol=1e-5)
    np.testing.assert_allclose(p, 2 * (1 - 0.1 * 0.01) - 0.1 * grad / (grad + 0.5), rtol=1e-6)


def test_quantising_by_hand():
    """The largest of a row is 127; a row of zeros stays one, and nothing is divided by it."""
    x = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [0.01, 0.0, -0.005]])
    with np.errstate(invalid="raise"):
        q, scales = ops.quantise(x)
    assert q.tolist() == [[64, -127, 32], [0, 0, 0], [127, 0, -64]]
    np.testing.assert_allclose(scales, [2 / 127, 0, 0.01 / 127])
    q, scales = ops.quantise(x, 63)
    assert q.tolist() == [[32, -63, 16], [0, 0, 0], [63, 0, -32]]
    np.testing.assert_allclose(scales, [2 / 63, 0, 0.01 / 63])
