"""The mean of several models' weights, which often answers better than any of them.

    python -m minidact.study.soup --models a,b,c --out DIR

Models that were fine-tuned from one backbone, with other texts, rates or seeds, lie so near to
each other that the mean of their weights is a model too. It takes the time of one, and is nearly as
good as the mean of all their answers (Wortsman et al., arXiv 2203.05482, who named it a soup). Its
doubts are blunter than theirs: it halts later, until it is trained a little further.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from .. import checkpoint
from ..config import Config
from ..errors import InputError, run_command
from ..options import check_unused, comma_list


def mean(names: Sequence[str]) -> tuple[Config, dict[str, np.ndarray], Tokenizer]:
    """The models' common config, the mean of their parameters (float32), the first one's tokenizer.

    names: two models or more: directories, hub ids, or names in weights/. Budgets and certificates
    do not come along: they are of other weights. Raises InputError for models of different kinds.
    """
    config, params, tokenizer = checkpoint.load(names[0])
    total = {key: array.astype(np.float64) for key, array in params.items()}
    for name in tqdm(names[1:], desc="adding", unit="model"):
        other, params, words = checkpoint.load(name)
        if other != config:
            raise InputError(f"{name} and {names[0]} have different config.json: they have no mean")
        if words.get_vocab() != tokenizer.get_vocab():
            raise InputError(f"{name} and {names[0]} number their words in different ways")
        for key, array in params.items():
            total[key] += array
    config = dataclasses.replace(config, budgets=(), certificates=())
    means = {key: (array / len(names)).astype(np.float32) for key, array in total.items()}
    return config, means, tokenizer


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser("minidact.study.soup", description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", required=True, help="two or more, with commas between them")
    parser.add_argument("--out", required=True, help="a directory for the mean")
    return parser


def main() -> None:
    """Adds, divides, saves."""
    o = parser().parse_args()
    names = comma_list(o.models)
    if len(names) < 2:
        raise InputError(f"--models {o.models}: a mean takes two models or more, as in a,b")
    check_unused(o.out)
    checkpoint.save(o.out, *mean(names))
    print(f"saved {o.out}, the mean of {len(names)} models")


if __name__ == "__main__":
    run_command(main)
