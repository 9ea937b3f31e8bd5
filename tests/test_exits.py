"""The neighbours' rules and losses, sweeps over every knob, and budgets."""

import json
import shutil

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, TINY, offsets_strategy, run, seeds
from hypothesis import given
from hypothesis import strategies as st
from networks import prices, random_batch, random_params, small_config
from training import arguments, weights

from minidact import InputError, Model, hard, network, soft
from minidact.gradcheck import check_gradient
from minidact.hard import Knobs
from minidact.mechanisms import dact, exits
from minidact.mechanisms.exits import HEADS, RULES, Halting, Known
from minidact.mechanisms.planning import Planning
from minidact.network import Network
from minidact.study import sweep

SHIPPED = ROOT / "weights" / "sst2-minilm-l6"

# ---------------------------------------------------------------------------- rules


def test_rules_on_answers_made_by_hand():
    #             always sure    unsure, then sure   changes its mind
    y = np.array([
        [[0.99, 0.01], [0.5, 0.5], [0.4, 0.6]],
        [[0.99, 0.01], [0.9, 0.1], [0.7, 0.3]],
        [[0.99, 0.01], [0.99, 0.01], [0.8, 0.2]],
    ])  # fmt: skip
    h = np.array([[0.1, 0.9, 0.9], [0.1, 0.9, 0.9], [0.1, 0.1, 0.9]])

    def stops(name, at):
        """The first layer at which each sentence stops."""
        rule = RULES[name].stop
        stopped = [rule(Known(y[:n], h[:n], None, None), at) for n in (1, 2, 3)]
        return [1 + [*s, True].index(True) for s in zip(*stopped, strict=True)]

    assert stops("fixed", 2) == [2, 2, 2]
    assert stops("confidence", 0.9) == [1, 2, 4]
    assert stops("entropy", 0.33) == [1, 2, 4]  # H(0.9, 0.1) = 0.325 nats
    assert stops("uncertainty", 0.47) == [1, 2, 4]  # and 0.469 of log 2
    assert stops("patience", 1) == [2, 2, 3]
    assert stops("patience", 2) == [3, 3, 4]
    assert stops("cumulated", 0.5) == [1, 3, 4]  # 1 - 0.1;  1 - 0.9 0.9 0.1;  1 - 0.9^3 = 0.27

    assert stops("certain", 0.85) == [1, 3, 4]  # 1 - h

    in_a_row = RULES["patience"].stop(Known(y[:, ::-1], h[:, ::-1], None, None), 2)
    assert in_a_row.tolist() == [False, True, True]  # each sentence for itself


def test_rules_at_their_thresholds():
    even = Known(np.full((2, 1, 2), 0.5), np.full((2, 1), 0.5), None, None)
    assert not RULES["entropy"].stop(even, float(np.log(2)))  # less than
    assert RULES["uncertainty"].stop(even, 1.0)  # at most
    assert RULES["confidence"].stop(even, 0.5)  # at least
    assert RULES["cumulated"].stop(even, 0.75)


NEIGHBOURS = sorted(name for name, rule in RULES.items() if not rule.averages)


@pytest.mark.parametrize("heads", HEADS)
def test_beside_planning_only_an_average_stops_also_where_heads_bring_their_own_rule(heads):
    config = small_config(halting=Halting(4, False, trained=heads), planning=Planning(width=3))
    if RULES[HEADS[heads].rule].averages:
        hard.check_knobs(config, Knobs(("halting", "planning")))
    else:
        with pytest.raises(InputError, match="cannot be used beside planning"):
            hard.check_knobs(config, Knobs(("halting", "planning")))
    hard.check_knobs(config, Knobs(("planning",)))


@given(seeds, offsets_strategy(4, 5), st.sampled_from(NEIGHBOURS))
def test_a_rule_stops_where_it_says_and_answers_with_that_head(seed, offsets, name):
    rng = np.random.default_rng(seed)
    config = small_config(layers=4, halting=Halting(4, False), summary="mean")
    params, batch = random_params(config, rng), random_batch(offsets, config, rng)
    rule, net = RULES[name], Network(params, config)
    full = hard.hard_forward(net, batch, Knobs(rule=name, at=rule.knob.usual))
    y = full.so_far.transpose(1, 0, 2)  # without halting in use these are all the heads' answers
    answers = hard.hard_forward(net, batch, Knobs(("halting",), rule=name))
    for b, ran in enumerate(answers.layers_run.sum(1)):
        np.testing.assert_allclose(answers.probs[b], y[ran - 1, b])
        if name not in ("cumulated", "certain"):  # which read h
            seen = [Known(y[:n, [b]], None, None, None) for n in range(1, ran + 1)]
            stops = [rule.stop(known, rule.knob.usual)[0] for known in seen]
            assert stops == [False] * (ran - 1) + [True] or ran == 4


@given(seeds, st.integers(2, 7), st.sampled_from(NEIGHBOURS))
def test_a_rules_range_starts_at_one_layer_and_goes_on_with_more(seed, classes, name):
    rng = np.random.default_rng(seed)
    y = rng.dirichlet(np.full(classes, 0.3), (6, 50)).astype(np.float32)
    h = rng.uniform(0, 1, (6, 50)).astype(np.float32) ** 0.01  # most sentences hardly stop
    rule, depths = RULES[name], []
    for at in rule.knob.sweep:
        seen = [Known(y[:n], h[:n], None, None) for n in range(1, 7)]
        stops = np.array([rule.stop(known, at) for known in seen])
        stops[-1] = True
        depths.append(stops.argmax(0) + 1)
    assert (depths[0] == 1).all()
    assert (np.diff(depths, axis=0) >= 0).all()
    assert depths[-1].mean() > 2


# ---------------------------------------------------------------------------- losses


@given(seeds, st.integers(1, 5), st.integers(1, 4), st.integers(2, 4))
def test_pondernets_loss(seed, layers, rows, classes):
    rng = np.random.default_rng(seed)
    z, labels = rng.standard_normal((layers, rows, classes)), rng.integers(0, classes, rows)
    h = rng.uniform(0.05, 0.95, (layers, rows))
    rest = (labels, 0.3, 0.4)
    cache = exits.pondernet_forward(z, h, *rest)[1]
    for i, (name, x) in enumerate((("z", z), ("h", h))):

        def forward(x, name=name):
            return exits.pondernet_forward(*((x, h) if name == "z" else (z, x)), *rest)[0]

        check_gradient(forward, lambda v, i=i: exits.pondernet_backward(v, cache)[i], x, rng, name)
    # q sums to 1; and with h that follows the prior the divergence is 0
    q_losses = exits.pondernet_forward(np.zeros_like(z), h, *rest)[0]
    free = exits.pondernet_forward(np.zeros_like(z), h, labels, 0.0, 0.4)[0]
    np.testing.assert_allclose(free, np.log(classes))
    same = exits.pondernet_forward(np.zeros_like(z), np.full_like(h, 0.6), *rest)[0]
    np.testing.assert_allclose(same, np.log(classes))
    assert (q_losses >= same - 1e-12).all()


def test_depth_weights_and_prior():
    """PABEE weighs the heads by their depth, DeeBERT does not."""
    rng = np.random.default_rng(0)
    z, labels = rng.standard_normal((3, 4, 2)), np.array([0, 1, 1, 0])
    y, h = np.exp(z) / np.exp(z).sum(-1, keepdims=True), np.full((3, 4), 0.5)
    ce = -np.log(y[:, np.arange(4), labels])
    for name, share in (("pabee", [1 / 6, 2 / 6, 3 / 6]), ("deebert", [1 / 3] * 3)):
        losses, _, _ = HEADS[name].forward(z, y, h, None, labels, exits.Prices())
        np.testing.assert_allclose(losses, share @ ce)
    np.testing.assert_allclose(exits.geometric(0.5, 3), [0.5, 0.25, 0.25])
    far = exits.geometric(0.999, 24)  # the last ones are not rounded to 0
    assert (far > 0).all()
    np.testing.assert_allclose(far.sum(), 1)
    # FastBERT's heads imitate the last one, which learns the labels
    losses, _, _ = HEADS["fastbert"].forward(z, y, h, None, labels, exits.Prices())
    imitated = -(y[-1] * np.log(y[:-1])).sum(2).sum(0)
    np.testing.assert_allclose(losses, (imitated + ce[-1]) / 3)
    # BERxiT's h learns whether y is wrong; its last head counts as much again as all together
    losses, _, _ = HEADS["berxit"].forward(z, y, h, None, labels, exits.Prices())
    np.testing.assert_allclose(losses, ce[-1] / 2 + ce.mean(0) / 2 + 0.25)
    sure = np.where(y.argmax(2) == labels, 0.2, 0.9)
    less, _, _ = HEADS["berxit"].forward(z, y, sure, None, labels, exits.Prices())
    off = np.where(y.argmax(2) == labels, 0.04, 0.01).mean(0)
    np.testing.assert_allclose(losses - less, 0.25 - off)
    assert {name for name in HEADS if HEADS[name].frozen} == {"deebert", "fastbert"}


def test_first_values_of_units(rng):
    """PonderNet's h starts as its prior says, DACT's near 1; trunks have He's scale, for ReLU."""
    for trained, h in (("pondernet", 0.7), ("dact", 1 / (1 + np.exp(-dact.HALTING_BIAS)))):
        config = small_config(heads=20, halting=Halting(50, True, trained))
        priced = prices(prior=0.3)
        params = network.init_params(config, rng, prices=priced)
        for layer in (0, 1):
            unit = dact.unit_name(layer)
            bias = params[f"{unit}.halting.bias"]
            np.testing.assert_allclose(1 / (1 + np.exp(-bias)), h, rtol=1e-6)
            assert np.std(params[f"{unit}.trunk.weight"]) == pytest.approx(
                np.sqrt(2 / 60), rel=0.08
            )


@pytest.mark.parametrize("trained", [name for name in HEADS if name != "dact"])
@given(seed=seeds, offsets=offsets_strategy(3, 4))
def test_whole_loss_of_the_neighbours(trained, seed, offsets):
    rng = np.random.default_rng(seed)
    config = small_config(halting=Halting(4, False, trained), id2label=("a", "b", "c"))
    params, batch = random_params(config, rng), random_batch(offsets, config, rng)
    labels = rng.integers(0, 3, len(offsets) - 1)
    if trained == "fastbert":  # what heads imitate is a constant, which differences cannot see
        for name in params:
            if name.startswith("dact.layer.1."):
                params[name] = np.zeros_like(params[name])

    def value(params):
        return soft.soft_forward(Network(params, config), batch, labels)[1]["loss"]

    grads = soft.soft_backward(soft.soft_forward(Network(params, config), batch, labels)[-1])
    frozen = HEADS[trained].frozen
    assert set(grads) == {n for n in params if n.startswith("dact.") or not frozen}
    for name in grads:
        if trained == "fastbert" and name.startswith("dact.layer.1."):
            continue
        swapped = lambda x, name=name: value({**params, name: x})  # noqa: E731
        check_gradient(swapped, lambda c, name=name: c * grads[name], params[name], rng, name)


@pytest.mark.parametrize("heads", [name for name in HEADS if name != "dact"])
def test_training_a_neighbour(heads, task, tmp_path):
    plain, out = tmp_path / "plain", tmp_path / "out"
    result = run("train", *arguments(task, plain, epochs=6, summary="mean"))
    assert result.returncode == 0, result.stderr
    options = {"use": "halting", "init": plain, "heads": heads, "epochs": 10, "head-lr": 1e-2}
    result = run("train", *arguments(task, out, **options))
    assert result.returncode == 0, result.stderr
    model = Model.from_pretrained(out)
    assert model.config.mechanisms["halting"].trained == heads
    assert model("the good film").label == "yes"
    assert model("the film").label == "no"
    before, after = weights(plain), weights(out)
    same = all(
        np.array_equal(before[name], after[name]) for name in before if name.startswith("bert.enc")
    )
    assert same == HEADS[heads].frozen


# ---------------------------------------------------------------------------- sweeps and budgets


def test_area():
    flat = [(0.2, 0.8), (0.5, 0.8)]
    assert sweep.area(flat, 0.2, 0.5) == pytest.approx(0.8)
    assert sweep.area([(0.2, 0.6), (0.5, 0.8)], 0.2, 0.5) == pytest.approx(0.7)
    worse = [*flat, (0.4, 0.1)]  # a point that a cheaper one beats changes nothing
    assert sweep.area(worse, 0.2, 0.5) == pytest.approx(0.8)
    late = sweep.area([(0.4, 0.8)], 0.2, 0.5)  # not to be had for less than 0.4
    assert 0.5 < late < 0.8


def test_budgets_are_the_points_that_nothing_cheaper_beats():
    points = [
        {"curve": "all", "macs_fraction": m, "value": v, "knobs": {"slack": m}}
        for m, v in ((0.5, 0.8), (0.3, 0.7), (0.4, 0.6), (0.9, 0.8))
    ]
    points.append({"curve": "entropy", "macs_fraction": 0.1, "value": 0.9, "knobs": {}})
    assert [b["macs_fraction"] for b in sweep.budgets(points)] == [0.3, 0.5]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A copy of the shipped model that was swept over a few reviews."""
    directory = tmp_path_factory.mktemp("model") / "copy"
    shutil.copytree(SHIPPED, directory)
    data = ["--data", FIXTURES / "reviews.tsv", "--model", directory]
    result = run("evaluate", *data, "--sweep", "--calibrate", "--json")
    assert result.returncode == 0, result.stderr
    return directory, json.loads(result.stdout)


def test_sweep_covers_every_mechanism_and_neighbour(calibrated):
    directory, result = calibrated
    carried = Model.from_pretrained(directory).config.mechanisms
    own = {name for name, rule in RULES.items() if rule.own}  # these need heads of their own
    assert set(result["areas"]) >= {*carried, *NEIGHBOURS} - own
    assert not own & set(result["areas"])
    for point in result["points"]:
        assert 0 < point["macs_fraction"] <= 1.1
        assert 0 <= point["value"] <= 1
        assert point["ms_per_text"] > 0
    depths = [p["layers_mean"] for p in result["points"] if p["curve"] == "fixed"]
    assert depths == [1, 2, 3, 4, 5, 6]
    assert set(result["baseline"]) == {"label", "value"}
    heads, full, *_ = sweep.table(result).splitlines()
    assert heads.split() == ["knob", "value", "MACs", "layers", "tokens", "ms/text"]
    assert full.split()[:2] == ["full", f"{result['points'][0]['value_full']:.4f}"]
    assert "mean value over the low half" in sweep.table(result)


def test_a_budget_is_kept(calibrated):
    directory, _ = calibrated
    model = Model.from_pretrained(directory)
    shares = [entry["macs_fraction"] for entry in model.config.budgets]
    assert shares == sorted(shares)
    for budget in (*shares, 1.0):
        options = ["--model", directory, "--data", FIXTURES / "reviews.tsv", "--json"]
        r = json.loads(run("evaluate", *options, "--budget", budget).stdout)
        assert r["macs_fraction"] <= budget + 1e-3
    with pytest.raises(InputError, match="the least that the model can do with is"):
        model("a film", budget=0.0)
    with pytest.raises(InputError, match="give it alone"):
        model("a film", budget=0.5, slack=0.1)


def test_budgets_are_replaced_by_better_ones_only(calibrated, tmp_path):
    there = shutil.copytree(calibrated[0], tmp_path / "model")
    before = (there / "config.json").read_bytes()
    options = ["--data", FIXTURES / "reviews.tsv", "--sweep", "--calibrate", "--model", there]
    result = run("evaluate", *options, "--curves", "fixed")
    assert result.returncode == 2
    assert "stores settings of mechanisms, and there are none to try" in result.stderr
    assert (there / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--plot", "x.svg"], "go with --sweep"),
        (["--curves", "fixed"], "go with --sweep"),
        (
            ["--sweep", "--curves", "fixed,wheel"],
            "--curves 'wheel' is unknown; there are: halting, planning",
        ),
        (["--sweep", "--curves", ","], "--curves names none; there are: halting"),
        (["--curves", ""], "go with --sweep"),
        (["--sweep", "--slack", "0.3"], "--sweep moves all knobs itself"),
        (["--sweep", "--calibrate"], "--calibrate needs --model"),
        (["--sweep", "--model", TINY], "no knob to sweep"),
        (["--rule", "entropy", "--full"], "which is not in use"),
        (
            ["--use", "halting", "--rule", "entropy", "--slack", "0.3"],
            "the rule 'entropy' does not know slack",
        ),
    ],
)
def test_what_cannot_work(options, sentence):
    result = run("evaluate", "--data", FIXTURES / "reviews.tsv", *options)
    assert result.returncode == 2
    assert sentence in result.stderr
