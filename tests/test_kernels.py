"""Every Numba kernel against its NumPy reference, in float32, over drawn shapes."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import offsets_strategy, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidact import ops
from minidact.fast import gemm, kernels
from minidact.fast.host import HALVES

sizes = st.integers(1, 40)


def draw(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def assert_close(actual, reference, dout=0.0):
    """1e-5 relative to the largest number that took part: float32 sums cancel, in both."""
    assert actual.dtype == np.float32
    scale = max(float(np.abs(reference).max(initial=0)), float(np.abs(dout).max()), 1e-3)
    np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-5 * scale)


def compare(name, args, rng):
    """Forward and backward of both modules: outputs, caches and gradients."""
    *outs, cache = getattr(kernels, f"{name}_forward")(*args)
    *expected, expected_cache = getattr(ops, f"{name}_forward")(*args)
    for out, reference in zip(outs, expected, strict=True):
        assert_close(np.asarray(out), np.asarray(reference), args[0])
    for mine, reference in zip(as_tuple(cache), as_tuple(expected_cache), strict=True):
        if getattr(mine, "dtype", None) == np.float32:
            assert_close(mine, reference)
    dout = np.float32(1.5) if np.ndim(outs[0]) == 0 else draw(rng, *outs[0].shape)
    grads = getattr(kernels, f"{name}_backward")(dout, cache)
    expected = getattr(ops, f"{name}_backward")(dout, expected_cache)
    for mine, reference in zip(as_tuple(grads), as_tuple(expected), strict=True):
        if reference is not None:
            assert_close(mine, reference, dout)


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


@given(seeds, sizes, sizes)
def test_gelu(seed, rows, columns):
    rng = np.random.default_rng(seed)
    compare("gelu", (draw(rng, rows, columns) * np.float32(4),), rng)


@given(seeds, sizes, st.integers(2, 70))
def test_layer_norm(seed, rows, columns):
    rng = np.random.default_rng(seed)
    x = draw(rng, rows, columns) * np.float32(3) + np.float32(0.5)
    compare("layer_norm", (x, draw(rng, columns), draw(rng, columns), 1e-3), rng)


@given(
    seeds, offsets_strategy(5, 120), st.integers(1, 4), st.integers(1, 33), st.booleans(),
    st.sampled_from([None, 0.0, 0.5]),
)  # fmt: skip
def test_attention(seed, offsets, heads, size, dropped, closed):
    rng = np.random.default_rng(seed)
    qkv = draw(rng, offsets[-1], 3 * heads * size)
    drop = gates = None
    if closed is not None:  # with some gates at exactly 0 and 1, but every [CLS] stays
        gates = np.where(rng.random(offsets[-1]) < closed, 0, rng.uniform(0.1, 1.5, offsets[-1]))
        gates[offsets[:-1]] = 1
        gates = np.minimum(gates, 1).astype(np.float32)
    if dropped:
        drop = ops.dropout_mask(ops.attention_size(offsets, heads), 0.3, rng, qkv.dtype)
    compare("attention", (qkv, offsets, heads, drop, gates), rng)


@pytest.fixture
def nothing_is_small(monkeypatch):
    monkeypatch.setattr(gemm, "SMALL", 0)  # else NumPy would do the small products


@given(seeds, st.integers(1, 70), st.integers(1, 100), st.integers(1, 130))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_linear(nothing_is_small, seed, rows, outputs, inputs):
    rng = np.random.default_rng(seed)
    compare(
        "linear", (draw(rng, rows, inputs), draw(rng, outputs, inputs), draw(rng, outputs)), rng
    )


def test_columns_may_lie_side_by_side(nothing_is_small, rng):
    """Fortran's order, as a transpose has it: its copies would be written to, and lost."""
    x, w, b = (np.asfortranarray(draw(rng, *shape)) for shape in ((40, 70), (50, 70), (50,)))
    compare("linear", (x, w, b), rng)
    compare("gelu", (x,), rng)
    compare("layer_norm", (x, draw(rng, 70), draw(rng, 70), 1e-3), rng)
    compare("attention", (x[:, :66], np.array([0, 15, 40]), 2, None, None), rng)
    out, mask = kernels.dropout_forward(x, 0.5, np.random.default_rng(0))
    np.testing.assert_array_equal(out, x * mask)
    assert set(np.unique(mask)) == {0, 2}
    mine, theirs = ([w.copy("K"), w, abs(w), abs(w)] for _ in range(2))
    for module, (p, g, m, v) in ((kernels, mine), (ops, theirs)):
        module.adamw_update(p, g, m.copy("K"), v.copy("K"), 3, 0.1, 0.9, 0.999, 1e-8, 0.01, 1.0)
    assert_close(mine[0], theirs[0])
    assert np.abs(mine[0] - w).min() > 0


@given(seeds, st.integers(1, 70), st.integers(1, 100), st.integers(1, 130))
def test_packed_linear(seed, rows, outputs, inputs):
    rng = np.random.default_rng(seed)
    x, w, b = draw(rng, rows, inputs), draw(rng, outputs, inputs), draw(rng, outputs)
    w = w.astype(np.float16).astype(np.float32)
    count = -(-outputs // gemm.PANEL)
    panels = np.empty((count, inputs, gemm.PANEL), np.float32)
    gemm.pack(w, panels)
    starts = np.zeros((count, gemm.PANEL), np.float32)
    starts.reshape(-1)[:outputs] = b

    def run(x, gelu=False, panels=panels):
        out = np.empty((len(x), outputs), np.float32)
        gemm.linear_packed(x, panels, starts, gelu, out)
        return out

    expected, _ = ops.linear_forward(x, w, b)
    assert_close(run(x), expected, x)
    assert_close(run(x, gelu=True), ops.gelu_forward(expected)[0], x)
    # a row has the same bits in any company, and 16 bits are as good as 32
    np.testing.assert_array_equal(np.concatenate([run(row[None]) for row in x]), run(x))
    if HALVES:
        half = panels.astype(np.float16).view(np.uint16)
        np.testing.assert_array_equal(run(x, panels=half), run(x))


@given(seeds, offsets_strategy(5, 60), sizes)
def test_mean_rows(seed, offsets, columns):
    rng = np.random.default_rng(seed)
    compare("mean_rows", (draw(rng, offsets[-1], columns), offsets), rng)


@given(seeds, sizes, sizes, st.floats(0.01, 0.9))
def test_dropout(seed, rows, columns, rate):
    """From the same random bits the same numbers are dropped."""
    x, dout = draw(np.random.default_rng(seed), 2, rows, columns)
    both = []
    for calc in (kernels, ops):
        out, mask = calc.dropout_forward(x, rate, np.random.default_rng(seed))
        both.append((out, mask, calc.dropout_backward(dout, mask)))
    for mine, reference in zip(*both, strict=True):
        np.testing.assert_array_equal(mine, reference)
    assert kernels.dropout_forward(x, rate, None)[0] is x


@given(seeds, sizes)
def test_sum_of_squares(seed, size):
    x = draw(np.random.default_rng(seed), size)
    assert kernels.sum_of_squares(x) == pytest.approx(ops.sum_of_squares(x), rel=1e-5)


def test_every_kernel_has_its_test():
    """Every function of kernels.py that is not ops.py's own is named in this file."""
    own = {
        name for name, function in vars(kernels).items()
        if hasattr(ops, name) and callable(function) and function is not getattr(ops, name)
    }  # fmt: skip
    tests = Path(__file__).read_text()
    assert own > {"gelu_forward", "attention_backward", "adamw_update", "linear_forward"}
    for name in own:
        stem = name.removesuffix("_forward").removesuffix("_backward")
        assert re.search(rf'compare\(\s*"{stem}"|kernels\.{name}\(', tests), name


@given(seeds, sizes, st.integers(1, 1000), st.floats(0, 1e-2), st.floats(0, 0.5))
def test_adamw(seed, size, step, lr, decay):
    rng = np.random.default_rng(seed)
    p, g, m = draw(rng, 3, size)
    start = (p, g, m, draw(rng, size) ** 2)
    mine, reference = [a.copy() for a in start], [a.copy() for a in start]
    rest = (step, lr, 0.9, 0.999, 1e-8, decay, 0.7)
    kernels.adamw_update(*mine, *rest)
    ops.adamw_update(*reference, *rest)
    for a, b, before in zip(mine, reference, start, strict=True):
        assert_close(a, b, before)


@pytest.mark.parametrize("scale", [1e-3, 1, 30, 200])
def test_gelu_over_the_whole_range(scale):
    x = np.linspace(-scale, scale, 100_001, dtype=np.float32)
    exact, cache = ops.gelu_forward(x.astype(np.float64))
    np.testing.assert_allclose(kernels.gelu_forward(x)[0], exact, rtol=3e-6, atol=1e-6)
    slope = ops.gelu_backward(np.ones_like(exact), cache)
    np.testing.assert_allclose(
        kernels.gelu_backward(np.ones_like(x), x), slope, rtol=1e-6, atol=1e-6
    )


def test_nan_and_infinity_are_kept():
    x = np.array([np.nan, np.inf, -np.inf, 0], np.float32)
    np.testing.assert_array_equal(kernels.gelu_forward(x)[0], [np.nan, np.inf, 0, 0])
    np.testing.assert_allclose(kernels.gelu_backward(np.ones_like(x), x), [np.nan, 1, 0, 0.5], 1e-6)
    bad = np.ones((3, 8), np.float32)
    bad[1, 2] = np.nan
    out = kernels.attention_forward(np.tile(bad, 3), np.array([0, 2, 3]), 2)[0]
    assert np.isnan(out[0]).any()
    assert np.isfinite(out[2]).all()  # the other sentence does not notice
    assert np.isnan(kernels.layer_norm_forward(bad, bad[0], bad[0], 1e-12)[0][1]).all()


def test_a_kernel_gives_the_same_bits_every_time(rng):
    x, dout, gamma = draw(rng, 300, 64), draw(rng, 300, 64), draw(rng, 64)
    cache = kernels.layer_norm_forward(x, gamma, gamma, 1e-12)[1]
    first = kernels.layer_norm_backward(dout, cache)
    for _ in range(20):
        for a, b in zip(first, kernels.layer_norm_backward(dout, cache), strict=True):
            assert np.array_equal(a, b)
