"""What a whole model consists of: its parameters, their first values, and what an answer costs.

The two passes through it are in soft.py (training) and hard.py (inference).
"""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from . import bert, ops
from .config import Config
from .fast import jit, kernels, threads
from .mechanisms import MECHANISMS, default_prices
from .tensors import dtype_of


class Network(NamedTuple):
    """A network at work: its arrays by name, its config, and what computes with them.

    calc: the module ops (NumPy) or kernels (Numba). rng: where dropout and gates draw from; None:
    nothing is dropped, and gates are decided by their thresholds.
    """

    params: Any  # a dict, or tensors.Tensors
    config: Config
    calc: ModuleType = ops
    rng: np.random.Generator | None = None


def calculus(params, reference: bool = False) -> ModuleType:
    """The module to compute with: kernels for float32, the NumPy reference for all else.

    Raises InputError if kernels cannot run as the environment's settings for Numba ask.
    """
    dtype = dtype_of(params)
    if reference or dtype != np.float32 or not jit.is_on():
        return ops
    threads.start_threads()
    return kernels


# ---------------------------------------------------------------------------- parameters


def has_classifier(config: Config) -> bool:
    """Does BERT's own head answer, and not a mechanism's heads after every layer?"""
    return not any(MECHANISMS[name].answers for name in config.mechanisms)


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every parameter that a model of this config has, and its shape."""
    table = bert.shapes(config)
    if has_classifier(config):
        table |= bert.classifier_shapes(config)
    for name, shape in config.mechanisms.items():
        table |= MECHANISMS[name].shapes(shape, config.sizes)
    return table


def init_params(
    config: Config,
    rng: np.random.Generator,
    dtype: Any = np.float32,
    prices: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Random parameters for every name in shapes(config); all gates open, or nearly so.

    prices: those of the training to come, {mechanism: its prices}; by them a head may start.
    """
    params, prices = bert.init_params(shapes(config), rng, dtype), prices or default_prices()
    for name, shape in config.mechanisms.items():
        own = {n: p for n, p in params.items() if n.startswith(MECHANISMS[name].prefix)}
        MECHANISMS[name].start(own, shape, prices[name])
    return params


# ---------------------------------------------------------------------------- multiply-adds


def layer_macs(config: Config, n):
    """Multiply-adds (MACs) of one layer on a sentence of n tokens.

    Four C x C products, two C x F, two n x n x C.
    """
    c, f = config.hidden_size, config.intermediate_size
    return n * (4 * c * c + 2 * c * f + 2 * c * n)


def classifier_macs(config: Config) -> int:
    """Multiply-adds of pooler and classifier."""
    return config.hidden_size * (config.hidden_size + config.num_labels)


def macs(config: Config, lengths, asked):
    """Multiply-adds of B answers, (B,).

    lengths (B, L): the rows that each layer worked on, 0 where it did not run. asked: how often
    each sentence asked a mechanism something, {mechanism: (B,)}.
    """
    total = layer_macs(config, lengths).sum(1)
    for name, shape in config.mechanisms.items():
        if name in asked:
            total = total + MECHANISMS[name].macs(shape, config.sizes) * asked[name]
    return total + classifier_macs(config) if has_classifier(config) else total


def full_macs(config: Config, n):
    """The same for sentences of n (B,) tokens with no mechanism in use, (B,)."""
    each = layer_macs(config, n)
    for name, shape in config.mechanisms.items():
        if MECHANISMS[name].answers:
            each = each + MECHANISMS[name].macs(shape, config.sizes)
    total = config.num_hidden_layers * each
    return total + classifier_macs(config) if has_classifier(config) else total
