"""What a model is: sizes under Hugging Face's own keys, and which mechanisms it carries.

config.json is Hugging Face's; what is ours sits in it under one key, "minidact":

    "minidact": {"summary": "mean", "text_pairs": false,
                 "halting": {"trunk_size": 128, "sees_confidence": true, "trained": "dact"},
                 "planning": {"planner": "steps", "width": 64},
                 "tokens": {"bins": 16, "ranks": "relative", "pool": "last"},
                 "selection": {"policy_width": 32, "reductions": 2, "selection_pool": "last"},
                 "budgets": [..], "certificates": [..]}
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .errors import InputError, known
from .mechanisms import KNOBS, MECHANISMS
from .mechanisms.record import Knob, Sizes, knobs_of, setting

SUMMARIES = ("cls", "mean")
NESTED = 100  # so many objects in each other are kept
PROBLEMS = ("single_label_classification", "regression")

ONLY = {  # what a config.json may say of a kind of BERT, and what is built
    "model_type": ("bert", "describes a {!r} model, not 'bert'"),
    "is_decoder": (False, "describes a decoder; only encoders are built"),
    "add_cross_attention": (False, "describes a decoder; only encoders are built"),
    "hidden_act": ("gelu", "asks for {!r}; only 'gelu' (erf) is built"),
    "position_embedding_type": (
        "absolute", "asks for relative positions; only absolute ones are built",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Sizes of a BERT, its labels, and the mechanisms it carries.

    summary: what a sentence-level unit reads: "cls" (row of [CLS]) or "mean" (mean of the rows).
    problem_type: "single_label_classification" or "regression" (one output, no halting).
    mechanisms: {name: its shape}, for every mechanism that the model carries; {}: a plain BERT.
    budgets: {"macs_fraction", "knobs"} as measured by evaluate --calibrate, cheapest first.
    certificates: promises that evaluate --certify tested, with the knobs that keep them.
    text_pairs: was it trained on two texts at a time? None: who knows.
    extra: keys of config.json that are kept, and not read.
    """

    # sizes have bounds: a config.json is somebody's file, and nothing is allocated on its word
    vocab_size: int = setting(30522, "V, rows of the table of words", least=1, most=2_000_000)
    hidden_size: int = setting(768, "C", least=1, most=16_384)
    num_hidden_layers: int = setting(12, "L", least=1, most=256)
    num_attention_heads: int = setting(12, "H", least=1, most=256)
    intermediate_size: int = setting(3072, "F, of feed-forward", least=1, most=131_072)
    max_position_embeddings: int = setting(512, "tokens of a text", least=2, most=1_000_000)
    type_vocab_size: int = setting(2, "segments", least=1, most=1_024)
    layer_norm_eps: float = setting(1e-12, "added to a variance", most=1)
    hidden_dropout_prob: float = setting(0.1, "of a layer's outputs, in training", most=0.99)
    attention_probs_dropout_prob: float = setting(0.1, "of attention weights", most=0.99)
    problem_type: str = "single_label_classification"
    id2label: tuple[str, ...] = ("0", "1")
    summary: str = "cls"
    mechanisms: dict[str, Any] = field(default_factory=dict)
    budgets: tuple[dict, ...] = field(default=(), compare=False)
    certificates: tuple[dict, ...] = field(default=(), compare=False)
    text_pairs: bool | None = field(default=None, compare=False)
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def sizes(self) -> Sizes:
        """What mechanisms need to know of it."""
        return Sizes(self.num_hidden_layers, self.hidden_size, self.num_labels)

    @staticmethod
    def from_dict(raw: Any) -> Config:
        """Reads config.json's object. Raises InputError, naming the key that is wrong."""
        if not isinstance(raw, dict):
            raise InputError("config.json does not hold a JSON object")
        for name, (built, sentence) in ONLY.items():
            if (raw.get(name) or built) != built:
                raise InputError(f"config.json {sentence.format(raw[name])}")
        values = {name: _checked(raw, name, knob) for name, knob in knobs_of(Config).items()}
        if values["hidden_size"] % values["num_attention_heads"]:
            raise InputError("config.json: hidden_size is not a multiple of num_attention_heads")
        values["id2label"] = labels = _labels(raw)
        problem = raw.get("problem_type") or PROBLEMS[len(labels) == 1]
        if problem not in PROBLEMS:
            raise InputError(f"config.json: problem_type {problem!r} is not supported")
        if (problem == "regression") != (len(labels) == 1):
            raise InputError(f"config.json: {len(labels)} labels do not fit a {problem}")
        values["problem_type"] = problem
        values |= _ours(raw.get("minidact", {}))
        ours = {"label2id", "minidact", "num_labels", "dtype", "torch_dtype"}
        read = {f.name for f in fields(Config)} | ours
        values["extra"] = extra = {key: value for key, value in raw.items() if key not in read}
        for key, value in extra.items():
            if not _can_be_kept(value):
                raise InputError(
                    f"config.json: {key} holds a number that is not finite, or more than {NESTED} "
                    "objects in each other"
                )
        config = Config(**values)
        try:
            check_mechanisms(config)
        except InputError as error:
            raise InputError(f"config.json: {error}") from None
        return config

    def meanings(self) -> tuple[str, ...]:
        """The labels. What Hugging Face calls LABEL_0, LABEL_1, .. has no name: it is 0, 1, ..."""
        numbers = range(self.num_labels)
        unnamed = self.id2label == tuple(f"LABEL_{i}" for i in numbers)
        return tuple(map(str, numbers)) if unnamed else self.id2label

    def to_dict(self) -> dict[str, Any]:
        """config.json's object; `transformers` reads the same file as a BERT."""
        raw, extra = asdict(replace(self, extra={})), self.extra  # asdict copies what is nested
        ours = {"summary": raw.pop("summary")} | raw.pop("mechanisms")
        del raw["extra"]
        ours |= {name: list(found) for name in STORED if (found := raw.pop(name))}
        ours |= {} if (pairs := raw.pop("text_pairs")) is None else {"text_pairs": pairs}
        raw["id2label"] = {str(i): name for i, name in enumerate(self.id2label)}
        raw["label2id"] = {name: i for i, name in enumerate(self.id2label)}
        # dtype: what `transformers` is to compute in, however the tensors are stored
        fixed = {"model_type": "bert", "hidden_act": "gelu", "dtype": "float32", "minidact": ours}
        return extra | raw | fixed


def check_mechanisms(config: Config) -> None:
    """Raises InputError for mechanisms that do not fit the network."""
    for name in config.mechanisms:
        record = MECHANISMS[name]
        if record.answers and config.problem_type == "regression":
            raise InputError(f"{name} needs classes, and the model predicts numbers")
        if config.num_hidden_layers < record.least_layers:
            raise InputError(
                f"{name} needs {record.least_layers} layers, and there are "
                f"{config.num_hidden_layers}"
            )


def _checked(raw: dict, name: str, knob: Knob, prefix: str = "config.json: ") -> Any:
    value = raw.get(name, knob.usual)
    if wrong := knob.misfit(value):
        raise InputError(f"{prefix}{name} is {value!r}{wrong}")
    return float(value) if isinstance(knob.usual, float) else value


def _can_be_kept(value: Any, depth: int = 0) -> bool:
    """Is it JSON that can be written again? (Python reads NaN, and what is nested too deep.)"""
    if isinstance(value, float):
        return math.isfinite(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth <= NESTED and all(_can_be_kept(v, depth + 1) for v in inner)


def _labels(raw: dict) -> tuple[str, ...]:
    """id2label as a tuple; Hugging Face writes {"0": name, ...}."""
    labels = raw.get("id2label")
    if labels is None:  # Hugging Face leaves it out where it has its default names
        count = _checked(raw, "num_labels", Knob(2, "", 1, 100_000))
        return tuple(f"LABEL_{i}" for i in range(count))
    try:
        names = tuple(str(labels[str(i)]) for i in range(len(labels)))
    except (KeyError, TypeError):
        raise InputError(
            'config.json: id2label is not an object {"0": name, "1": name, ...}'
        ) from None
    if not names or len(set(names)) != len(names):
        raise InputError("config.json: id2label is empty or names a label twice")
    return names


def _ours(raw: Any) -> dict[str, Any]:
    """The "minidact" key: which summary, which mechanisms, which settings were measured."""
    keys = ("summary", *MECHANISMS, *STORED, "text_pairs")
    if not isinstance(raw, dict) or set(raw) - set(keys):
        raise InputError(f'config.json: "minidact" may hold {", ".join(keys)} only')
    summary, shapes = raw.get("summary", "cls"), {}
    for name, record in MECHANISMS.items():
        given = raw.get(name)
        if given is None:
            continue
        known_fields, at = knobs_of(record.shape), f"config.json: minidact.{name}"
        if not isinstance(given, dict) or set(given) - set(known_fields):
            raise InputError(f"{at} may hold {', '.join(known_fields)} only")
        checked = {key: _checked(given, key, k, f"{at}.") for key, k in known_fields.items()}
        shapes[name] = record.shape(**checked)
    ours = {
        "summary": known("config.json: summary", summary, SUMMARIES),
        "mechanisms": shapes,
    }
    pairs = raw.get("text_pairs")
    if pairs not in (None, True, False):
        raise InputError("config.json: minidact.text_pairs must be true or false")
    ours["text_pairs"] = pairs
    return ours | {name: _stored(name, raw.get(name, [])) for name in STORED}


NUMBER: Any = int | float
MOST = 1e300
KINDS = {NUMBER: "number", str: "text", list: "[..]", dict: "{..}"}
STORED: dict[str, dict[str, Any]] = {  # settings that were measured: what each list's entries hold
    "budgets": {"macs_fraction": NUMBER, "knobs": dict},
    "certificates": {
        "risk": NUMBER, "confidence": NUMBER, "examples": NUMBER, "disagreements": NUMBER,
        "p_value": NUMBER, "macs_fraction": NUMBER, "bits": NUMBER, "weights": str, "knobs": dict,
    },
}  # fmt: skip


def _stored(name: str, raw: Any) -> tuple[dict, ...]:
    """What --budget or --risk chooses from; if its knobs make sense is checked on use."""
    must = STORED[name]
    may = {"use": list} | {key: NUMBER for key, knob in KNOBS.items() if not knob.choices}
    for entry in raw if isinstance(raw, list) else [{}]:
        whole = isinstance(entry, dict) and set(entry) == set(must) and _holds(entry, must)
        if not whole or not _holds(entry["knobs"], may):
            told = ", ".join(f'"{key}": {KINDS[kind]}' for key, kind in must.items())
            knobs = ", ".join(f'"{key}": {KINDS[kind]}' for key, kind in may.items())
            raise InputError(
                f"config.json: minidact.{name} is not a list of {{{told}}}, with knobs {{{knobs}}}"
            )
    return tuple(raw)


def _holds(entry: dict, kinds: dict[str, Any]) -> bool:
    """Is every value of its kind? A list must be one of names, and a number finite."""
    return all(
        isinstance(value, kinds.get(key, ()))
        and (not isinstance(value, list) or all(isinstance(name, str) for name in value))
        and (not isinstance(value, NUMBER) or abs(value) <= MOST)  # NaN is not
        for key, value in entry.items()
    )
