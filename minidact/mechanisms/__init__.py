"""The mechanisms, each in a file of its own; this is their list."""

from collections.abc import Iterable
from typing import Any

from ..errors import InputError
from .exits import HALTING
from .planning import PLANNING
from .record import Knob, Mechanism
from .selection import SELECTION
from .token_gates import TOKEN_GATES

MECHANISMS: dict[str, Mechanism] = {m.name: m for m in (HALTING, PLANNING, TOKEN_GATES, SELECTION)}
KNOBS: dict[str, Knob] = {name: k for m in MECHANISMS.values() for name, k in m.knobs.items()}
PREFIXES = tuple(m.prefix for m in MECHANISMS.values())  # of the tensors that are ours, not BERT's


def together(carried: Iterable[str]) -> tuple[str, ...]:
    """Those that are used where nothing is said: of two that exclude each other, the first."""
    carried, out = set(carried), list[str]()
    for name, record in MECHANISMS.items():
        if name in carried and not set(record.excludes) & set(out):
            out.append(name)
    return tuple(out)


def check_together(use: Iterable[str]) -> None:
    """Raises InputError for mechanisms that cannot be used beside each other."""
    for name in (use := set(use)):
        for other in MECHANISMS[name].excludes:
            if other in use:
                raise InputError(f"{name} and {other} exclude each other: choose one")


def check_turned(use: Iterable[str], knobs: dict[str, Any]) -> None:
    """Raises InputError for a knob that was turned, of a mechanism that is not in use."""
    for name, record in MECHANISMS.items():
        for key, knob in record.knobs.items():
            if name not in use and knobs[key] != knob.usual:
                raise InputError(f"{key} is a knob of {name}, which is not in use")


def default_prices() -> dict[str, Any]:
    """What a training charges where nothing is said: {mechanism: its prices}."""
    return {name: m.prices() for name, m in MECHANISMS.items()}
