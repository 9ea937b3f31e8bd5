"""Texts in, answers out: `Model` and `Prediction`, what most users of the package need."""

from __future__ import annotations

import inspect
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any, TypeVar, overload

import numpy as np
from tokenizers import Tokenizer

from . import checkpoint, data, show
from .config import Config
from .errors import InputError, visible
from .fast.layers import known_bits, layers_for, stored_bits, weights_digest
from .hard import Answers, Knobs, check_knobs, check_values, hard_forward
from .mechanisms import KNOBS, MECHANISMS, together
from .mechanisms.record import Knob
from .network import Network, calculus
from .signals import interruptible

# a pass uses all cores already, and two at once crash Numba's simplest threads
ONE_AT_A_TIME = threading.RLock()
if hasattr(os, "register_at_fork"):  # and nobody forks in the middle of one
    _release = ONE_AT_A_TIME.release
    os.register_at_fork(
        before=ONE_AT_A_TIME.acquire, after_in_parent=_release, after_in_child=_release
    )
BATCH_SIZE = Knob(32, "texts per batch", 1, 1_000_000)
BUDGET = Knob(
    None, "instead of all other knobs: the share of the full multiply-adds to spend at most, on "
    "average, such as 0.5", most=1000,
)  # fmt: skip
RISK = Knob(
    None, "instead of all other knobs: the share of the answers that may differ from the full "
    "model's, such as 0.02; evaluate --certify makes the certificate for it", most=1,
)  # fmt: skip

F = TypeVar("F", bound=Callable)


def explained(function: F) -> F:
    """Adds every knob to a function's signature and docstring, for help() and completion."""
    signature, kind = inspect.signature(function), inspect.Parameter.KEYWORD_ONLY
    own = [p for p in signature.parameters.values() if p.kind != inspect.Parameter.VAR_KEYWORD]
    knobs = [inspect.Parameter(name, kind, default=k.usual) for name, k in KNOBS.items()]
    function.__signature__ = signature.replace(parameters=own + knobs)  # type: ignore[attr-defined]
    lines = [f"{name} (default {knob.usual}): {knob.help}" for name, knob in KNOBS.items()]
    lines += [f"budget (default None): {BUDGET.help}", f"risk (default None): {RISK.help}"]
    function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", *lines])
    return function


@dataclass(frozen=True)
class Prediction:
    """The answer to one text, and what it cost.

    probs: probability of every label (regression: the predicted number under the only label).
    score: the label's probability. layers_run: indices of the layers executed, from 0.
    tokens: word pieces, [CLS] and [SEP] included; tokens_per_layer: for each layer executed.
    macs, macs_full: multiply-adds executed, and with no mechanism in use. ms: wall-clock time, of a
    batch divided by its texts. truncated: the text was longer than the model reads, and was cut.
    steps: what halting saw after each layer executed: (answer so far {label: float}, doubt p,
    margin), see dact.py; by another method's rule (exits.py) the layer's own answer, None and None;
    empty for a model without halting. settled: after which layer (from 0), run or left out, the
    margin was zero or more; None: after none.
    pieces: the word pieces; stayed: for each, the first layer (from 0) that it was dropped before,
    num_layers if it never was. chances: {layer (from 0) before which a policy was asked: for each
    piece the chance to stay that it was given, None if it was not asked about} (selection.py).
    """

    text: str
    text_pair: str | None
    label: str
    score: float
    probs: dict[str, float]
    num_layers: int
    layers_run: list[int]
    tokens: int
    tokens_per_layer: list[int]
    macs: int
    macs_full: int
    ms: float
    truncated: bool
    pieces: list[str] = field(repr=False)
    stayed: list[int] = field(repr=False)
    steps: list[tuple[dict[str, float], float | None, float | None]] = field(repr=False)
    chances: dict[int, list[float | None]] = field(repr=False, default_factory=dict)
    settled: int | None = field(repr=False, default=None)

    def to_dict(self) -> dict:
        """What `infer --json` prints."""
        return {
            key: value
            for key, value in vars(self).items()
            if key not in ("pieces", "stayed", "steps", "chances", "settled")
        }

    def __str__(self) -> str:
        cut = ", text cut to the model's limit" if self.truncated else ""
        layers = f"{len(self.layers_run)} of {self.num_layers} layers"
        return (
            f"{visible(self.label)}  {self.score:.3f}  {layers}, "
            f"{self.macs / self.macs_full:.0%} of the multiply-adds, {self.ms:.1f} ms{cut}"
        )

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return show.html(self)


class Model:
    """A BERT classifier and the mechanisms it carries.

    >>> model = Model.from_pretrained()               # the one that ships in weights/
    >>> model("a gripping, funny, humane film").label
    'positive'

    config says what it is, params holds its arrays by name, tokenizer cuts texts into word pieces.
    """

    def __init__(
        self,
        config: Config,
        params: Mapping[str, np.ndarray],
        tokenizer: Tokenizer,
        reference: bool = False,
        bits: int | None = None,
    ) -> None:
        """params: as network.shapes(config) lists them.

        reference: NumPy only, no Numba. bits: of a weight in the layers' products, 32, 16 or 8;
        None: 16 if no weight loses a digit by it, else 32. In 8, activations are rounded, too.
        """
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.reference = reference
        self.bits = known_bits(bits)
        calc = calculus(params, reference)
        self.net = Network(params, config, calc)
        with interruptible():
            self.layers = layers_for(params, config, calc, self.bits)

    @staticmethod
    def from_pretrained(
        name: str | os.PathLike[str] | None = None,
        reference: bool = False,
        bits: int | None = None,
    ) -> Model:
        """name: a directory, a hub id, a name in weights/, or None for the model that ships."""
        return Model(*checkpoint.load(name), reference=reference, bits=bits)

    def save_pretrained(self, directory: str | os.PathLike[str], dtype: Any = np.float32) -> None:
        """Writes config.json, model.safetensors (float32 or float16) and tokenizer.json."""
        checkpoint.save(directory, self.config, self.params, self.tokenizer, dtype)

    def __reduce__(self):
        """Pickled and copied as what it was made of; weights are packed again at the other end."""
        return type(self), (self.config, self.params, self.tokenizer, self.reference, self.bits)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights as they are multiplied, and of what config.json does with them.

        A certificate holds for these alone. The tokenizer is not in it.
        """
        c = self.config
        use = [c.num_attention_heads, c.layer_norm_eps, c.summary]
        shapes = {name: vars(shape) for name, shape in c.mechanisms.items()}
        return weights_digest(self.params, self.bits, json.dumps([*use, shapes], sort_keys=True))

    @explained
    def knobs(
        self,
        use: str | Iterable[str] | None = None,
        *,
        budget: float | None = None,
        risk: float | None = None,
        **given: Any,
    ) -> Knobs:
        """The knobs, checked; use: None stands for all that the model carries.

        Raises InputError for what cannot be.
        """
        if budget is not None or risk is not None:
            others = Knobs(**given)
            check_values(others)
            if use is not None or None not in (budget, risk) or others != Knobs():
                name = "budget" if risk is None else "risk"
                raise InputError(f"a {name} chooses the other knobs: give it alone")
            stored = self._certified(risk) if budget is None else self._affordable(budget)
            return self.knobs(**stored)
        use = together(self.config.mechanisms) if use is None else use
        use = [use] if isinstance(use, str) else use
        if not isinstance(use, Iterable):
            raise InputError(f"use is {use!r}, neither a mechanism's name nor a list of them")
        knobs = Knobs(tuple(use), **given)
        check_knobs(self.config, knobs)
        return Knobs(knobs.use, **{name: _plain(value) for name, value in given.items()})

    def _affordable(self, budget: float) -> dict[str, Any]:
        """The knobs that were measured to spend at most that share of the multiply-adds."""
        if wrong := BUDGET.misfit(budget):
            raise InputError(f"budget is {budget!r}{wrong}")
        budgets = self.config.budgets
        if not budgets:
            raise InputError(
                "the model's config.json has no budgets: evaluate --sweep --calibrate makes them"
            )
        within = [entry for entry in budgets if entry["macs_fraction"] <= budget]
        if not within:
            least = min(entry["macs_fraction"] for entry in budgets)
            raise InputError(f"budget is {budget}; the least that the model can do with is {least}")
        return max(within, key=lambda entry: entry["macs_fraction"])["knobs"]

    def _certified(self, risk: float | None) -> dict[str, Any]:
        """The knobs certified for that risk, or for the next smaller one; of two, the surer."""
        if wrong := RISK.misfit(risk):
            raise InputError(f"risk is {risk!r}{wrong}")
        bits, make = stored_bits(self.bits), "evaluate --certify makes them"
        there = [c for c in self.config.certificates if c["bits"] == bits]
        if not there:
            raise InputError(f"the model's config.json has no certificates in {bits} bits: {make}")
        valid = [c for c in there if c["weights"] == self.digest]
        if not valid:
            raise InputError(f"the certificates are void, since they are of other weights: {make}")
        covering = [c for c in valid if c["risk"] <= risk]
        if not covering:
            risks = ", ".join(f"{c['risk']:g}" for c in valid)
            asked = f"risk is {_plain(risk):g}"
            raise InputError(f"{asked}; there are certificates for {risks}: {make}")
        return max(covering, key=lambda c: (c["risk"], c["confidence"]))["knobs"]

    # a str is an Iterable[str], too: the first signature that fits counts
    @overload
    def __call__(
        self,
        texts: str,
        text_pairs: str | None = None,
        *,
        batch_size: int = 32,
        use: str | Iterable[str] | None = None,
        budget: float | None = None,
        risk: float | None = None,
        **knobs: Any,
    ) -> Prediction: ...

    @overload
    def __call__(
        self,
        texts: Iterable[str],
        text_pairs: Iterable[str] | None = None,
        *,
        batch_size: int = 32,
        use: str | Iterable[str] | None = None,
        budget: float | None = None,
        risk: float | None = None,
        **knobs: Any,
    ) -> list[Prediction]: ...

    @explained
    def __call__(
        self,
        texts: str | Iterable[str],
        text_pairs: str | Iterable[str] | None = None,
        *,
        batch_size: int = BATCH_SIZE.usual,
        use: str | Iterable[str] | None = None,
        budget: float | None = None,
        risk: float | None = None,
        **knobs: Any,
    ) -> Prediction | list[Prediction]:
        """One text -> a Prediction; any number of them -> a list of Predictions, in order.

        text_pairs: for tasks on two texts, the second ones. batch_size: texts that are worked on
        together. use: the mechanisms to switch on (default: all that go together; () for plain
        BERT). Raises InputError for what cannot be answered. The knobs:
        """
        single = isinstance(texts, str)
        firsts, seconds = _texts(texts, "text"), None
        if text_pairs is not None:
            seconds = _texts(text_pairs, "second text")
            if len(seconds) != len(firsts):
                raise InputError(f"{len(firsts)} texts, but {len(seconds)} second texts")
        if wrong := BATCH_SIZE.misfit(batch_size):
            raise InputError(f"batch_size is {batch_size!r}{wrong}")
        chosen, out = self.knobs(use, budget=budget, risk=risk, **knobs), []
        for start in range(0, len(firsts), batch_size):
            part = slice(start, start + batch_size)
            out += self._answer(firsts[part], seconds and seconds[part], chosen)
        return out[0] if single else out

    def _answer(self, texts: list[str], pairs: list[str] | None, knobs: Knobs) -> list[Prediction]:
        """One batch."""
        begin, row, out = time.perf_counter(), 0, []
        sentences = data.encode(self.tokenizer, texts, pairs)
        answers = self.run(sentences, knobs)
        ms = (time.perf_counter() - begin) * 1e3 / len(sentences)
        for i, sentence in enumerate(sentences):
            rows = slice(row, row + len(sentence.ids))
            about = (texts[i], pairs[i] if pairs else None, sentence, rows)
            out.append(self._prediction(*about, answers, i, ms))
            row = rows.stop
        return out

    def run(self, sentences: Sequence[data.Encoded], knobs: Knobs) -> Answers:
        """The hard pass on encoded texts, as one batch, in arrays."""
        batch = data.to_batch(sentences)
        with ONE_AT_A_TIME, interruptible(), np.errstate(all="ignore"):  # overflow is found below
            answers = hard_forward(self.net, batch, knobs, self.layers)
        if not np.isfinite(answers.probs).all():
            raise InputError("the model's weights are so large that its answer is not a number")
        return answers

    def _prediction(self, text, pair, sentence, rows, answers: Answers, i, ms) -> Prediction:
        labels, probs = self.config.id2label, answers.probs[i].tolist()
        ran = np.flatnonzero(answers.layers_run[i]).tolist()
        best = probs.index(max(probs))

        def named(values: list[float]) -> dict[str, float]:
            return dict(zip(labels, values, strict=True))

        def known(value: float) -> float | None:
            return None if math.isnan(value) else value

        of_layers = (answers.so_far, answers.doubts, answers.margins)
        seen = zip(*(values[i].tolist() for values in of_layers), strict=True)
        steps = [(named(answer), known(p), known(margin)) for answer, p, margin in seen]
        lengths, chances = answers.lengths[i].tolist(), answers.chances[rows].T
        speaks = any(MECHANISMS[name].answers for name in self.config.mechanisms)
        return Prediction(
            text=text,
            text_pair=pair,
            label=labels[best],
            score=probs[best],
            probs=named(probs),
            num_layers=self.config.num_hidden_layers,
            layers_run=ran,
            tokens=len(sentence.ids),
            tokens_per_layer=[lengths[n] for n in ran],
            macs=int(answers.macs[i]),
            macs_full=int(answers.macs_full[i]),
            ms=ms,
            truncated=sentence.truncated,
            pieces=sentence.tokens,
            stayed=answers.stayed[rows].tolist(),
            steps=[steps[n] for n in ran] if speaks else [],
            chances={
                n: [known(pi) for pi in asked.tolist()]
                for n, asked in enumerate(chances)
                if not np.isnan(asked).all()
            },
            settled=next((n for n, (*_, m) in enumerate(steps) if m is not None and m >= 0), None),
        )


def _plain(value: Any) -> Any:
    """Any number as a float, which kernels and JSON know; all else as it is."""
    return float(value) if isinstance(value, Real) else value


def _texts(given: Any, name: str) -> list[str]:
    """A text, or any iterable of texts, as a list; name: what an error calls one of them."""
    table = isinstance(given, Mapping) or hasattr(given, "columns")  # their names are no texts
    if table or isinstance(given, bytes) or not np.iterable(given):
        kind = type(given).__name__
        raise InputError(f"the {name}s are of type {kind}, neither a str nor a list of them")
    texts = [given] if isinstance(given, str) else list(given)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{name} {i} is of type {type(text).__name__}, not str")
    return texts
