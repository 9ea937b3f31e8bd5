"""One step of a training, and the prices that change from step to step."""

from dataclasses import replace
from typing import Any

import numpy as np

from .. import optim, soft
from ..errors import InputError
from ..network import Network
from ..ragged import Batch
from . import guide

DECIDED = 0.9  # after this share of the steps token gates are 0 or 1, and the rest gets used to it


def prices_at(done: float, prices: dict[str, Any]) -> dict[str, Any]:
    """The prices after a share of the steps, `done`: their schedules.

    At first layers are explored, and cost nothing. tau and lambda_1 rise. lambda_2 rises from 0.4
    of the steps on, and is whole when the token gates are decided. A guide is followed at first.
    """
    halting, planning, gates = prices["halting"], prices["planning"], prices["tokens"]
    select = prices["selection"]
    guided = select.guided if done <= select.guided else 0.0
    ramp = min(1.0, done / halting.tau_ramp) if halting.tau_ramp else 1.0
    exploring = {"layer_cost": 0.0} if done <= planning.explore_share else {"explore": None}
    late = min(1.0, max(0.0, (done - 0.4) / (DECIDED - 0.4)))
    return prices | {
        "halting": replace(halting, tau=halting.tau * ramp),
        "planning": replace(planning, **exploring),
        "tokens": replace(gates, token_cost=ramp * gates.token_cost, bimodal=late * gates.bimodal),
        "selection": replace(select, guided=guided),
    }


def are_settled(done: float, use: tuple[str, ...], prices: dict[str, Any]) -> bool:
    """After that share of the steps: is what the mechanisms in use do at first over for all?

    Layers are explored, a guide is followed, token gates are between 0 and 1.
    """
    first = {
        "planning": prices["planning"].explore_share,
        "tokens": 0.0 if prices["tokens"].freeze_gates else DECIDED,
        "selection": prices["selection"].guided if has_guide(prices) else 0.0,
    }
    return all(done > share for name, share in first.items() if name in use)


def has_guide(prices: dict[str, Any]) -> bool:
    """Is one of selection's samples, at first, a guide's choice?"""
    select = prices["selection"]
    return select.policy_only and select.estimator == "reinforce" and select.guided > 0


def learn(
    net: Network, batch: Batch, labels, prices: dict | None, moments: optim.Moments, step: int,
    rates: dict[str, float], weight_decay: float = 0.01, weights: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """One step, counted from 0: forward, backward, clip, AdamW, in place; the loss's terms.

    labels, prices, weights: see soft.soft_forward; rates: each parameter's learning rate. Raises
    InputError if the loss or the gradient is not finite; then nothing has changed.
    """
    follow = prices is not None and has_guide(prices) and "selection" in net.config.mechanisms
    scores = guide.scores(net, batch, labels) if follow else None
    _, terms, cache = soft.soft_forward(net, batch, labels, prices, scores, weights)
    grads = soft.soft_backward(cache)
    grads = {name: g for name, g in grads.items() if rates[name]}  # gates that are set are done
    norm = optim.gradient_norm(grads, net.calc)
    for what, value in (("loss", terms["loss"]), ("gradient's norm", norm)):
        if not np.isfinite(value):
            raise InputError(f"the {what} is {value} at step {step}")
    optim.adamw(
        net.params, grads, moments, step + 1, rates, net.calc,
        weight_decay=weight_decay, scale=optim.clip_scale(norm),
    )  # fmt: skip
    return terms
