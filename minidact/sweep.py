"""Every mechanism and every neighbour over the range of its knob: quality against cost.

`python -m minidact.evaluate --sweep` prints what is computed here.
"""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from . import exits
from .config import Config
from .errors import InputError

SLACKS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 1.0)
THRESHOLDS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99, 1.01)
KEEPS = (0.25, 0.4, 0.6, 0.8, 1.0, 1.25, 1.6, 2.0, 3.0, 5.0)
LOW_HALF = 0.5  # the area is taken from one layer's share of the multiply-adds up to this


def settings(config: Config, curves: str | None = None) -> list[tuple[str, dict]]:
    """(name of the curve, keyword arguments for Model.knobs) of every point.

    curves: names by commas, of those the model can be swept over; None: all. Raises InputError.
    """
    points = list(_settings(config))
    if curves is None:
        return points
    known, wanted = dict.fromkeys(name for name, _ in points), curves.split(",")
    for name in wanted:
        if name not in known:
            raise InputError(f"--curves {name!r} is unknown here; there is {', '.join(known)}")
    return [point for point in points if point[0] in wanted]


def _settings(config: Config) -> Iterator[tuple[str, dict]]:
    carried, dact = config.mechanisms, config.halting and config.halting.trained == "dact"
    if dact:
        for slack in SLACKS:
            yield "halting", {"use": ("halting",), "slack": slack}
    if "planning" in carried:
        for threshold in THRESHOLDS:
            yield "planning", {"use": ("planning",), "threshold": threshold}
    if "tokens" in carried:
        for keep in KEEPS:
            yield "tokens", {"use": ("tokens",), "keep": keep}
    if len(carried) > 1:  # "all": one knob, as for each alone; "grid": all knobs, for --budget
        knob, values = ("slack", SLACKS) if dact else ("keep", KEEPS)
        for value in values:
            yield "all", {"use": carried, knob: value}
        thresholds = (0.5, 0.9) if "planning" in carried else (0.5,)
        keeps = (0.4, 0.6, 1.0, 1.6) if "tokens" in carried else (1.0,)
        for slack, threshold, keep in product(SLACKS[::2] if dact else (0.0,), thresholds, keeps):
            if (threshold, keep) != (0.5, 1.0):
                knobs = {"slack": slack, "threshold": threshold, "keep": keep}
                yield "grid", {"use": carried, **knobs}
    if "halting" in carried:
        own = exits.OWN_RULE[config.halting.trained]
        for name, rule in exits.RULES.items():
            if dact or name in (own, "fixed", "confidence"):
                depths = range(1, config.num_hidden_layers + 1)
                for at in depths if name == "fixed" else rule.range:
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
        if point["curve"] not in exits.RULES and point["value"] > best:
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
