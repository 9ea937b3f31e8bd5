"""Small random networks for the tests, and a calculus that counts."""

from minidact import network, ops, ragged
from minidact.config import Config
from minidact.mechanisms import MECHANISMS, token_gates
from minidact.mechanisms.exits import Halting
from minidact.mechanisms.record import knobs_of
from minidact.ragged import Batch


def small_config(heads=2, layers=2, summary="cls", **changes):
    """changes: fields of Config, and the shape of each mechanism it is to carry, by its name."""
    mechanisms = {name: changes.pop(name) for name in MECHANISMS if changes.get(name)}
    changes = {name: value for name, value in changes.items() if name not in MECHANISMS}
    return Config(
        vocab_size=11, hidden_size=3 * heads, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=7, max_position_embeddings=9, layer_norm_eps=1e-2, summary=summary,
        mechanisms=mechanisms, **changes,
    )  # fmt: skip


def random_params(config, rng):
    """Far from initialisation, so that no gradient is tiny."""
    table = network.shapes(config)
    params = {name: rng.standard_normal(shape) * 0.5 for name, shape in table.items()}
    if token_gates.NAME in table:
        params[token_gates.NAME] = rng.uniform(0, 1, table[token_gates.NAME])
    return params


def random_batch(offsets, config, rng):
    ids = rng.integers(0, config.vocab_size, offsets[-1])
    return Batch(ids, rng.integers(0, 2, offsets[-1]), offsets)


def halting_model(rng, layers=4, summary="mean"):
    config = small_config(layers=layers, halting=Halting(4, True), summary=summary)
    params = random_params(config, rng)
    # sharp answers and small doubts, so that sentences stop at different layers
    for name in params:
        if name.endswith("classifier.weight"):
            params[name] *= 6
        if name.endswith("halting.bias"):
            params[name] -= 3
    return config, params


class Counting:
    """A calculus that counts the multiply-adds of every product it is asked for."""

    def __init__(self):
        self.macs = 0

    def __getattr__(self, name):
        return getattr(ops, name)

    def linear_forward(self, x, w, b):
        self.macs += len(x) * w.size
        return ops.linear_forward(x, w, b)

    def attention_forward(self, qkv, offsets, heads, drop=None, gates=None):
        self.macs += sum(2 * n * n * qkv.shape[1] // 3 for n in ragged.lengths(offsets))
        return ops.attention_forward(qkv, offsets, heads, drop, gates)


def prices(**changes):
    """A training's prices by their options' names; without any, gates cost nothing."""
    free = {"layer_cost": 0.0, "token_cost": 0.0, "bimodal": 0.0, "selection_cost": 0.0}
    changes = free | {"explore": None} | changes
    out = {}
    for name, record in MECHANISMS.items():
        own = {key: changes.pop(key) for key in knobs_of(record.prices) if key in changes}
        out[name] = record.prices(**own)
    assert not changes, f"no such prices: {changes}"
    return out
