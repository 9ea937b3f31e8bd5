"""Damaged files of every kind: always an answer or InputError, quickly, and in little memory.

    HYPOTHESIS_PROFILE=fuzz python -m pytest tests/test_fuzz.py -s

draws over 100,000 cases and prints how many, and the most memory and time that one took.
"""

import dataclasses
import functools
import json
import resource
import shutil
import time
from contextlib import suppress

import numpy as np
import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st

from minidact import InputError, Model, checkpoint, data, network
from minidact.mechanisms import MECHANISMS

TEXT = "the good film!"
GROWTH = 32 * 2**20  # bytes that one case may hold beyond the most that was held before

# ---------------------------------------------------------------------------- damage

numbers = st.one_of(
    st.integers(-2, 5),
    st.sampled_from([10**9, 2**31, 2**63, 10**40, -(10**9), 0.5, 1e308, -0.0]),
    st.floats(),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=6,
)
splices = st.lists(  # where, how many bytes go, what comes instead
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=4
)


def spliced(raw: bytes, changes) -> bytes:
    for where, gone, instead in changes:
        place = int(where * len(raw))
        raw = raw[:place] + instead + raw[place + gone :]
    return raw


def places(tree, path=()):
    """Every place in a JSON tree."""
    items = enumerate(tree) if isinstance(tree, list) else ()
    for key, value in tree.items() if isinstance(tree, dict) else items:
        yield (*path, key)
        yield from places(value, (*path, key))


def altered(draw, tree):
    """A JSON tree with one to three places taken out, or holding something else."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(tree))
        if not found:
            break
        *path, key = found[draw(st.integers(0, len(found) - 1))]
        parent = tree
        for step in path:
            parent = parent[step]
        if draw(st.booleans()):
            parent[key] = draw(values)
        elif isinstance(parent, dict):
            del parent[key]
        else:
            parent.pop(key)
    return tree


@st.composite
def damaged_json(draw, raw):
    if draw(st.booleans()):
        return spliced(raw, draw(splices))
    return json.dumps(altered(draw, json.loads(raw))).encode()


@st.composite
def damaged_tensors(draw, raw):
    size = int.from_bytes(raw[:8], "little")
    header, body = raw[8 : 8 + size], raw[8 + size :]
    kind = draw(st.sampled_from(["anywhere", "header", "tree", "size", "cut", "body"]))
    if kind == "anywhere":
        return spliced(raw, draw(splices))
    if kind == "header":
        header = spliced(header, draw(splices))
    if kind == "tree":
        header = json.dumps(altered(draw, json.loads(header))).encode()
    if kind == "body":
        body = spliced(body, draw(splices))
    length = draw(st.integers(0, 2**64 - 1)) if kind == "size" else len(header)
    whole = length.to_bytes(8, "little") + header + body
    return whole[: draw(st.integers(0, len(whole)))] if kind == "cut" else whole


# ---------------------------------------------------------------------------- the property


class Watch:
    """Counts cases, and holds each to its limit of memory; how long the slowest took is printed."""

    def __init__(self):
        self.cases = self.answered = self.slowest = self.hungriest = 0

    def case(self, act):
        if not self.cases:
            Model.from_pretrained(TINY)([TEXT, ""])  # compiles, and touches what all cases share
        before, begin = memory(), time.perf_counter()
        try:
            act()
            self.answered += 1
        except InputError:
            pass
        self.cases += 1
        self.slowest = max(self.slowest, time.perf_counter() - begin)
        self.hungriest = max(self.hungriest, memory() - before)
        assert self.hungriest < GROWTH


def memory() -> int:
    """The most that this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(scope="module")
def watch():
    watch = Watch()
    yield watch
    print(
        f"\n{watch.cases} cases, {watch.answered} of them answered; the slowest took "
        f"{watch.slowest:.2f} s, the largest {watch.hungriest / 2**20:.1f} MB"
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model with mechanisms, budgets, a certificate; tokenizer.json and vocab.txt beside it."""
    path = tmp_path_factory.mktemp("fuzz") / "model"
    config, known, tokenizer = checkpoint.load(TINY)
    budgets = ({"macs_fraction": 0.9, "knobs": {"use": ["halting", "tokens"], "slack": 0.1}},)
    shapes = {name: MECHANISMS[name].shape() for name in ("halting", "planning", "tokens")}
    config = dataclasses.replace(config, summary="mean", mechanisms=shapes, budgets=budgets)
    params = network.init_params(config, np.random.default_rng(0))
    checkpoint.save(path, config, params | {n: known[n] for n in known if n in params}, tokenizer)
    shutil.copy(TINY / "vocab.txt", path / "vocab.txt")
    certificate = budgets[0] | {
        "risk": 0.1, "confidence": 0.9, "examples": 100, "disagreements": 1, "p_value": 0.01,
        "bits": 32, "weights": Model.from_pretrained(path).digest,
    }  # fmt: skip
    checkpoint.save_config(path, dataclasses.replace(config, certificates=(certificate,)))
    whole = Model.from_pretrained(path)  # what is damaged below is in order at first
    assert whole(TEXT, budget=0.9).label == whole(TEXT, risk=0.1).label
    return path


def load_and_answer(directory, name, raw):
    """Puts a damaged file in a model's directory, answers from it, and mends it again."""
    file = directory / name
    whole = file.read_bytes()
    file.write_bytes(raw)
    try:
        damaged = Model.from_pretrained(directory)
        first, _ = damaged([TEXT, "xyzzy 🎬\n\0"])
        assert sum(first.probs.values()) == pytest.approx(1, abs=1e-4) or len(first.probs) == 1
        assert first.tokens <= damaged.config.max_position_embeddings
        if damaged.config.budgets:
            damaged(TEXT, budget=0.9)
        with suppress(InputError):  # other weights make a certificate void
            damaged(TEXT, risk=0.1)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("config.json", damaged_json),
        ("model.safetensors", damaged_tensors),
        ("tokenizer.json", damaged_json),
    ],
)
@given(drawn=st.data())
def test_files_of_a_model(drawn, name, damaged, directory, watch):
    raw = drawn.draw(damaged((directory / name).read_bytes()))
    watch.case(lambda: load_and_answer(directory, name, raw))


@given(drawn=st.data())
def test_vocabulary(drawn, directory, watch):
    hidden = directory / "tokenizer.json"
    whole = hidden.read_bytes()
    hidden.unlink()
    try:
        raw = spliced((directory / "vocab.txt").read_bytes(), drawn.draw(splices))
        watch.case(lambda: load_and_answer(directory, "vocab.txt", raw))
    finally:
        hidden.write_bytes(whole)


FILES = {
    "sst2.tsv": 'sentence\tlabel\na "good film\t1\nbad .\t0\n',
    "cola.tsv": "gj04\t1\t\tThey sailed.\ncj99\t0\t*\tSailed they it.\n",
    "mrpc.tsv": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t2\t3\ta\tb\r\n",
    "stsb.tsv": "index\tgenre\tsentence1\tsentence2\tscore\n0\tx\ta\tb\t4.750\n",
    "own.csv": 'text,text_pair,label\n"a, ""b""\nc",d,x\ne,f,y\n',
    "own.jsonl": '{"label": 1, "text": "a"}\n{"text": "b", "label": 0}\n',
}


@given(drawn=st.data(), name=st.sampled_from(sorted(FILES)))
def test_data_files(drawn, name, directory, watch):
    whole, file = FILES[name].encode(), directory.parent / name
    free = st.one_of(st.binary(max_size=60), st.text('\t\n\r",[]{}:ab01\\', max_size=60))
    raw = spliced(whole, drawn.draw(splices)) if drawn.draw(st.booleans()) else drawn.draw(free)
    file.write_bytes(raw if isinstance(raw, bytes) else raw.encode())

    def read():
        examples = data.read_examples(file)
        assert len(examples.texts) == len(examples.labels) == len(examples.lines) > 0
        assert examples.pairs is None or len(examples.pairs) == len(examples.texts)
        assert data.label_names(examples.labels)

    watch.case(read)


@given(st.one_of(st.text(), st.binary().map(lambda b: b.decode("utf-8", "surrogateescape"))))
def test_texts(text):
    assert shared()(text).tokens >= 2


@functools.cache
def shared():
    return Model.from_pretrained(TINY)
