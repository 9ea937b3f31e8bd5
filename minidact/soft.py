"""The soft pass: training. Every layer runs on every row, gates multiply, all is differentiable.

    G_l = G_{l-1} (1 - u_l (1 - g_l))               how much a token is still there at layer l
    x_{l+1} = w F_l(x_l; G_l) + (1 - w) x_l         w = u_l G_l, for each row

u_l (planning.py) is a sentence's, g_l (token_gates.py) a token's, and both are 1 without their
mechanism. With gates at exactly 0 and 1 this is what the hard pass (hard.py) computes.
"""

from typing import Any

import numpy as np

from . import bert, ragged
from .errors import known
from .mechanisms import dact, default_prices, exits, planning, token_gates
from .network import Network
from .ragged import Batch

NOTHING: Any = (None, None)  # a summary that nobody asks for, and its cache


def soft_forward(net: Network, batch: Batch, labels, prices: dict[str, Any] | None = None):
    """The loss of a batch: labels (B,) int classes, or float targets of a regression.

    prices: {mechanism: its prices}; those not given are the usual ones. Returns the task's losses
    (B,), one for each sentence; terms {name: float}, of which "loss" is what is minimised, their
    mean and what gates cost, and the others are its parts; and the cache for soft_backward.
    """
    prices = default_prices() | (prices or {})
    carried = net.config.mechanisms
    summaries, u, pi, walk = _walk_forward(net, batch, prices)
    if "halting" in carried:
        losses, terms, head_cache = _heads_forward(net, summaries[1:], u, labels, prices["halting"])
    else:
        losses, head_cache = _classifier_forward(net, summaries[-1], labels)
        terms = {}
    loss, costs = losses.mean(), {}
    if "planning" in carried:
        price = prices["planning"]
        terms["layer_cost"], costs["layers"] = planning.cost_forward(pi, price.layer_target)
        loss = loss + price.layer_cost * terms["layer_cost"]
    if "tokens" in carried:
        price, gates = prices["tokens"], net.params[token_gates.NAME]
        terms["token_cost"], costs["tokens"] = token_gates.l1_forward(gates)
        terms["bimodal"], costs["bimodal"] = token_gates.bimodal_forward(gates)
        loss = loss + price.token_cost * terms["token_cost"] + price.bimodal * terms["bimodal"]
    return losses, {"loss": loss} | terms, (net, prices, losses, walk, head_cache, costs)


def soft_backward(cache) -> dict[str, np.ndarray]:
    """Gradient of the loss with respect to every parameter that is trained."""
    net, prices, losses, walk, head_cache, costs = cache
    carried, grads = net.config.mechanisms, dict[str, np.ndarray]()
    dsummaries, du, dpi = [None] * (net.config.num_hidden_layers + 1), None, None
    dlosses = np.full_like(losses, 1 / len(losses))
    if "halting" in carried:
        dsummaries[1:], du = _heads_backward(dlosses, head_cache, grads, net.calc)
        if exits.HEADS[carried["halting"].trained].frozen:
            return grads
    else:
        dsummaries[-1] = _classifier_backward(dlosses, head_cache, grads, net)
    if "planning" in carried:
        dpi = planning.cost_backward(prices["planning"].layer_cost, costs["layers"])
    if "tokens" in carried:
        dgates = token_gates.l1_backward(prices["tokens"].token_cost, costs["tokens"])
        dgates += token_gates.bimodal_backward(prices["tokens"].bimodal, costs["bimodal"])
        grads[token_gates.NAME] = dgates
    _walk_backward(dsummaries, du, dpi, walk, grads)
    return grads


def soft_answers(net: Network, batch: Batch):
    """(B, Y) what hard.Answers.probs holds, but with token gates as they are, not set to 0 or 1."""
    summaries, u, _, _ = _walk_forward(net._replace(rng=None), batch, default_prices())
    if "halting" in net.config.mechanisms:
        _, y, h, _ = _units_forward(net, summaries[1:])
        return dact.accumulate_forward(y, h, u)[0]
    answer, _ = bert.classifier_forward(net.params, net.config, summaries[-1], net.calc)
    regression = net.config.problem_type == "regression"
    return answer if regression else net.calc.softmax_forward(answer)[0]


# ---------------------------------------------------------------------------- through the layers


def _walk_forward(net: Network, batch: Batch, prices):
    """All layers, gated. -> summaries s_0..s_L, u (L, B), pi (L - 1, B) or None, cache.

    Of the summaries those that somebody asks for are (B, C), and the others None.
    """
    params, config, calc, rng = net
    carried, offsets = config.mechanisms, batch.offsets
    explore = None if rng is None else prices["planning"].explore
    x, embedding_cache = bert.embeddings_forward(params, config, batch, calc, rng)
    there, received = np.ones(len(x), x.dtype), np.zeros(len(x), x.dtype)  # G, significance
    s, s_cache = _summary_forward(net, x, there, offsets) if "planning" in carried else NOTHING
    count, last = len(offsets) - 1, config.num_hidden_layers - 1
    summaries, plans, u, caches, path_cache = [s], [], [np.ones(count, x.dtype)], [], None
    steps = "planning" in carried and planning.is_stepwise(carried["planning"].planner)
    if "planning" in carried and not steps:
        pi, path_cache = planning.planner_forward(s, params, planning.PATH, calc)
        plans = list(pi.T)
    for layer in range(config.num_hidden_layers):
        plan_cache = gates_cache = g = None
        if layer and "planning" in carried:
            if steps:
                name = planning.step_name(layer)
                pi, plan_cache = planning.planner_forward(s, params, name, calc)
                plans.append(pi[:, 0])
            u.append(_drawn(plans[layer - 1], explore, rng))
        elif layer:
            u.append(u[0])
        if not layer and "tokens" in carried:
            g = there
        elif "tokens" in carried:
            shape, alive = carried["tokens"], there >= token_gates.OPEN
            index = token_gates.bins_of(received, alive, offsets, shape.bins, shape.ranks)
            g, gates_cache = token_gates.gates_forward(params[token_gates.NAME][layer - 1], index)
        u_l = u[layer] if "planning" in carried else None
        x, there, got, gated_cache = _gated_layer_forward(net, layer, x, there, u_l, g, offsets)
        received = np.where(np.repeat(u[layer], ragged.lengths(offsets)) >= 0.5, got, received)
        caches.append((plan_cache, gates_cache, s_cache, gated_cache))
        asked = "halting" in carried or steps or layer == last
        s, s_cache = _summary_forward(net, x, there, offsets) if asked else NOTHING
        summaries.append(s)
    pi = np.stack(plans) if plans else None
    cache = (net, embedding_cache, caches, s_cache, path_cache, explore)
    return summaries, np.stack(u), pi, cache


def _walk_backward(dsummaries, du, dpi, cache, grads):
    """dsummaries: L + 1 of (B, C) or None; du (L, B) or None; dpi (L - 1, B) or None."""
    net, embedding_cache, caches, s_cache, path_cache, explore = cache
    calc, dx, dthere, dplans = net.calc, None, None, []
    dsummaries = list(dsummaries)
    for layer in reversed(range(len(caches))):
        plan_cache, gates_cache, s_before, gated_cache = caches[layer]
        dx, dthere = _summary_backward(dsummaries[layer + 1], dx, dthere, s_cache, calc)
        dx, dthere, du_l, dg = _gated_layer_backward(dx, dthere, gated_cache, grads, calc)
        if gates_cache is not None:
            grads[token_gates.NAME][layer - 1] += token_gates.gates_backward(dg, gates_cache)
        if layer and dpi is not None:
            du_l = du_l if du is None else du_l + du[layer]
            # straight through: dpi = du; what chance alone decided says nothing of the planner
            dpi_l = dpi[layer - 1] + (du_l if explore is None else 0)
            dplans.append(dpi_l)
            if plan_cache is not None:
                ds = planning.planner_backward(dpi_l[:, None], plan_cache, grads, calc)
                dsummaries[layer] = ds if dsummaries[layer] is None else dsummaries[layer] + ds
        s_cache = s_before
    if path_cache is not None:
        dpi = np.stack(dplans[::-1], 1)  # (B, L - 1)
        dsummaries[0] = planning.planner_backward(dpi, path_cache, grads, calc)
    dx, _ = _summary_backward(dsummaries[0], dx, dthere, s_cache, calc)
    bert.embeddings_backward(dx, embedding_cache, grads, calc)


def _drawn(pi, explore, rng):
    """u for a layer: by the planner's probabilities, or left out with probability `explore`."""
    if explore is None:
        return planning.draw(pi, rng)
    return planning.draw(np.full_like(pi, 1 - explore), rng)


def _gated_layer_forward(net: Network, layer, x, there, u, g, offsets):
    """One layer on x (T, C), with there (T,), the G of the layer before.

    u (B,): which sentences include it; g (T,): how much of each token goes on, wherever that comes
    from. None: all of them, and all of it. Returns x, there after it, attention received, cache.
    """
    params, config, calc, rng = net
    if u is None and g is None:
        x, received, cache = bert.layer_forward(params, config, layer, x, offsets, calc, rng)
        return x, there, received, (None, cache)
    before, gates = there, None
    u = np.ones_like(there) if u is None else np.repeat(u, ragged.lengths(offsets))
    if g is not None:
        there = gates = before * (1 - u * (1 - g))  # a layer that is left out drops nothing
    f, received, cache = bert.layer_forward(params, config, layer, x, offsets, calc, rng, gates)
    x, mix_cache = planning.mix_forward(f, x, u * there)
    return x, there, received, ((u, before, g, there, mix_cache, offsets), cache)


def _gated_layer_backward(dx, dthere, cache, grads, calc):
    """-> dx (T, C), dthere (T,) of before the layer, du (B,), dg (T,); None where there is none."""
    gating, cache = cache
    if gating is None:
        return bert.layer_backward(dx, cache, grads, calc)[0], dthere, None, None
    u, before, g, there, mix_cache, offsets = gating
    df, dx, dw = planning.mix_backward(dx, mix_cache)
    du, dthere, dg = dw * there, dw * u + (0 if dthere is None else dthere), None
    dx_layer, dgates = bert.layer_backward(df, cache, grads, calc)
    dx += dx_layer
    if g is not None:
        dthere += dgates
        dopen = dthere * before  # there = before (1 - u (1 - g))
        dthere, dg = dthere * (1 - u * (1 - g)), dopen * u
        du += dopen * (g - 1)
    return dx, dthere, np.add.reduceat(du, offsets[:-1]), dg


def _summary_forward(net: Network, x, there, offsets):
    """x (T, C) -> (B, C): the [CLS] row or the mean, in which rows may count as far as there."""
    config, calc = net.config, net.calc
    gates = config.mechanisms.get("tokens")
    weighted = gates is not None and token_gates.counts_what_is_left(gates.pool)
    if config.summary != "mean" or not weighted:
        s, cache = bert.summary_forward(x, offsets, config.summary, calc)
        return s, (None, cache)
    total, cache = calc.mean_rows_forward(x * there[:, None], offsets)
    share, share_cache = calc.mean_rows_forward(there[:, None], offsets)
    return total / share, ((x, there, total, share, share_cache), cache)


def _summary_backward(ds, dx, dthere, cache, calc):
    """Adds the summary's gradients to dx and dthere, each None or (T, ..)."""
    if ds is None:
        return dx, dthere
    weighted, cache = cache
    if weighted is None:
        dx_s = bert.summary_backward(ds, cache, calc)
        return (dx_s if dx is None else dx + dx_s), dthere
    x, there, total, share, share_cache = weighted
    dshare = -(ds * total).sum(1, keepdims=True) / share**2
    dproduct = calc.mean_rows_backward(ds / share, cache)  # of x there
    more = np.einsum("tc,tc->t", dproduct, x) + calc.mean_rows_backward(dshare, share_cache)[:, 0]
    dx_s = dproduct * there[:, None]
    return (dx_s if dx is None else dx + dx_s), (more if dthere is None else dthere + more)


# ---------------------------------------------------------------------------- the task's loss

LOSSES = {"single_label_classification": "cross_entropy", "regression": "squared_error"}


def _classifier_forward(net: Network, s, labels):
    """The loss of BERT's own head on the last summary s (B, C) -> losses (B,), cache."""
    params, config, calc, rng = net
    logits, head_cache = bert.classifier_forward(params, config, s, calc, rng)
    loss = LOSSES[known("problem_type", config.problem_type, LOSSES)]
    losses, loss_cache = getattr(calc, f"{loss}_forward")(logits, labels)
    return losses, (loss, head_cache, loss_cache)


def _classifier_backward(dlosses, cache, grads, net: Network):
    """dlosses (B,) -> ds (B, C)."""
    loss, head_cache, loss_cache = cache
    dlogits = getattr(net.calc, f"{loss}_backward")(dlosses, loss_cache)
    return bert.classifier_backward(dlogits, head_cache, grads, net.calc)


def _heads_forward(net: Network, summaries, u, labels, prices):
    """The loss of the units (exits.py), summaries L of (B, C) -> losses (B,), terms, cache."""
    z, y, h, unit_caches = _units_forward(net, summaries)
    trained = net.config.mechanisms["halting"].trained
    heads = exits.HEADS[known("trained", trained, exits.HEADS)]
    losses, terms, loss_cache = heads.forward(z, y, h, u, labels, prices)
    return losses, terms, (heads, unit_caches, loss_cache)


def _heads_backward(dlosses, cache, grads, calc):
    """dlosses (B,) -> dsummaries (L of (B, C)), du (L, B) or None."""
    heads, unit_caches, loss_cache = cache
    dz, dy, dh, du = heads.backward(dlosses, loss_cache)
    dsummaries = [
        dact.unit_backward(dz[n], dy[n], dh[n], unit_cache, grads, calc)
        for n, unit_cache in enumerate(unit_caches)
    ]
    return dsummaries, du


def _units_forward(net: Network, summaries):
    """Summaries (L of (B, C)) -> z, y (L, B, Y), h (L, B), caches."""
    units = [
        dact.unit_forward(s, net.params, dact.unit_name(layer), net.calc)
        for layer, s in enumerate(summaries)
    ]
    z, y, h, caches = zip(*units, strict=True)
    return np.stack(z), np.stack(y), np.stack(h), caches
