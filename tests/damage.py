"""What can be wrong with a model's directory and with a data file, and what is said of it."""

import json

import numpy as np
from safetensors.numpy import load_file, save_file

from minidact import checkpoint


def edit_config(directory, **changes):
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(raw | changes))


def edit_tensors(directory, function):
    file = directory / "model.safetensors"
    save_file(function(load_file(file)), file)


# ---------------------------------------------------------------------------- models


def truncated(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lying_header(directory):
    file = directory / "model.safetensors"
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])


def no_tensors(directory):
    (directory / "model.safetensors").unlink()


def pickle_only(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def missing(directory):
    edit_tensors(
        directory, lambda t: {n: a for n, a in t.items() if "layer.1.output.dense" not in n}
    )


def no_classifier(directory):
    edit_tensors(directory, lambda t: {n: a for n, a in t.items() if n.startswith("bert.")})


def unexpected(directory):
    edit_tensors(directory, lambda t: t | {"bert.encoder.layer.7.odd": np.ones(2, np.float32)})


def misshapen(directory):
    edit_tensors(directory, lambda t: t | {"classifier.bias": np.ones(5, np.float32)})


def not_a_number(directory):
    edit_tensors(directory, lambda t: t | {"classifier.bias": np.full(3, np.nan, np.float32)})


def infinite(directory):
    edit_tensors(directory, lambda t: t | {"classifier.bias": np.full(3, np.inf, np.float32)})


def integers(directory):
    edit_tensors(directory, lambda t: t | {"classifier.bias": np.ones(3, np.int32)})


def no_config(directory):
    (directory / "config.json").unlink()


def bad_json(directory):
    (directory / "config.json").write_text('{"hidden_size": ')


def a_list(directory):
    (directory / "config.json").write_text("[]")


def no_tokenizer(directory):
    (directory / "vocab.txt").unlink()


def bad_tokenizer(directory):
    (directory / "tokenizer.json").write_text("{}")


def tokenizer_that_panics(directory):
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}
    (directory / "tokenizer.json").write_text(json.dumps({"model": model}))


def poor_vocabulary(directory):
    (directory / "vocab.txt").write_text("a\nb\n")


def rich_vocabulary(directory):
    with open(directory / "vocab.txt", "a") as file:
        file.write("".join(f"word{i}\n" for i in range(50)))


def bare_tokenizer(directory):
    """It adds no [CLS] and [SEP], so an empty text would have no tokens at all."""
    whole = checkpoint.read_tokenizer(directory, checkpoint.read_config(directory))
    raw = json.loads(whole.to_str())
    (directory / "tokenizer.json").write_text(json.dumps(raw | {"post_processor": None}))


def twice(directory):
    """One tensor under two names that mean the same."""
    name = "embeddings.word_embeddings.weight"
    edit_tensors(directory, lambda t: t | {name: t[f"bert.{name}"]})


def beyond_float32(directory):
    edit_tensors(directory, lambda t: t | {"classifier.bias": np.full(3, 1e300)})


def nested(directory):
    """A key that nobody reads, deeper than what writes JSON can go."""
    file = directory / "config.json"
    deep = "[" * 900 + "]" * 900
    file.write_text(file.read_text().replace("{", f'{{"notes": {deep},', 1))


def config(**changes):
    def change(directory):
        edit_config(directory, **changes)

    change.__name__ = "config " + " ".join(changes)
    return change


def under_way(directory):
    (directory / "model.safetensors").rename(directory / "training.safetensors")


def index_elsewhere(directory):
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"classifier.bias": "../model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_missing(directory):
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"classifier.bias": "model-00001-of-00001.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


BROKEN = [
    (under_way, "its training is not done; go on with: python -m minidact.train --out"),
    (index_elsewhere, "it names no files of its own directory"),
    (shard_missing, "has no model-00001-of-00001.safetensors"),
    (truncated, "damaged or not a safetensors file"),
    (lying_header, "damaged or not a safetensors file"),
    (no_tensors, "no model.safetensors"),
    (pickle_only, "never read; where you trust them and have transformers, convert them there"),
    (missing, "lacks bert.encoder.layer.1.output.dense.bias"),
    (no_classifier, "fine-tune it first"),
    (unexpected, "bert.encoder.layer.7.odd"),
    (misshapen, "tensor classifier.bias has shape (5,), config.json wants (3,)"),
    (not_a_number, "tensor classifier.bias holds NaN or infinity"),
    (infinite, "tensor classifier.bias holds NaN or infinity"),
    (integers, "classifier.bias is of type I32"),
    (twice, "holds bert.embeddings.word_embeddings.weight twice, under two names"),
    (beyond_float32, "tensor classifier.bias holds NaN or infinity"),
    (nested, "notes holds a number that is not finite, or more than 100"),
    (config(notes={"a": [float("-inf")]}), "notes holds a number that is not finite"),
    (no_config, "no config.json"),
    (bad_json, "not readable as JSON"),
    (a_list, "does not hold a JSON object"),
    (no_tokenizer, "neither tokenizer.json nor vocab.txt"),
    (bad_tokenizer, "the tokenizer in"),
    (bare_tokenizer, "adds no [CLS] and [SEP]"),
    (tokenizer_that_panics, "the tokenizer in"),
    (poor_vocabulary, "lacks [UNK], [CLS], [SEP]"),
    (rich_vocabulary, "ids up to 112"),
    (config(model_type="roberta"), "'roberta' model, not 'bert'"),
    (config(hidden_act="relu"), "only 'gelu'"),
    (config(minidact={"text_pairs": "yes"}), "minidact.text_pairs must be true or false"),
    (config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    (config(hidden_size="36"), "hidden_size is '36'"),
    (config(num_attention_heads=5), "not a multiple"),
    (config(id2label={"0": "a", "5": "b"}), "id2label"),
    (config(id2label=7), "id2label"),
    (config(position_embedding_type="relative_key"), "relative positions"),
    (config(minidact={"halting": {"trunk_size": 0}}), "trunk_size is 0"),
    (
        config(minidact={"planning": {"planner": "tree"}}),
        "planner is 'tree'; there are: steps, path",
    ),
    (config(minidact={"tokens": {"bins": 10**9}}), "bins is 1000000000; it must lie in 1..4096"),
    (config(minidact={"tokens": {"rank": 3}}), "minidact.tokens may hold bins, ranks, pool only"),
    (
        config(minidact={"budgets": [{"macs_fraction": "much", "knobs": {}}]}),
        "budgets is not a list",
    ),
    (config(minidact={"certificates": [{"risk": 0.1}]}), "certificates is not a list"),
    (config(minidact={"summary": "max"}), "summary is 'max'"),
    (config(minidact={"halting": {}}), "lacks dact.layer.0"),
    (config(problem_type="regression"), "3 labels do not fit a regression"),
    (config(is_decoder=True), "only encoders"),
]

# ---------------------------------------------------------------------------- files

BAD = {
    "rows.tsv": (b"sentence\tlabel\na\t1\nb\n", "line 3: 1 columns, the header has 2"),
    "more.csv": (b'text,label\n"a\nb",1\nc,1,2\n', "line 4: 3 columns"),
    "utf8.tsv": (b"sentence\tlabel\na\t1\n\xff\xfe\t0\n", "line 3: not valid UTF-8"),
    "empty.tsv": (b"", "is empty"),
    "blank.jsonl": (b"\n\n", "is empty"),
    "header.tsv": (b"sentence\tlabel\n", "a header but no rows"),
    "quote.csv": (b'text,label\na,1\n"b,0\nc,1\n', "line 3: unexpected end of data"),
    "tabs.tsv": (b"text\tlabel\na\t1\n\t\t\n", "line 3: 3 columns"),
    "names.tsv": (b"foo\tbar\n1\t2\n", "needs a text (or sentence) and a label"),
    "nolabel.tsv": (b"text\tlabel\na\t\n", "line 2: the label is empty"),
    "broken.jsonl": (b'{"text": "a", "label": 1}\n{"text": \n', "line 2: not JSON"),
    "nan.jsonl": (b'{"text": NaN, "label": 1}\n', "line 1: not JSON (NaN is not of JSON)"),
    "huge.jsonl": (b'{"text": "a", "label": 1e999}\n', "line 1: not JSON (1e999 is not of JSON)"),
    "twice.tsv": (b"id\tid\ttext\tlabel\n1\t2\ta\t1\n", "names the column 'id' twice"),
    "list.jsonl": (b"[1, 2]\n", "line 1: not a JSON object"),
    "keys.jsonl": (b'{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2: its keys differ"),
    "null.jsonl": (b'{"text": null, "label": 1}\n', "line 1: text is neither"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000, "line 1: not JSON"),
    "file.xlsx": (b"x", "must end in .tsv, .csv or .jsonl"),
}
