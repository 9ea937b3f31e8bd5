"""The counter of multiply-adds (MACs): what an answer cost, from what was really executed."""

import numpy as np

from .config import Config


def layer_macs(config: Config, n):
    """Of one layer on a sentence of n tokens: four C x C products, two C x F, two n x n x C."""
    c, f = config.hidden_size, config.intermediate_size
    return n * (4 * c * c + 2 * c * f) + 2 * n * n * c


def unit_macs(config: Config) -> int:
    """Of one DACT unit: trunk, class head, halting head."""
    trunk = config.halting.trunk_size
    seen = trunk + config.halting.sees_confidence
    return config.hidden_size * trunk + trunk * config.num_labels + seen


def planner_macs(config: Config) -> int:
    """Of one call of a planner."""
    decisions = config.num_hidden_layers - 1 if config.planning.planner == "path" else 1
    return config.planning.width * (config.hidden_size + decisions)


def classifier_macs(config: Config) -> int:
    """Of pooler and classifier."""
    return config.hidden_size * (config.hidden_size + config.num_labels)


def macs(config: Config, tokens, plans=0):
    """Of B sentences on which layer l worked on tokens[:, l] rows, 0 where it did not run: (B,).

    plans (B,): how often a planner was asked. Token gates only sort.
    """
    total = layer_macs(config, tokens).sum(1)
    if config.planning is not None:
        total = total + planner_macs(config) * plans
    if config.halting is None:
        return total + classifier_macs(config)
    return total + unit_macs(config) * (tokens > 0).sum(1)


def full_macs(config: Config, n):
    """Of sentences of n (B,) tokens with no mechanism in use: (B,)."""
    return macs(config, np.repeat(n[:, None], config.num_hidden_layers, 1))
