"""Every backward pass against finite differences, over shapes that Hypothesis draws."""

import numpy as np
import pytest
from conftest import offsets_strategy, seeds
from gradcheck import check_gradient, check_op
from hypothesis import given
from hypothesis import strategies as st

from minidact import bert, dact, model, ops
from minidact.config import Config, Halting
from minidact.ragged import Batch

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


def test_checker_sees_what_a_cotangent_of_ones_cannot(rng):
    x = rng.standard_normal((4, 5))
    wrong = np.zeros_like  # the gradient of sum(softmax(x)) is indeed zero ...
    check_gradient(lambda x: ops.softmax_forward(x)[0], wrong, x, rng, cotangent=np.ones((4, 5)))
    with pytest.raises(AssertionError):  # ... but that of <v, softmax(x)> is not
        check_gradient(lambda x: ops.softmax_forward(x)[0], wrong, x, rng)


# ---------------------------------------------------------------------------- ops


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


@given(seeds, offsets_strategy(), st.integers(1, 3), sizes, st.booleans())
def test_attention(seed, offsets, heads, head_size, dropped):
    rng = np.random.default_rng(seed)
    args = {"qkv": rng.standard_normal((offsets[-1], 3 * heads * head_size))}
    drop = None
    if dropped:
        drop = ops.dropout_mask(ops.attention_size(offsets, heads), 0.3, rng, np.dtype(np.float64))

    def forward(**a):
        out, _, cache = ops.attention_forward(**a, offsets=offsets, num_heads=heads, drop=drop)
        return out, cache

    check_op(forward, ops.attention_backward, args, rng)


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


@given(seeds, st.integers(1, 6), sizes, st.integers(2, 4))
def test_accumulation(seed, layers, rows, classes):
    rng = np.random.default_rng(seed)
    y = ops.softmax_forward(rng.standard_normal((layers, rows, classes)))[0]
    h = rng.uniform(0.05, 0.95, (layers, rows))
    va, vp = rng.standard_normal((rows, classes)), rng.standard_normal((layers, rows))

    def value(y, h):
        a, p, _ = dact.accumulate_forward(y, h)
        return np.sum(va * a) + np.sum(vp * p)

    cache = dact.accumulate_forward(y, h)[-1]
    back = lambda c: dact.accumulate_backward(c * va, c * vp, cache)  # noqa: E731
    check_gradient(lambda y: value(y, h), lambda c: back(c)[0], y, rng, "y")
    check_gradient(lambda h: value(y, h), lambda c: back(c)[1], h, rng, "h")


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


# ---------------------------------------------------------------------------- encoder and loss


def small_config(heads=2, layers=2, halting=None, summary="cls", **changes):
    return Config(
        vocab_size=11, hidden_size=3 * heads, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=7, max_position_embeddings=9, layer_norm_eps=1e-2, summary=summary,
        halting=halting, **changes,
    )  # fmt: skip


def random_params(config, rng):
    """Far from initialisation, so that no gradient is tiny."""
    table = model.shapes(config)
    return {name: rng.standard_normal(shape) * 0.5 for name, shape in table.items()}


def random_batch(offsets, config, rng):
    ids = rng.integers(0, config.vocab_size, offsets[-1])
    return Batch(ids, rng.integers(0, 2, offsets[-1]), offsets)


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


@pytest.mark.parametrize("kind", ["plain", "regression", "halting"])
@given(seeds, offsets_strategy(3, 4), st.sampled_from(["cls", "mean"]), st.sampled_from("ph"))
def test_whole_loss(kind, seed, offsets, summary, ponder):
    rng = np.random.default_rng(seed)
    changes = {"summary": summary, "id2label": ("a", "b", "c")}
    if kind == "regression":
        changes |= {"id2label": ("score",), "problem_type": "regression"}
    config = small_config(halting=Halting(4, False) if kind == "halting" else None, **changes)
    params, batch = random_params(config, rng), random_batch(offsets, config, rng)
    count = len(offsets) - 1
    labels = rng.standard_normal(count) if kind == "regression" else rng.integers(0, 3, count)
    costs = model.Costs(tau=0.3, alpha=0.7, ponder=ponder)

    def value(params):
        rng = np.random.default_rng(seed)  # the same dropout every time
        return model.soft_forward(params, config, batch, labels, costs, rng=rng)[0]["loss"]

    cache = model.soft_forward(
        params, config, batch, labels, costs, rng=np.random.default_rng(seed)
    )[1]
    grads = model.soft_backward(cache)
    assert set(grads) == set(params)
    for name in params:
        swapped = lambda x, name=name: value({**params, name: x})  # noqa: E731
        check_gradient(swapped, lambda c, name=name: c * grads[name], params[name], rng, name)
