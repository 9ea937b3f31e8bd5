"""The hard pass: inference. What is decided leaves, what is gated is not computed.

For every layer, on the rows still alive:
  1. planning gates: which sentences include the layer (the first is always included);
  2. token gates: which of their rows stay, by the attention they got in the last layer that ran;
  3. the layer, on those rows only;
  4. halting: sentences whose answer can change no more leave.
1, 2 and 4 are one act, choosing rows of a ragged batch, so time falls with the work at any batch
size. With no mechanism in use the layers are plain BERT's, bit for bit.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from . import bert, ragged
from .config import Config
from .errors import InputError, known
from .fast.layers import Reference
from .mechanisms import KNOBS, dact, exits, planning, token_gates
from .network import Network, full_macs, has_classifier, macs
from .ragged import Batch


class Answers(NamedTuple):
    """What the hard pass says of B sentences, T tokens, and what it spent.

    The last three are halting's: NaN where a layer did not run, and in a model without halting. If
    it stops by a rule that does not average, so_far is y_n, and the others, which say nothing then,
    are NaN.
    """

    probs: np.ndarray  # (B, Y) probabilities; of a regression: the value (B, 1)
    layers_run: np.ndarray  # (B, L) bool
    lengths: np.ndarray  # (B, L) int, rows that each layer worked on
    stayed: np.ndarray  # (T,) int, the first layer that a token was dropped before; L: never
    macs: np.ndarray  # (B,) int, multiply-adds executed
    macs_full: np.ndarray  # (B,) int, the same with no mechanism in use
    so_far: np.ndarray  # (B, L, Y) the accumulated answer a_n after each layer
    doubts: np.ndarray  # (B, L) the doubt p_n
    margins: np.ndarray  # (B, L) lower bound less upper bound; >= 0: the class cannot change


class Knobs(SimpleNamespace):
    """What spends more or less at inference; the defaults are what training aimed at.

    use: the mechanisms switched on. Beside it, each knob of theirs by its name (their files say
    which there are): Knobs(("halting",), slack=0.4).slack is 0.4.
    """

    def __init__(self, use: tuple[str, ...] = (), **given: Any):
        for name in given:
            known("knob", name, KNOBS)
        usual = {name: knob.usual for name, knob in KNOBS.items()}
        super().__init__(use=tuple(use), **(usual | given))


NOTHING = Knobs()  # nothing adaptive


def check_knobs(config: Config, knobs: Knobs) -> None:
    """Raises InputError for mechanisms that the model lacks, and for values that cannot be."""
    for name in knobs.use:
        if not isinstance(name, str) or name not in config.mechanisms:
            has = ", ".join(config.mechanisms) or "no mechanism"
            raise InputError(f"the model does not carry {name!r}; it has {has}")
    for name, knob in KNOBS.items():
        value = getattr(knobs, name)
        if wrong := knob.misfit(value):
            raise InputError(f"{name} is {value!r}{wrong}")
    if knobs.rule is None:
        if knobs.at is not None:
            raise InputError("at is the knob of a rule: give a rule with it")
        return
    rule = exits.RULES[knobs.rule]
    if "halting" not in knobs.use:
        raise InputError(f"the rule {knobs.rule!r} needs halting in use")
    if "planning" in knobs.use and not rule.averages:
        raise InputError(f"the rule {knobs.rule!r} cannot be used beside planning")
    if knobs.at is not None and rule.set_by != "at":
        raise InputError(f"the rule {knobs.rule!r} is set by {rule.set_by}, not by at")
    if knobs.at is not None and (wrong := rule.knob.misfit(knobs.at)):
        raise InputError(f"at is {knobs.at!r}{wrong}")


def hard_forward(net: Network, batch: Batch, knobs: Knobs = NOTHING, layers: Any = None) -> Answers:
    """Answers for a batch.

    layers: what runs a layer, such as fast/packed.py's; without it bert.py does, with net.calc.
    """
    layers = layers or Reference(net.params, net.config, net.calc)
    work = _Pass(net, batch, knobs, layers)
    for layer in range(net.config.num_hidden_layers):
        run = work.plan(layer)
        if run.any():
            work.drop_tokens(layer, run)
            work.run_layer(layer, run)
        work.halt(layer, run)
        if not len(work.alive):
            break
    return work.answers()


class _Pass:
    """A hard pass under way: the rows still alive, whose they are, and what is known so far."""

    def __init__(self, net: Network, batch: Batch, knobs: Knobs, layers: Any):
        self.net, self.knobs, self.layers = net, knobs, layers
        self.params, self.config, self.calc, _ = net
        self.halting = self.config.mechanisms.get("halting")
        self.planning = "planning" in knobs.use and self.config.mechanisms["planning"]
        self.gates = "tokens" in knobs.use and self.config.mechanisms["tokens"]
        if self.halting:
            trained = known("trained", self.halting.trained, exits.HEADS)
            self.rule = exits.RULES[knobs.rule or exits.HEADS[trained].rule]
        count, depth = len(batch.offsets) - 1, self.config.num_hidden_layers
        self.all_lengths = ragged.lengths(batch.offsets)
        self.workspace = layers.workspace(batch.offsets)
        # the rows alive (T') and their sentences (B')
        self.x, _ = bert.embeddings_forward(self.params, self.config, batch, self.calc)
        self.offsets, self.alive = batch.offsets, np.arange(count)
        self.place, self.received = np.arange(len(self.x)), np.zeros(len(self.x), self.x.dtype)
        # of all sentences (B): the sum of the rows dropped, the summary, the answer, the doubt
        dtype, size = self.x.dtype, self.config.hidden_size
        self.dropped = np.zeros((count, size), dtype)
        self.s = self._summary() if self.planning else np.zeros((count, size), dtype)
        self.a, self.p = np.zeros((count, self.config.num_labels), dtype), np.ones(count, dtype)
        self.y, self.h = np.zeros((depth, *self.a.shape), dtype), np.ones((depth, count), dtype)
        # what is reported
        self.asked = {name: np.zeros(count, np.int64) for name in self.config.mechanisms}
        self.lengths, self.stayed = np.zeros((count, depth), int), np.full(len(self.x), depth)
        self.so_far = np.full((count, depth, self.config.num_labels), np.nan)
        self.doubts, self.margins = np.full((2, count, depth), np.nan)
        self.path = None
        if self.planning and not planning.is_stepwise(self.planning.planner):
            self.path, _ = planning.planner_forward(self.s, self.params, planning.PATH, self.calc)
            self.asked["planning"] += 1

    def plan(self, layer: int):
        """1. Which of the sentences alive include the layer, (B',) bool."""
        if layer == 0 or not self.planning:
            return np.ones(len(self.alive), bool)
        if self.path is not None:
            pi = self.path[self.alive, layer - 1]
        else:
            s, name = self.s[self.alive], planning.step_name(layer)
            pi = planning.planner_forward(s, self.params, name, self.calc)[0][:, 0]
            self.asked["planning"][self.alive] += 1
        return planning.draw(pi, None, self.knobs.threshold) > 0

    def drop_tokens(self, layer: int, run):
        """2. Rows of the sentences in run (B',) whose gate is closed leave for good."""
        if layer == 0 or not self.gates:
            return
        there, n = np.ones(len(self.x), bool), ragged.lengths(self.offsets)
        how = (self.gates.bins, self.gates.ranks, self.knobs.keep)
        index = token_gates.bins_of(self.received, there, self.offsets, *how)
        keep = token_gates.stays(self.params[token_gates.NAME][layer - 1], index)
        keep |= ~np.repeat(run, n)
        if keep.all():
            return
        gone = np.flatnonzero(~keep)
        losers, first = np.unique(np.repeat(self.alive, n)[gone], return_index=True)
        self.dropped[losers] += np.add.reduceat(self.x[gone], first)
        self.stayed[self.place[gone]] = layer
        rows, self.offsets = ragged.thin(self.offsets, keep)
        self._take(rows)

    def run_layer(self, layer: int, run):
        """3. The layer, on the rows of the sentences in run (B',) and on no other."""
        rows: Any = slice(None)
        offsets = self.offsets
        if not run.all():
            rows, offsets = ragged.select(self.offsets, run)
        x = self.x[rows]
        received = self.layers.layer(layer, x, offsets, self.workspace)  # changes x
        if self.gates:
            self.received[rows] = received if received.ndim == 1 else received.sum(0)
        if not run.all():  # else x is self.x
            self.x[rows] = x
        self.lengths[self.alive[run], layer] = ragged.lengths(offsets)
        if self.halting or self.planning:
            self.s[self.alive] = self._summary()

    def halt(self, layer: int, run):
        """4. The units of the sentences in run (B',) speak; those alive that are decided leave."""
        if not self.halting:
            return
        ran, left = self.alive[run], self.config.num_hidden_layers - layer - 1
        if len(ran):
            name = dact.unit_name(layer)
            _, y, h, _ = dact.unit_forward(self.s[ran], self.params, name, self.calc)
            self.y[layer, ran], self.h[layer, ran] = y, h
            a, self.p[ran] = dact.accumulate_step(self.a[ran], self.p[ran], y, h)
            self.a[ran] = self.so_far[ran, layer] = a if self.rule.averages else y
            self.asked["halting"][ran] += 1
        a, p, margin = self.a[self.alive], self.p[self.alive], None
        if self.rule.averages:
            # of those that left the layer out, too: there is one less to change their answer
            margin = dact.margin(a, p, left, self.knobs.bound)
            self.doubts[ran, layer], self.margins[ran, layer] = p[run], margin[run]
        if "halting" not in self.knobs.use:
            return
        said = (slice(layer + 1), self.alive)
        at = getattr(self.knobs, self.rule.set_by)
        now = exits.Known(self.y[said], self.h[said], a, margin)
        going = ~self.rule.stop(now, self.rule.knob.usual if at is None else at)
        if not going.all():
            rows, self.offsets = ragged.select(self.offsets, going)
            self._take(rows)
            self.alive = self.alive[going]

    def answers(self) -> Answers:
        config, answer = self.config, self.a
        if has_classifier(config):
            s = self._summary()
            answer, _ = bert.classifier_forward(self.params, config, s, self.calc)
            if config.problem_type != "regression":
                answer, _ = self.calc.softmax_forward(answer)
        return Answers(
            answer, self.lengths > 0, self.lengths, self.stayed,
            macs(config, self.lengths, self.asked), full_macs(config, self.all_lengths),
            self.so_far, self.doubts, self.margins,
        )  # fmt: skip

    def _take(self, rows):
        self.x, self.place, self.received = self.x[rows], self.place[rows], self.received[rows]

    def _summary(self):
        """(B', C): [CLS] rows, or means of the rows as the token gates' `pool` counts them."""
        kind = self.config.summary
        s, _ = bert.summary_forward(self.x, self.offsets, kind, self.calc)
        if kind != "mean" or not self.gates or token_gates.counts_what_is_left(self.gates.pool):
            return s
        n, whole = ragged.lengths(self.offsets)[:, None], self.all_lengths[self.alive][:, None]
        return (s * n.astype(s.dtype) + self.dropped[self.alive]) / whole.astype(s.dtype)
