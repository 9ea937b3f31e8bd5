"""The soft pass: training. Every layer runs on every row, gates multiply, all is differentiable.

    G_l = G_{l-1} (1 - u_l (1 - g_l))               how much a token is still there at layer l
    x_{l+1} = w F_l(x_l; G_l) + (1 - w) x_l         w = u_l G_l, for each row

u_l (planning.py) is a sentence's, g_l (token_gates.py, or selection.py with its estimator "gumbel")
a token's, and both are 1 without their mechanism. With gates at exactly 0 and 1 this is what the
hard pass (hard.py) computes.

With the estimator "reinforce" nothing multiplies: rows that are not selected leave, as they do in
the hard pass. From the second layer on the batch is there K times, once for each sample.
"""

from typing import Any, NamedTuple

import numpy as np

from . import bert, ragged
from .mechanisms import dact, default_prices, exits, planning, selection, token_gates
from .network import Network
from .ragged import Batch

NOTHING: Any = (None, None)  # a summary that nobody asks for, and its cache


def soft_forward(
    net: Network, batch: Batch, labels, prices: dict[str, Any] | None = None, guide: Any = None,
    weights: Any = None,
):  # fmt: skip
    """The loss of a batch: labels (B,) int classes, (B, Y) probabilities, or (B,) float targets.

    prices: {mechanism: its prices}; those not given are the usual ones. guide: {layer: a score of
    each token (T,)}, by which the last of selection's samples chooses. weights (B,): how much each
    sentence's loss counts; None: all the same. Returns the task's losses (B,), one for each
    sentence (of the samples the mean); terms {name: float}, of which "loss" is what is minimised,
    their mean and what gates cost, and the others are its parts; and the cache for soft_backward.
    """
    prices = default_prices() | (prices or {})
    carried, count = net.config.mechanisms, len(batch.offsets) - 1
    summaries, u, pi, kept, walk = _walk_forward(net, batch, prices, guide)
    labels = selection.copied(labels, len(summaries[-1]) // count)
    if "halting" in carried:
        how = (net.params, carried["halting"].trained, u, labels, prices["halting"], net.calc)
        losses, terms, head_cache = exits.heads_forward(summaries[1:], *how)
    else:
        with_labels = (net.params, net.config, labels, net.calc, net.rng)
        (losses, head_cache), terms = bert.classifier_loss_forward(summaries[-1], *with_labels), {}
    weights = np.ones(count, losses.dtype) if weights is None else weights
    weights = selection.copied(weights, len(losses) // count)
    losses = losses * weights
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
    if "selection" in carried:
        price, terms["kept"] = prices["selection"], kept.mean()
        loss = loss + price.selection_cost * terms["kept"]
        costs["selection"] = (losses + price.selection_cost * kept).reshape(-1, count)
    cache = (net, prices, weights, walk, head_cache, costs)
    return losses.reshape(-1, count).mean(0), {"loss": loss} | terms, cache


def soft_backward(cache) -> dict[str, np.ndarray]:
    """Gradient of the loss with respect to every parameter that is trained."""
    net, prices, weights, walk, head_cache, costs = cache
    carried, grads = net.config.mechanisms, dict[str, np.ndarray]()
    dsummaries, du, dpi = [None] * (net.config.num_hidden_layers + 1), None, None
    dmean, price = np.full_like(weights, 1 / len(weights)), prices["selection"]
    dlosses = dmean * weights
    dkept = dlog_prob = None
    if _removes(net, price):
        dlog_prob = dmean * selection.advantages(costs["selection"]).ravel()
    elif "selection" in carried:
        dkept = dmean * dmean.dtype.type(price.selection_cost)
    if _policy_alone(net, price):
        _choices_backward(dlog_prob, walk, grads)
        return grads
    if "halting" in carried:
        dsummaries[1:], du = exits.heads_backward(dlosses, head_cache, grads, net.calc)
        if exits.HEADS[carried["halting"].trained].frozen and not price.policy_only:
            return grads
    else:
        dsummaries[-1] = bert.classifier_loss_backward(dlosses, head_cache, grads, net.calc)
    if "planning" in carried and (prices["planning"].layer_cost or walk[-2] is None):
        dpi = planning.cost_backward(prices["planning"].layer_cost, costs["layers"])
    if "tokens" in carried:
        dgates = token_gates.l1_backward(prices["tokens"].token_cost, costs["tokens"])
        dgates += token_gates.bimodal_backward(prices["tokens"].bimodal, costs["bimodal"])
        grads[token_gates.NAME] = dgates
    _walk_backward(dsummaries, (du, dpi, dkept, dlog_prob), walk, grads)
    if "selection" in carried and price.policy_only:
        return {name: g for name, g in grads.items() if name.startswith(selection.PREFIX)}
    return grads


def soft_answers(net: Network, batch: Batch):
    """(B, Y) what hard.Answers.probs holds, but with token gates as they are, not set to 0 or 1."""
    summaries, u, *_ = _walk_forward(net._replace(rng=None), batch, default_prices())
    if "halting" in net.config.mechanisms:
        _, y, h, _ = exits.units_forward(summaries[1:], net.params, net.calc)
        return dact.accumulate_forward(y, h, u)[0]
    answer, _ = bert.classifier_forward(net.params, net.config, summaries[-1], net.calc)
    regression = net.config.problem_type == "regression"
    return answer if regression else net.calc.softmax_forward(answer)[0]


# ---------------------------------------------------------------------------- through the layers


class _Rows(NamedTuple):
    """A soft pass under way: the T rows that are there, of B sentences."""

    x: np.ndarray  # (T, C)
    there: np.ndarray  # (T,) G, how much of a row is there
    received: np.ndarray  # (T,) its significance
    place: np.ndarray  # (T,) which of the batch's rows it was
    offsets: np.ndarray  # (B + 1,)
    whole: np.ndarray  # (B,) tokens at first
    dropped: Any  # (B, C) the sum of the rows that have left, or None if nobody asks

    def copied(self, copies: int) -> "_Rows":
        """The same sentences so many times."""
        n = selection.copied(ragged.lengths(self.offsets), copies)
        arrays: Any = _copied(self, copies)
        return _Rows(*arrays)._replace(offsets=np.concatenate([[0], np.cumsum(n)]))


def _first_rows(net: Network, x, offsets, price) -> _Rows:
    n, dropped = ragged.lengths(offsets), None
    last = _removes(net, price) and not _counts_what_is_left(net.config)
    if net.config.summary == "mean" and last:
        dropped = np.zeros((len(n), x.shape[1]), x.dtype)
    there, received = np.ones(len(x), x.dtype), np.zeros(len(x), x.dtype)
    return _Rows(x, there, received, np.arange(len(x)), offsets, n, dropped)


def _walk_forward(net: Network, batch: Batch, prices, guide=None):
    """All layers, gated. -> summaries s_0..s_L, u (L, B), pi (L - 1, B) or None, kept (B,), cache.

    Of the summaries those that somebody asks for are (B, C), and the others None. With K samples
    of selection there are K B sentences. kept: the share of tokens that layers 2..L work on.
    """
    params, config, calc, rng = net
    carried, price, last = config.mechanisms, prices["selection"], config.num_hidden_layers - 1
    alone = "selection" in carried and price.policy_only  # then planners decide as in inference
    explore = None if rng is None or alone else prices["planning"].explore
    samples = price.samples if _removes(net, price) and rng is not None else 1
    x, embedding_cache = bert.embeddings_forward(params, config, batch, calc, rng)
    rows = _first_rows(net, x, batch.offsets, price)
    s, s_cache = _summary_forward(net, rows, price) if "planning" in carried else NOTHING
    summaries, path, path_cache, plans, u, kept, caches = [s], None, None, [], [], 0, []
    steps = "planning" in carried and planning.is_stepwise(carried["planning"].planner)
    if "planning" in carried and not steps:
        path, path_cache = planning.planner_forward(s, params, planning.PATH, calc)
    for layer in range(last + 1):
        if layer == 1 and samples > 1:
            rows, (path, *summaries) = rows.copied(samples), _copied([path, *summaries], samples)
        pi, plan_cache = _plan_forward(net, layer, summaries[-1], path)
        plans += [] if pi is None else [pi]
        u_l = None if pi is None else _drawn(pi, explore, None if alone else rng)
        u.append(np.ones(len(rows.whole), x.dtype) if u_l is None else u_l)
        rows, g, choice = _tokens_forward(net, layer, rows, u[layer], price, guide)
        rows, gated_cache = _gated_layer_forward(net, layer, rows, u_l, g)
        if layer and "selection" in carried:
            kept = kept + _kept(rows) / last
        every = (plan_cache, choice, s_cache, gated_cache)
        caches.append((None, choice, None, None) if _policy_alone(net, price) else every)
        asked = "halting" in carried or steps or layer == last
        s, s_cache = _summary_forward(net, rows, price) if asked else NOTHING
        summaries.append(s)
    u[0] = np.ones_like(u[-1])
    cache = (net, embedding_cache, caches, s_cache, path_cache, explore, samples)
    return summaries, np.stack(u), np.stack(plans) if plans else None, kept, cache


def _walk_backward(dsummaries, slopes, cache, grads):
    """dsummaries: L + 1 of (B, C) or None. slopes: du (L, B), dpi (L - 1, B), dkept, dlog_prob.

    The last two are selection's, (B,); each of the four may be None.
    """
    net, embedding_cache, caches, s_cache, path_cache, explore, samples = cache
    du, dpi, dkept, dlog_prob = slopes
    calc, dx, dthere, ddropped, dplans = net.calc, None, None, None, []
    dsummaries = list(dsummaries)
    for layer in reversed(range(len(caches))):
        plan_cache, choice, s_before, gated_cache = caches[layer]
        if layer == 0 and samples > 1:
            dx, *dsummaries = _added_up([dx, *dsummaries], samples)
            dthere = ddropped = None
        back = _summary_backward(dsummaries[layer + 1], dx, dthere, ddropped, s_cache, calc)
        dx, dthere, ddropped = back
        if layer and dkept is not None:
            dthere = _kept_backward(dkept / (len(caches) - 1), dthere, gated_cache)
        dx, dthere, du_l, dg = _gated_layer_backward(dx, dthere, gated_cache, grads, calc)
        if choice is not None:
            back = _tokens_backward(dx, dthere, dg, ddropped, dlog_prob, choice, grads, calc)
            dx, dthere = back
        if layer and dpi is not None:
            du_l = du_l if du is None else du_l + du[layer]
            # straight through: dpi = du; what chance alone decided says nothing of the planner
            dpi_l = dpi[layer - 1] + (du_l if explore is None else 0)
            dplans.append(dpi_l)
            if plan_cache is not None:
                ds = planning.planner_backward(dpi_l[:, None], plan_cache, grads, calc)
                dsummaries[layer] = bert.added(dsummaries[layer], ds)
        s_cache = s_before
    if dplans and path_cache is not None:
        dpi = np.stack(dplans[::-1], 1)  # (B, L - 1)
        (dpi,) = _added_up([dpi], samples)
        dsummaries[0] = planning.planner_backward(dpi, path_cache, grads, calc)
    dx, *_ = _summary_backward(dsummaries[0], dx, dthere, ddropped, s_cache, calc)
    bert.embeddings_backward(dx, embedding_cache, grads, calc)


def _copied(arrays, samples):
    return [None if v is None else selection.copied(v, samples) for v in arrays]


def _added_up(gradients, samples):
    return [None if v is None else selection.added_up(v, samples) for v in gradients]


def _plan_forward(net: Network, layer, s, path):
    """-> pi (B,) of one layer, and its planner's cache; None where nothing is planned."""
    if not layer or "planning" not in net.config.mechanisms:
        return NOTHING
    if path is not None:
        return path[:, layer - 1], None
    pi, cache = planning.planner_forward(s, net.params, planning.step_name(layer), net.calc)
    return pi[:, 0], cache


def _drawn(pi, explore, rng):
    """u for a layer: by the planner's probabilities, or left out with probability `explore`."""
    if explore is None:
        return planning.draw(pi, rng)
    return planning.draw(np.full_like(pi, 1 - explore), rng)


def _tokens_forward(net: Network, layer, rows: _Rows, u, price, guide):
    """What becomes of tokens before a layer -> the rows that go on, g (T,) or None, cache or None.

    u (B,): which sentences include the layer. g: how much of each row goes on; None: all of it.
    """
    carried, params = net.config.mechanisms, net.params
    if "selection" in carried and layer:
        return _select_forward(net, layer, rows, u, price, guide)
    if "tokens" not in carried:
        return rows, None, None
    if not layer:
        return rows, rows.there, None
    shape, alive = carried["tokens"], rows.there >= token_gates.OPEN
    index = token_gates.bins_of(rows.received, alive, rows.offsets, shape.bins, shape.ranks)
    g, cache = token_gates.gates_forward(params[token_gates.NAME][layer - 1], index)
    return rows, g, ("ranks", layer, cache)


def _tokens_backward(dx, dthere, dg, ddropped, dlog_prob, choice, grads, calc):
    """-> dx (T, C) and dthere (T,) of before the choice; ddropped (B, C), dlog_prob (B,)."""
    kind, *cache = choice
    if kind == "ranks":
        layer, gates_cache = cache
        grads[token_gates.NAME][layer - 1] += token_gates.gates_backward(dg, gates_cache)
        return dx, dthere
    if kind == "gumbel":
        dz, policy_cache = selection.through_backward(dg, cache[0]), cache[1]
    else:
        log_prob_cache, leave_cache, policy_cache = cache
        dx, dthere = selection.leave_backward(dx, ddropped, leave_cache), None
        dz = selection.log_prob_backward(dlog_prob, log_prob_cache)
    return dx + selection.policy_backward(dz, policy_cache, grads, calc), dthere


def _select_forward(net: Network, layer, rows: _Rows, u, price, guide):
    """As _tokens_forward: with "reinforce" rows leave, with "gumbel" g is 0 or 1."""
    shape, removes = net.config.mechanisms["selection"], _removes(net, price)
    if layer not in selection.places(net.config.num_hidden_layers, shape.reductions):
        return rows, None if removes else np.ones_like(rows.there), None
    offsets, name = rows.offsets, selection.policy_name(layer)
    asked = selection.asked(offsets, u >= 0.5)
    z, policy_cache = selection.policy_forward(rows.x, net.params, name, net.calc)
    if not removes:
        g, cache = selection.through_forward(z, asked, net.rng)
        return rows, g, ("gumbel", cache, policy_cache)
    stays = selection.draw(z, asked, net.rng)
    if guide is not None:  # the last of the samples is not drawn
        first = len(rows.whole) - len(rows.whole) // price.samples
        last, of_last = slice(offsets[first], None), offsets[first:] - offsets[first]
        scores = guide[layer][rows.place[last]]
        stays[last] = selection.top_tokens(z[last], asked[last], scores, of_last)
    _, log_prob_cache = selection.log_prob_forward(z, stays, asked, offsets)
    x, offsets, dropped, leave_cache = selection.leave_forward(rows.x, offsets, stays, rows.dropped)
    there, received, place = rows.there[stays], rows.received[stays], rows.place[stays]
    rows = _Rows(x, there, received, place, offsets, rows.whole, dropped)
    return rows, None, ("left", log_prob_cache, leave_cache, policy_cache)


def _choices_backward(dlog_prob, walk, grads):
    """The gradient of the policies alone, of "reinforce"."""
    net, _, caches, *_ = walk
    for _, choice, *_ in caches:
        if choice is not None:
            _, log_prob_cache, _, policy_cache = choice
            dz = selection.log_prob_backward(dlog_prob, log_prob_cache)
            selection.policy_backward(dz, policy_cache, grads, net.calc)


def _removes(net: Network, price) -> bool:
    """Do rows that are not selected leave?"""
    return "selection" in net.config.mechanisms and price.estimator == "reinforce"


def _policy_alone(net: Network, price) -> bool:
    """Is there nothing to go backward through but the policies?"""
    return _removes(net, price) and price.policy_only and net.rng is not None


def _kept(rows: _Rows):
    """The share of each sentence's tokens that is there, (B,)."""
    return np.add.reduceat(rows.there, rows.offsets[:-1]) / rows.whole.astype(rows.there.dtype)


def _kept_backward(dkept, dthere, gated_cache):
    """Adds dkept (B,) to dthere, None or (T,)."""
    n = ragged.lengths(gated_cache[0][-1])
    more = np.repeat(dkept / n.astype(dkept.dtype), n)
    return bert.added(dthere, more)


def _gated_layer_forward(net: Network, layer, rows: _Rows, u, g):
    """One layer -> the rows after it, cache.

    u (B,): which sentences include it; g (T,): how much of each token goes on, wherever that comes
    from. None: all of them, and all of it.
    """
    params, config, calc, rng = net
    x, before, offsets, gates = rows.x, rows.there, rows.offsets, None
    if u is None and g is None:
        x, received, cache = bert.layer_forward(params, config, layer, x, offsets, calc, rng)
        return rows._replace(x=x, received=received), (None, cache)
    there = before
    u = np.ones_like(there) if u is None else np.repeat(u, ragged.lengths(offsets))
    if g is not None:
        there = gates = before * (1 - u * (1 - g))  # a layer that is left out drops nothing
    f, received, cache = bert.layer_forward(params, config, layer, x, offsets, calc, rng, gates)
    received = np.where(u >= 0.5, received, rows.received)
    x, mix_cache = planning.mix_forward(f, x, u * there)
    gating = (u, before, g, there, mix_cache, offsets)
    return rows._replace(x=x, there=there, received=received), (gating, cache)


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


def _summary_forward(net: Network, rows: _Rows, price):
    """-> s (B, C), the [CLS] rows or the means, and a cache.

    In a mean a row may count as far as it is there, or as it was before it left.
    """
    config, calc, (x, there, offsets) = net.config, net.calc, (rows.x, rows.there, rows.offsets)
    kind, more = "plain", None
    if rows.dropped is not None:
        kind = "whole"
    elif config.summary == "mean" and not _removes(net, price) and _counts_what_is_left(config):
        kind, x = "weighted", x * there[:, None]
    s, cache = bert.summary_forward(x, offsets, config.summary, calc)
    if kind == "whole":
        left = ragged.lengths(offsets)
        s, more = selection.whole_mean_forward(s, rows.dropped, left, rows.whole)
    elif kind == "weighted":
        share, share_cache = calc.mean_rows_forward(there[:, None], offsets)
        s, more = s / share, (rows.x, there, s, share, share_cache)
    return s, (kind, cache, more)


def _counts_what_is_left(config) -> bool:
    gates, select = (config.mechanisms.get(name) for name in ("tokens", "selection"))
    if gates is not None:
        return token_gates.counts_what_is_left(gates.pool)
    return select is not None and selection.counts_what_is_left(select.selection_pool)


def _summary_backward(ds, dx, dthere, ddropped, cache, calc):
    """Adds the summary's gradients to dx, dthere and ddropped, each an array or None."""
    if ds is None:
        return dx, dthere, ddropped
    kind, s_cache, more = cache
    if kind == "whole":
        ds, dmore = selection.whole_mean_backward(ds, more)
        ddropped = bert.added(ddropped, dmore)
    elif kind == "weighted":
        x, there, total, share, share_cache = more
        dshare = -(ds * total).sum(1, keepdims=True) / share**2
        ds = ds / share
    dx_s = bert.summary_backward(ds, s_cache, calc)
    if kind == "weighted":  # so far it is of x there
        dmore = np.einsum("tc,tc->t", dx_s, x) + calc.mean_rows_backward(dshare, share_cache)[:, 0]
        dthere, dx_s = bert.added(dthere, dmore), dx_s * there[:, None]
    return bert.added(dx, dx_s), dthere, ddropped
