"""Our numbers against PyTorch's, as fixtures/make_golden.py wrote them down."""

import numpy as np
import pytest
from conftest import FIXTURES, TINY
from safetensors.numpy import load_file

from minidact import bert, checkpoint, data, ops, optim, soft
from minidact.fast import kernels
from minidact.network import Network
from minidact.ragged import Batch
from minidact.train.learn import learn

GOLDEN = load_file(FIXTURES / "golden.safetensors")
SENTENCES = [[2, 10, 11, 12, 3], [2], [2, 30, 3, 31, 32, 33, 34, 35, 3]]
SEGMENTS = [[0] * 5, [0], [0, 0, 0, 1, 1, 1, 1, 1, 1]]
LABELS = np.array([2, 0, 1])
BATCH = data.to_batch(
    [
        data.Encoded(np.array(i), np.array(s), [], False)
        for i, s in zip(SENTENCES, SEGMENTS, strict=True)
    ]
)
CASES = [("float64", ops, 1e-10), ("float32", ops, 1e-5), ("float32", kernels, 1e-5)]


def load(dtype):
    config, params, _ = checkpoint.load(TINY)
    return config, {name: p.astype(dtype) for name, p in params.items()}


def assert_close(actual, name, tolerance):
    expected = GOLDEN[name]
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize(("dtype", "calc", "tolerance"), CASES)
def test_forward_and_every_gradient(dtype, calc, tolerance):
    config, params = load(dtype)
    states, _ = bert.encoder_forward(params, config, BATCH, calc)
    for i, state in enumerate(states):
        assert state.dtype == dtype
        assert_close(state, f"{dtype}.state.{i}", tolerance)
    summary, _ = bert.summary_forward(states[-1], BATCH.offsets, "cls", calc)
    assert_close(
        bert.classifier_forward(params, config, summary, calc)[0], f"{dtype}.logits", tolerance
    )

    losses, terms, cache = soft.soft_forward(Network(params, config, calc), BATCH, LABELS)
    assert_close([terms["loss"]], f"{dtype}.loss", tolerance)
    assert losses.shape == LABELS.shape
    assert losses.mean() == terms["loss"]
    grads = soft.soft_backward(cache)
    assert sorted(grads) == sorted(params)
    for name, grad in grads.items():
        assert grad.dtype == dtype, name
        assert_close(grad, f"{dtype}.grad.{name}", tolerance)


@pytest.mark.parametrize("calc", [ops, kernels])
def test_ten_steps_of_adamw(calc):
    config, params = load("float32")
    moments, losses = optim.zero_moments(params), []
    net, rates = Network(params, config, calc), dict.fromkeys(params, 3e-3)
    for step in range(10):
        terms = learn(net, BATCH, LABELS, None, moments, step, rates)
        losses.append(terms["loss"])
    np.testing.assert_allclose(losses, GOLDEN["adamw_losses"], rtol=0, atol=1e-4)
    assert losses[-1] < 0.7 * losses[0]


def test_a_batch_is_what_its_sentences_are():
    assert BATCH.offsets.tolist() == [0, 5, 6, 15]
    assert isinstance(BATCH, Batch)
