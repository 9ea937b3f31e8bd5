"""The ragged batch: the real tokens of all sentences end to end, and where each sentence begins.

Letters used in the shape comments of this package:
    B sentences   T tokens of the batch   C hidden size   H heads   K head size (C = H K)
    F feed-forward size   V vocabulary   L layers   Y labels

    x        (T, C)    every token is one row; there is no padding anywhere
    offsets  (B + 1,)  int64; sentence b owns the rows offsets[b] : offsets[b + 1]

Everything in a transformer but attention works row by row, so no mask is ever needed; and every
mechanism that saves work does it by choosing which rows go on, which is `select`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """Token ids (T,), segment ids (T,), offsets (B + 1,): the input of a model."""

    ids: np.ndarray
    segments: np.ndarray
    offsets: np.ndarray


def concatenate(sentences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """[(n_b, ...)] of each sentence -> ((T, ...), offsets (B + 1,))."""
    lengths = [len(sentence) for sentence in sentences]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.concatenate(sentences), offsets


def split(x: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """The inverse of concatenate; the parts are views of x."""
    return np.split(x, offsets[1:-1])


def lengths(offsets: np.ndarray) -> np.ndarray:
    """Tokens of each sentence, (B,)."""
    return offsets[1:] - offsets[:-1]


def positions(offsets: np.ndarray) -> np.ndarray:
    """Place of every row within its own sentence, (T,): 0 1 2 .. 0 1 .."""
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths(offsets))


def select(offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sentences that go on: keep (B,) bool -> (rows, their offsets).

    rows (T',) are the indices of the kept sentences' rows, in order: x[rows] is the smaller batch.
    """
    rows = np.flatnonzero(np.repeat(keep, lengths(offsets)))
    return rows, np.concatenate([[0], np.cumsum(lengths(offsets)[keep])])


def thin(offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that go on: keep (T,) bool -> (rows (T',), their offsets); no sentence is lost."""
    return np.flatnonzero(keep), np.concatenate([[0], np.cumsum(keep)])[offsets]
