"""The mechanisms, each in a file of its own; this is their list."""

from typing import Any

from .exits import HALTING
from .planning import PLANNING
from .record import Knob, Mechanism
from .selection import SELECTION
from .token_gates import TOKEN_GATES

MECHANISMS: dict[str, Mechanism] = {m.name: m for m in (HALTING, PLANNING, TOKEN_GATES, SELECTION)}
KNOBS: dict[str, Knob] = {name: k for m in MECHANISMS.values() for name, k in m.knobs.items()}
PREFIXES = tuple(m.prefix for m in MECHANISMS.values())  # of the tensors that are ours, not BERT's


def default_prices() -> dict[str, Any]:
    """What a training charges where nothing is said: {mechanism: its prices}."""
    return {name: m.prices() for name, m in MECHANISMS.items()}
