"""Draws what other commands write: a training's log, or the result of a sweep.

`python -m minidact.plot FILE --out PICTURE` draws one picture. It needs matplotlib.
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import write_file
from ..mechanisms import MECHANISMS
from ..mechanisms.exits import RULES

BLUE, ORANGE, GREEN, GREY = "#0b6e99", "#c45500", "#5a8f29", "#7a7a7a"
PALETTE = (BLUE, GREEN, ORANGE, "#8a4f9e", "#a07000")
COLOURS = {"all": "black"} | dict(zip(MECHANISMS, PALETTE, strict=False))  # of the curves
NOT_TERMS = {"step", "loss", "lr", "tokens", "tokens_per_s"}  # a log's other keys are loss terms


def check(path: str) -> None:
    """Raises InputError if no picture can be written to that path, before one is made."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("drawing needs matplotlib: pip install 'minidact[plot]'")
    os.environ["MPLBACKEND"] = "agg"  # a command needs no window, nor what a notebook draws in
    from matplotlib.backend_bases import FigureCanvasBase

    endings = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in endings:
        raise InputError(f"{path}: the name must end in one of .{', .'.join(endings)}")
    write_file(Path(path), b"", rehearse=True)


def read(path: str) -> dict | list[dict]:
    """Returns a sweep's result (a dict), or a log's records (a list of dicts).

    Raises InputError if the file cannot be read, is empty, or is neither.
    """
    what = f"{path} is neither a training's log nor the output of evaluate --sweep --json"
    try:
        records = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(what) from None
    for record in records:
        if not isinstance(record, dict) or not record.keys() & {"points", "loss"}:
            raise InputError(what)
    if not records:
        raise InputError(f"{path} is empty")
    return records[0] if "points" in records[0] else records


def save(figure, path: str) -> None:
    """Writes a matplotlib figure to path, in the format of its ending, and closes the figure.

    Raises InputError if it cannot be written.
    """
    import matplotlib.pyplot as plt

    try:
        figure.savefig(path)
    except Exception as error:  # some formats need other programs, whose errors are theirs
        raise InputError(f"{path} cannot be drawn: {error}") from None
    finally:
        plt.close(figure)


def sweep(result: dict):
    """Returns a matplotlib figure of a sweep's curves: the metric over the multiply-adds.

    result: what study.sweep.sweep returns. Raises KeyError and the like if it is damaged.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name in result["areas"]:
        points = [p for p in result["points"] if p["curve"] == name]
        points = sorted((100 * p["macs_fraction"], p["value"]) for p in points)
        if name == "grid":  # separate settings of all knobs, not a curve
            axes.plot(*zip(*points, strict=True), ".", color=GREY, ms=3, label="all, other knobs")
        elif name in RULES:
            axes.plot(*zip(*points, strict=True), ".--", lw=1, ms=4, alpha=0.7, label=name)
        else:
            how = {"color": COLOURS.get(name, GREY), "lw": 2, "ms": 4, "label": name}
            axes.plot(*zip(*points, strict=True), "o-", **how)
    first = result["points"][0]
    axes.axhline(first["value_full"], color=GREY, lw=0.8, ls=":", label="full model")
    axes.set_xlabel("multiply-adds, % of the full model's")
    axes.set_ylabel(f"{first['metric']} on {first['examples']} examples")
    axes.legend(fontsize=8)
    return figure


def training(records: list[dict]):
    """Returns a matplotlib figure of a log's records: above the loss, below its terms, by step.

    records: a dict for each step, as train --log writes them. Raises KeyError and the like if they
    are damaged.
    """
    import matplotlib.pyplot as plt

    names = [*dict.fromkeys(key for record in records for key in record if key not in NOT_TERMS)]
    panels = [["loss"], names] if names else [["loss"]]
    figure, axes = plt.subplots(
        len(panels), figsize=(8, 3 * len(panels)), sharex=True, squeeze=False, layout="constrained"
    )
    window = max(1, len(records) // 50)
    steps = [record["step"] for record in records]
    for ax, shown in zip(axes[:, 0], panels, strict=True):
        for name in shown:
            values = np.array([record.get(name, np.nan) for record in records])
            if name == "loss":
                ax.plot(steps, values, color=GREY, lw=0.5, alpha=0.5)
            ax.plot(steps, running_mean(values, window), lw=1.5, label=name)
        ax.legend(fontsize=8)
        ax.set_ylabel(f"mean of {window} steps" if window > 1 else "")
    axes[-1, 0].set_xlabel("step")
    return figure


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns for each of the values (N,) the mean of it and of up to window - 1 values before.

    Values that are no numbers are left out; where there is no other, the mean is NaN.
    """
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - window, 0)
    there = np.isfinite(values)

    def within(x):
        total = np.concatenate([[0.0], np.cumsum(x)])
        return total[end] - total[begin]

    with np.errstate(invalid="ignore"):  # 0 / 0
        return within(np.where(there, values, 0)) / within(there)
