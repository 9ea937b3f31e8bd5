"""What a whole model consists of: the network and the mechanisms that its config names.

The two passes through it are in soft.py (training) and hard.py (inference).
"""

import numpy as np

from . import bert, dact, kernels, ops, planning, token_gates
from .config import Config


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every parameter that a model of this config has, and its shape."""
    table, size, layers = bert.shapes(config), config.hidden_size, config.num_hidden_layers
    if config.halting is None:
        table |= bert.classifier_shapes(config)
    else:
        unit = (config.halting.trunk_size, config.num_labels, config.halting.sees_confidence)
        for layer in range(layers):
            table |= dact.shapes(unit_name(layer), size, *unit)
    if config.planning is not None:
        planner, width = config.planning.planner, config.planning.width
        for name in planning.names(planner, layers):
            table |= planning.shapes(name, size, width, layers - 1 if planner == "path" else 1)
    if config.tokens is not None:
        table |= token_gates.shapes(layers, config.tokens.bins)
    return table


def init_params(
    config: Config,
    rng: np.random.Generator,
    dtype=np.float32,
    halting_bias: float = dact.HALTING_BIAS,
) -> dict:
    """Random parameters for every name in shapes(config); all gates open, or nearly so."""
    params = bert.init_params(shapes(config), rng, dtype)
    for name, array in params.items():
        if name.endswith(".halting.bias"):
            array[:] = halting_bias
        elif name.endswith(".trunk.weight"):  # a ReLU layer of its own: He's scale, not BERT's
            array *= np.sqrt(2 / array.shape[1]) / 0.02
        elif name.startswith("planning.") and name.endswith(".gate.bias"):
            array[:] = planning.GATE_BIAS
        elif name == token_gates.NAME:
            array[:] = 1
    return params


def calculus(params: dict, reference: bool = False):
    """The module to compute with: kernels for float32, the NumPy reference for all else."""
    dtype = next(iter(params.values())).dtype
    return kernels if dtype == np.float32 and not reference else ops


def unit_name(layer: int) -> str:
    return f"dact.layer.{layer}"
