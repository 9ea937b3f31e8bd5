"""Every backward pass against finite differences, over shapes that Hypothesis draws."""

from itertools import count as count_from

import numpy as np
import pytest
from conftest import offsets_strategy, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import prices, random_batch, random_params, small_config

from minidact import bert, ops, soft
from minidact.gradcheck import check_gradient, check_op
from minidact.mechanisms import dact, planning, selection, token_gates
from minidact.mechanisms.exits import Halting
from minidact.mechanisms.planning import Planning
from minidact.mechanisms.selection import Selection
from minidact.mechanisms.token_gates import TokenGates
from minidact.network import Network

sizes = st.integers(1, 6)

# ---------------------------------------------------------------------------- the checker itself


@pytest.mark.parametrize("factor", [1.0005, 0.9995])
def test_checker_rejects_a_gradient_wrong_by_half_a_tenth_of_a_percent(factor, rng):
    args = {"x": rng.standard_normal((5, 7))}
    for _ in range(20):
        check_op(ops.softmax_forward, ops.softmax_backward, args, rng)
        # every random direction is off by that factor, wherever it points
        with pytest.raises(AssertionError, match="gradient of x"):
            check_op(ops.tanh_forward, lambda v, c: factor * ops.tanh_backward(v, c), args, rng)


def test_checker_takes_each_gradient_for_its_own_argument(rng):
    args = {"a": rng.standard_normal(7), "n": 3, "b": rng.standard_normal(7)}

    def forward(a, n, b):
        return a + n * b, n

    for wrt in (["a"], ["b"], ["b", "a"]):
        check_op(forward, lambda v, n: (v.copy(), n * v), args, rng, wrt)
    with pytest.raises(AssertionError, match="gradient of b"):
        check_op(forward, lambda v, n: (n * v, 2 * v), args, rng, ["b"])


def test_checker_sees_that_any_argument_was_written_to(rng):
    def forward(x, labels):
        labels[0] = 7
        return 2 * x, None

    args = {"x": rng.standard_normal(4), "labels": np.arange(4)}
    with pytest.raises(AssertionError, match="changed labels"):
        check_op(forward, lambda v, _: 2 * v, args, rng)


def test_checker_sees_what_a_cotangent_of_ones_cannot(rng):
    x = rng.standard_normal((4, 5))
    wrong = np.zeros_like  # the gradient of sum(softmax(x)) is indeed zero ...
    check_gradient(lambda x: ops.softmax_forward(x)[0], wrong, x, rng, cotangent=np.ones((4, 5)))
    with pytest.raises(AssertionError):  # ... but that of <v, softmax(x)> is not
        check_gradient(lambda x: ops.softmax_forward(x)[0], wrong, x, rng)


# ---------------------------------------------------------------------------- ops


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.Philox, np.random.MT19937])
def test_dropout_keeps_its_share_by_any_generator(bits):
    out, _ = ops.dropout_forward(np.ones((100, 1000)), 0.1, np.random.Generator(bits(0)))
    assert out.mean() == pytest.approx(1, abs=0.005)  # five standard deviations
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.9])


@given(seeds, sizes, sizes, sizes)
def test_linear(seed, rows, inputs, outputs):
    rng = np.random.default_rng(seed)
    shapes = {"x": (rows, inputs), "w": (outputs, inputs), "b": (outputs,)}
    args = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    check_op(ops.linear_forward, ops.linear_backward, args, rng)


@pytest.mark.parametrize("name", ["gelu", "tanh", "sigmoid", "relu", "softmax"])
@given(seeds, sizes, sizes)
def test_without_parameters(name, seed, rows, columns):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns))
    if name == "relu":
        x[np.abs(x) < 1e-3] = 0.5  # away from the kink
    forward, backward = getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")
    check_op(forward, backward, {"x": x}, rng)


@given(seeds, sizes, st.integers(2, 8))
def test_layer_norm(seed, rows, columns):
    rng = np.random.default_rng(seed)
    args = {
        "x": rng.standard_normal((rows, columns)) * 3 + 1,
        "gamma": rng.standard_normal(columns),
    }
    args["beta"] = rng.standard_normal(columns)
    forward = lambda **a: ops.layer_norm_forward(**a, eps=1e-2)  # noqa: E731
    check_op(forward, ops.layer_norm_backward, args, rng)


@given(seeds, sizes, sizes)
def test_dropout(seed, rows, columns):
    rng = np.random.default_rng(seed)
    forward = lambda x: ops.dropout_forward(x, 0.4, np.random.default_rng(seed))  # noqa: E731
    check_op(forward, ops.dropout_backward, {"x": rng.standard_normal((rows, columns))}, rng)
    off = lambda x: ops.dropout_forward(x, 0.4, None)  # noqa: E731
    check_op(off, ops.dropout_backward, {"x": rng.standard_normal((rows, columns))}, rng)


@given(seeds, sizes, st.integers(2, 5))
def test_cross_entropy(seed, rows, classes):
    rng = np.random.default_rng(seed)
    args = {
        "logits": rng.standard_normal((rows, classes)),
        "labels": rng.integers(0, classes, rows),
    }
    check_op(ops.cross_entropy_forward, ops.cross_entropy_backward, args, rng)


@given(seeds, offsets_strategy(), sizes)
def test_embedding(seed, offsets, columns):
    rng = np.random.default_rng(seed)
    total = offsets[-1]
    tables = {
        name: rng.standard_normal((n, columns))
        for name, n in (("words", 5), ("places", 9), ("kinds", 2))
    }
    args = {"ids": rng.integers(0, 5, total), "segments": rng.integers(0, 2, total)}
    check_op(
        ops.embedding_forward, ops.embedding_backward, {**args, "offsets": offsets, **tables}, rng
    )


@pytest.mark.parametrize("kind", ["mean_rows", "first_rows"])
@given(seeds, offsets_strategy(), sizes)
def test_rows(kind, seed, offsets, columns):
    rng = np.random.default_rng(seed)
    args = {"x": rng.standard_normal((offsets[-1], columns)), "offsets": offsets}
    check_op(getattr(ops, f"{kind}_forward"), getattr(ops, f"{kind}_backward"), args, rng)


@given(seeds, offsets_strategy(), st.integers(1, 3), sizes, st.booleans(), st.booleans())
def test_attention(seed, offsets, heads, head_size, dropped, gated):
    rng = np.random.default_rng(seed)
    args = {"qkv": rng.standard_normal((offsets[-1], 3 * heads * head_size))}
    if gated:
        args["gates"] = rng.uniform(0.05, 1, offsets[-1])
    drop = None
    if dropped:
        drop = ops.dropout_mask(ops.attention_size(offsets, heads), 0.3, rng, np.dtype(np.float64))

    def forward(**a):
        out, _, cache = ops.attention_forward(**a, offsets=offsets, num_heads=heads, drop=drop)
        return out, cache

    def backward(dout, cache):
        dqkv, dgates = ops.attention_backward(dout, cache)
        return (dqkv, dgates) if gated else dqkv

    check_op(forward, backward, args, rng)


# ---------------------------------------------------------------------------- DACT


@given(seeds, sizes, st.integers(2, 4), st.booleans())
def test_unit(seed, rows, classes, sees):
    rng = np.random.default_rng(seed)
    table = dact.shapes("u", 5, 4, classes, sees)
    params = {name: rng.standard_normal(shape) for name, shape in table.items()}
    if sees:  # what h sees of the confidence has no gradient by design: keep it out of the check
        params["u.halting.weight"][:, -1] = 0
    s = rng.standard_normal((rows, 5))
    v = [rng.standard_normal(shape) for shape in ((rows, classes), (rows, classes), rows)]

    def value(s, params):  # <v, (z, y, h)>
        *outputs, _ = dact.unit_forward(s, params, "u")
        return sum(np.sum(a * b) for a, b in zip(v, outputs, strict=True))

    def gradients(scale):
        grads = {}
        cache = dact.unit_forward(s, params, "u")[-1]
        ds = dact.unit_backward(*(scale * a for a in v), cache, grads)
        return ds, grads

    check_gradient(lambda x: value(x, params), lambda c: gradients(c)[0], s, rng, "s")
    for name in table:
        swapped = lambda x, name=name: value(s, {**params, name: x})  # noqa: E731
        check_gradient(swapped, lambda c, name=name: gradients(c)[1][name], params[name], rng, name)


@given(seeds, st.integers(1, 6), sizes, st.integers(2, 4), st.booleans())
def test_accumulation(seed, layers, rows, classes, planned):
    rng = np.random.default_rng(seed)
    y = ops.softmax_forward(rng.standard_normal((layers, rows, classes)))[0]
    h = rng.uniform(0.05, 0.95, (layers, rows))
    u = rng.uniform(size=(layers, rows)) if planned else None
    va, vp = rng.standard_normal((rows, classes)), rng.standard_normal((layers, rows))

    def value(y, h, u):
        a, p, _ = dact.accumulate_forward(y, h, u)
        return np.sum(va * a) + np.sum(vp * p)

    cache = dact.accumulate_forward(y, h, u)[-1]
    back = lambda c: dact.accumulate_backward(c * va, c * vp, cache)  # noqa: E731
    check_gradient(lambda y: value(y, h, u), lambda c: back(c)[0], y, rng, "y")
    check_gradient(lambda h: value(y, h, u), lambda c: back(c)[1], h, rng, "h")
    if planned:
        check_gradient(lambda u: value(y, h, u), lambda c: back(c)[2], u, rng, "u")


@given(seeds, st.integers(1, 4), sizes, st.integers(2, 4))
def test_losses_of_halting(seed, layers, rows, classes):
    rng = np.random.default_rng(seed)
    a = ops.softmax_forward(rng.standard_normal((rows, classes)))[0]
    args = {"a": a, "labels": rng.integers(0, classes, rows)}
    check_op(dact.answer_loss_forward, dact.answer_loss_backward, args, rng)
    targets = rng.dirichlet(np.ones(classes), (layers, rows))
    args = {"z": rng.standard_normal((layers, rows, classes)), "targets": targets}
    check_op(dact.heads_loss_forward, dact.heads_loss_backward, args, rng, wrt=["z"])
    p, h = rng.uniform(size=(2, layers, rows))
    for kind in "ph":
        forward = lambda p, h, kind=kind: dact.ponder_cost_forward(p, h, kind)  # noqa: E731
        check_op(forward, dact.ponder_cost_backward, {"p": p, "h": h}, rng)


# ---------------------------------------------------------------------------- gates


@given(seeds, sizes, sizes, st.integers(1, 4), st.integers(1, 3))
def test_planner(seed, rows, size, width, decisions):
    rng = np.random.default_rng(seed)
    table = planning.shapes("planning.path", size, width, decisions)
    params = {name: rng.standard_normal(shape) for name, shape in table.items()}
    s = rng.standard_normal((rows, size))
    cache = planning.planner_forward(s, params, "planning.path")[1]

    def value(s, params):
        return planning.planner_forward(s, params, "planning.path")[0]

    check_gradient(
        lambda s: value(s, params), lambda v: planning.planner_backward(v, cache, {}), s, rng, "s"
    )
    for name in table:

        def gradient(v, name=name):
            grads = {}
            planning.planner_backward(v, cache, grads)
            return grads[name]

        swapped = lambda x, name=name: value(s, {**params, name: x})  # noqa: E731
        check_gradient(swapped, gradient, params[name], rng, name)


@given(seeds, sizes, sizes, st.sampled_from([None, 0.4]))
def test_mix_and_cost_of_planning(seed, rows, columns, target):
    rng = np.random.default_rng(seed)
    args = {"f": rng.standard_normal((rows, columns)), "x": rng.standard_normal((rows, columns))}
    args["w"] = rng.uniform(size=rows)
    check_op(planning.mix_forward, planning.mix_backward, args, rng)
    forward = lambda pi: planning.cost_forward(pi, target)  # noqa: E731
    check_op(forward, planning.cost_backward, {"pi": rng.uniform(size=(rows, columns))}, rng)


@given(seeds, sizes, sizes)
def test_token_gates_and_their_costs(seed, layers, bins):
    rng = np.random.default_rng(seed)
    gates = rng.uniform(size=(layers, bins))
    check_op(token_gates.l1_forward, token_gates.l1_backward, {"gates": gates}, rng)
    check_op(token_gates.bimodal_forward, token_gates.bimodal_backward, {"gates": gates}, rng)
    index = rng.integers(-1, bins, 9)
    args = {"gates": gates[0], "index": index}
    check_op(token_gates.gates_forward, token_gates.gates_backward, args, rng)


# ---------------------------------------------------------------------------- encoder and loss


@given(seeds, offsets_strategy(), st.integers(1, 3), st.booleans())
def test_encoder(seed, offsets, heads, dropout):
    rng = np.random.default_rng(seed)
    config = small_config(heads)
    params, batch = random_params(config, rng), random_batch(offsets, config, rng)
    noise = lambda: np.random.default_rng(seed) if dropout else None  # noqa: E731
    states, caches = bert.encoder_forward(params, config, batch, rng=noise())
    v = [rng.standard_normal(x.shape) for x in states]
    v[1] = None  # a state that nothing reads

    def value(params):
        states, _ = bert.encoder_forward(params, config, batch, rng=noise())
        return sum(np.sum(a * b) for a, b in zip(v, states, strict=True) if a is not None)

    def gradient(scale):
        grads = {}
        dstates = [None if a is None else scale * a for a in v]
        bert.encoder_backward(dstates, caches, grads)
        return grads

    for name in bert.shapes(config):
        swapped = lambda x, name=name: value({**params, name: x})  # noqa: E731
        check_gradient(swapped, lambda c, name=name: gradient(c)[name], params[name], rng, name)


KINDS = {
    "plain": {},
    "regression": {"id2label": ("score",), "problem_type": "regression"},
    "halting": {"halting": Halting(4, False)},
    "planning": {"planning": Planning("steps", 3)},
    "path": {"planning": Planning("path", 3)},
    "tokens": {"tokens": TokenGates(3, "relative", "last")},
    "tokens left": {"tokens": TokenGates(3, "absolute", "left")},
    "halting planning": {"halting": Halting(4, False), "planning": Planning("steps", 3)},
    "all": {
        "halting": Halting(4, False), "planning": Planning("steps", 3), "tokens": TokenGates(3)
    },
    "all left": {
        "halting": Halting(4, False), "planning": Planning("path", 3),
        "tokens": TokenGates(3, "relative", "left"),
    },
    "selection": {"selection": Selection(3, 2, "last")},
    "selection left": {"selection": Selection(3, 1, "left")},
    "all selection": {
        "halting": Halting(4, False), "planning": Planning("steps", 3),
        "selection": Selection(3, 2, "left"),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=settings.default.max_examples * 2 // 5)  # each checks every parameter
@given(seeds, offsets_strategy(3, 4), st.sampled_from(["cls", "mean"]), st.sampled_from("ph"))
def test_whole_loss(kind, seed, offsets, summary, ponder):
    """Every parameter's gradient of the whole loss.

    A drawn u is 0 or 1, and its gradient goes straight through; so that finite differences have
    something to see, u is pi itself here, for which the same gradient is exact. So it is with
    selection's "gumbel" ("reinforce" is in test_selection.py). Ranks are held as
    they are: where two tokens are nearly level they would change places within the step, and no
    gradient sees such a jump.
    """
    rng = np.random.default_rng(seed)
    changes = {"summary": summary, "id2label": ("a", "b", "c")} | KINDS[kind]
    config = small_config(layers=3, **changes)
    params, batch = random_params(config, rng), random_batch(offsets, config, rng)
    count, regression = len(offsets) - 1, config.problem_type == "regression"
    labels = rng.standard_normal(count) if regression else rng.integers(0, 3, count)
    if not regression and seed % 2:
        labels = rng.dirichlet(np.ones(3), count)  # another model's answers
    costs = prices(
        tau=0.3, alpha=0.7, ponder=ponder, layer_cost=0.6, layer_target=0.3, token_cost=0.8,
        bimodal=0.5, estimator="gumbel", selection_cost=0.9,
    )  # fmt: skip

    ranks, bins_of = {}, token_gates.bins_of  # {layer's turn: the bins of its tokens}

    def forward(params):
        rng, turns = np.random.default_rng(seed), count_from(0)  # the same dropout every time
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(planning, "draw", lambda pi, rng, threshold=0.5: pi)
            sigmoid = lambda z: ops.sigmoid_forward(z)[0]  # noqa: E731
            drawn = lambda z, asked, rng: np.where(asked, sigmoid(z), 1.0)  # noqa: E731
            patch.setattr(selection, "draw", drawn)
            held = lambda *given: ranks.setdefault(next(turns), bins_of(*given))  # noqa: E731
            patch.setattr(token_gates, "bins_of", held)
            net = Network(params, config, rng=rng)
            return soft.soft_forward(net, batch, labels, costs)

    grads = soft.soft_backward(forward(params)[-1])
    assert set(grads) == set(params)
    for name in params:
        swapped = lambda x, name=name: forward({**params, name: x})[1]["loss"]  # noqa: E731
        check_gradient(swapped, lambda c, name=name: c * grads[name], params[name], rng, name)
