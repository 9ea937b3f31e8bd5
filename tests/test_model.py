"""The two passes: what the hard one computes, leaves out, counts, and promises."""

import numba
import numpy as np
import pytest
from conftest import TINY, offsets_strategy, seeds
from hypothesis import given
from hypothesis import strategies as st
from networks import Counting, halting_model, prices, random_batch

from minidact import Model, bert, checkpoint, hard, network, ops, ragged, soft
from minidact.fast import gemm, kernels
from minidact.hard import Knobs
from minidact.mechanisms import dact
from minidact.network import Network
from minidact.ragged import Batch

# ---------------------------------------------------------------------------- ragged batches


@given(seeds, offsets_strategy(6, 5))
def test_select_is_what_it_says(seed, offsets):
    rng = np.random.default_rng(seed)
    keep = rng.integers(0, 2, len(offsets) - 1).astype(bool)
    x = rng.standard_normal((offsets[-1], 3))
    rows, smaller = ragged.select(offsets, keep)
    parts = [part for part, kept in zip(ragged.split(x, offsets), keep, strict=True) if kept]
    assert np.array_equal(x[rows], np.concatenate([np.empty((0, 3)), *parts]))
    assert ragged.lengths(smaller).tolist() == [len(part) for part in parts]
    joined, again = ragged.concatenate(ragged.split(x, offsets))
    assert np.array_equal(joined, x)
    assert np.array_equal(again, offsets)


# ---------------------------------------------------------------------------- the hard pass


@given(seeds, offsets_strategy(6, 6), st.sampled_from(["cls", "mean"]))
def test_exact_halting_keeps_every_class_and_halting_is_the_soft_answer(seed, offsets, summary):
    rng = np.random.default_rng(seed)
    config, params = halting_model(rng, summary=summary)
    batch = random_batch(offsets, config, rng)
    full = hard.hard_forward(Network(params, config), batch)
    assert full.layers_run.all()
    np.testing.assert_allclose(full.probs.sum(1), 1)
    for bound in ("tight", "paper"):
        exact = hard.hard_forward(Network(params, config), batch, Knobs(("halting",), bound=bound))
        assert (exact.probs.argmax(1) == full.probs.argmax(1)).all()
        ran = exact.layers_run.sum(1)
        for b in range(len(ran)):  # a prefix of the layers, ended by the rule and by nothing else
            assert exact.layers_run[b, : ran[b]].all()
            left = np.arange(config.num_hidden_layers)[::-1]
            margins = [
                dact.margin(full.so_far[b, n], full.doubts[b, n], left[n], bound)
                for n in range(len(left))
            ]
            assert ran[b] == 1 + np.argmax(np.array(margins) >= 0)
    everything = hard.hard_forward(Network(params, config), batch, Knobs(("halting",), slack=2.0))
    assert (everything.layers_run.sum(1) == 1).all()


@given(seeds, offsets_strategy(3, 5))
def test_soft_and_hard_pass_agree_when_nothing_halts(seed, offsets):
    rng = np.random.default_rng(seed)
    config, params = halting_model(rng)
    batch = random_batch(offsets, config, rng)
    labels = rng.integers(0, 2, len(offsets) - 1)
    net = Network(params, config)
    losses, terms, _ = soft.soft_forward(net, batch, labels, prices(tau=0.0, alpha=0.0))
    probs = hard.hard_forward(net, batch).probs
    picked = np.maximum(probs[np.arange(len(labels)), labels], 1e-8)
    np.testing.assert_allclose(losses, -np.log(picked))
    np.testing.assert_allclose(terms["loss"], -np.log(picked).mean())


@pytest.mark.parametrize("calc", [ops, kernels])
@pytest.mark.parametrize("offsets", [[0, 1], [0, 7], [0, 3, 4, 9]])
def test_nothing_adaptive_is_plain_bert_bit_for_bit(calc, offsets, rng):
    config, params, _ = checkpoint.load(TINY)
    batch = random_batch(np.array(offsets), config, rng)
    states, _ = bert.encoder_forward(params, config, batch, calc)
    summary, _ = bert.summary_forward(states[-1], batch.offsets, "cls", calc)
    logits, _ = bert.classifier_forward(params, config, summary, calc)
    answers = hard.hard_forward(Network(params, config, calc), batch)
    assert np.array_equal(answers.probs, ops.softmax_forward(logits)[0])

    config, params = halting_model(rng)
    params = {name: p.astype(np.float32) for name, p in params.items()}
    batch = random_batch(np.array(offsets), config, rng)
    answers = hard.hard_forward(Network(params, config, calc), batch)
    a, p = np.zeros((len(offsets) - 1, 2), np.float32), np.ones(len(offsets) - 1, np.float32)
    for layer, x in enumerate(bert.encoder_forward(params, config, batch, calc)[0][1:]):
        s, _ = bert.summary_forward(x, batch.offsets, "mean", calc)
        _, y, h, _ = dact.unit_forward(s, params, f"dact.layer.{layer}")
        a, p = dact.accumulate_step(a, p, y, h)
        assert np.array_equal(answers.so_far[:, layer], a)
    assert np.array_equal(answers.probs, a)


@given(seeds, offsets_strategy(5, 6), st.booleans())
def test_a_sentence_does_not_depend_on_its_neighbours(seed, offsets, halting):
    rng = np.random.default_rng(seed)
    config, params = halting_model(rng)
    params = {name: p.astype(np.float32) for name, p in params.items()}
    batch = random_batch(offsets, config, rng)
    use = ("halting",) if halting else ()
    together = hard.hard_forward(Network(params, config, kernels), batch, Knobs(use))
    order = rng.permutation(len(offsets) - 1)
    parts = [ragged.split(array, offsets) for array in batch[:2]]
    for b in order:
        alone = Batch(parts[0][b], parts[1][b], np.array([0, len(parts[0][b])]))
        answer = hard.hard_forward(Network(params, config, kernels), alone, Knobs(use))
        assert np.abs(answer.probs[0] - together.probs[b]).max() < 1e-5
        assert answer.macs[0] == together.macs[b]
    mixed, mixed_offsets = ragged.concatenate([parts[0][b] for b in order])
    segments, _ = ragged.concatenate([parts[1][b] for b in order])
    mixed = Batch(mixed, segments, mixed_offsets)
    shuffled = hard.hard_forward(Network(params, config, kernels), mixed, Knobs(use))
    assert np.abs(shuffled.probs - together.probs[order]).max() < 1e-5


# ---------------------------------------------------------------------------- what was executed


@given(seeds, offsets_strategy(6, 6), st.booleans(), st.floats(0, 1))
def test_macs_reported_are_macs_executed(seed, offsets, halting, slack):
    rng = np.random.default_rng(seed)
    config, params = halting_model(rng)
    batch, counting = random_batch(offsets, config, rng), Counting()
    use = ("halting",) if halting else ()
    answers = hard.hard_forward(Network(params, config, counting), batch, Knobs(use, slack=slack))
    assert answers.macs.sum() == counting.macs
    assert (answers.macs_full == network.full_macs(config, ragged.lengths(offsets))).all()
    assert (answers.macs <= answers.macs_full).all()
    lengths = np.repeat(ragged.lengths(offsets)[:, None], config.num_hidden_layers, 1)
    assert (answers.lengths == lengths * answers.layers_run).all()


def test_macs_of_a_plain_model(rng):
    config, params, _ = checkpoint.load(TINY)
    batch, counting = random_batch(np.array([0, 3, 8]), config, rng), Counting()
    answers = hard.hard_forward(Network(params, config, counting), batch)
    assert answers.macs.sum() == answers.macs_full.sum() == counting.macs


def test_no_layer_runs_once_all_are_decided(rng, monkeypatch):
    config, params = halting_model(rng, layers=6)
    called, layer_forward = [], bert.layer_forward

    def spy(params, config, layer, x, *rest):
        called.append((layer, len(x)))
        return layer_forward(params, config, layer, x, *rest)

    monkeypatch.setattr(bert, "layer_forward", spy)
    batch = random_batch(np.array([0, 2, 5, 6, 9]), config, rng)
    answers = hard.hard_forward(Network(params, config), batch, Knobs(("halting",), slack=0.2))
    assert [layer for layer, _ in called] == list(range(answers.layers_run.any(0).sum()))
    assert [rows for _, rows in called] == [n for n in answers.lengths.sum(0).tolist() if n]
    assert len(called) < 6 or answers.lengths[:, -1].sum() < 9


# ---------------------------------------------------------------------------- Model


def test_model_answers_one_text_and_many():
    m = Model.from_pretrained(TINY)
    one = m("the good film!")
    assert one.label in m.config.id2label
    assert one.layers_run == [0, 1]
    assert one.tokens == len(one.pieces) == 6
    assert one.tokens_per_layer == [6, 6]
    assert sum(one.probs.values()) == pytest.approx(1)
    assert one.score == max(one.probs.values())
    many = m(["the good film!", "bad.", ""], batch_size=2)
    assert [p.text for p in many] == ["the good film!", "bad.", ""]
    assert many[0].probs == pytest.approx(one.probs, abs=1e-5)
    pair = m(["good"], ["bad"])[0]
    assert pair.text_pair == "bad"
    assert pair.pieces == ["[CLS]", "good", "[SEP]", "bad", "[SEP]"]


def test_a_long_text_is_cut_and_says_so():
    m = Model.from_pretrained(TINY)
    long = m("good film " * 100_000)
    assert long.truncated
    assert long.tokens == 24
    assert "cut" in str(long)
    assert not m("good").truncated


def test_reference_and_kernels_agree():
    texts = ["the good film!", "bad.", "x"]
    for a, b in zip(
        Model.from_pretrained(TINY)(texts),
        Model.from_pretrained(TINY, reference=True)(texts),
        strict=True,
    ):
        assert a.probs == pytest.approx(b.probs, abs=1e-5)


def test_the_number_of_threads_changes_no_gradient(rng, monkeypatch):
    monkeypatch.setattr(gemm, "SMALL", 0)  # else NumPy would do the products
    config, params = halting_model(rng)
    params = {name: p.astype(np.float32) for name, p in params.items()}
    batch = random_batch(np.arange(0, 97, 6), config, rng)

    def gradients():
        net = Network(params, config, kernels)
        return soft.soft_backward(soft.soft_forward(net, batch, np.arange(16) % 2)[-1])

    before, several = numba.get_num_threads(), gradients()
    try:
        numba.set_num_threads(1)
        one = gradients()
    finally:
        numba.set_num_threads(before)
    for name, gradient in several.items():
        np.testing.assert_array_equal(gradient, one[name], name)


def test_calculus_by_dtype():
    single, double = ({"a": np.zeros(1, dtype)} for dtype in (np.float32, np.float64))
    assert network.calculus(single) is kernels
    assert network.calculus(double) is ops
    assert network.calculus(single, reference=True) is ops
