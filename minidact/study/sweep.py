"""Quality against cost: every mechanism, and every other stopping rule, over its knob's range.

The other rules are of related methods: mechanisms/exits.py. `python -m minidact.evaluate --sweep`
prints what is computed here.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from ..config import Config
from ..mechanisms import MECHANISMS, together
from ..mechanisms.exits import HEADS, RULES
from ..mechanisms.record import Knob
from ..options import choose

LOW_HALF = 0.5  # share of the multiply-adds: areas go from one layer's share up to this
Point = tuple[str, dict[str, Any]]  # a curve's name, and keyword arguments for Model.knobs


def settings(config: Config, curves: str | None = None) -> list[Point]:
    """Returns every point to evaluate: (curve, keyword arguments for Model.knobs).

    curves: names of curves, separated by commas; None: all that the model has. Raises InputError
    for a name that is none of them, and where there is no name.
    """
    points = list(_settings(config))
    if curves is None:
        return points
    known = dict.fromkeys(name for name, _ in points)
    wanted = choose("curves", curves, known)
    return [point for point in points if point[0] in wanted]


def _settings(config: Config) -> Iterator[Point]:
    """Yields all points: each mechanism alone, all together, then the other stopping rules."""
    halting, carried = config.mechanisms.get("halting"), tuple(config.mechanisms)
    own = halting and RULES[HEADS[halting.trained].rule]
    for name in carried:
        for key, knob in _swept(name, own).items():
            for value in knob.sweep:
                yield name, {"use": (name,), key: value}
    for name, use in _sets(carried):
        knobs = {key: knob for name in use for key, knob in _swept(name, own).items()}
        first = next(iter(knobs))
        for value in knobs[first].sweep:  # one knob moves, as for each mechanism alone
            yield name, {"use": use, first: value}
        tried = (knob.grid or (knob.usual,) for knob in knobs.values())
        for values in product(*tried):  # all knobs: for --budget
            chosen = dict(zip(knobs, values, strict=True))
            if any(chosen[key] != knobs[key].usual for key in knobs if key != first):
                yield "grid", {"use": use, **chosen}
    if halting:
        yield from _rules(config, own)


def _sets(carried: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields (curve, mechanisms): all that go together, and again with what that leaves out."""
    usual = together(carried)
    if len(usual) > 1:
        yield "all", usual
    for name in carried:
        if name not in usual:
            others = (other for other in usual if other not in MECHANISMS[name].excludes)
            if len(use := (*others, name)) > 1:
                yield f"all+{name}", use


def _swept(name: str, own: Any) -> dict[str, Knob]:
    """Returns a mechanism's knobs that have a range; of halting's, only the own rule's knob."""
    knobs = {key: knob for key, knob in MECHANISMS[name].knobs.items() if knob.sweep}
    return {key: k for key, k in knobs.items() if name != "halting" or key == own.set_by}


def _rules(config: Config, own: Any) -> Iterator[Point]:
    """Yields the points of the rules that answer with one layer's y.

    With DACT's heads these are all such rules. With other heads they are the heads' own rule,
    fixed and confidence.
    """
    for name, rule in RULES.items():
        fits = (own.averages and not rule.own) or rule is own or name in ("fixed", "confidence")
        if rule.averages or not fits:
            continue
        depths = range(1, config.num_hidden_layers + 1)
        for at in depths if name == "fixed" else rule.knob.sweep:
            yield name, {"use": ("halting",), "rule": name, "at": at}


def sweep(settings: list, evaluate: Callable[[dict, Any], tuple[dict, Any]], progress=iter) -> dict:
    """Evaluates the settings and returns {"points": .., "areas": .., "budgets": ..}.

    points: a dict for each setting, with its curve, its knobs and what evaluate returned. areas:
    `area` of every curve. budgets: `budgets` of the points. evaluate is called with the knobs, and
    with what it knows of the full model from an earlier point of the same curve (or None); it
    returns what scores.measure returns. So the full model is timed anew at the first point of every
    curve.
    """
    points: list[dict] = []
    known: dict[str, Any] = {}
    for name, knobs in progress(settings):
        result, known[name] = evaluate(knobs, known.get(name))
        points.append({"curve": name, "knobs": knobs} | result)
    lowest = 1 / points[0]["num_layers"]
    areas = {
        name: area([(p["macs_fraction"], p["value"]) for p in points if p["curve"] == name], lowest)
        for name in known
    }
    return {"points": points, "areas": areas, "budgets": budgets(points)}


def area(points: list[tuple[float, float]], low: float, high: float = LOW_HALF) -> float:
    """Returns the mean value over the costs low..high: the area under the curve / (high - low).

    points are (cost, value), with costs as shares of the full multiply-adds.
    """
    return mean_between(best_so_far(points), low, high)


def best_so_far(points: list[tuple[float, float]]) -> np.ndarray:
    """Returns the curve through (cost, value) points, costs and values (2, corners).

    It goes through the points that are better than all cheaper ones. Between two of them it is
    straight, a mixture: some sentences with one setting, some with the other. A mixture that leaves
    out points between may be better still. Below the cheapest point the value falls to 0 in
    proportion to the cost.
    """
    best, curve = -np.inf, [(0.0, 0.0)]
    for cost, value in sorted(points):
        if value > best:
            best = value
            curve.append((cost, value))
    return np.array(curve).T


def mean_between(curve: np.ndarray, low: float, high: float) -> float:
    """Returns a curve's mean value over the costs low..high; beyond its end it stays level."""
    costs, values = curve
    grid = np.linspace(low, high, 1001)
    return float(np.interp(grid, costs, values).mean())


def budgets(points: list[dict]) -> list[dict]:
    """Returns {"macs_fraction", "knobs"} of the points that --budget chooses from, cheapest first.

    They are the mechanisms' points with a better value than every cheaper one.
    """
    chosen, best = [], -np.inf
    for point in sorted(points, key=lambda p: (p["macs_fraction"], -p["value"])):
        if point["curve"] not in RULES and point["value"] > best:
            best = point["value"]
            share = round(point["macs_fraction"], 4)
            chosen.append({"macs_fraction": share, "knobs": point["knobs"]})
    return chosen


def table(result: dict) -> str:
    """Returns what `sweep` returned as text, with one line for each point."""
    first = result["points"][0]
    lines = [
        f"{'':12}{'knob':>18}{'value':>8}{'MACs':>8}{'layers':>8}{'tokens':>8}{'ms/text':>9}",
        f"{'full':30}{first['value_full']:8.4f}{1:8.1%}{first['num_layers']:8.2f}{1:8.1%}"
        f"{first['ms_per_text_full']:9.2f}",
    ]
    for p in result["points"]:
        knob = " ".join(f"{v:g}" for v in p["knobs"].values() if isinstance(v, int | float))
        lines.append(
            f"{p['curve']:12}{knob:>18}{p['value']:8.4f}{p['macs_fraction']:8.1%}"
            f"{p['layers_mean']:8.2f}{p['tokens_fraction']:8.1%}{p['ms_per_text']:9.2f}"
        )
    lines.append("mean value over the low half of the multiply-adds (area under the curve)")
    lines += [f"{name:12}{value:.4f}" for name, value in result["areas"].items()]
    return "\n".join(lines)
