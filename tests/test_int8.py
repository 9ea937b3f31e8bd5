"""Eight bits: whole numbers as NumPy has them, layers as their reference, halting still exact."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, TINY, offsets_strategy, run, seeds
from hypothesis import given
from hypothesis import strategies as st
from networks import random_batch, random_params, small_config

from minidact import InputError, Model, hard, ops, ragged
from minidact.fast import host, int8, jit
from minidact.fast.layers import Reference, layers_for
from minidact.fast.packed_int8 import EncoderInt8
from minidact.mechanisms.exits import Halting
from minidact.network import Network

REVIEWS = [line.split("\t")[0] for line in (FIXTURES / "reviews.tsv").read_text().splitlines()[1:]]


def rows_and_weight(rng, rows, inputs, outputs):
    x, w = rng.standard_normal((rows, inputs)), rng.standard_normal((outputs, inputs))
    x *= 10.0 ** rng.uniform(-3, 3, (rows, 1))
    x[rng.random(rows) < 0.1] = 0
    w[rng.random(outputs) < 0.1] = 0
    return x.astype(np.float32), w.astype(np.float32), rng.standard_normal(outputs).astype("f4")


def packed(w, b):
    count, depth = -(-len(w) // int8.PANEL), int8.depth_of(w.shape[1])
    panels = np.empty((count, depth // int8.GROUP, int8.PANEL * int8.GROUP), np.int8)
    columns = np.empty((count, 3, int8.PANEL), np.float32)
    int8.pack(w, b, panels, columns)
    return panels, columns


@given(seeds, st.integers(1, 30), st.integers(1, 70), st.integers(1, 80))
def test_whole_numbers_are_numpys(seed, rows, inputs, outputs):
    x, w, b = rows_and_weight(np.random.default_rng(seed), rows, inputs, outputs)
    expected, sums = ops.linear_int8(x, w, b)
    q = np.full((rows, int8.depth_of(inputs)), 7, int8.KIND)  # what is beyond the inputs is ignored
    scales, out = np.empty(rows, np.float32), np.empty((rows, outputs), np.float32)
    for t in range(rows):
        scales[t] = int8.quantise_row(x[t], q[t, :inputs])
    numbers, expected_scales = ops.quantise(x)
    np.testing.assert_array_equal(q[:, :inputs].astype(int) - int8.SHIFT, numbers)
    np.testing.assert_array_equal(scales, expected_scales)
    panels, columns = packed(w, b)
    int8.linear_packed(q, scales, panels, columns, False, out)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    # with scales of 1 and no bias, the sums themselves; they are below 2^24 here
    columns[:, 1], columns[:, 2] = 1, 0
    int8.linear_packed(q, np.ones_like(scales), panels, columns, False, out)
    np.testing.assert_array_equal(out, sums)


@given(seeds, st.integers(1, 20), st.integers(1, 70))
def test_the_error_of_a_quantised_row_is_half_a_step(seed, rows, inputs):
    x, _, _ = rows_and_weight(np.random.default_rng(seed), rows, inputs, 1)
    q, scale = ops.quantise(x)
    assert (np.abs(q) <= 127).all()
    assert (np.abs(x - scale[:, None] * q) <= scale[:, None] * np.float32(0.5001)).all()
    q, scale = ops.quantise(x, ops.WEIGHT_TOP)
    assert (np.abs(q) <= 63).all()
    assert (np.abs(x - scale[:, None] * q) <= scale[:, None] * np.float32(0.5001)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_of_two_fit_in_sixteen_bits(sign):
    """Where an instruction cut off such a sum, the whole numbers would be others than NumPy's."""
    x, w = np.ones((7, 66), np.float32), np.full((33, 66), sign, np.float32)
    q, out = np.zeros((7, int8.depth_of(66)), int8.KIND), np.empty((7, 33), np.float32)
    for t in range(7):
        int8.quantise_row(x[t], q[t, :66])
    panels, columns = packed(w, np.zeros(33, np.float32))
    columns[:, 1] = 1
    int8.linear_packed(q, np.ones(7, np.float32), panels, columns, False, out)
    assert (out == sign * 66 * 127 * 63).all()


def layers_and_reference(rng, **sizes):
    config = small_config(**sizes)
    params = {name: p.astype(np.float32) for name, p in random_params(config, rng).items()}
    return EncoderInt8(params, config), Reference(params, config, ops, 8)


@given(seeds, offsets_strategy(5, 60))
def test_a_layer_is_its_reference(seed, offsets):
    """But where rounding, in float32, brings a number to the other side of a half."""
    rng = np.random.default_rng(seed)
    layers, reference = layers_and_reference(rng)
    x = rng.standard_normal((offsets[-1], layers.config.hidden_size)).astype(np.float32)
    expected = x.copy()
    reference.layer(0, expected, offsets, None)
    layers.layer(0, x, offsets, layers.workspace(offsets))
    off = np.abs(x - expected)
    assert np.median(off) < 1e-5
    assert off.max() < 0.2


@given(seeds, offsets_strategy(6, 60))
def test_a_sentence_has_the_same_bits_alone_and_in_company(seed, offsets):
    rng = np.random.default_rng(seed)
    layers, _ = layers_and_reference(rng)

    def both(x, offsets):
        x, workspace = x.copy(), layers.workspace(offsets)
        for n in (0, 1):
            layers.layer(n, x, offsets, workspace)
        return x

    x = rng.standard_normal((offsets[-1], layers.config.hidden_size)).astype(np.float32)
    parts = zip(ragged.split(x, offsets), ragged.split(both(x, offsets), offsets), strict=True)
    for part, expected in parts:
        np.testing.assert_array_equal(both(part, np.array([0, len(part)])), expected)


@given(seeds, offsets_strategy(4, 9), st.sampled_from(["tight", "paper"]))
def test_exact_halting_is_exact(seed, offsets, bound):
    """It holds for the network as it runs, in whatever precision."""
    rng = np.random.default_rng(seed)
    config = small_config(layers=5, id2label=("a", "b", "c"), halting=Halting(4, True))
    params = {name: p.astype(np.float32) for name, p in random_params(config, rng).items()}
    net, layers = Network(params, config), EncoderInt8(params, config)
    batch = random_batch(offsets, config, rng)
    full = hard.hard_forward(net, batch, layers=layers)
    early = hard.hard_forward(net, batch, hard.Knobs(("halting",), bound=bound), layers)
    assert (early.probs.argmax(1) == full.probs.argmax(1)).all()


def test_the_model_that_ships_answers_alike():
    full, eight = Model.from_pretrained(), Model.from_pretrained(bits=8)
    for use in ((), None):
        pairs = list(zip(full(REVIEWS, use=use), eight(REVIEWS, use=use), strict=True))
        assert all(a.label == b.label for a, b in pairs)
        assert max(abs(a.score - b.score) for a, b in pairs) < 0.2
    for model in (full, eight):  # infer asks this before it says that it will compile
        assert jit.is_compiled(model.layers.KERNEL) == jit.is_kept()
    assert full.layers.KERNEL != eight.layers.KERNEL


def test_bits_that_can_be_wanted():
    exact = [p.probs for p in Model.from_pretrained()(REVIEWS[:3])]
    for bits in (16, 32):  # float16 holds this model's weights exactly
        assert [p.probs for p in Model.from_pretrained(bits=bits)(REVIEWS[:3])] == exact
    kinds = {32: np.float32, 16: np.uint16}
    for bits, kind in kinds.items():
        if bits == 32 or host.HALVES:
            assert Model.from_pretrained(bits=bits).layers.packed(0)[0].dtype == kind
    for bits in (7, "many", 8.5):
        with pytest.raises(InputError, match=r"bits is .*; there are: 32, 16, 8"):
            Model.from_pretrained(TINY, bits=bits)


def test_the_command_takes_bits():
    plain = run("infer", "--bits", 8, "--json", REVIEWS[0])
    label = Model.from_pretrained(bits=8)(REVIEWS[0]).label
    assert f'"label": "{label}"' in plain.stdout, plain.stderr
    assert run("infer", "--bits", 7, "a").returncode == 2


def test_the_reference_rounds_as_they_do():
    model = Model.from_pretrained(bits=8)
    reference = Model.from_pretrained(bits=8, reference=True)
    assert isinstance(reference.layers, Reference)
    pairs = list(zip(model(REVIEWS), reference(REVIEWS), strict=True))
    assert np.median([abs(a.score - b.score) for a, b in pairs]) < 1e-5
    large = {"bert.encoder.layer.0.weight": np.full((2, 2), 70_000.0), "b": np.ones(2)}
    with pytest.raises(InputError, match="numbers that float16 cannot hold"):
        layers_for(large, model.config, ops, 16)


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n, i in int8.INSTRUCTIONS.items() if i.there])
def test_every_instruction_that_is_here(name):
    if name == int8.chosen():
        pytest.skip("it is the one that all tests here use")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "HYPOTHESIS_PROFILE": "few", "MINIDACT_INT8": name},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]


def test_an_unknown_instruction_is_refused():
    result = run("infer", "a", env={"MINIDACT_INT8": "abacus"})
    assert (result.returncode, result.stdout) == (2, "")
    assert "error: MINIDACT_INT8 is 'abacus'; there are: " in result.stderr
