"""One page to look at a model's halting on a file: `python -m minidact.evaluate --explore PAGE`.

The page is explorer.html with a model's answers in it. It needs no network and nothing beside it.
It holds what every layer said of every text, so that any rule and any knob can be tried in it, and
what stopping after each layer costs. All that it shows is computed in the page, from these numbers,
as `evaluate` computes it. In fewer bits, too, an answer differs if float32 answers otherwise.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import data
from ..errors import InputError
from ..hard import Answers, Knobs
from ..mechanisms import together
from ..mechanisms.exits import HEADS, RULES
from ..model import Model
from . import sweep
from .scores import Full

# what explorer.html can compute; a rule of your own needs a line in its RULES, and here
SHOWN = (
    "dact",
    "fixed",
    "confidence",
    "entropy",
    "patience",
    "uncertainty",
    "cumulated",
    "certain",
)
TEMPLATE = Path(__file__).with_name("explorer.html")
PLACE = "/* data */"


def check(model: Model, examples: data.Examples) -> None:
    """Raises InputError for models and texts that the page cannot show."""
    halting = model.config.mechanisms.get("halting")
    if halting is None:
        raise InputError("--explore shows where texts stop: the model needs halting")
    if (own := HEADS[halting.trained].rule) not in SHOWN:
        raise InputError(f"--explore does not know the rule {own!r}")
    if model.config.num_hidden_layers > 255:  # a byte says where a word was dropped
        raise InputError("--explore shows models of up to 255 layers")
    if examples.pairs:
        raise InputError("--explore shows one text at a time, and the file has two in a row")


def page(
    model: Model, examples: data.Examples, labels, metric: str, full: Full, batch_size: int = 32
) -> str:
    """The whole page, as HTML, of what `check` lets pass. full: as `measure` returns it."""
    own = HEADS[model.config.mechanisms["halting"].trained].rule
    texts = [data.encode(model.tokenizer, [text])[0] for text in examples.texts]
    gates = tuple(name for name in together(model.config.mechanisms) if name != "halting")
    told: dict[str, Any] = {
        "labels": model.config.id2label, "layers": model.config.num_hidden_layers,
        "metric": metric, "truth": [int(label) for label in labels], "texts": examples.texts,
        "pieces": [text.tokens for text in texts], "rules": rules(model, own), "own": own,
        "modes": [mode(model, texts, (), batch_size)], "full": full.classes.tolist(),
    }  # fmt: skip
    if gates and RULES[own].averages:
        told["modes"].append(mode(model, texts, gates, batch_size))
    written = json.dumps(told, ensure_ascii=False).replace("<", "\\u003c")  # no tag can end it
    return TEMPLATE.read_text("utf-8").replace(PLACE, written)


def rules(model: Model, own: str) -> list[dict[str, Any]]:
    """The rules that a sweep tries on this model's heads, their own first: names and ranges."""
    swept = [knobs.get("rule") for _, knobs in sweep.settings(model.config)]
    names = [own, *(name for name in dict.fromkeys(swept) if name in SHOWN and name != own)]
    depths = tuple(range(1, model.config.num_hidden_layers + 1))
    return [
        {"name": name, "set_by": RULES[name].set_by, "averages": RULES[name].averages,
         "usual": RULES[name].knob.usual,
         "sweep": depths if name == "fixed" else RULES[name].knob.sweep}
        for name in names
    ]  # fmt: skip


def mode(
    model: Model, texts: list[data.Encoded], gates: tuple[str, ...], batch_size: int
) -> dict[str, Any]:
    """What every layer says of the texts with these gates in use, and what each stop costs.

    Arrays in base64: a, y (N, L, Y) and p (N, L) float32, of layers that did not run NaN; costs
    (N, L) and full (N,) float64, multiply-adds of stopping after a layer, and in full; stayed: of
    each token the first layer that it was dropped before.
    """
    depth = model.config.num_hidden_layers
    runs = {"a": Knobs(gates, rule="dact"), "y": Knobs(gates, rule="fixed", at=depth)}
    runs |= {f"{n}": Knobs(("halting", *gates), rule="fixed", at=n) for n in range(1, depth + 1)}
    said: dict[str, list[Answers]] = {name: [] for name in runs}
    starts = range(0, len(texts), batch_size)
    for start in tqdm(starts, unit="batch", leave=False, disable=None):
        for name, knobs in runs.items():
            said[name].append(model.run(texts[start : start + batch_size], knobs))

    def of(name: str, field: str, dtype=np.float32) -> np.ndarray:
        return np.concatenate([getattr(a, field) for a in said[name]]).astype(dtype)

    costs = [of(f"{n}", "macs", np.float64) for n in range(1, depth + 1)]
    arrays = {
        "a": of("a", "so_far"), "p": of("a", "doubts"), "y": of("y", "so_far"),
        "costs": np.stack(costs, 1), "full": of("a", "macs_full", np.float64),
        "stayed": of("a", "stayed", np.uint8),
    }  # fmt: skip
    packed = {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}
    return {"gates": gates, **packed}
