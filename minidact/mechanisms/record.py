"""What a mechanism is, said once: the records that all other files read its names and options from.

A mechanism's file ends with its `Mechanism`. From it follow config.json's checks, which tensors are
its own, a network's parameters and multiply-adds, the options of every command and of `Model`, and
the curves of a sweep. How it acts on a layer is not in the record: soft.py and hard.py say that.
"""

import math
from collections.abc import Callable
from dataclasses import field, fields
from numbers import Integral, Real
from typing import Any, NamedTuple


class Sizes(NamedTuple):
    """What a mechanism needs to know of the network: L layers, C, and Y classes."""

    layers: int
    hidden: int
    classes: int


class Knob(NamedTuple):
    """Something that can be set: to a number, to a name, or to true or false.

    usual: its value where nothing is said; None: as `help` says. choices: the names it may have;
    without any it is a number from least to most, a whole one if usual is. option: its name on the
    command line, where that is another. sweep: the values that `evaluate --sweep` tries, and grid,
    the few of them that it tries together with those of other mechanisms.
    """

    usual: Any
    help: str
    least: float = 0
    most: float = math.inf
    choices: tuple[str, ...] = ()
    option: str = ""
    sweep: tuple[float, ...] = ()
    grid: tuple[float, ...] = ()

    def misfit(self, value: Any) -> str:
        """What is wrong with a value, to stand after "NAME is VALUE"; "" if nothing is."""
        if value is None and self.usual is None:
            return ""
        if self.choices:
            known = isinstance(value, str) and value in self.choices
            return "" if known else f"; there are: {', '.join(self.choices)}"
        if isinstance(self.usual, bool):
            return "" if isinstance(value, bool) else "; it must be true or false"
        whole = isinstance(self.usual, int)
        if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
            return f"; it must be a {'whole ' if whole else ''}number"
        try:
            finite = math.isfinite(float(value))
        except OverflowError:  # a whole number of hundreds of digits
            finite = False
        if finite and self.least <= value <= self.most:  # type: ignore[operator]
            return ""
        if self.most == math.inf:
            return f"; it must be {self.least} or more"
        return f"; it must lie in {self.least}..{self.most}"


def setting(usual: Any, help: str, **more: Any) -> Any:
    """A dataclass's field with its default, and the Knob that says what it may be."""
    knob = Knob(usual, help, **more)
    return field(default=usual, metadata={"knob": knob})


def knobs_of(kind: type) -> dict[str, Knob]:
    """{field: its Knob}, of a dataclass made of settings."""
    return {f.name: f.metadata["knob"] for f in fields(kind) if "knob" in f.metadata}


class Mechanism(NamedTuple):
    """One way to leave out work.

    name: what `--use` and config.json call it. prefix: what its tensors' names begin with.
    shape, prices: frozen dataclasses made of `setting`s: what its parameters look like (kept in
    config.json), and what training's loss charges (no two mechanisms share an option's name).
    knobs: what spends more or less at inference.
    shapes(shape, sizes): its parameters' names and shapes. start(own, shape, prices): changes the
    values they were drawn with, in place, where BERT's initialisation does not suit.
    macs(shape, sizes): multiply-adds of one question to it.
    answers: its heads answer after every layer, in place of pooler and classifier. They need
    classes.
    least_layers: it needs so many. excludes: earlier ones that it is not used beside.
    """

    name: str
    prefix: str
    shape: type
    prices: type
    knobs: dict[str, Knob]
    shapes: Callable[[Any, Sizes], dict[str, tuple[int, ...]]]
    start: Callable[[dict, Any, Any], None]
    macs: Callable[[Any, Sizes], int]
    answers: bool = False
    least_layers: int = 1
    excludes: tuple[str, ...] = ()
