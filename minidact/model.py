"""Where network and mechanisms meet: the soft pass (training) and the hard pass (inference).

Soft: every layer runs on every row, and everything is differentiable. Hard: what is decided leaves,
and time falls with the work. With no mechanism in use the hard pass is plain BERT, bit for bit.
"""

from typing import NamedTuple

import numpy as np

from . import bert, dact, kernels, ops, ragged
from .config import Config
from .ragged import Batch


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every parameter that a model of this config has, and its shape."""
    table = bert.shapes(config)
    if config.halting is None:
        return table | bert.classifier_shapes(config)
    for layer in range(config.num_hidden_layers):
        table |= dact.shapes(
            _unit(layer),
            config.hidden_size,
            config.halting.trunk_size,
            config.num_labels,
            config.halting.sees_confidence,
        )
    return table


def init_params(config: Config, rng: np.random.Generator, dtype=np.float32) -> dict:
    """Random parameters for every name in shapes(config)."""
    params = bert.init_params(shapes(config), rng, dtype)
    for name, array in params.items():
        if name.endswith(".halting.bias"):
            array[:] = dact.HALTING_BIAS
        elif name.endswith(".trunk.weight"):  # a ReLU layer of its own: He's scale, not BERT's
            array *= np.sqrt(2 / array.shape[1]) / 0.02
    return params


def calculus(params: dict, reference: bool = False):
    """The module to compute with: kernels for float32, the NumPy reference for all else."""
    dtype = next(iter(params.values())).dtype
    return kernels if dtype == np.float32 and not reference else ops


def _unit(layer: int) -> str:
    return f"dact.layer.{layer}"


# ---------------------------------------------------------------------------- soft pass


class Costs(NamedTuple):
    """The weights of the loss's terms, and two choices.

    tau: of the ponder cost.  alpha: of the loss on each layer's own answer.
    distill: 0..1, how much of that loss's target is the last layer's answer instead of the label
    (the last layer itself learns from the label).
    ponder: "p" (the paper's sum of p_n) or "h" (sum of h_n).
    """

    tau: float = 0.05
    alpha: float = 1.0
    distill: float = 0.0
    ponder: str = "p"


def soft_forward(params, config: Config, batch: Batch, labels, costs: Costs, calc=ops, rng=None):
    """Loss of a batch: labels (B,) int classes, or float targets of a regression.

    Returns (terms, cache); terms["loss"] is what is minimised, the others are its parts.
    """
    states, caches = bert.encoder_forward(params, config, batch, calc, rng)
    if config.halting is None:
        terms, head_cache = _plain_loss(params, config, states[-1], batch, labels, calc, rng)
    else:
        terms, head_cache = _halting_loss(params, config, states, batch, labels, costs, calc)
    return terms, (config, len(states), caches, head_cache, calc)


def soft_backward(cache) -> dict[str, np.ndarray]:
    """Gradient of the loss with respect to every parameter."""
    config, count, caches, head_cache, calc = cache
    grads: dict[str, np.ndarray] = {}
    if config.halting is None:
        dstates = [None] * (count - 1) + [_plain_backward(head_cache, grads, calc)]
    else:
        dstates = [None, *_halting_backward(head_cache, grads, calc)]
    bert.encoder_backward(dstates, caches, grads, calc)
    return grads


def _plain_loss(params, config, x, batch, labels, calc, rng):
    s, s_cache = bert.summary_forward(x, batch.offsets, config.summary, calc)
    logits, head_cache = bert.classifier_forward(params, config, s, calc, rng)
    if config.problem_type == "regression":
        difference = logits[:, 0] - labels.astype(logits.dtype)
        loss, loss_cache = (difference * difference).mean(), difference
    else:
        loss, loss_cache = calc.cross_entropy_forward(logits, labels)
    return {"loss": loss}, (config, s_cache, head_cache, loss_cache)


def _plain_backward(cache, grads, calc):
    config, s_cache, head_cache, loss_cache = cache
    if config.problem_type == "regression":
        dlogits = loss_cache[:, None] * loss_cache.dtype.type(2 / len(loss_cache))
    else:
        dlogits = calc.cross_entropy_backward(loss_cache[0].dtype.type(1), loss_cache)
    return bert.summary_backward(
        bert.classifier_backward(dlogits, head_cache, grads, calc), s_cache
    )


def _halting_loss(params, config, states, batch, labels, costs, calc):
    """loss = -log a_L[label] + tau rho + alpha mean_n CE(y_n)."""
    z, y, h, unit_caches = [], [], [], []
    for layer, x in enumerate(states[1:]):
        s, s_cache = bert.summary_forward(x, batch.offsets, config.summary, calc)
        z_n, y_n, h_n, unit_cache = dact.unit_forward(s, params, _unit(layer), calc)
        z.append(z_n)
        y.append(y_n)
        h.append(h_n)
        unit_caches.append((s_cache, unit_cache))
    z, y, h = np.stack(z), np.stack(y), np.stack(h)  # (L, B, Y), (L, B, Y), (L, B)
    a, p, sum_cache = dact.accumulate_forward(y, h)
    answer, answer_cache = dact.answer_loss_forward(a, labels)
    ponder, ponder_cache = dact.ponder_cost_forward(p, h, costs.ponder)
    targets = np.tile(np.eye(config.num_labels, dtype=a.dtype)[labels], (len(z), 1, 1))  # (L, B, Y)
    targets[:-1] += a.dtype.type(costs.distill) * (y[-1] - targets[:-1])  # y_L as a constant
    heads, heads_cache = dact.heads_loss_forward(z, targets)
    loss = answer + a.dtype.type(costs.tau) * ponder + a.dtype.type(costs.alpha) * heads
    terms = {"loss": loss, "answer": answer, "ponder": ponder, "heads": heads}
    return terms, (costs, unit_caches, sum_cache, answer_cache, ponder_cache, heads_cache)


def _halting_backward(cache, grads, calc):
    costs, unit_caches, sum_cache, answer_cache, ponder_cache, heads_cache = cache
    one = heads_cache[0].dtype.type(1)
    dz = dact.heads_loss_backward(one * costs.alpha, heads_cache)
    dp, dh_direct = dact.ponder_cost_backward(one * costs.tau, ponder_cache)
    dy, dh = dact.accumulate_backward(dact.answer_loss_backward(one, answer_cache), dp, sum_cache)
    dh += dh_direct
    dstates = []
    for n, (s_cache, unit_cache) in enumerate(unit_caches):
        ds = dact.unit_backward(dz[n], dy[n], dh[n], unit_cache, grads, calc)
        dstates.append(bert.summary_backward(ds, s_cache, calc))
    return dstates


# ---------------------------------------------------------------------------- hard pass


class Answers(NamedTuple):
    """What the hard pass says of B sentences, and what it spent.

    The last three are halting's: NaN where a layer did not run, and in a model without halting.
    """

    probs: np.ndarray  # (B, Y) probabilities; of a regression: the value (B, 1)
    layers_run: np.ndarray  # (B, L) bool
    tokens: np.ndarray  # (B, L) int, rows that each layer worked on
    macs: np.ndarray  # (B,) int, multiply-adds executed
    macs_full: np.ndarray  # (B,) int, the same with no mechanism in use
    so_far: np.ndarray  # (B, L, Y) the accumulated answer a_n after each layer
    doubts: np.ndarray  # (B, L) the doubt p_n
    margins: np.ndarray  # (B, L) lower bound less upper bound; >= 0: the class cannot change


def hard_forward(
    params, config: Config, batch: Batch, use=(), slack=0.0, bound="tight", calc=ops, encoder=None
) -> Answers:
    """Answers for a batch. use: the mechanisms switched on; slack, bound: see dact.halts.

    encoder: the packed layers of inference.py; without it, bert.py's are run, with calc.
    """
    count, layers = len(batch.offsets) - 1, config.num_hidden_layers
    tokens = np.zeros((count, layers), np.int64)
    so_far = np.full((count, layers, config.num_labels), np.nan)
    doubts, margins = np.full((2, count, layers), np.nan)

    x, _ = bert.embeddings_forward(params, config, batch, calc)  # (T, C)
    offsets, alive = batch.offsets, np.arange(count)  # alive (B',): who the rows left belong to
    a, p = np.zeros((count, config.num_labels), x.dtype), np.ones(count, x.dtype)
    workspace, n = encoder and encoder.workspace(offsets), ragged.lengths(offsets)
    for layer in range(layers):
        if encoder is None:
            x, _ = bert.layer_forward(params, config, layer, x, offsets, calc)
        else:
            encoder.layer(layer, x, offsets, workspace)
        tokens[alive, layer] = n
        if config.halting is None:
            continue
        s, _ = bert.summary_forward(x, offsets, config.summary, calc)  # (B', C)
        _, y, h, _ = dact.unit_forward(s, params, _unit(layer), calc)
        a[alive], p[alive] = dact.accumulate_step(a[alive], p[alive], y, h)
        safe = dact.margin(a[alive], p[alive], layers - layer - 1, bound)
        so_far[alive, layer], doubts[alive, layer] = a[alive], p[alive]
        margins[alive, layer] = safe
        going = ~dact.halts(safe, slack)
        if "halting" in use and not going.all():
            rows, offsets = ragged.select(offsets, going)
            x, alive, n = x[rows], alive[going], n[going]
            if not len(alive):
                break

    if config.halting is None:
        s, _ = bert.summary_forward(x, offsets, config.summary, calc)
        logits, _ = bert.classifier_forward(params, config, s, calc)
        a = logits if config.problem_type == "regression" else calc.softmax_forward(logits)[0]
    spent, full = macs(config, tokens), full_macs(config, ragged.lengths(batch.offsets))
    return Answers(a, tokens > 0, tokens, spent, full, so_far, doubts, margins)


# ---------------------------------------------------------------------------- multiply-adds


def layer_macs(config: Config, n):
    """Of one layer on a sentence of n tokens: four C x C products, two C x F, two n x n x C."""
    c, f = config.hidden_size, config.intermediate_size
    return n * (4 * c * c + 2 * c * f) + 2 * n * n * c


def unit_macs(config: Config) -> int:
    """Of one DACT unit: trunk, class head, halting head."""
    trunk = config.halting.trunk_size
    seen = trunk + config.halting.sees_confidence
    return config.hidden_size * trunk + trunk * config.num_labels + seen


def classifier_macs(config: Config) -> int:
    """Of pooler and classifier."""
    return config.hidden_size * (config.hidden_size + config.num_labels)


def macs(config: Config, tokens):
    """Of B sentences on which layer l worked on tokens[:, l] rows, 0 where it did not run: (B,)."""
    layers = layer_macs(config, tokens).sum(1)
    if config.halting is None:
        return layers + classifier_macs(config)
    return layers + unit_macs(config) * (tokens > 0).sum(1)


def full_macs(config: Config, n):
    """Of sentences of n (B,) tokens with no mechanism in use: (B,)."""
    return macs(config, np.repeat(n[:, None], config.num_hidden_layers, 1))
