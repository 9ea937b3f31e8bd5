"""From what trainings left behind to rows with intervals: who is above whom, and how surely."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from ..errors import InputError
from ..mechanisms import MECHANISMS
from . import bootstrap
from .bootstrap import COSTS, Curve, Summary
from .methods import EVERY, SMALLER, Task, epochs

SWEEP, TEXTS, TIMES = "sweep.json", "texts.npz", "times.json"
Name = tuple[str, str]  # a method and a curve


class Found(NamedTuple):
    """A curve of one training: what its texts got, the score in full, and times, or []."""

    curve: Curve
    full: float
    metric: str
    num_layers: int
    times: list[dict]


def is_finished(out: Path) -> bool:
    """Is a training swept, with what every text got?"""
    return (out / SWEEP).exists() and (out / TEXTS).exists()


def read(file: Path) -> Any:
    """What a file of a study holds, JSON or arrays; raises InputError if it is damaged."""
    try:
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                return dict(arrays)
        return json.loads(file.read_text())
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(
            f"{file} cannot be read ({error}): delete it, and the study makes it anew"
        ) from None


def found_in(out: Path) -> dict[str, Found]:
    """{curve: what is there}; without a sweep, of a plain network, the curve is "full"."""
    result, texts = read(out / SWEEP), read(out / TEXTS)
    points = result.get("points", [result])
    times = read(out / TIMES) if (out / TIMES).exists() else []
    named: dict[str, list[int]] = {}
    for i, point in enumerate(points):
        named.setdefault(point.get("curve", "full"), []).append(i)
    first = points[0]
    return {
        name: Found(
            Curve(texts["classes"][at], texts["macs"][at], texts["macs_full"][0], texts["labels"]),
            first["value_full"], first["metric"], first["num_layers"],
            [t for t in times if t["curve"] == name],
        )
        for name, at in named.items()
    }  # fmt: skip


def smaller(kind: str, found: dict[str, dict[int, dict[str, Found]]]) -> dict[int, Found]:
    """{seed: the curve of one kind of smaller plain networks}; costs are shares of plain's."""
    out = {}
    for seed, plain in found.get("plain", {}).items():
        whole = plain["full"]
        parts = [
            found[name][seed]["full"]
            for name in found
            if name.startswith(f"{kind}-") and seed in found[name]
        ]
        if parts:
            classes, macs = (np.concatenate([getattr(p.curve, field) for p in parts])
                             for field in ("classes", "macs"))  # fmt: skip
            curve = Curve(classes, macs, whole.curve.macs_full, whole.curve.labels)
            out[seed] = whole._replace(curve=curve, times=[])
    return out


def rows(task: str, about: Task, found: dict[str, dict[int, dict[str, Found]]]) -> list[dict]:
    """A task's rows. found: {method: {seed: {curve: Found}}}, of what is finished.

    A row's "corners" are each seed's curve, as (cost, score) of the settings that beat all cheaper
    ones; "area" is the mean score over the low half of the multiply-adds, "spread" its standard
    deviation between seeds, "kept" the share of the full score at COSTS, and "against" the related
    method that has all of its seeds and, on these, the best area: with it it is compared. It is the
    best of several on the same texts, so it is flattered: "above" is said too rarely rather than
    too often, and "below" too often.
    """
    named: dict[Name, dict[int, Found]] = {
        (method, name): {seed: curves[name] for seed, curves in seeds.items()}
        for method, seeds in found.items()
        for name in next(iter(seeds.values()))
        if name != "full"
    }
    named |= {(kind, "full"): small for kind in SMALLER if (small := smaller(kind, found))}
    if not named:
        return [plain_row(task, about, found["plain"])] if "plain" in found else []
    first = next(iter(next(iter(named.values())).values()))
    for (method, _), seeds in named.items():
        if any(not np.array_equal(f.curve.labels, first.curve.labels) for f in seeds.values()):
            raise InputError(f"{task}: {method} was scored on other texts than the methods before")
    counts = bootstrap.draws(len(first.curve.labels))
    lowest = 1 / first.num_layers
    sums = {
        name: {s: bootstrap.summary(f.curve, f.metric, counts, lowest) for s, f in seeds.items()}
        for name, seeds in named.items()
    }
    out = [plain_row(task, about, found["plain"])] if "plain" in found else []
    return out + [row(task, about, name, named[name], sums) for name in named]


def plain_row(task: str, about: Task, seeds: dict[int, dict[str, Found]]) -> dict[str, Any]:
    full = [curves["full"].full for curves in seeds.values()]
    return {"task": task, "method": "plain", "curve": "full", "epochs": epochs("plain", about),
            "seeds": sorted(seeds), "full": full}  # fmt: skip


def row(
    task: str, about: Task, name: Name, seeds: dict[int, Found],
    sums: dict[Name, dict[int, Summary]],
) -> dict[str, Any]:  # fmt: skip
    method, curve = name
    own = [sums[name][seed] for seed in sorted(seeds)]
    full = [seeds[seed].full for seed in sorted(seeds)]
    areas = [float(s.area[0]) for s in own]
    whole = np.mean(full)
    out: dict[str, Any] = {
        "task": task, "method": method, "curve": curve,
        "epochs": epochs(method if method in EVERY else "plain", about), "seeds": sorted(seeds),
        "full": full, "corners": [s.corners.T.round(4).tolist() for s in own],
        "area": float(np.mean(areas)),
        "spread": float(np.std(areas, ddof=1)) if len(areas) > 1 else None,
        "kept": {f"{cost:g}": float(np.mean([s.at[i, 0] for s in own]) / whole) if whole else None
                 for i, cost in enumerate(COSTS)},
        "times": next((seeds[s].times for s in sorted(seeds) if seeds[s].times), []),
    }  # fmt: skip
    if not is_related(name) and (other := best_related(sums, seeds)) is not None:
        ours, theirs = (
            bootstrap.over_seeds([sums[n][seed].area for seed in sorted(seeds)])
            for n in (name, other)
        )
        out |= {"against": list(other)} | bootstrap.compared(ours, theirs)
    return out


def is_related(name: Name) -> bool:
    """Is it what others do, and not a mechanism?"""
    return name[1] not in MECHANISMS and not name[1].startswith("all")


def best_related(sums: dict[Name, dict[int, Summary]], seeds: Iterable[int]) -> Name | None:
    """The related method with the best mean area on these seeds, of those that have them all."""
    wanted, means = set(seeds), {}
    for name, theirs in sums.items():
        if is_related(name) and wanted <= set(theirs):
            means[name] = np.mean([theirs[seed].area[0] for seed in wanted])
    return max(means, key=lambda name: means[name]) if means else None


def table(rows: list[dict]) -> str:
    """The rows as Markdown, a table for each task; scores times 100, intervals of 95 %.

    What is kept is read off the mean of the seeds' curves. What is timed is the best setting of
    one seed within that cost: first the share of the multiply-adds that it spends, which may be
    much less, then the share of the time, for one text at a time and in batches of 32.
    """
    lines = []
    for task in dict.fromkeys(r["task"] for r in rows):
        kept = " | ".join(f"kept at {cost:.0%} | work: time" for cost in COSTS)
        lines += [
            f"| {task} | epochs | seeds | full | low half | {kept} | against the best other |"
        ]
        lines += ["|" + (6 + 2 * len(COSTS)) * "---|"]
        lines += [f"| {' | '.join(cells(r))} |" for r in rows if r["task"] == task] + [""]
    return "\n".join(lines[:-1])


def cells(r: dict) -> list[str]:
    full = f"{100 * np.mean(r['full']):.1f}"
    name = f"{r['method']}, {r['curve']}"
    start = [name, str(r["epochs"]), str(len(r["seeds"])), full]
    if "area" not in r:
        return [*start, *(2 + 2 * len(COSTS)) * [""]]
    spread = "" if r["spread"] is None else f" ± {100 * r['spread']:.1f}"
    kept = []
    for cost, share in zip(COSTS, r["kept"].values(), strict=True):
        timed = [t for t in r["times"] if t["cost"] == cost]
        times = ", ".join(f"{t['time_fraction']:.0%}" for t in timed)
        spent = f"{timed[0]['macs_fraction']:.0%}: " if timed else ""
        kept += ["" if share is None else f"{share:.1%}", spent + times]
    against = ""
    if "against" in r:
        low, high = 100 * r["low"], 100 * r["high"]
        said = f"{100 * r['difference']:+.1f} ({low:+.1f} to {high:+.1f}), {r['word']}"
        against = f"{said}: {', '.join(r['against'])}"
    return [*start, f"{100 * r['area']:.1f}{spread}", *kept, against]
