"""The hard pass: inference. What is decided leaves, what is gated is not computed.

For every layer, on the rows still alive:
  1. planning gates: which sentences include the layer (the first is always included);
  2. token gates: which of their rows stay, by the attention they got in the last layer that ran;
  3. the layer, on those rows only;
  4. halting: sentences whose answer can change no more leave.
1, 2 and 4 are one act, choosing rows of a ragged batch, so time falls with the work at any batch
size. With no mechanism in use the layers are plain BERT's, bit for bit.
"""

from typing import NamedTuple

import numpy as np

from . import bert, dact, exits, ops, planning, ragged, token_gates
from .config import Config
from .macs import full_macs, macs
from .model import unit_name
from .ragged import Batch


class Answers(NamedTuple):
    """What the hard pass says of B sentences, T tokens, and what it spent.

    The last three are halting's: NaN where a layer did not run, and in a model without halting. If
    it stops by a neighbour's rule, so_far is y_n, and the others, which say nothing then, are NaN.
    """

    probs: np.ndarray  # (B, Y) probabilities; of a regression: the value (B, 1)
    layers_run: np.ndarray  # (B, L) bool
    tokens: np.ndarray  # (B, L) int, rows that each layer worked on
    stayed: np.ndarray  # (T,) int, the first layer that a token was dropped before; L: never
    macs: np.ndarray  # (B,) int, multiply-adds executed
    macs_full: np.ndarray  # (B,) int, the same with no mechanism in use
    so_far: np.ndarray  # (B, L, Y) the accumulated answer a_n after each layer
    doubts: np.ndarray  # (B, L) the doubt p_n
    margins: np.ndarray  # (B, L) lower bound less upper bound; >= 0: the class cannot change


class Knobs(NamedTuple):
    """What spends more or less at inference. The defaults are what training aimed at.

    use: the mechanisms switched on, of config.MECHANISMS.
    slack, bound: of halting, see dact.halts and dact.margin; slack 0..1.
    threshold: of planning; a layer is included if its pi is at least this.
    keep: of token gates; ranks are divided by it: above 1 keeps more tokens, below 1 fewer.
    rule, at: halt by a rule of exits.py and its knob, and answer with y_n instead of a_n. None: as
    the heads were trained (for DACT: by dact.margin, with slack and bound), at the usual value.
    """

    use: tuple[str, ...] = ()
    slack: float = 0.0
    bound: str = "tight"
    threshold: float = 0.5
    keep: float = 1.0
    rule: str | None = None
    at: float | None = None


NOTHING = Knobs()  # nothing adaptive


def hard_forward(
    params, config: Config, batch: Batch, knobs: Knobs = NOTHING, calc=ops, encoder=None
) -> Answers:
    """Answers for a batch.

    encoder: the packed layers of inference.py; without it, bert.py's are run, with calc.
    """
    work = _Pass(params, config, batch, knobs, calc, encoder)
    for layer in range(config.num_hidden_layers):
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

    def __init__(self, params, config: Config, batch: Batch, knobs: Knobs, calc, encoder):
        self.params, self.config, self.knobs = params, config, knobs
        self.calc, self.encoder = calc, encoder
        self.rule = (
            knobs.rule or exits.OWN_RULE[config.halting.trained if config.halting else "dact"]
        )
        count, layers = len(batch.offsets) - 1, config.num_hidden_layers
        self.all_lengths = ragged.lengths(batch.offsets)
        self.workspace = encoder and encoder.workspace(batch.offsets)
        # the rows alive (T') and their sentences (B')
        self.x, _ = bert.embeddings_forward(params, config, batch, calc)
        self.offsets, self.alive = batch.offsets, np.arange(count)
        self.token, self.received = np.arange(len(self.x)), np.zeros(len(self.x), self.x.dtype)
        # of all sentences (B): the sum of the rows dropped, the summary, the answer, the doubt
        dtype, size = self.x.dtype, config.hidden_size
        self.dropped = np.zeros((count, size), dtype)
        self.s = self._summary() if "planning" in knobs.use else np.zeros((count, size), dtype)
        self.a, self.p = np.zeros((count, config.num_labels), dtype), np.ones(count, dtype)
        self.y, self.h = np.zeros((layers, *self.a.shape), dtype), np.ones((layers, count), dtype)
        # what is reported
        self.asked = np.zeros(count, np.int64)
        self.tokens, self.stayed = np.zeros((count, layers), np.int64), np.full(len(self.x), layers)
        self.so_far = np.full((count, layers, config.num_labels), np.nan)
        self.doubts, self.margins = np.full((2, count, layers), np.nan)
        self.path = None
        if "planning" in knobs.use and config.planning.planner == "path":
            self.path, _ = planning.planner_forward(self.s, params, planning.PATH, calc)
            self.asked += 1

    def plan(self, layer: int):
        """1. Which of the sentences alive include the layer: (B',) bool."""
        if layer == 0 or "planning" not in self.knobs.use:
            return np.ones(len(self.alive), bool)
        if self.path is not None:
            pi = self.path[self.alive, layer - 1]
        else:
            s, name = self.s[self.alive], planning.step_name(layer)
            pi = planning.planner_forward(s, self.params, name, self.calc)[0][:, 0]
            self.asked[self.alive] += 1
        return planning.draw(pi, None, self.knobs.threshold) > 0

    def drop_tokens(self, layer: int, run):
        """2. Rows of the sentences in run (B',) whose gate is closed leave for good."""
        if layer == 0 or "tokens" not in self.knobs.use:
            return
        tokens, there, n = self.config.tokens, np.ones(len(self.x), bool), self._lengths()
        index = token_gates.bins_of(
            self.received, there, self.offsets, tokens.bins, tokens.ranks == "relative",
            self.knobs.keep,
        )  # fmt: skip
        keep = token_gates.stays(self.params[token_gates.NAME][layer - 1], index)
        keep |= ~np.repeat(run, n)
        if keep.all():
            return
        gone = np.flatnonzero(~keep)
        losers, first = np.unique(np.repeat(self.alive, n)[gone], return_index=True)
        self.dropped[losers] += np.add.reduceat(self.x[gone], first)
        self.stayed[self.token[gone]] = layer
        rows, self.offsets = ragged.thin(self.offsets, keep)
        self._take(rows)

    def run_layer(self, layer: int, run):
        """3. The layer, on the rows of the sentences in run (B',) and on no other."""
        rows, offsets = slice(None), self.offsets
        if not run.all():
            rows, offsets = ragged.select(self.offsets, run)
        x = self.x[rows]
        if self.encoder is None:
            x, received, _ = bert.layer_forward(
                self.params, self.config, layer, x, offsets, self.calc
            )
        else:
            received = self.encoder.layer(layer, x, offsets, self.workspace)  # changes x
        if "tokens" in self.knobs.use:
            self.received[rows] = received if received.ndim == 1 else received.sum(0)
        if self.encoder is None or not run.all():
            self.x[rows] = x
        self.tokens[self.alive[run], layer] = ragged.lengths(offsets)
        if self.config.halting is not None or "planning" in self.knobs.use:
            self.s[self.alive] = self._summary()

    def halt(self, layer: int, run):
        """4. The DACT units of the sentences in run (B',); those alive that are decided leave."""
        if self.config.halting is None:
            return
        ran, left = self.alive[run], self.config.num_hidden_layers - layer - 1
        if len(ran):
            _, y, h, _ = dact.unit_forward(self.s[ran], self.params, unit_name(layer), self.calc)
            self.y[layer, ran], self.h[layer, ran] = y, h
            a, self.p[ran] = dact.accumulate_step(self.a[ran], self.p[ran], y, h)
            self.a[ran] = a if self.rule == "dact" else y
            self.so_far[ran, layer] = self.a[ran]
        if self.rule == "dact":
            # those that left the layer out too: there is one layer less to change their answer
            a, p = self.a[self.alive], self.p[self.alive]
            margins = dact.margin(a, p, left, self.knobs.bound)
            self.doubts[ran, layer], self.margins[ran, layer] = p[run], margins[run]
            going = ~dact.halts(margins, dact.lead(a), self.knobs.slack)
        else:
            rule, said = exits.RULES[self.rule], (slice(layer + 1), self.alive)
            at = rule.usual if self.knobs.at is None else self.knobs.at
            going = ~rule.stop(self.y[said], self.h[said], at)
        if "halting" in self.knobs.use and not going.all():
            rows, self.offsets = ragged.select(self.offsets, going)
            self._take(rows)
            self.alive = self.alive[going]

    def answers(self) -> Answers:
        config, answer = self.config, self.a
        if config.halting is None:
            s = self._summary()
            answer, _ = bert.classifier_forward(self.params, config, s, self.calc)
            if config.problem_type != "regression":
                answer, _ = self.calc.softmax_forward(answer)
        return Answers(
            answer, self.tokens > 0, self.tokens, self.stayed,
            macs(config, self.tokens, self.asked), full_macs(config, self.all_lengths),
            self.so_far, self.doubts, self.margins,
        )  # fmt: skip

    def _lengths(self):
        return ragged.lengths(self.offsets)

    def _take(self, rows):
        self.x, self.token, self.received = self.x[rows], self.token[rows], self.received[rows]

    def _summary(self):
        """(B', C): [CLS] rows, or means of the rows as config.tokens.pool counts them."""
        config = self.config
        s, _ = bert.summary_forward(self.x, self.offsets, config.summary, self.calc)
        if (
            config.summary == "cls"
            or "tokens" not in self.knobs.use
            or config.tokens.pool == "left"
        ):
            return s
        n, whole = self._lengths()[:, None], self.all_lengths[self.alive][:, None]
        dropped = self.dropped[self.alive]
        return (s * n.astype(s.dtype) + dropped) / whole.astype(s.dtype)
