"""The hard pass: inference. What is decided leaves, what is gated is not computed.

For every layer, on the rows still alive:
  1. planning gates: which sentences include the layer (the first is always included);
  2. token gates or selection: which of their rows stay, by the attention that they got in the last
     layer that ran, or by what a policy says of them;
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
from .mechanisms import (
    KNOBS,
    check_together,
    check_turned,
    exits,
    planning,
    selection,
    token_gates,
)
from .network import Network, full_macs, has_classifier, macs
from .ragged import Batch


class Answers(NamedTuple):
    """What the hard pass says of B sentences, T tokens, and what it spent.

    The last three are halting's: NaN where a layer did not run, and in a model without halting; a
    margin is there also where planning left a layer out. If it stops by a rule that does not
    average, so_far is y_n, and the others, which say nothing then, are NaN.
    """

    probs: np.ndarray  # (B, Y) probabilities; of a regression: the value (B, 1)
    layers_run: np.ndarray  # (B, L) bool
    lengths: np.ndarray  # (B, L) int, rows that each layer worked on
    stayed: np.ndarray  # (T,) int, the first layer that a token was dropped before; L: never
    chances: np.ndarray  # (T, L) pi of the policy before each layer, NaN: not asked; unused: (T, 0)
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
    check_together(knobs.use)
    check_values(knobs)
    check_turned(knobs.use, vars(knobs))
    if knobs.rule is None and knobs.at is not None:
        raise InputError("at is the knob of a rule: give a rule with it")
    if "halting" not in knobs.use:
        return
    name = knobs.rule or exits.HEADS[config.mechanisms["halting"].trained].rule
    rule = exits.RULES[name]
    if "planning" in knobs.use and not rule.averages:
        raise InputError(f"the rule {name!r} cannot be used beside planning")
    if knobs.at is not None and rule.set_by != "at":
        raise InputError(f"the rule {name!r} is set by {rule.set_by}, not by at")
    if knobs.at is not None and (wrong := rule.knob.misfit(knobs.at)):
        raise InputError(f"at is {knobs.at!r}{wrong}")
    for other in ("slack", "bound"):
        if getattr(knobs, other) != KNOBS[other].usual and not rule.averages:
            raise InputError(f"the rule {name!r} does not know {other}")


def check_values(knobs: Knobs) -> None:
    """Raises InputError for a value that its knob cannot have, in whatever model."""
    for name, knob in KNOBS.items():
        value = getattr(knobs, name)
        if wrong := knob.misfit(value):
            raise InputError(f"{name} is {value!r}{wrong}")


def hard_forward(net: Network, batch: Batch, knobs: Knobs = NOTHING, layers: Any = None) -> Answers:
    """Answers for a batch.

    layers: what runs a layer, such as fast/packed.py's; without it bert.py does, with net.calc.
    """
    layers = layers or Reference(net.params, net.config, net.calc)
    work = _Pass(net, batch, knobs, layers)
    for layer in range(net.config.num_hidden_layers):
        run = work.plan(layer)
        if run is None or run.any():
            work.drop_tokens(layer, run)
            work.run_layer(layer, run)
        work.halt(layer, run)
        if not len(work.alive):
            break
    return work.answers()


class _Pass:
    """A hard pass under way: the rows still alive, whose they are, and what is known so far.

    Which of the sentences alive run a layer is `run`, (B',) bool, or None for all of them.
    """

    def __init__(self, net: Network, batch: Batch, knobs: Knobs, layers: Any):
        self.params, self.config, self.calc, _ = net
        self.knobs, self.layers = knobs, layers
        self.halting = self.config.mechanisms.get("halting")
        self.planning = "planning" in knobs.use and self.config.mechanisms["planning"]
        self.gates = "tokens" in knobs.use and self.config.mechanisms["tokens"]
        self.selection = "selection" in knobs.use and self.config.mechanisms["selection"]
        if self.halting:
            trained = known("trained", self.halting.trained, exits.HEADS)
            self.rule = exits.RULES[knobs.rule or exits.HEADS[trained].rule]
        count, depth = len(batch.offsets) - 1, self.config.num_hidden_layers
        self.all_lengths = ragged.lengths(batch.offsets)
        self.workspace = layers.workspace(batch.offsets)
        # the rows alive (T'), and of their sentences (B'): answer, doubt, sum of the rows dropped
        self.x = layers.embed(batch)
        dtype, labels = self.x.dtype, self.config.num_labels
        self.offsets, self.alive = batch.offsets, np.arange(count)
        self.place, self.received = np.arange(len(self.x)), np.zeros(len(self.x), dtype)
        self.a, self.p = np.zeros((count, labels), dtype), np.ones(count, dtype)
        left = not self.gates or token_gates.counts_what_is_left(self.gates.pool)
        if self.selection:
            left = selection.counts_what_is_left(self.selection.selection_pool)
        self.counts_all = self.config.summary == "mean" and not left
        self.dropped = np.zeros((count, self.config.hidden_size if self.counts_all else 0), dtype)
        # what is reported of all sentences (B)
        self.answer = np.zeros((count, labels), dtype)
        self.asked = {name: np.zeros(count, int) for name in self.config.mechanisms}
        self.lengths, self.stayed = np.zeros((depth, count), int), np.full(len(self.x), depth)
        self.chances = np.full((depth if self.selection else 0, len(self.x)), np.nan, dtype)
        often = self.selection.reductions if self.selection else 0
        self.policies = selection.places(depth, often)
        self.so_far = np.full((depth, count, labels), np.nan, dtype)
        self.h = np.ones((depth, count), dtype)
        self.doubts, self.margins = np.full((2, depth, count), np.nan)
        self.s: Any = self._summary() if self.planning else None
        self.path: Any = None
        if self.planning and not planning.is_stepwise(self.planning.planner):
            self.path = layers.planner(planning.PATH, self.s)
            self.asked["planning"] += 1

    def _who(self, run=None) -> Any:
        """Where the report has the sentences in run. Of all of them: a slice, which is quicker."""
        if run is not None:
            return self.alive[run]
        return self.alive if len(self.alive) < len(self.answer) else slice(None)

    def plan(self, layer: int):
        """1. Which of the sentences alive include the layer."""
        if layer == 0 or not self.planning:
            return None
        if self.path is not None:
            pi = self.path[self.alive, layer - 1]
        else:
            pi = self.layers.planner(planning.step_name(layer), self.s)[:, 0]
            self.asked["planning"][self.alive] += 1
        run = planning.draw(pi, None, self.knobs.threshold) > 0
        return None if run.all() else run

    def drop_tokens(self, layer: int, run):
        """2. Rows of the sentences in run whose gate is closed leave for good."""
        if layer == 0 or not (self.gates or layer in self.policies):
            return
        asked = np.ones(len(self.alive), bool) if run is None else run
        if self.gates:
            keep = self.layers.stays(layer, self.received, self.offsets, asked, self.knobs.keep)
        else:
            keep = self.selected(layer, asked)
        if keep.all():
            return
        self.stayed[self.place[~keep]] = layer
        if self.counts_all:
            self.layers.add_dropped(self.x, self.offsets, keep, self.dropped)
        rows, self.offsets = ragged.thin(self.offsets, keep)
        self._take(rows)

    def selected(self, layer: int, run):
        """Which rows a policy lets go on; it is asked about the sentences in run, (B',) bool."""
        asked = selection.asked(self.offsets, run)
        if not asked.any():
            return ~asked
        pi = self.layers.policy(selection.policy_name(layer), self.x[asked])
        self.chances[layer, self.place[asked]] = pi
        self.asked["selection"][self.alive[run]] += ragged.lengths(self.offsets)[run] - 1
        keep = ~asked
        keep[asked] = pi >= self.knobs.selection_threshold
        return keep

    def run_layer(self, layer: int, run):
        """3. The layer, on the rows of the sentences in run and on no other."""
        rows: Any = slice(None)
        offsets = self.offsets
        if run is not None:
            rows, offsets = ragged.select(self.offsets, run)
        x = self.x[rows]
        received = self.layers.layer(layer, x, offsets, self.workspace)  # changes x
        if self.gates:
            self.received[rows] = received if received.ndim == 1 else received.sum(0)
        if run is not None:  # else x is self.x
            self.x[rows] = x
        self.lengths[layer, self._who(run)] = ragged.lengths(offsets)
        if self.halting or self.planning:
            self.s = self._summary()

    def halt(self, layer: int, run):
        """4. The units of the sentences in run speak; those alive that are decided leave."""
        if not self.halting:
            return
        ran: Any = slice(None) if run is None else run
        who, left = self._who(run), self.config.num_hidden_layers - layer - 1
        if run is None or run.any():
            y, h, a, p = self.layers.unit(layer, self.s[ran], self.a[ran], self.p[ran])
            self.a[ran] = self.so_far[layer, who] = a if self.rule.averages else y
            self.p[ran], self.h[layer, who] = p, h
            self.asked["halting"][who] += 1
        if self.rule.averages:
            # of those that left the layer out, too: there is one less to change their answer
            margin, lead = self.layers.margin(self.a, self.p, left, self.knobs.bound)
            self.doubts[layer, who], self.margins[layer, self._who()] = self.p[ran], margin
            now = exits.Known(None, None, margin, lead)
        else:
            said = (slice(layer + 1), self._who())
            now = exits.Known(self.so_far[said], self.h[said], None, None)
        if "halting" in self.knobs.use:
            at = getattr(self.knobs, self.rule.set_by)
            self._leave(self.rule.stop(now, self.rule.knob.usual if at is None else at))

    def _leave(self, stops):
        if not np.count_nonzero(stops):
            return
        self.answer[self.alive[stops]] = self.a[stops]
        going = ~stops
        rows, self.offsets = ragged.select(self.offsets, going)
        self._take(rows)
        state = (self.alive, self.s, self.a, self.p, self.dropped)
        self.alive, self.s, self.a, self.p, self.dropped = (v[going] for v in state)

    def answers(self) -> Answers:
        config, calc = self.config, self.calc
        self.answer[self._who()] = self.a
        if has_classifier(config):
            self.answer, _ = bert.classifier_forward(self.params, config, self._summary(), calc)
            if config.problem_type != "regression":
                self.answer, _ = calc.softmax_forward(self.answer)
        lengths = self.lengths.T
        return Answers(
            self.answer, lengths > 0, lengths, self.stayed, self.chances.T,
            macs(config, lengths, self.asked), full_macs(config, self.all_lengths),
            self.so_far.swapaxes(0, 1), self.doubts.T, self.margins.T,
        )  # fmt: skip

    def _take(self, rows):
        self.x, self.place, self.received = self.x[rows], self.place[rows], self.received[rows]

    def _summary(self):
        """(B', C): [CLS] rows, or means of the rows as gates' or selection's pool counts them."""
        s = self.layers.summary(self.x, self.offsets)
        if not self.counts_all:
            return s
        n, whole = ragged.lengths(self.offsets)[:, None], self.all_lengths[self.alive][:, None]
        return (s * n.astype(s.dtype) + self.dropped) / whole.astype(s.dtype)
