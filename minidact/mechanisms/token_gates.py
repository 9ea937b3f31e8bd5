"""Token gates: drop words layer by layer (Jeong & Kwak; arXiv 2102.09727), with their regulariser.

The paper learns a gate for every layer and every *rank* that a word can have within its sentence,
ordered by importance, and drives each gate to 0 or 1. What importance is and how large the costs
are could not be read; those are ours, and so is what a gate multiplies.

    s_i     significance of token i: the attention it received in the last layer that ran, summed
            over heads and queries, less what it gave itself (PoWER-BERT's score)
    r(i)    its rank by s, the highest first, among its sentence's tokens that are still there;
            [CLS] stands outside, and its gate is 1
    g_l     the gates of layer l = 2..L, one for each of K bins of ranks, 0 <= g <= 1, at first 1

    G_1,i = 1    G_l,i = g_l[r(i)] G_{l-1},i                      how much of token i is there
    P_l,qk = G_l,k exp(e_qk) / sum_j G_l,j exp(e_qj)              in every softmax, of scores e
    x_{l+1},i = G_l,i F_l(x_l; G_l)_i + (1 - G_l,i) x_l,i         F_l: layer l of BERT

So a gate of 0 is the same as removing the row, a gate of 1 the same as none, all between is smooth,
and what is gone never returns. (Scaling the row instead, x_i <- g x_i, is not: with g = 0 its key
is the bias, and still gets attention.) The sorting has no gradient.

With relative ranks (the default) bin k holds the share k / K .. (k + 1) / K of the tokens that are
there, however many; with absolute ones it is the k-th token, and the last bin the rest.

    loss = task + lambda_1 sum_l c_l mean_k g_l[k] + lambda_2 mean_lk g_l[k] (1 - g_l[k])

c_l: the multiply-adds that a token kept costs from layer l on, as a share: early gates save more.
At g = 1 the last term pulls a gate up by lambda_2 / ((L - 1) K), the one before it pulls it down by
lambda_1 c_l / K: it stays at 1 unless lambda_1 c_l > lambda_2 / (L - 1). So lambda_2 is 0 at first,
while costs and task separate the gates, and grows in the middle of a training; for its last tenth
the gates are set to 0 or 1 and stay, so that what is left adapts to them.

In inference rank k stays iff g_l[k] >= 1/2, and rows that do not stay are removed.

Letters: T tokens of all sentences, whose boundaries are in offsets; L layers, K bins. Floats keep
the dtype they come in, bins are int64.

This file works on arrays only: it knows neither BERT nor the other mechanisms.
"""

from dataclasses import dataclass

import numpy as np

from .. import ragged
from ..errors import known
from .record import Knob, Mechanism, Sizes, setting

PREFIX = "tokens."  # of the gates' one tensor
NAME = f"{PREFIX}gates"
RANKS = ("relative", "absolute")
POOLS = ("last", "left")
OPEN = 0.5  # a gate below this is closed


def shapes(layers: int, bins: int) -> dict:
    """The gates of the layers after the first."""
    return {NAME: (layers - 1, bins)}


# ---------------------------------------------------------------------------- ranks


def bins_of(significance, there, offsets, bins: int, ranks: str = "relative", keep: float = 1.0):
    """Each token's bin (T,), or -1 where no gate is asked: [CLS], and tokens dropped before.

    significance (T,); there (T,) bool: not dropped yet; ranks: "relative" or "absolute". keep:
    ranks count 1 / keep of what they are, so that more than 1 keeps more tokens, and less keeps
    fewer. Raises InputError for other ranks.
    """
    known("ranks", ranks, RANKS)
    first, n = offsets[:-1], ragged.lengths(offsets)
    sentence, place = np.repeat(np.arange(len(n)), n), ragged.positions(offsets)
    # in a sentence [CLS] comes first, then who is there, then the rest
    group = np.where(place == 0, 0, np.where(there, 1, 2))
    order = np.lexsort((-significance, group, sentence))
    rank = np.empty(len(order), np.int64)
    rank[order] = place
    alive = np.add.reduceat(there.astype(np.int64), first) - 1  # beside [CLS]
    if ranks == "relative":
        others = np.maximum(np.repeat(alive, n), 1)
        index = (rank - 1) * bins / (others * keep)
    else:
        index = (rank - 1) / keep
    return np.where(group == 1, np.clip(index, 0, bins - 1).astype(np.int64), -1)


# ---------------------------------------------------------------------------- gates


def gates_forward(gates, index):
    """gates (K,) of one layer, index (T,) as bins_of says -> g (T,), 1 where index is -1."""
    return np.where(index < 0, gates.dtype.type(1), gates[index]), (gates.shape, index)


def gates_backward(dg, cache):
    """dg (T,) -> dgates (K,)."""
    shape, index = cache
    asked = index >= 0
    return np.bincount(index[asked], dg[asked], shape[0]).astype(dg.dtype)


def stays(gates, index):
    """Which rows go on (T,) bool: the hard gates."""
    return (index < 0) | (gates[index] >= OPEN)


def counts_what_is_left(pool: str) -> bool:
    """Does the mean of a sentence's rows count only those left ("left"), or all ("last")?"""
    return known("pool", pool, POOLS) == "left"


# ---------------------------------------------------------------------------- costs


def depth_shares(layers: int):
    """c_l for the layers 2..L, (L - 1,): in proportion to the layers from l on; they sum to 1."""
    left = np.arange(layers - 1, 0, -1)
    return left / left.sum()


def l1_forward(gates):
    """gates (L - 1, K) -> sum_l c_l mean_k g_l[k]: 1 when all are open."""
    shares = depth_shares(len(gates) + 1).astype(gates.dtype)
    return (shares * gates.mean(1)).sum(), (shares, gates.shape)


def l1_backward(dcost, cache):
    """-> dgates (L - 1, K)."""
    shares, shape = cache
    return np.tile((dcost * shares / shape[1])[:, None], (1, shape[1])).astype(shares.dtype)


def bimodal_forward(gates):
    """gates (L - 1, K) -> the mean of g (1 - g): 0 when every gate is 0 or 1."""
    return (gates * (1 - gates)).mean(), gates


def bimodal_backward(dcost, cache):
    """-> dgates (L - 1, K)."""
    gates = cache
    return ((1 - 2 * gates) * (dcost / gates.size)).astype(gates.dtype)


def decided(gates):
    """The gates as inference takes them, each 0 or 1."""
    return (gates >= OPEN).astype(gates.dtype)


def undecided(gates) -> float:
    """Mean of min(g, 1 - g): how far the gates are from 0 and 1."""
    return float(np.minimum(gates, 1 - gates).mean())


# ---------------------------------------------------------------------------- the record


@dataclass(frozen=True)
class TokenGates:
    """What token gates look like: the key "tokens" of config.json."""

    bins: int = setting(16, "gates of a layer", least=1, most=4_096)
    ranks: str = setting(
        "relative", "what a gate is for: ranks relative to a sentence's length, or absolute",
        choices=RANKS,
    )  # fmt: skip
    pool: str = setting(
        "last", "the mean of a sentence's rows counts a dropped one as it last was, or only those "
        "left", choices=POOLS,
    )  # fmt: skip


@dataclass(frozen=True)
class Prices:
    """What a training charges for tokens, and how fast gates move."""

    token_cost: float = setting(0.5, "price of keeping tokens (lambda_1); 0..5", most=1000)
    bimodal: float = setting(
        0.5, "price of a gate between 0 and 1 (lambda_2); in the last tenth of the steps gates are "
        "0 or 1", most=1000,
    )  # fmt: skip
    gate_lr: float | None = setting(
        None, "peak rate of the token gates; default: 10 / steps, at most 0.1, so that a gate can "
        "close and open again in a run of any length", most=1,
    )  # fmt: skip
    freeze_gates: bool = setting(
        False, "second of two stages: --init's token gates, set to 0 or 1, stay as they are"
    )


def _shapes(shape: TokenGates, sizes: Sizes) -> dict:
    return shapes(sizes.layers, shape.bins)


def _start(own: dict, shape: TokenGates, prices: Prices) -> None:
    own[NAME][:] = 1


def _macs(shape: TokenGates, sizes: Sizes) -> int:
    return 0  # token gates only sort


KEEP = Knob(
    1.0, "token gates: more than 1 keeps more tokens, less keeps fewer", least=1e-3,
    sweep=(0.25, 0.4, 0.6, 0.8, 1.0, 1.25, 1.6, 2.0, 3.0, 5.0), grid=(0.4, 0.6, 1.0, 1.6),
)  # fmt: skip

TOKEN_GATES = Mechanism(
    name="tokens", prefix=PREFIX, shape=TokenGates, prices=Prices,
    knobs={"keep": KEEP}, shapes=_shapes, start=_start, macs=_macs, least_layers=2,
)  # fmt: skip
