"""What decides in a pass: the compiled questions against their definitions, over drawn shapes."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import offsets_strategy, seeds
from hypothesis import example, given
from hypothesis import strategies as st
from networks import random_batch, random_params, small_config

from minidact import InputError
from minidact.fast.layers import Reference
from minidact.fast.packed import Encoder
from minidact.mechanisms import planning, token_gates
from minidact.mechanisms.exits import Halting
from minidact.mechanisms.planning import Planning
from minidact.mechanisms.token_gates import TokenGates


def both(rng, planner="steps", sees=True, ranks="relative", summary="mean", trunk=5, bins=4):
    config = small_config(
        layers=3, summary=summary, id2label=("a", "b", "c"), halting=Halting(trunk, sees),
        planning=Planning(planner, 7), tokens=TokenGates(bins, ranks),
    )  # fmt: skip
    params = {name: p.astype(np.float32) for name, p in random_params(config, rng).items()}
    return Encoder(params, config), Reference(params, config), config


def close(mine, reference):
    np.testing.assert_allclose(mine, reference, rtol=2e-5, atol=2e-6)


@given(seeds, offsets_strategy(4, 9), st.sampled_from(["cls", "mean"]))
def test_how_a_text_begins(seed, offsets, summary):
    rng = np.random.default_rng(seed)
    fast, reference, config = both(rng, summary=summary)
    batch = random_batch(offsets, config, rng)
    x = fast.embed(batch)
    close(x, reference.embed(batch))
    close(fast.summary(x, offsets), reference.summary(x, offsets))


def test_ids_without_a_row_are_refused():
    fast, _, config = both(np.random.default_rng(0))
    batch = random_batch(np.array([0, 3]), config, np.random.default_rng(0))
    with pytest.raises(InputError, match="the tokenizer gives ids up to"):
        fast.embed(batch._replace(ids=batch.ids + config.vocab_size))


@given(seeds, st.integers(1, 9), st.booleans(), st.sampled_from([5, 40]))
def test_units(seed, rows, sees, trunk):
    rng = np.random.default_rng(seed)
    fast, reference, config = both(rng, sees=sees, trunk=trunk)
    s = rng.standard_normal((rows, config.hidden_size)).astype(np.float32) * 3
    a = rng.dirichlet(np.ones(config.num_labels), rows).astype(np.float32)
    p = rng.random(rows).astype(np.float32)
    for layer in range(3):
        known = (a.copy(), p.copy())
        both_say = zip(fast.unit(layer, s, *known), reference.unit(layer, s, a, p), strict=True)
        for mine, theirs in both_say:
            close(mine, theirs)
        np.testing.assert_array_equal(known[0], a)  # what was known is not changed
        np.testing.assert_array_equal(known[1], p)


@given(seeds, st.integers(1, 9), st.sampled_from(["steps", "path"]))
def test_planners(seed, rows, planner):
    rng = np.random.default_rng(seed)
    fast, reference, config = both(rng, planner)
    s = rng.standard_normal((rows, config.hidden_size)).astype(np.float32) * 3
    for name in planning.names(planner, 3):
        close(fast.planner(name, s), reference.planner(name, s))


@given(seeds, st.integers(1, 9), st.integers(2, 4), st.integers(0, 11), st.sampled_from("tp"))
def test_margins(seed, rows, classes, left, bound):
    rng, bound = np.random.default_rng(seed), {"t": "tight", "p": "paper"}[bound]
    fast, reference, _ = both(rng)
    a = rng.dirichlet(np.ones(classes), rows).astype(np.float32)
    p = rng.random(rows).astype(np.float32)
    for mine, theirs in zip(
        fast.margin(a, p, left, bound), reference.margin(a, p, left, bound), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)


@given(
    seeds, offsets_strategy(4, 120), st.sampled_from(["relative", "absolute"]),
    st.sampled_from([0.3, 0.4, 1.0, 1.6, 1.7]), st.sampled_from([4, 16]),
)  # fmt: skip
@example(0, np.array([0, 13, 112]), "relative", 1.6, 16)  # ranks on the borders of bins
def test_rows_that_stay(seed, offsets, ranks, keep, bins):
    """Level ones are ranked by their place in both."""
    rng = np.random.default_rng(seed)
    fast, reference, _ = both(rng, ranks=ranks, bins=bins)
    fast.params[token_gates.NAME][:] = np.arange(2 * bins).reshape(2, bins) % 2
    received = rng.integers(0, 5, offsets[-1]).astype(np.float32)
    run = rng.random(len(offsets) - 1) < 0.7
    for layer in (1, 2):
        mine = fast.stays(layer, received, offsets, run, keep)
        np.testing.assert_array_equal(mine, reference.stays(layer, received, offsets, run, keep))


@given(seeds, offsets_strategy(4, 12))
def test_rows_that_are_dropped(seed, offsets):
    rng = np.random.default_rng(seed)
    fast, reference, config = both(rng)
    x = rng.standard_normal((offsets[-1], config.hidden_size)).astype(np.float32)
    keep, sums = rng.random(len(x)) < 0.5, rng.standard_normal((2, len(offsets) - 1, x.shape[1]))
    mine, theirs = sums[0].astype(np.float32), sums[0].astype(np.float32)
    fast.add_dropped(x, offsets, keep, mine)
    reference.add_dropped(x, offsets, keep, theirs)
    close(mine, theirs)
    rows = [x[lo:hi][~keep[lo:hi]] for lo, hi in pairwise(offsets)]
    close(theirs - sums[0].astype(np.float32), np.array([r.sum(0) for r in rows], np.float32))


def test_names_that_are_unknown_are_refused_as_by_the_reference():
    fast, reference, config = both(np.random.default_rng(0))
    a, p, x = np.ones((1, 3), np.float32), np.ones(1, np.float32), np.ones((2, 36), np.float32)
    offsets, run = np.array([0, 2]), np.ones(1, bool)
    tokens = config.mechanisms | {"tokens": TokenGates(4, "odd")}
    for layers in (fast, reference):
        with pytest.raises(InputError, match="bound is 'loose'; there are"):
            layers.margin(a, p, 1, "loose")
        layers.config = replace(config, summary="max", mechanisms=tokens)
        with pytest.raises(InputError, match="summary is 'max'; there are"):
            layers.summary(x, offsets)
        with pytest.raises(InputError, match="ranks is 'odd'; there are"):
            layers.stays(1, x[:, 0], offsets, run, 1.0)
