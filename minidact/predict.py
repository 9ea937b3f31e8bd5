"""Texts in, answers out: `Model` and `Prediction`, what most users of the package need."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from . import checkpoint, data, exits, kernels, show
from .config import Config
from .errors import InputError
from .hard import Answers, Knobs, hard_forward
from .inference import Encoder
from .model import calculus

# a pass uses all cores already, and two at once crash Numba's simplest threads
ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Prediction:
    """The answer to one text, and what it cost.

    probs: probability of every label (regression: the predicted number under the only label).
    score: the label's probability. layers_run: indices of the layers executed, from 0.
    tokens: word pieces, [CLS] and [SEP] included; tokens_per_layer: for each layer executed.
    macs, macs_full: multiply-adds executed, and with no mechanism in use. ms: wall-clock time, of a
    batch divided by its texts. truncated: the text was longer than the model reads, and was cut.
    steps: what halting saw after each layer executed: (answer so far {label: float}, doubt p,
    margin), see dact.py; by a neighbour's rule (exits.py) the layer's own answer, None and None;
    empty for a model without halting.
    pieces: the word pieces; stayed: for each, the first layer (from 0) that token gates dropped it
    before, num_layers if none did.
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

    def to_dict(self) -> dict:
        """What `infer --json` prints."""
        return {
            key: value
            for key, value in vars(self).items()
            if key not in ("pieces", "stayed", "steps")
        }

    def __str__(self) -> str:
        cut = ", text cut to the model's limit" if self.truncated else ""
        return (
            f"{self.label}  {self.score:.3f}  {len(self.layers_run)} of {self.num_layers} layers, "
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
    """

    def __init__(self, config: Config, params: dict, tokenizer: Tokenizer, reference=False):
        """params: as model.shapes(config) lists them. reference: NumPy only, no Numba."""
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self._calc = calculus(params, reference)
        self._encoder = Encoder(params, config) if self._calc is kernels else None

    @staticmethod
    def from_pretrained(name: str | os.PathLike | None = None, reference=False) -> Model:
        """name: a directory, a hub id, a name in weights/, or None for the model that ships."""
        return Model(*checkpoint.load(name), reference=reference)

    def save_pretrained(self, directory: str | os.PathLike, dtype=np.float32) -> None:
        """Writes config.json, model.safetensors (float32 or float16) and tokenizer.json."""
        checkpoint.save(directory, self.config, self.params, self.tokenizer, dtype)

    def knobs(
        self, use=None, slack=0.0, bound="tight", threshold=0.5, keep=1.0, rule=None, at=None,
        budget=None,
    ) -> Knobs:  # fmt: skip
        """Checked; use: None stands for all that the model carries. Raises InputError."""
        if budget is not None:
            given = (use, slack, bound, threshold, keep, rule, at)
            if given != (None, 0.0, "tight", 0.5, 1.0, None, None):
                raise InputError("a budget chooses the other knobs: give it alone")
            return self.knobs(**self._affordable(budget))
        carried = self.config.mechanisms
        if not slack >= 0:
            raise InputError(f"slack is {slack}; it must be 0 or more")
        if bound not in ("tight", "paper"):
            raise InputError(f"bound is {bound!r}, not 'tight' or 'paper'")
        if not threshold >= 0:
            raise InputError(f"threshold is {threshold}; it must be 0 or more")
        if not keep > 0:
            raise InputError(f"keep is {keep}; it must be more than 0")
        use = carried if use is None else (use,) if isinstance(use, str) else tuple(use)
        for name in use:
            if name not in carried:
                has = ", ".join(carried) or "no mechanism"
                raise InputError(f"the model does not carry {name!r}; it has {has}")
        if at is not None and rule is None:
            raise InputError("at is the knob of a rule: give a rule with it")
        if rule is not None:
            if rule not in exits.RULES:
                raise InputError(f"rule is {rule!r}, not one of {', '.join(exits.RULES)}")
            if "halting" not in use or "planning" in use:
                raise InputError(
                    f"the rule {rule!r} needs halting in use, and planning not: use it alone"
                )
        return Knobs(use, slack, bound, threshold, keep, rule, at)

    def _affordable(self, budget: float) -> dict:
        """The knobs that were measured to spend at most that share of the multiply-adds."""
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

    def __call__(
        self,
        texts: str | Sequence[str],
        text_pairs: str | Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        use: Sequence[str] | None = None,
        slack: float = 0.0,
        bound: str = "tight",
        threshold: float = 0.5,
        keep: float = 1.0,
        rule: str | None = None,
        at: float | None = None,
        budget: float | None = None,
    ) -> Prediction | list[Prediction]:
        """One text -> a Prediction; a sequence of texts -> a list of them, in order.

        use: mechanisms to switch on (default all; () for plain BERT). budget: instead of all other
        knobs, the share of the full multiply-adds to spend at most. The others: hard.Knobs.
        """
        single = isinstance(texts, str)
        if not single and not isinstance(texts, Iterable):
            raise InputError(f"texts is of type {type(texts).__name__}, neither str nor a list")
        texts = [texts] if single else list(texts)
        pairs = [text_pairs] if isinstance(text_pairs, str) else text_pairs
        if pairs is not None and len(pairs) != len(texts):
            raise InputError(f"{len(texts)} texts, but {len(pairs)} second texts")
        for i, text in enumerate([*texts, *(pairs or ())]):
            if not isinstance(text, str):
                raise InputError(f"text {i} is of type {type(text).__name__}, not str")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1")
        knobs, out = self.knobs(use, slack, bound, threshold, keep, rule, at, budget), []
        for start in range(0, len(texts), batch_size):
            part = slice(start, start + batch_size)
            begin = time.perf_counter()
            sentences = data.encode(self.tokenizer, texts[part], pairs and pairs[part])
            answers = self.run(sentences, knobs)
            ms, row = (time.perf_counter() - begin) * 1e3 / len(sentences), 0
            for i, sentence in enumerate(sentences):
                pair = pairs[start + i] if pairs else None
                stayed = answers.stayed[row : row + len(sentence.ids)].tolist()
                about = (texts[start + i], pair, sentence, stayed)
                out.append(self._prediction(*about, answers, i, ms))
                row += len(sentence.ids)
        return out[0] if single else out

    def run(self, sentences: Sequence[data.Encoded], knobs: Knobs) -> Answers:
        """The hard pass on encoded texts, as one batch, in arrays."""
        batch = data.to_batch(sentences)
        with ONE_AT_A_TIME, np.errstate(all="ignore"):  # what overflows is found below
            answers = hard_forward(
                self.params, self.config, batch, knobs, self._calc, self._encoder
            )
        if not np.isfinite(answers.probs).all():
            raise InputError("the model's weights are so large that its answer is not a number")
        return answers

    def _prediction(self, text, pair, sentence, stayed, answers: Answers, i, ms) -> Prediction:
        labels = self.config.id2label
        best = int(answers.probs[i].argmax())
        ran = np.flatnonzero(answers.layers_run[i])

        def named(values):
            return {label: float(value) for label, value in zip(labels, values, strict=True)}

        def known(value):
            return None if np.isnan(value) else float(value)

        return Prediction(
            text=text,
            text_pair=pair,
            label=labels[best],
            score=float(answers.probs[i, best]),
            probs=named(answers.probs[i]),
            num_layers=self.config.num_hidden_layers,
            layers_run=ran.tolist(),
            tokens=len(sentence.ids),
            tokens_per_layer=answers.tokens[i, ran].tolist(),
            macs=int(answers.macs[i]),
            macs_full=int(answers.macs_full[i]),
            ms=ms,
            truncated=sentence.truncated,
            pieces=sentence.tokens,
            stayed=stayed,
            steps=[
                (
                    named(answers.so_far[i, n]),
                    known(answers.doubts[i, n]),
                    known(answers.margins[i, n]),
                )
                for n in ran
                if self.config.halting is not None
            ],
        )
