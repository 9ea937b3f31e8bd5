"""Makes more texts of a training set, for a student whose teachers say what they mean.

    python -m minidact.study.augment --data train.tsv --init BACKBONE --out more.tsv --copies 3

A student can learn from any text that its teachers can answer (`train --teacher`), and a small set
has too few words for it. So each copy of a text has some of its words replaced by similar ones: by
those whose rows in the backbone's word table lie closest, by the cosine. TinyBERT's authors showed
how much that helps (Jiao et al., arXiv 1909.10351); their similar words come from other models. A
word may turn into its opposite. The label of a copy is that of its text, so it is not always right:
it is there for the file's layout, and teachers put their own answers in its place.
"""

import argparse
from pathlib import Path

import numpy as np

from .. import checkpoint, data
from ..errors import InputError, run_command
from ..files import write_file
from ..options import check_apart

WORDS = "bert.embeddings.word_embeddings.weight"


def similar(table: np.ndarray, count: int, part: int = 512) -> np.ndarray:
    """The count closest other rows of each row of a table (N, C): (N, count) int, closest first.

    part: rows that are compared at a time.
    """
    count = min(count, len(table) - 1)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    out = np.empty((len(table), count), int)
    for first in range(0, len(table), part):
        cosines = unit[first : first + part] @ unit.T  # (part, N)
        own = np.arange(len(cosines))
        cosines[own, first + own] = -np.inf
        near = np.argpartition(cosines, -count, axis=1)[:, -count:]
        order = np.argsort(-np.take_along_axis(cosines, near, 1), axis=1, kind="stable")
        out[first : first + part] = np.take_along_axis(near, order, 1)
    return out


def changed(text: str, others: dict[str, list[str]], share: float, rng: np.random.Generator) -> str:
    """The text with each known word replaced, with probability share, by one of its others."""
    words = text.split()
    for i in np.flatnonzero(rng.random(len(words)) < share):
        if words[i] in others:
            words[i] = str(rng.choice(others[words[i]]))
    return " ".join(words)


def whole_words(name: str) -> tuple[list[str], np.ndarray]:
    """A backbone's words of letters alone, and their rows of its word table, (N, C) float32."""
    path = checkpoint.resolve(name)
    config = checkpoint.read_config(path)
    table = checkpoint.read_backbone(path, config, heads=False)[WORDS]
    vocabulary = checkpoint.read_tokenizer(path, config).get_vocab()
    ids = {word: i for word, i in vocabulary.items() if word.isalpha() and i < len(table)}
    words = sorted(ids)
    return words, np.asarray(table[[ids[word] for word in words]], np.float32)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser("minidact.study.augment", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True, help="a labelled .tsv, .csv or .jsonl")
    parser.add_argument("--init", required=True, help="whose words: a directory, or a hub id")
    parser.add_argument("--out", required=True, help="a .tsv file: all texts, then the copies")
    parser.add_argument("--copies", type=int, default=3, help="of each text (default: 3)")
    parser.add_argument(
        "--share", type=float, default=0.4, help="of the words to replace (default: 0.4)"
    )
    parser.add_argument("--similar", type=int, default=15, help="words to take from (default: 15)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    return parser


def main() -> None:
    """Reads, changes, writes, and says how many rows there are."""
    o = parser().parse_args()
    if o.copies < 1 or o.similar < 1 or o.seed < 0 or not 0 < o.share <= 1:
        raise InputError("--copies and --similar must be 1 or more, --seed 0 or more, and --share "
                         "more than 0 and at most 1")  # fmt: skip
    if Path(o.out).suffix != ".tsv":
        raise InputError(f"--out {o.out}: the name must end in .tsv")
    check_apart(o, "out", "data")
    write_file(Path(o.out), b"", rehearse=True)
    examples = data.read_examples(o.data)
    if examples.pairs is not None:
        raise InputError(f"{o.data} has pairs of texts; this is for single ones")
    words, table = whole_words(o.init)
    if len(words) < 2:
        raise InputError(f"{o.init} knows no words of letters alone")
    closest = similar(table, o.similar)
    others = {word: [words[i] for i in near] for word, near in zip(words, closest, strict=True)}
    rng = np.random.default_rng(o.seed)
    texts = [" ".join(text.split()) for text in examples.texts]
    rows: dict[str, str] = {}  # a text is there once, with the label that it had first
    for turn in range(1 + o.copies):
        for text, label in zip(texts, examples.labels, strict=True):
            rows.setdefault(changed(text, others, o.share, rng) if turn else text, label)
    lines = "".join(f"{text}\t{label}\n" for text, label in rows.items())
    column = "score" if examples.metric == "pearson_spearman" else "label"
    write_file(Path(o.out), f"text\t{column}\n{lines}".encode("utf-8", "replace"))
    print(f"{o.out}: {len(rows)} rows, of which {len(set(texts))} are texts of {o.data}")


if __name__ == "__main__":
    run_command(main)
