"""The ragged batch: the tokens of all sentences end to end, without padding, and their offsets.

These letters are used in the shape comments of the package:
    B sentences   T tokens of the batch   C hidden size   H heads   K head size (C = H K)
    F feed-forward size   V vocabulary   L layers   Y labels

    x        (T, C)    one row for each token; there is no padding anywhere
    offsets  (B + 1,)  int64; sentence b owns the rows offsets[b] : offsets[b + 1]

All parts of a transformer but attention work row by row, so a mask is never needed. A mechanism
saves work by choosing the rows that go on: whole sentences with `select`, tokens with `thin`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """The input of a model: token ids (T,), segment ids (T,), offsets (B + 1,), all int64."""

    ids: np.ndarray
    segments: np.ndarray
    offsets: np.ndarray


def concatenate(sentences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sentences' arrays end to end, (T, ...), and their offsets (B + 1,), int64.

    sentences: an array (n_b, ...) for each sentence, at least one.
    """
    offsets = np.zeros(len(sentences) + 1, np.int64)
    np.cumsum([len(sentence) for sentence in sentences], out=offsets[1:])
    return np.concatenate(sentences), offsets


def split(x: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """Returns one array (n_b, ...) for each sentence, as views of x (T, ...).

    This is the inverse of concatenate.
    """
    return np.split(x, offsets[1:-1])


def lengths(offsets: np.ndarray) -> np.ndarray:
    """Returns the number of tokens of each sentence, (B,) int64."""
    return offsets[1:] - offsets[:-1]


def positions(offsets: np.ndarray) -> np.ndarray:
    """Returns the position of every row within its sentence, (T,) int64: 0 1 2 .. 0 1 .."""
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths(offsets))


def select(offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows (T',) and the offsets of the sentences that go on: those in keep (B,) bool.

    rows are the indices of these sentences' rows, in order: x[rows] is the smaller batch.
    """
    rows = np.flatnonzero(np.repeat(keep, lengths(offsets)))
    return rows, np.concatenate([[0], np.cumsum(lengths(offsets)[keep])])


def thin(offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows (T',) that go on, those in keep (T,) bool, and their offsets (B + 1,).

    rows are indices: x[rows] is the smaller batch. It still has all B sentences.
    """
    return np.flatnonzero(keep), np.concatenate([[0], np.cumsum(keep)])[offsets]
