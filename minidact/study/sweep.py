"""Every mechanism and every neighbour over the range of its knob: quality against cost.

`python -m minidact.evaluate --sweep` prints what is computed here.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from ..config import Config
from ..mechanisms import MECHANISMS
from ..mechanisms.exits import HEADS, RULES
from ..mechanisms.record import Knob
from ..options import choose

LOW_HALF = 0.5  # the area is taken from one layer's share of the multiply-adds up to this
Point = tuple[str, dict[str, Any]]  # a curve's name, keyword arguments for Model.knobs


def settings(config: Config, curves: str | None = None) -> list[Point]:
    """Every point to evaluate.

    curves: names by commas, of those the model can be swept over; None: all. Raises InputError.
    """
    points = list(_settings(config))
    if curves is None:
        return points
    wanted = choose("curves", curves, dict.fromkeys(name for name, _ in points))
    return [point for point in points if point[0] in wanted]


def _settings(config: Config) -> Iterator[Point]:
    halting, carried = config.mechanisms.get("halting"), tuple(config.mechanisms)
    own = halting and RULES[HEADS[halting.trained].rule]
    for name in carried:
        for key, knob in _swept(name, own).items():
            for value in knob.sweep:
                yield name, {"use": (name,), key: value}
    knobs = {key: knob for name in carried for key, knob in _swept(name, own).items()}
    if len(carried) > 1 and knobs:
        first = next(iter(knobs))
        for value in knobs[first].sweep:  # one knob, as for each alone
            yield "all", {"use": carried, first: value}
        for values in product(*(knob.grid for knob in knobs.values())):  # all knobs, for --budget
            chosen = dict(zip(knobs, values, strict=True))
            if any(chosen[key] != knobs[key].usual for key in knobs if key != first):
                yield "grid", {"use": carried, **chosen}
    if halting:
        yield from _rules(config, own)


def _swept(name: str, own: Any) -> dict[str, Knob]:
    """A mechanism's knobs that have a range; of halting's, the one that its own rule is set by."""
    knobs = {key: knob for key, knob in MECHANISMS[name].knobs.items() if knob.sweep}
    return {key: k for key, k in knobs.items() if name != "halting" or key == own.set_by}


def _rules(config: Config, own: Any) -> Iterator[Point]:
    """The rules that answer with one layer's y: all on DACT's heads, else what goes with them."""
    for name, rule in RULES.items():
        if rule.averages or not (own.averages or rule is own or name in ("fixed", "confidence")):
            continue
        depths = range(1, config.num_hidden_layers + 1)
        for at in depths if name == "fixed" else rule.knob.sweep:
            yield name, {"use": ("halting",), "rule": name, "at": at}


def sweep(settings: list, evaluate: Callable[[dict, dict | None], dict], progress=iter) -> dict:
    """-> {"points", "areas", "budgets"}. evaluate: knobs, a known result -> evaluate.evaluate's.

    The full model is timed anew at the first point of every curve.
    """
    points, known = [], {}
    for name, knobs in progress(settings):
        result = known[name] = evaluate(knobs, known.get(name))
        points.append({"curve": name, "knobs": knobs} | result)
    lowest = 1 / points[0]["num_layers"]
    areas = {
        name: area([(p["macs_fraction"], p["value"]) for p in points if p["curve"] == name], lowest)
        for name in known
    }
    return {"points": points, "areas": areas, "budgets": budgets(points)}


def area(points: list[tuple[float, float]], low: float, high: float = LOW_HALF) -> float:
    """Mean value over costs low..high, of (cost, value) points: the area under their curve / width.

    At a cost counts the best that can be had for it: the best point so far, or a mixture of two
    neighbours (some sentences with one setting, some with the other). Below the cheapest point, its
    value falls to 0 in proportion to the cost.
    """
    best, curve = -np.inf, [(0.0, 0.0)]
    for cost, value in sorted(points):
        if value > best:
            best = value
            curve.append((cost, value))
    costs, values = np.array(curve).T
    grid = np.linspace(low, high, 1001)
    return float(np.interp(grid, costs, values).mean())


def budgets(points: list[dict]) -> list[dict]:
    """The points that nothing cheaper beats, cheapest first: what --budget chooses from."""
    chosen, best = [], -np.inf
    for point in sorted(points, key=lambda p: (p["macs_fraction"], -p["value"])):
        if point["curve"] not in RULES and point["value"] > best:
            best = point["value"]
            share = round(point["macs_fraction"], 4)
            chosen.append({"macs_fraction": share, "knobs": point["knobs"]})
    return chosen


def table(result: dict) -> str:
    """The curves as text, one line a point."""
    lines = [f"{'':12}{'knob':>18}{'value':>8}{'MACs':>8}{'layers':>8}{'tokens':>8}{'ms/text':>9}"]
    for p in result["points"]:
        knob = " ".join(f"{v:g}" for v in p["knobs"].values() if isinstance(v, int | float))
        lines.append(
            f"{p['curve']:12}{knob:>18}{p['value']:8.4f}{p['macs_fraction']:8.1%}"
            f"{p['layers_mean']:8.2f}{p['tokens_fraction']:8.1%}{p['ms_per_text']:9.2f}"
        )
    lines.append("mean value over the low half of the multiply-adds (area under the curve)")
    lines += [f"{name:12}{value:.4f}" for name, value in result["areas"].items()]
    return "\n".join(lines)
