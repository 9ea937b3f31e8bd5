"""The packed layers against the layers they stand for; and every vector width, forced."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from conftest import ROOT, offsets_strategy, seeds
from hypothesis import given
from hypothesis import strategies as st
from networks import random_params, small_config

from minidact import bert, ops, ragged
from minidact.fast import host, layers
from minidact.fast.packed import Encoder


def encoder_and_params(rng, halves=True, **sizes):
    """An encoder in float32, and its parameters for the reference, in float64."""
    config = small_config(**sizes)
    params = {name: p.astype(np.float32) for name, p in random_params(config, rng).items()}
    if halves:
        params = {n: p.astype(np.float16).astype(np.float32) for n, p in params.items()}
    return Encoder(params, config), {name: p.astype(np.float64) for name, p in params.items()}


def run(encoder, x, offsets):
    """Both layers of the encoder on x, and what the second one says each token received."""
    x = x.copy()
    workspace = encoder.workspace(offsets)
    for layer in range(encoder.config.num_hidden_layers):
        received = encoder.layer(layer, x, offsets, workspace)
    return x, received.sum(0)


@given(seeds, offsets_strategy(5, 60), st.booleans())
def test_packed_layers_are_the_layers(seed, offsets, halves):
    rng = np.random.default_rng(seed)
    encoder, params = encoder_and_params(rng, halves)
    assert encoder.packed(0)[0].dtype == (np.uint16 if halves and host.HALVES else np.float32)
    x = rng.standard_normal((offsets[-1], encoder.config.hidden_size)).astype(np.float32)
    got, received = run(encoder, x, offsets)
    expected = x.astype(np.float64)
    for layer in range(encoder.config.num_hidden_layers):
        expected, _, (cache, _) = bert.layer_forward(
            params, encoder.config, layer, expected, offsets
        )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)
    _, _, (qkv, *_), *_ = cache
    _, reference, _ = ops.attention_forward(qkv, offsets, encoder.config.num_attention_heads)
    np.testing.assert_allclose(received, reference, rtol=1e-4, atol=1e-4)


@given(seeds, offsets_strategy(6, 60))
def test_a_sentence_has_the_same_bits_alone_and_in_company(seed, offsets):
    rng = np.random.default_rng(seed)
    encoder, _ = encoder_and_params(rng)
    x = rng.standard_normal((offsets[-1], encoder.config.hidden_size)).astype(np.float32)
    together, _ = run(encoder, x, offsets)
    for part, expected in zip(
        ragged.split(x, offsets), ragged.split(together, offsets), strict=True
    ):
        alone, _ = run(encoder, part, np.array([0, len(part)]))
        np.testing.assert_array_equal(alone, expected)


def test_the_number_of_threads_changes_no_bit(rng):
    encoder, _ = encoder_and_params(rng)
    x, offsets = rng.standard_normal((150, encoder.config.hidden_size)), np.array([0, 1, 60, 150])
    x, before = x.astype(np.float32), numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one, _ = run(encoder, x, offsets)
    finally:
        numba.set_num_threads(before)
    np.testing.assert_array_equal(run(encoder, x, offsets)[0], one)


@pytest.mark.skipif("MINIDACT_VECTOR_WIDTH" in os.environ, reason="this is the inner run")
def test_other_vector_widths():
    """The tests of kernels, goldens and packed layers once more, as on other processors.

    With 8 numbers in a vector it has AVX2's instructions for eight bits, with 4 it has none.
    """
    forced = {4: {"MINIDACT_INT8": "pairs"}}
    if host.HOST.get("avx2", False):
        forced[8] = {"MINIDACT_INT8": "maddubs"}
    names = [f"tests/test_{name}.py" for name in ("kernels", "golden", "packed", "int8")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names]
    processes = {
        width: subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env={
                **os.environ, "HYPOTHESIS_PROFILE": "few", "MINIDACT_VECTOR_WIDTH": str(width),
                **forced.get(width, {}),
            },
        )
        for width in {16, 8, 4} - {host.WIDTH}
    }  # fmt: skip
    for width, process in processes.items():
        out, _ = process.communicate()
        assert process.returncode == 0, f"{width} numbers in a vector: {out[-3000:]}"


def test_an_unknown_width_is_refused():
    result = subprocess.run(
        [sys.executable, "-c", "import minidact.fast.host"],
        env={**os.environ, "MINIDACT_VECTOR_WIDTH": "7"},
        capture_output=True,
        text=True,
    )
    assert "MINIDACT_VECTOR_WIDTH is '7'; there are: 16, 8, 4" in result.stderr


def test_sixteen_bits_round_the_layers_and_nothing_else(rng):
    odd = np.full((2, 2), 1 + 2.0**-20, np.float32)  # float16 has 11 bits
    assert (layers._rounded("bert.encoder.layer.0.output.dense.weight", odd) == 1).all()
    for name in (
        "dact.layer.0.trunk.weight",
        "planning.layer.1.hidden.weight",
        "classifier.weight",
    ):
        assert layers._rounded(name, odd) is odd, name
