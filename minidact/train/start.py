"""Where a training starts: what is kept of the model that --init names, and what is new."""

import argparse
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from .. import checkpoint, data, network
from ..config import Config, check_mechanisms
from ..errors import InputError, visible
from ..mechanisms import (
    MECHANISMS,
    PREFIXES,
    check_together,
    exits,
    selection,
    together,
    token_gates,
)
from ..options import check_in_use, comma_list

HELD_OUT = 0.1  # of every class, where there is no --dev
MANY = 10  # so many labels that are whole numbers may be classes


class Start(NamedTuple):
    """What is trained. new: names of the parameters that learn at --head-lr. note: for people."""

    config: Config
    params: dict[str, np.ndarray]
    new: list[str]
    tokenizer: Tokenizer
    note: str = ""


def read_examples(options: argparse.Namespace, path: str) -> data.Examples:
    """A labelled file; labels 0, 1, .. are replaced by --label-names (what is a name stays one)."""
    examples = data.read_examples(path)
    names = {str(i): name for i, name in enumerate(comma_list(options.label_names))}
    return examples._replace(labels=[names.get(label, label) for label in examples.labels])


def split(
    options: argparse.Namespace, examples: data.Examples
) -> tuple[data.Examples, data.Examples]:
    """The examples to train on, and those to score on: --dev's, or a tenth, held out by the seed.

    Of every class a tenth is held out, so a class of fewer than five has none there. Raises
    InputError if that leaves nothing to score on.
    """
    if options.dev is not None:
        return examples, read_examples(options, options.dev)
    regression = options.regression or examples.metric == "pearson_spearman"
    kinds = np.array(["" if regression else label for label in examples.labels])
    rng, held = np.random.default_rng([options.seed, 4]), np.zeros(len(kinds), bool)
    _, counts = np.unique(kinds, return_counts=True)
    ends = np.cumsum(counts)
    for places in np.split(np.argsort(kinds, kind="stable"), ends[:-1]):  # those of each class
        held[rng.permutation(places)[: int(len(places) * HELD_OUT + 0.5)]] = True
    if not held.any():
        raise InputError(f"{options.data} is too small to hold any out: name a file with --dev")
    return chosen(examples, np.flatnonzero(~held)), chosen(examples, np.flatnonzero(held))


def chosen(examples: data.Examples, places) -> data.Examples:
    """Some of the examples."""
    parts: Any = (v if isinstance(v, str) else v and [v[i] for i in places] for v in examples)
    return data.Examples(*parts)


def balanced(labels: np.ndarray) -> np.ndarray:
    """A weight for every example, (N,) float32: its class's share of the loss is 1 / classes."""
    _, kinds, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return (len(labels) / (len(counts) * counts))[kinds].astype(np.float32)


def build(options: argparse.Namespace, train: data.Examples) -> Start:
    """The model to start from, with the mechanisms and heads that options and labels ask for."""
    path = checkpoint.resolve(options.init)
    base = whole = checkpoint.read_config(path)
    if options.layers:
        if options.layers > whole.num_hidden_layers:
            there = f"--init has {whole.num_hidden_layers}"
            raise InputError(f"--layers is {options.layers}, and {there}")
        base = replace(whole, num_hidden_layers=options.layers)
    regression = options.regression or train.metric == "pearson_spearman"  # STS-B's layout
    names = ("score",) if regression else label_names(options, train)
    if not regression and data.look_like_scores(names, MANY):
        print(f"note: the {len(names)} labels look like numbers; --regression predicts numbers")
    if regression and options.class_weights != "none":
        raise InputError("--class-weights needs classes, and these are numbers")
    same = same_labels(base, names, regression)
    names = base.id2label if same and (regression or options.label_names is None) else names
    carried = chosen_mechanisms(options, base)
    try:
        check_together(carried)
    except InputError as error:
        raise InputError(f"{error} (--use says which mechanisms to train)") from None
    if options.policy_only:  # all else stays as it is
        if "selection" not in carried:
            raise InputError("--policy-only needs --use selection")
        both = base.mechanisms | carried
        carried = {name: both[name] for name in MECHANISMS if name in both}
    config = replace(
        base,
        id2label=names,
        problem_type="regression" if regression else "single_label_classification",
        mechanisms=carried,
        summary=options.summary or base.summary,
        text_pairs=train.pairs is not None,
        budgets=(),  # they and certificates were measured on another model
        certificates=(),
        extra={k: v for k, v in base.extra.items() if k in ("pad_token_id", "initializer_range")},
    )
    try:
        check_mechanisms(config)
    except InputError as error:
        raise InputError(f"{error} (--use says which mechanisms to train)") from None
    found = checkpoint.read_backbone(path, whole, heads=same)
    tokenizer = checkpoint.read_tokenizer(path, config)
    rng = np.random.default_rng([options.seed, 0])
    fresh = network.init_params(config, rng, prices=prices_of(options))
    kept = fitting(reordered(found, base, names) if same else found, fresh)
    new = [n for n in fresh if n not in kept or n.startswith(PREFIXES)]
    lacks = [n for n in fresh if n not in kept and not n.startswith(selection.PREFIX)]
    if options.policy_only and lacks:
        raise InputError(
            f"--policy-only leaves all else as it is, but --init lacks {lacks[0]} for these labels "
            "and sizes: train that first"
        )
    note = what_is_kept(checkpoint.tensor_names(path), kept, fresh, base, config)
    if options.freeze_gates:
        if token_gates.NAME not in kept:
            raise InputError("--freeze-gates needs --use tokens, and as many token gates in --init")
        kept[token_gates.NAME] = token_gates.decided(kept[token_gates.NAME])
    return Start(config, fresh | kept, new, tokenizer, note)


def label_names(options: argparse.Namespace, train: data.Examples) -> tuple[str, ...]:
    """The labels of the training file, in order: their own, or --label-names."""
    names, chosen = data.label_names(train.labels), tuple(comma_list(options.label_names))
    if options.label_names is not None:
        if len(chosen) != len(names):
            raise InputError(
                f"--label-names gives {len(chosen)} names, the file has {len(names)} labels"
            )
        if len(set(chosen)) != len(chosen):
            raise InputError("--label-names has one name twice")
        if set(names) != set(chosen):
            raise InputError(
                f"--label-names is for labels 0, 1, ..; the file's are {', '.join(names)}"
            )
        names = chosen
    if len(names) < 2:
        raise InputError(f"{options.data}: all labels are {names[0]!r}; there is nothing to learn")
    return names


def same_labels(base: Config, names: tuple[str, ...], regression: bool) -> bool:
    """Are these the labels that the model's heads were trained for, whatever their order?"""
    if regression or base.problem_type == "regression":
        return regression and base.problem_type == "regression"
    return set(names) in (set(base.meanings()), set(base.id2label))


def reordered(params: Mapping, base: Config, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The parameters with the rows of all that answers in the order of names, not of base's.

    So 0, 1, .. mean in the model that is saved what --label-names says.
    """
    theirs = base.id2label if set(names) == set(base.id2label) else base.meanings()
    order = [theirs.index(name) for name in names]
    return {n: p[order] if checkpoint.CLASSIFIER in n else p for n, p in params.items()}


def chosen_mechanisms(options: argparse.Namespace, base: Config) -> dict[str, Any]:
    """{name: shape}: of --use, else of what goes together; as options change the shapes."""
    use = together(base.mechanisms) if options.use is None else comma_list(options.use)
    shapes: dict[str, Any] = {}
    for name, record in MECHANISMS.items():
        if name in use:
            given = {f.name: getattr(options, f.name) for f in fields(record.shape)}
            given = {key: value for key, value in given.items() if value is not None}
            shapes[name] = replace(base.mechanisms.get(name, record.shape()), **given)
    halting = shapes.get("halting", exits.Halting(trained=options.trained or "dact"))
    if halting.trained != "dact" and set(shapes) != {"halting"}:
        raise InputError(f"--heads {halting.trained} needs --use halting, and no gates beside")
    check_in_use(list(shapes), set(options.given))  # of --use, or of what --init has
    return shapes


def fitting(found: Mapping, fresh: dict) -> dict[str, np.ndarray]:
    """What was found and has its place in the new model; a mechanism is kept whole, or not."""
    kept = {n: p for n, p in found.items() if n in fresh and p.shape == fresh[n].shape}
    for prefix in PREFIXES:
        if any(name not in kept for name in fresh if name.startswith(prefix)):
            kept = {n: p for n, p in kept.items() if not n.startswith(prefix)}
    return kept


def what_is_kept(there: list, kept: dict, fresh: dict, base: Config, config: Config) -> str:
    """A sentence or two: which parts of --init go on, which start anew, which are dropped."""
    parts = {name: m.prefix for name, m in MECHANISMS.items()}
    parts = {"encoder": "bert.e", "pooler": checkpoint.POOLER, "classifier": "classifier."} | parts
    kinds: dict[str, list[str]] = {"kept of --init": [], "new": [], "dropped": []}
    for part, prefix in parts.items():
        has, wants, keeps = (any(n.startswith(prefix) for n in x) for x in (there, fresh, kept))
        if has or wants:
            kinds["kept of --init" if keeps else "new" if wants else "dropped"].append(part)
    note = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
    heads = any(map(checkpoint.depends_on_labels, there))
    if heads and config.id2label != base.id2label:
        theirs, ours = ", ".join(base.id2label), ", ".join(config.id2label)
        note += f"\nlabels: {visible(ours)} (--init's: {visible(theirs)})"
    return note


def prices_of(options: argparse.Namespace) -> dict[str, Any]:
    """{mechanism: its prices}, as the options say."""
    return {
        name: record.prices(**{f.name: getattr(options, f.name) for f in fields(record.prices)})
        for name, record in MECHANISMS.items()
    }
