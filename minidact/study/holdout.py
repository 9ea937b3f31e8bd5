"""Holds texts out of a training set that has sentences and their phrases, as SST-2's has.

    python -m minidact.study.holdout --data SST-2/train.tsv --out SPLIT --certify 2000 --choose 600

A certificate needs texts like those to come, that neither trained the model nor chose its knobs.
SST-2's dev set is for the report alone. So whole sentences are drawn from the training set by the
seed: certify.tsv for the certificates, choose.tsv for every choice. A sentence is whole if it is
part of no other row. The rest is train.tsv, without the phrases of held-out sentences: a phrase
stays only if a sentence that stays has it, too.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..data import read_examples
from ..errors import InputError, run_command
from ..files import make_directory, write_file

PARTS = ("certify.tsv", "choose.tsv", "train.tsv")


def split(
    texts: Sequence[str], certify: int, choose: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of certify.tsv, of choose.tsv and of train.tsv, each in the order of the texts.

    texts: words between single spaces. Raises InputError if there are fewer whole sentences than
    certify + choose.
    """
    parents = containing(texts)
    whole = sorted({text for text, of in parents.items() if not of})
    if certify + choose > len(whole):
        wanted = f"{certify} + {choose} were to be held out"
        raise InputError(f"there are {len(whole)} whole sentences; {wanted}")
    drawn = np.random.default_rng(seed).permutation(len(whole))
    certified = {whole[i] for i in drawn[:certify]}
    chosen = {whole[i] for i in drawn[certify : certify + choose]}
    kept = {whole[i] for i in drawn[certify + choose :]}

    def stays(text):
        return text in kept or any(parent in kept for parent in parents[text])

    def rows(wanted):
        return np.array([i for i, text in enumerate(texts) if wanted(text)], int)

    return rows(certified.__contains__), rows(chosen.__contains__), rows(stays)


def containing(texts: Iterable[str]) -> dict[str, list[str]]:
    """{text: the whole sentences that it is a part of}; a whole sentence has an empty list."""
    parents: dict[str, list[str]] = {}
    having: dict[tuple[str, ...], list[str]] = defaultdict(list)  # whole sentences by word and pair
    for text in sorted(set(texts), key=lambda text: (-len(text.split()), text)):
        words = text.split()
        part = f" {text} "
        parents[text] = [s for s in having[tuple(words[:2])] if part in f" {s} "]
        if not parents[text]:
            for key in {(word,) for word in words} | set(pairwise(words)):
                having[key].append(text)
    return parents


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser("minidact.study.holdout", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True, help="a .tsv of sentences and their phrases")
    parser.add_argument("--out", required=True, help="directory for the three files")
    parser.add_argument("--certify", type=int, default=2000, help="sentences (default: 2000)")
    parser.add_argument("--choose", type=int, default=600, help="sentences (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    return parser


def main() -> None:
    """Reads, splits, writes, and says how many rows each file has."""
    o = parser().parse_args()
    if min(o.certify, o.choose, o.seed) < 0:
        raise InputError("--certify, --choose and --seed must be 0 or more")
    if Path(o.data).suffix != ".tsv":
        raise InputError(f"{o.data}: the name must end in .tsv")
    for name in PARTS:  # the rest of an earlier split, or the whole of another data set
        if (Path(o.out) / name).exists():
            raise InputError(f"{Path(o.out) / name} is there already; choose another --out")
    examples = read_examples(o.data)
    if examples.pairs:
        raise InputError(
            f"{o.data} has two texts in a row, and sentences are held out of single ones"
        )
    lines = Path(o.data).read_bytes().split(b"\n")  # as read_examples counts them
    if not lines[0].strip() or examples.lines[0] == 1:
        raise InputError(f"{o.data}: the first line must be the header")
    texts = [" ".join(text.split()) for text in examples.texts]
    parts = split(texts, o.certify, o.choose, o.seed)
    out = make_directory(o.out)
    for name, rows in zip(PARTS, parts, strict=True):
        write_file(
            out / name, b"\n".join([lines[0], *(lines[examples.lines[i] - 1] for i in rows), b""])
        )
        print(f"{out / name}: {len(rows)} rows")


if __name__ == "__main__":
    run_command(main)
