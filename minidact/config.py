"""What a model is: sizes under Hugging Face's own keys, and which mechanisms it carries.

config.json is Hugging Face's; what is ours sits in it under one key, "minidact":

    "minidact": {"summary": "mean", "halting": {"trunk_size": 128, "sees_confidence": true},
                 "planning": {"planner": "steps", "width": 64},
                 "tokens": {"bins": 16, "ranks": "relative", "pool": "last"}}
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import InputError

MECHANISMS = ("halting", "planning", "tokens")  # what `use` may name
SUMMARIES = ("cls", "mean")
# how halting's heads may be trained
TRAINED = ("dact", "deebert", "fastbert", "pabee", "pondernet")

# Every size has bounds: a config.json is somebody's file, and nothing is allocated on its word.
BOUNDS = {
    "vocab_size": (1, 2_000_000),
    "hidden_size": (1, 16_384),
    "num_hidden_layers": (1, 256),
    "num_attention_heads": (1, 256),
    "intermediate_size": (1, 131_072),
    "max_position_embeddings": (2, 1_000_000),
    "type_vocab_size": (1, 1_024),
}


@dataclass(frozen=True)
class Halting:
    """The DACT units' shape (dact.py).

    trunk_size: width of the hidden layer that the class head and the halting head share.
    sees_confidence: the halting head also reads the top probability of y_n (no gradient).
    trained: "dact", or as one of its neighbours, of exits.py, which share the units' shape.
    """

    trunk_size: int = 128
    sees_confidence: bool = True
    trained: str = "dact"


@dataclass(frozen=True)
class Planning:
    """The planning gates' shape (planning.py).

    planner: "steps", one planner before every layer but the first; or "path", one for all layers,
    which reads the embeddings. width: of its hidden layer.
    """

    planner: str = "steps"
    width: int = 64


@dataclass(frozen=True)
class Tokens:
    """The token gates' shape (token_gates.py).

    bins: gates of a layer. ranks: "relative" to a sentence's length, or "absolute". pool: what the
    mean of a sentence's rows counts: "last", a dropped row as it last was, or "left", only rows
    that are left.
    """

    bins: int = 16
    ranks: str = "relative"
    pool: str = "last"


@dataclass(frozen=True)
class Config:
    """Sizes of a BERT, its labels, and the mechanisms it carries.

    summary: what a sentence-level unit reads: "cls" (row of [CLS]) or "mean" (mean of the rows).
    problem_type: "single_label_classification" or "regression" (one output, no halting).
    halting: the DACT units, or None for a plain BERT (pooler and classifier).
    planning, tokens: planning gates and token gates, or None.
    budgets: {"macs_fraction", "knobs"} as measured by evaluate --calibrate, cheapest first.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    problem_type: str = "single_label_classification"
    id2label: tuple[str, ...] = ("0", "1")
    summary: str = "cls"
    halting: Halting | None = None
    planning: Planning | None = None
    tokens: Tokens | None = None
    budgets: tuple[dict, ...] = field(default=(), compare=False)
    extra: dict[str, Any] = field(default_factory=dict, compare=False)  # keys we keep, not read

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """Names of the mechanisms the model carries, a subset of MECHANISMS."""
        return tuple(name for name in MECHANISMS if getattr(self, name) is not None)

    @staticmethod
    def from_dict(raw: Any) -> Config:
        """Reads config.json's object. Raises InputError, naming the key that is wrong."""
        if not isinstance(raw, dict):
            raise InputError("config.json does not hold a JSON object")
        if raw.get("model_type", "bert") != "bert":
            raise InputError(f"config.json describes a {raw['model_type']!r} model, not 'bert'")
        if raw.get("is_decoder") or raw.get("add_cross_attention"):
            raise InputError("config.json describes a decoder; only encoders are built")
        if raw.get("hidden_act", "gelu") != "gelu":
            raise InputError(
                f"config.json asks for {raw['hidden_act']!r}; only 'gelu' (erf) is built"
            )
        if raw.get("position_embedding_type", "absolute") != "absolute":
            raise InputError(
                "config.json asks for relative positions; only absolute ones are built"
            )
        values = {name: _integer(raw, name, *bounds) for name, bounds in BOUNDS.items()}
        if values["hidden_size"] % values["num_attention_heads"]:
            raise InputError("config.json: hidden_size is not a multiple of num_attention_heads")
        values["layer_norm_eps"] = _number(raw, "layer_norm_eps", 0.0, 1.0, 1e-12)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            values[name] = _number(raw, name, 0.0, 0.99, 0.1)
        values["id2label"] = _labels(raw)
        problem = raw.get("problem_type") or (
            "regression" if len(values["id2label"]) == 1 else "single_label_classification"
        )
        if problem not in ("single_label_classification", "regression"):
            raise InputError(f"config.json: problem_type {problem!r} is not supported")
        if (problem == "regression") != (len(values["id2label"]) == 1):
            raise InputError(
                f"config.json: {len(values['id2label'])} labels do not fit a {problem}"
            )
        values["problem_type"] = problem
        values.update(_ours(raw.get("minidact", {})))
        if values.get("halting") and problem == "regression":
            raise InputError("config.json: halting needs classes, and this model is a regression")
        ours = {"label2id", "minidact", "num_labels", "dtype", "torch_dtype"}
        known = {*(f.name for f in fields(Config)), *ours}
        if values["num_hidden_layers"] == 1 and (values["planning"] or values["tokens"]):
            raise InputError("config.json: gates need two layers at least, and there is one")
        values["extra"] = {key: value for key, value in raw.items() if key not in known}
        return Config(**values)

    def to_dict(self) -> dict[str, Any]:
        """config.json's object; `transformers` reads the same file as a BERT."""
        raw = asdict(self)
        extra, ours = raw.pop("extra"), {"summary": raw.pop("summary")}
        for name in MECHANISMS:
            if (mechanism := raw.pop(name)) is not None:
                ours[name] = mechanism
        if budgets := raw.pop("budgets"):
            ours["budgets"] = list(budgets)
        raw["id2label"] = {str(i): name for i, name in enumerate(self.id2label)}
        raw["label2id"] = {name: i for i, name in enumerate(self.id2label)}
        # dtype: what `transformers` is to compute in, however the tensors are stored
        fixed = {"model_type": "bert", "hidden_act": "gelu", "dtype": "float32", "minidact": ours}
        return extra | raw | fixed


def _integer(raw: dict, name: str, low: int, high: int) -> int:
    value = raw.get(name, getattr(Config, name, None))
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"config.json: {name} is {value!r}, not a whole number in {low}..{high}")
    return value


def _number(raw: dict, name: str, low: float, high: float, default: float) -> float:
    value = raw.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"config.json: {name} is {value!r}, not a number in {low}..{high}")
    return float(value)


def _labels(raw: dict) -> tuple[str, ...]:
    """id2label as a tuple; Hugging Face writes {"0": name, ...}."""
    labels = raw.get("id2label")
    if labels is None:  # Hugging Face leaves it out where it has its default names
        count = _integer({"num_labels": 2} | raw, "num_labels", 1, 100_000)
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
    """The "minidact" key: which summary, which mechanisms."""
    known = ("summary", *MECHANISMS, "budgets")
    if not isinstance(raw, dict) or set(raw) - set(known):
        raise InputError(f'config.json: "minidact" may hold {", ".join(known)} only')
    summary = raw.get("summary", "cls")
    if summary not in SUMMARIES:
        raise InputError(f"config.json: summary is {summary!r}, not one of {', '.join(SUMMARIES)}")
    choices = {"planner": ("steps", "path"), "ranks": ("relative", "absolute")}
    choices["pool"] = ("last", "left")
    choices["trained"] = TRAINED
    most = {"trunk_size": 65_536, "width": 65_536, "bins": 4_096}
    values = {"summary": summary, "budgets": _budgets(raw.get("budgets", []))}
    for mechanism, kind in (("halting", Halting), ("planning", Planning), ("tokens", Tokens)):
        given = raw.get(mechanism)
        if given is None:
            values[mechanism] = None
            continue
        known = [f.name for f in fields(kind)]
        if not isinstance(given, dict) or set(given) - set(known):
            raise InputError(f"config.json: minidact.{mechanism} may hold {', '.join(known)} only")
        whole = asdict(kind()) | given
        for name, value in whole.items():
            at = f"config.json: minidact.{mechanism}.{name}"
            if name in choices and value not in choices[name]:
                raise InputError(f"{at} is {value!r}, not one of {', '.join(choices[name])}")
            if name in most:
                _integer(whole, name, 1, most[name])
            if name == "sees_confidence" and not isinstance(value, bool):
                raise InputError(f"{at} is not true or false")
        values[mechanism] = kind(**whole)
    return values


def _budgets(raw: Any) -> tuple[dict, ...]:
    """What --budget chooses from; which values make sense is checked when they are used."""
    wrong = InputError(
        'config.json: minidact.budgets is not a list of {"macs_fraction": number, "knobs": {"use": '
        '[..], "slack": number, "threshold": number, "keep": number}}'
    )
    for entry in raw if isinstance(raw, list) else [None]:
        if not isinstance(entry, dict) or set(entry) != {"macs_fraction", "knobs"}:
            raise wrong
        knobs = entry["knobs"]
        if not isinstance(knobs, dict) or set(knobs) - {"use", "slack", "threshold", "keep"}:
            raise wrong
        numbers = [entry["macs_fraction"], *(v for k, v in knobs.items() if k != "use")]
        use = knobs.get("use", [])
        if not isinstance(use, list) or not all(isinstance(name, str) for name in use):
            raise wrong
        if not all(isinstance(v, int | float) for v in numbers):
            raise wrong
    return tuple(raw)
