"""A name that is not known raises InputError wherever it is used: none is taken for another one."""

from dataclasses import replace

import numpy as np
import pytest
from networks import prices, random_batch, random_params, small_config

from minidact import InputError, bert, hard, optim, soft
from minidact.config import Config
from minidact.mechanisms import dact, planning, token_gates
from minidact.mechanisms.exits import Halting
from minidact.mechanisms.planning import Planning
from minidact.mechanisms.token_gates import TokenGates
from minidact.network import Network

OFFSETS = np.array([0, 3, 7])
LABELS = np.array([0, 1])


def network(**changes):
    """A small one that carries all mechanisms, some of which the changes alter afterwards."""
    rng = np.random.default_rng(0)
    good = small_config(
        layers=3,
        summary="mean",
        halting=Halting(4),
        planning=Planning(width=3),
        tokens=TokenGates(3),
    )
    shapes = {
        name: replace(shape, **{k: v for k, v in changes.items() if hasattr(shape, k)})
        for name, shape in good.mechanisms.items()
    }
    own = {k: v for k, v in changes.items() if hasattr(good, k)}
    params = random_params(good, rng)
    config = replace(good, **own | ({"mechanisms": shapes} if "problem_type" not in own else {}))
    return Network(params, config), random_batch(OFFSETS, good, rng)


USE = ("planning", "tokens", "halting")


@pytest.mark.parametrize(
    "changes",
    [
        {"summary": "max"},
        {"planner": "tree"},
        {"ranks": "odd"},
        {"pool": "first"},
        {"trained": "x"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_in_both_passes(changes):
    net, batch = network(**changes)
    (name, value), = changes.items()  # fmt: skip
    for run in (
        lambda: soft.soft_forward(net, batch, LABELS, prices()),
        lambda: hard.hard_forward(net, batch, hard.Knobs(USE)),
    ):
        with pytest.raises(InputError, match=f"{name} is '{value}'; there are: "):
            run()


def test_in_the_loss():
    net, batch = network()
    with pytest.raises(InputError, match="ponder is 'q'; there are: p, h"):
        soft.soft_forward(net, batch, LABELS, prices(ponder="q"))
    config = replace(small_config(), problem_type="ranking")
    net = Network(random_params(small_config(), np.random.default_rng(0)), config)
    with pytest.raises(InputError, match="problem_type is 'ranking'; there are: single_label"):
        soft.soft_forward(net, batch, LABELS)


def test_in_functions_of_arrays():
    x = np.ones((7, 2))
    for call in (
        lambda: bert.summary_forward(x, OFFSETS, "max"),
        lambda: dact.margin(x, np.ones(7), 2, "loose"),
        lambda: dact.ponder_cost_forward(x, x, "q"),
        lambda: planning.names("tree", 4),
        lambda: token_gates.bins_of(x[:, 0], x[:, 0] > 0, OFFSETS, 3, "odd"),
        lambda: token_gates.counts_what_is_left("first"),
        lambda: optim.schedule(0, 10, 0.1, "cosine"),
        lambda: Config.from_dict({"minidact": {"summary": "max"}}),
    ):
        with pytest.raises(InputError, match="; there are: "):
            call()


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"use": (3,)}, "the model does not carry 3; it has halting, planning, tokens"),
        ({"use": ("dimming",)}, "the model does not carry 'dimming'; it has halting"),
        ({"use": ("halting",), "at": 0.5}, "at is the knob of a rule: give a rule with it"),
        ({"use": USE, "rule": "entropy"}, "the rule 'entropy' cannot be used beside planning"),
        ({"use": ("halting",), "rule": "dact", "at": 0.5}, "is set by slack, not by at"),
        ({"use": ("halting",), "rule": "entropy", "at": -1.0}, "at is -1.0; it must be 0 or more"),
        (
            {"use": ("planning",), "rule": "entropy"},
            "rule is a knob of halting, which is not in use",
        ),
        ({"slack": 0.5}, "slack is a knob of halting, which is not in use"),
        ({"use": ("halting",), "keep": 0.3}, "keep is a knob of tokens, which is not in use"),
        ({"slack": "much"}, "slack is 'much'; it must be a number"),
    ],
)
def test_knobs_that_cannot_be(knobs, sentence):
    net, _ = network()
    with pytest.raises(InputError, match=sentence):
        hard.check_knobs(net.config, hard.Knobs(**knobs))


def test_knobs_that_can_be():
    net, _ = network()
    for knobs in (
        {}, {"use": USE}, {"use": USE, "rule": "dact"}, {"use": ("halting",), "rule": "entropy"},
        {"use": ("halting", "tokens"), "rule": "entropy", "at": 0.3},
    ):  # fmt: skip
        hard.check_knobs(net.config, hard.Knobs(**knobs))
    with pytest.raises(InputError, match="it has no mechanism"):
        hard.check_knobs(small_config(), hard.Knobs(("halting",)))
