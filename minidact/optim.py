"""AdamW, gradient clipping and the learning rate's schedule: functions on dicts of arrays."""

import math

import numpy as np

from .errors import known

SCHEDULES = ("linear", "constant")

# two moments of every parameter, and how many steps there were before its first gradient
Moments = tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, int]]


def zero_moments(params: dict) -> Moments:
    """AdamW's two moments, at zero."""
    first, second = ({name: np.zeros_like(p) for name, p in params.items()} for _ in range(2))
    return first, second, {}


def gradient_norm(grads: dict, calc) -> float:
    """The Euclidean length of all gradients together."""
    return math.sqrt(sum(calc.sum_of_squares(g) for g in grads.values()))


def clip_scale(norm: float, most: float = 1.0) -> float:
    """What to multiply gradients of that norm by, as PyTorch's clip_grad_norm_ does."""
    return min(1.0, most / (norm + 1e-6))


def decays(name: str) -> bool:
    """Weight decay is for matrices: not for biases, not for LayerNorm, not for gates."""
    return not name.endswith((".bias", ".gates")) and "LayerNorm" not in name


def adamw(
    params: dict,
    grads: dict,
    moments: Moments,
    step: int,
    rates: dict[str, float],
    calc,
    *,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    scale: float = 1.0,
) -> None:
    """One step (Loshchilov & Hutter, arXiv 1711.05101), in place on params and moments.

    step counts from 1; rates: the learning rate of each parameter; scale: see clip_scale. What has
    no gradient stays as it is. The moments' start at zero is corrected by the steps since a
    parameter's first gradient.
    """
    first, second, before = moments
    for name, grad in grads.items():
        own_step = step - before.setdefault(name, step - 1)
        p, decay = params[name], weight_decay if decays(name) else 0.0
        calc.adamw_update(
            p, grad, first[name], second[name], own_step, rates[name], *betas, eps, decay, scale
        )


def move_average(average: dict, params: dict, decay: float) -> None:
    """average = decay average + (1 - decay) params, in place."""
    for name, p in params.items():
        mean = average[name]
        mean += (p - mean) * p.dtype.type(1 - decay)


def schedule(step: int, total: int, warmup: float = 0.1, kind: str = "linear") -> float:
    """Share of the peak learning rate at step 0..total-1: up over warmup * total steps, then down.

    kind "linear": down to 0 at the end; "constant": stays (after the same warm-up). Raises
    InputError for another kind.
    """
    known("schedule", kind, SCHEDULES)
    rising = warmup * total
    if step < rising:
        return (step + 1) / (rising + 1)
    return 1.0 if kind == "constant" else (total - step) / max(total - rising, 1)
