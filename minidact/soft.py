"""The soft pass: training. Every layer runs on every row, gates multiply, all is differentiable.

    G_l = G_{l-1} (1 - u_l (1 - g_l))               how much a token is still there at layer l
    x_{l+1} = w F_l(x_l; G_l) + (1 - w) x_l         w = u_l G_l, for each row

u_l (planning.py) is a sentence's, g_l (token_gates.py) a token's, and both are 1 without their
mechanism. With gates at exactly 0 and 1 this is what the hard pass (hard.py) computes.
"""

from typing import NamedTuple

import numpy as np

from . import bert, dact, exits, ops, planning, ragged, token_gates
from .config import Config
from .model import unit_name
from .ragged import Batch


class Costs(NamedTuple):
    """The weights of the loss's terms, and what goes with them.

    Halting. tau: of the ponder cost.  alpha: of the loss on each layer's own answer.
    distill: 0..1, how much of that loss's target is the last layer's answer instead of the label
    (the last layer itself learns from the label).
    ponder: "p" (the paper's sum of p_n) or "h" (sum of h_n).

    Planning. layers: of the share of layers included, or, with a target, of its squared distance
    from it.  explore: layers are left out with this probability, whatever the planner says, and it
    learns nothing: LayerDrop (Fan et al., arXiv 1909.11556), which the backbone must get used to.

    Token gates. tokens: of their L1 term (lambda_1).  bimodal: lambda_2.

    PonderNet. beta: of the divergence from a geometric distribution; prior: that one's parameter.
    """

    tau: float = 0.05
    alpha: float = 1.0
    distill: float = 0.0
    ponder: str = "p"
    layers: float = 0.0
    target: float | None = None
    explore: float | None = None
    tokens: float = 0.0
    bimodal: float = 0.0
    beta: float = 0.01
    prior: float = 0.3


def soft_forward(params, config: Config, batch: Batch, labels, costs: Costs, calc=ops, rng=None):
    """Loss of a batch: labels (B,) int classes, or float targets of a regression.

    Returns (terms, cache); terms["loss"] is what is minimised, the others are its parts.
    """
    summaries, u, pi, walk = _walk_forward(params, config, batch, costs, calc, rng)
    if config.halting is None:
        terms, head_cache = _plain_loss(params, config, summaries[-1], labels, calc, rng)
    elif config.halting.trained != "dact":
        terms, head_cache = _exits_loss(params, config, summaries[1:], labels, costs, calc)
    else:
        terms, head_cache = _halting_loss(params, config, summaries[1:], u, labels, costs, calc)
    gate_caches = {}
    if config.planning is not None:
        terms["layer_cost"], gate_caches["layers"] = planning.cost_forward(pi, costs.target)
        terms["loss"] = terms["loss"] + costs.layers * terms["layer_cost"]
    if config.tokens is not None:
        gates = params[token_gates.NAME]
        terms["token_cost"], gate_caches["tokens"] = token_gates.l1_forward(gates)
        terms["bimodal"], gate_caches["bimodal"] = token_gates.bimodal_forward(gates)
        terms["loss"] = terms["loss"] + costs.tokens * terms["token_cost"]
        terms["loss"] = terms["loss"] + costs.bimodal * terms["bimodal"]
    return terms, (config, costs, walk, head_cache, gate_caches, calc)


def soft_backward(cache) -> dict[str, np.ndarray]:
    """Gradient of the loss with respect to every parameter that is trained."""
    config, costs, walk, head_cache, gate_caches, calc = cache
    grads: dict[str, np.ndarray] = {}
    dsummaries, du, dpi = [None] * (config.num_hidden_layers + 1), None, None
    if config.halting is None:
        dsummaries[-1] = _plain_backward(head_cache, grads, calc)
    elif config.halting.trained != "dact":
        dsummaries[1:] = _exits_backward(head_cache, grads, calc)
        if config.halting.trained in exits.FROZEN:
            return grads
    else:
        dsummaries[1:], du = _halting_backward(head_cache, grads, calc)
    if config.planning is not None:
        dpi = planning.cost_backward(costs.layers, gate_caches["layers"])
    if config.tokens is not None:
        dgates = token_gates.l1_backward(costs.tokens, gate_caches["tokens"])
        dgates += token_gates.bimodal_backward(costs.bimodal, gate_caches["bimodal"])
        grads[token_gates.NAME] = dgates
    _walk_backward(dsummaries, du, dpi, walk, grads)
    return grads


def soft_answers(params, config: Config, batch: Batch, calc=ops):
    """(B, Y) what hard.Answers.probs holds, but with token gates as they are, not set to 0 or 1."""
    summaries, u, _, _ = _walk_forward(params, config, batch, Costs(), calc, None)
    if config.halting is not None:
        _, y, h, _ = _units_forward(params, summaries[1:], calc)
        return dact.accumulate_forward(y, h, u)[0]
    answer, _ = bert.classifier_forward(params, config, summaries[-1], calc)
    return answer if config.problem_type == "regression" else calc.softmax_forward(answer)[0]


# ---------------------------------------------------------------------------- through the layers


def _walk_forward(params, config: Config, batch: Batch, costs: Costs, calc, rng):
    """All layers, gated. -> summaries s_0..s_L (B, C), u (L, B), pi (L - 1, B) or None, cache."""
    offsets, steps = batch.offsets, config.planning and config.planning.planner == "steps"
    x, embedding_cache = bert.embeddings_forward(params, config, batch, calc, rng)
    there, received = np.ones(len(x), x.dtype), np.zeros(len(x), x.dtype)  # G, significance
    s, s_cache = _summary_forward(x, there, offsets, config, calc)
    summaries, plans, u, caches = [s], [], [np.ones(len(s), x.dtype)], []
    if config.planning is not None and not steps:
        pi, path_cache = planning.planner_forward(s, params, planning.PATH, calc)
        plans = list(pi.T)
    for layer in range(config.num_hidden_layers):
        index = plan_cache = None
        if layer and config.planning is not None:
            if steps:
                name = planning.step_name(layer)
                pi, plan_cache = planning.planner_forward(s, params, name, calc)
                plans.append(pi[:, 0])
            u.append(_drawn(plans[layer - 1], costs.explore, rng))
        elif layer:
            u.append(u[0])
        if layer and config.tokens is not None:
            tokens, alive = config.tokens, there >= token_gates.OPEN
            index = token_gates.bins_of(
                received, alive, offsets, tokens.bins, tokens.ranks == "relative"
            )
        x, there, got, gated_cache = _gated_layer_forward(
            params, config, layer, x, there, u[layer], index, offsets, calc, rng
        )
        received = np.where(np.repeat(u[layer], ragged.lengths(offsets)) >= 0.5, got, received)
        caches.append((plan_cache, s_cache, gated_cache))
        s, s_cache = _summary_forward(x, there, offsets, config, calc)
        summaries.append(s)
    pi = np.stack(plans) if plans else None
    path_cache = None if config.planning is None or steps else path_cache
    cache = (config, embedding_cache, caches, s_cache, path_cache, costs.explore, calc)
    return summaries, np.stack(u), pi, cache


def _walk_backward(dsummaries, du, dpi, cache, grads):
    """dsummaries: L + 1 of (B, C) or None; du (L, B) or None; dpi (L - 1, B) or None."""
    config, embedding_cache, caches, s_cache, path_cache, explore, calc = cache
    dsummaries, dx, dthere, dplans = list(dsummaries), None, None, []
    for layer in reversed(range(config.num_hidden_layers)):
        plan_cache, s_before, gated_cache = caches[layer]
        dx, dthere = _summary_backward(dsummaries[layer + 1], dx, dthere, s_cache, calc)
        dx, dthere, du_l = _gated_layer_backward(dx, dthere, gated_cache, grads, calc)
        if layer and config.planning is not None:
            du_l = du_l if du is None else du_l + du[layer]
            # straight through: dpi = du; what chance alone decided says nothing of the planner
            dpi_l = dpi[layer - 1] + (du_l if explore is None else 0)
            dplans.append(dpi_l)
            if plan_cache is not None:
                ds = planning.planner_backward(dpi_l[:, None], plan_cache, grads, calc)
                dsummaries[layer] = ds if dsummaries[layer] is None else dsummaries[layer] + ds
        s_cache = s_before
    if path_cache is not None:
        dplans = np.stack(dplans[::-1], 1)  # (B, L - 1)
        dsummaries[0] = planning.planner_backward(dplans, path_cache, grads, calc)
    dx, _ = _summary_backward(dsummaries[0], dx, dthere, s_cache, calc)
    bert.embeddings_backward(dx, embedding_cache, grads, calc)


def _drawn(pi, explore, rng):
    """u for a layer: by the planner's probabilities, or left out with probability `explore`."""
    if explore is None:
        return planning.draw(pi, rng)
    return planning.draw(np.full_like(pi, 1 - explore), rng)


def _gated_layer_forward(params, config, layer, x, there, u, index, offsets, calc, rng):
    """One layer: u (B,) who includes it, there (T,) G of the layer before, index: bins or None.

    -> x, there after it, the attention received, cache.
    """
    if config.planning is None and config.tokens is None:
        x, received, cache = bert.layer_forward(params, config, layer, x, offsets, calc, rng)
        return x, there, received, (layer, None, cache)
    u, before, g, gates_cache = np.repeat(u, ragged.lengths(offsets)), there, None, None
    if index is not None:
        g, gates_cache = token_gates.gates_forward(params[token_gates.NAME][layer - 1], index)
        there = before * (1 - u * (1 - g))  # a layer that is left out drops nothing
    gates = there if config.tokens is not None else None
    f, received, cache = bert.layer_forward(params, config, layer, x, offsets, calc, rng, gates)
    x, mix_cache = planning.mix_forward(f, x, u * there)
    gating = (u, before, g, gates_cache, there, mix_cache, offsets)
    return x, there, received, (layer, gating, cache)


def _gated_layer_backward(dx, dthere, cache, grads, calc):
    """-> dx, dthere of before the layer, du (B,)."""
    layer, gating, cache = cache
    if gating is None:
        return bert.layer_backward(dx, cache, grads, calc)[0], None, None
    u, before, g, gates_cache, there, mix_cache, offsets = gating
    df, dx, dw = planning.mix_backward(dx, mix_cache)
    du, dthere = dw * there, dw * u + (0 if dthere is None else dthere)
    dx_layer, dgates = bert.layer_backward(df, cache, grads, calc)
    dx += dx_layer
    if dgates is not None:
        dthere += dgates
    if gates_cache is not None:
        dopen = dthere * before  # there = before (1 - u (1 - g))
        dthere = dthere * (1 - u * (1 - g))
        grads[token_gates.NAME][layer - 1] += token_gates.gates_backward(dopen * u, gates_cache)
        du += dopen * (g - 1)
    return dx, dthere, np.add.reduceat(du, offsets[:-1])


def _summary_forward(x, there, offsets, config: Config, calc):
    """x (T, C) -> (B, C): the [CLS] row or the mean, in which rows may count as far as there."""
    if config.summary == "cls" or config.tokens is None or config.tokens.pool == "last":
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


def _plain_loss(params, config, s, labels, calc, rng):
    logits, head_cache = bert.classifier_forward(params, config, s, calc, rng)
    if config.problem_type == "regression":
        difference = logits[:, 0] - labels.astype(logits.dtype)
        loss, loss_cache = (difference * difference).mean(), difference
    else:
        loss, loss_cache = calc.cross_entropy_forward(logits, labels)
    return {"loss": loss}, (config, head_cache, loss_cache)


def _plain_backward(cache, grads, calc):
    config, head_cache, loss_cache = cache
    if config.problem_type == "regression":
        dlogits = loss_cache[:, None] * (2 / len(loss_cache))
    else:
        dlogits = calc.cross_entropy_backward(1.0, loss_cache)
    return bert.classifier_backward(dlogits, head_cache, grads, calc)


def _halting_loss(params, config, summaries, u, labels, costs, calc):
    """loss = -log a_L[label] + tau rho + alpha mean_n CE(y_n)."""
    z, y, h, unit_caches = _units_forward(params, summaries, calc)
    a, p, sum_cache = dact.accumulate_forward(y, h, u)
    answer, answer_cache = dact.answer_loss_forward(a, labels)
    ponder, ponder_cache = dact.ponder_cost_forward(p, h, costs.ponder)
    heads, heads_cache = dact.heads_loss_forward(z, _targets(y, labels, costs.distill))
    loss = answer + costs.tau * ponder + costs.alpha * heads
    terms = {"loss": loss, "answer": answer, "ponder": ponder, "heads": heads}
    return terms, (costs, unit_caches, sum_cache, answer_cache, ponder_cache, heads_cache)


def _halting_backward(cache, grads, calc):
    """-> dsummaries (L of (B, C)), du (L, B)."""
    costs, unit_caches, sum_cache, answer_cache, ponder_cache, heads_cache = cache
    dz = dact.heads_loss_backward(costs.alpha, heads_cache)
    dp, dh_direct = dact.ponder_cost_backward(costs.tau, ponder_cache)
    da = dact.answer_loss_backward(1.0, answer_cache)
    dy, dh, du = dact.accumulate_backward(da, dp, sum_cache)
    return _units_backward(dz, dy, dh + dh_direct, unit_caches, grads, calc), du


def _exits_loss(params, config, summaries, labels, costs, calc):
    """The neighbours' losses (exits.py), on the same units."""
    z, y, h, unit_caches = _units_forward(params, summaries, calc)
    trained = config.halting.trained
    if trained == "pondernet":
        loss, loss_cache = exits.pondernet_forward(z, h, labels, costs.beta, costs.prior)
    else:
        targets = _targets(y, labels, 1.0 if trained == "fastbert" else 0.0)
        weights = exits.depth_weights(trained, len(z))
        loss, loss_cache = dact.heads_loss_forward(z, targets, weights)
    return {"loss": loss}, (trained, y, h, unit_caches, loss_cache)


def _exits_backward(cache, grads, calc):
    """-> dsummaries (L of (B, C))."""
    trained, y, h, unit_caches, loss_cache = cache
    if trained == "pondernet":
        dz, dh = exits.pondernet_backward(1.0, loss_cache)
    else:
        dz, dh = dact.heads_loss_backward(1.0, loss_cache), np.zeros_like(h)
    return _units_backward(dz, np.zeros_like(y), dh, unit_caches, grads, calc)


def _units_forward(params, summaries, calc):
    """Summaries (L of (B, C)) -> z, y (L, B, Y), h (L, B), caches."""
    z, y, h, caches = zip(
        *(
            dact.unit_forward(s, params, unit_name(layer), calc)
            for layer, s in enumerate(summaries)
        ),
        strict=True,
    )
    return np.stack(z), np.stack(y), np.stack(h), caches


def _units_backward(dz, dy, dh, caches, grads, calc):
    return [
        dact.unit_backward(dz[n], dy[n], dh[n], cache, grads, calc)
        for n, cache in enumerate(caches)
    ]


def _targets(y, labels, distill: float):
    """(L, B, Y): the labels; of all layers but the last, by a share, the last one's answer."""
    targets = np.tile(np.eye(y.shape[2], dtype=y.dtype)[labels], (len(y), 1, 1))
    targets[:-1] += distill * (y[-1] - targets[:-1])  # y_L as a constant
    return targets
