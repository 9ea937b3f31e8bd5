"""Fine-tuning: `python -m minidact.train --data train.tsv --dev dev.tsv --init DIR --out DIR`.

It reads the files, decides what is kept of the model to start from (start.py), then learns from one
ragged batch a step (learn.py), and saves on the way. All randomness of a step follows from
(seed, step) alone, so a resumed run goes on to the same weights, bit for bit.
"""

import argparse
import hashlib
import json
import math
import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from tqdm import tqdm

from .. import checkpoint, data, files, metrics, network, optim
from ..config import Config
from ..errors import InputError, run_command
from ..mechanisms import MECHANISMS, exits, token_gates
from ..model import Model
from ..network import Network
from ..options import RECORD, STATE, check_is_log, check_unused, comma_list, training_options
from ..signals import STOPS, noted
from . import teach, told
from .learn import DECIDED, are_settled, learn, prices_at
from .start import Start, balanced, build, prices_of, read_examples, split

AVERAGE_EVERY = 10  # steps between two turns of the moving average, which pass over all weights


def main() -> None:
    options = training_options()
    run = None if options.resume else begin(options)  # bad data make no directory
    with files.alone_in(files.make_directory(options.out)):
        if run is None:
            run = go_on(Path(options.out))
        else:
            check_unused(options.out)  # another run may have been here meanwhile
        run.go()


def begin(options: argparse.Namespace) -> "Run":
    """A run at its first step."""
    train = read_examples(options, options.data)
    start = build(options, train)
    average = {n: p.copy() for n, p in start.params.items()} if options.average else {}
    progress = Progress(average, optim.zero_moments(start.params), 0, -math.inf)
    return Run(options, start, progress, *split(options, train))


def go_on(out: Path) -> "Run":
    """A run as it was at its last checkpoint."""
    options, start, progress = read_state(out)
    return Run(options, start, progress, *split(options, read_examples(options, options.data)))


class Progress(NamedTuple):
    """How far a run is: the moving average or {}, AdamW's moments, steps done, best dev score.

    taught: what the teachers answered, or None. without: epochs since the best score. digest: of
    the texts and labels, or None if a checkpoint does not know it.
    """

    average: dict[str, np.ndarray]
    moments: optim.Moments
    done: int
    best: float
    taught: np.ndarray | None = None
    without: int = 0
    digest: str | None = None


class Run:
    """One training run: what it works on, and its loop."""

    def __init__(
        self, options: argparse.Namespace, start: Start, progress: Progress, train: data.Examples,
        dev: data.Examples,
    ):  # fmt: skip
        self.options, self.start = options, start
        self.config, self.params, self.new, self.tokenizer, _ = start
        self.average, self.moments, self.done, self.best, self.taught, self.without, was = progress
        self.digest = digest(train, dev)
        if was not in (None, self.digest):
            files_of = " or ".join(filter(None, (options.data, options.dev)))
            raise InputError(f"{files_of} has changed since the run began, so it cannot go on")
        self.prices, self.calc = prices_of(options), network.calculus(self.params)
        used = self.config.mechanisms if options.use is None else comma_list(options.use)
        self.use = tuple(  # a policy that learns alone needs the heads that answer
            name for name in self.config.mechanisms
            if name in used or (options.policy_only and MECHANISMS[name].answers)
        )  # fmt: skip
        shapes = {name: self.config.mechanisms[name] for name in self.use}
        self.training_config, p = replace(self.config, mechanisms=shapes), options.dropout
        if options.policy_only:  # what stays as it is drops nothing
            p = 0.0
        if p is not None:
            dropout = {"hidden_dropout_prob": p, "attention_probs_dropout_prob": p}
            self.training_config = replace(self.training_config, **dropout)
        halting = self.config.mechanisms.get("halting")
        frozen = halting is not None and exits.HEADS[halting.trained].frozen
        self.frozen = frozen and not options.policy_only  # a policy that learns alone draws
        regression = self.config.problem_type == "regression"
        count = self.config.num_labels
        self.metric = metrics.choose(options.metric, train.metric, regression, count)
        if (train.pairs is None) != (dev.pairs is None):
            raise InputError(
                f"{options.data} and {options.dev}: one has pairs of texts, one has not"
            )
        most = min(options.max_length, self.config.max_position_embeddings)
        self.tokenizer.enable_truncation(most)
        self.sentences = data.encode(self.tokenizer, train.texts, train.pairs)
        self.labels = data.label_ids(train, self.config, options.data)
        self.dev_sentences = data.encode(self.tokenizer, dev.texts, dev.pairs)
        self.dev_labels = data.label_ids(dev, self.config, options.dev or options.data)
        self.weights = balanced(self.labels) if options.class_weights != "none" else None
        if options.teacher and self.taught is None:
            self.taught = teach.answers(comma_list(options.teacher), train, self.config, most)
        if self.taught is not None:
            self.labels = self.taught
        self.per_epoch = math.ceil(len(self.labels) / options.batch_size)
        self.total = self.per_epoch * options.epochs
        if self.without >= options.early_stop > 0:  # it had stopped, and was not saved
            self.total = self.done
        self.layers = np.zeros(0, int)  # that the dev texts ran in the last report

    def go(self) -> None:
        """Trains to the end; saves on the way, and on Ctrl-C."""
        out = Path(self.options.out)
        with noted(*STOPS) as stops:  # they wait: a half-updated model is no checkpoint
            self.train(out, stops)
        if self.done < self.total:
            print(f"stopped and saved after step {self.done}; {self.way_on()}")
            sys.exit(128 + stops[0])
        if text := told.spread(self.config, self.use, self.layers):
            print(text)
        print(f"saved {out}")

    def train(self, out: Path, stops: list[int]) -> None:
        """Steps until the end, or until one of the signals is there; then saves."""
        for leftover in out.glob(f".{STATE}.*"):  # of a run that was killed while it saved
            leftover.unlink()
        log = open_log(self.options.log, self.done)
        self.save_state()
        bar = tqdm(
            total=self.total, initial=self.done, unit="step", dynamic_ncols=True,
            disable=None,  # where nobody watches, only epochs are told
        )  # fmt: skip
        try:
            with log, bar:
                print(
                    f"{len(self.labels)} examples, {self.total} steps; the first compiles kernels"
                )
                print(self.start.note or f"goes on after step {self.done}")
                print(told.to_beat(self.config, self.metric, self.dev_labels), flush=True)
                while self.done < self.total and not stops:
                    self.turn(bar, log)
        except OSError as error:  # nobody reads what is printed, or the log's disk is full
            self.save_state()
            raise InputError(
                f"output failed: {error.strerror}; saved after step {self.done}; {self.way_on()}"
            ) from None
        if self.done < self.total:
            self.save_state()
            return
        if self.options.keep == "last" or self.best == -math.inf:  # no epoch had a score
            self.save_model()
        (out / STATE).unlink(missing_ok=True)

    def turn(self, bar: Any, log: Any) -> None:
        """One step, and what falls due after it: an epoch's report, a checkpoint, the output."""
        record, text = self.step(self.done), ""
        self.done += 1
        if self.done % self.per_epoch == 0:
            text, value, layers = self.report()
            settled = are_settled(self.done / self.total, self.use, self.prices)
            better = settled and value > self.best
            if better:
                self.best, self.without = value, 0
            elif settled:
                self.without += 1
            if better and self.options.keep == "best":
                self.save_model()
            if better or self.best == -math.inf or self.options.keep == "last":
                self.layers = layers
            if self.without >= self.options.early_stop > 0:
                count = f"{self.without} epoch{'s' * (self.without > 1)}"
                text += f"; no better for {count}, so this is the end"
                self.total = self.done
        log.write(json.dumps(record) + "\n")  # --resume forgets what is later than a checkpoint
        if self.done % self.options.save_every == 0 and self.done < self.total:
            self.save_state()
        bar.update()
        rate = f"{record['tokens_per_s']:.0f}"
        bar.set_postfix({"loss": f"{record['loss']:.3f}", "tokens/s": rate})
        if text:
            bar.write(f"epoch {self.done // self.per_epoch}: {text}", file=sys.stdout)
            sys.stdout.flush()

    def step(self, step: int) -> dict[str, Any]:
        """One batch is learnt, gates and average follow. Returns the log's record."""
        o, begin = self.options, time.perf_counter()
        chosen = self.batch_at(step)
        batch = data.to_batch([self.sentences[i] for i in chosen])
        # a backbone that stays as it is drops nothing
        rng = None if self.frozen else np.random.default_rng([o.seed, 2, step])
        net = Network(self.params, self.training_config, self.calc, rng)
        prices = prices_at((step + 1) / self.total, self.prices)
        share = optim.schedule(step, self.total, o.warmup, o.schedule)
        work = (batch, self.labels[chosen], prices, self.moments, step, self.rates(step, share))
        weights = None if self.weights is None else self.weights[chosen]
        try:
            terms = learn(net, *work, weight_decay=o.weight_decay, weights=weights)
        except InputError as error:
            raise InputError(
                f"{error}: training stops here; the last checkpoint in {o.out} is good (try a "
                "lower --lr)"
            ) from None
        terms |= self.after(step)
        tokens, seconds = len(batch.ids), time.perf_counter() - begin
        record = {"step": step, "loss": float(terms.pop("loss")), "lr": o.lr * share}
        record |= {"tokens": tokens, "tokens_per_s": tokens / seconds}
        record |= {name: float(value) for name, value in terms.items()}
        return record | ({"tau": prices["halting"].tau} if "ponder" in terms else {})

    def batch_at(self, step: int) -> np.ndarray:
        """Which examples a step learns from."""
        o, (epoch, place) = self.options, divmod(step, self.per_epoch)
        order = np.arange(len(self.labels))
        if not o.no_shuffle:
            np.random.default_rng([o.seed, 1, epoch]).shuffle(order)
        return order[place * o.batch_size : (place + 1) * o.batch_size]

    def rates(self, step: int, share: float) -> dict[str, float]:
        """Each parameter's learning rate at a step; share: of the peak rates."""
        o = self.options
        rates = dict.fromkeys(self.params, o.lr * share)
        rates |= dict.fromkeys(self.new, o.head_lr * share)
        if token_gates.NAME in rates:
            peak = min(0.1, 10 / self.total) if o.gate_lr is None else o.gate_lr
            rates[token_gates.NAME] = 0.0 if self.decided(step) else peak * share
        return rates

    def decided(self, step: int) -> bool:
        """Are token gates 0 or 1 from this step on?"""
        return self.options.freeze_gates or step >= DECIDED * self.total

    def after(self, step: int) -> dict[str, float]:
        """What follows an update: gates stay in 0..1, and the average moves. More for the log."""
        gates, log = self.params.get(token_gates.NAME), {}
        if gates is not None and "tokens" in self.use:
            np.clip(gates, 0, 1, out=gates)
            log["undecided"] = token_gates.undecided(gates)
            if self.decided(step):
                gates[:] = token_gates.decided(gates)
        turns = (AVERAGE_EVERY, self.per_epoch)  # an epoch's score is of all its steps
        since = 1 + min(step % turn for turn in turns)  # steps that the average has not seen
        if self.average and any((step + 1) % turn == 0 for turn in turns):
            optim.move_average(self.average, self.params, self.options.average**since)
            if gates is not None:  # the mean of a gate's way to 0 is neither 0 nor 1
                self.average[token_gates.NAME][:] = gates
        return log

    def report(self) -> told.Report:
        trained = Model(self.config, self.average or self.params, self.tokenizer)
        dev = (self.dev_sentences, self.dev_labels, self.metric)
        return told.report(trained, self.use, self.calc, *dev)

    def save_model(self) -> None:
        o = self.options
        params = self.average or self.params
        self.save(checkpoint.save, o.out, self.config, params, self.tokenizer, np.dtype(o.dtype))

    def save_state(self) -> None:
        tensors = {f"params/{name}": array for name, array in self.params.items()}
        for kind, moments in zip(
            ("average", "m", "v"), (self.average, *self.moments[:2]), strict=True
        ):
            tensors |= {f"{kind}/{name}": array for name, array in moments.items()}
        if self.taught is not None:
            tensors["taught/answers"] = self.taught
        about = {
            "done": str(self.done), "best": str(self.best), "without": str(self.without),
            "options": json.dumps(vars(self.options)), "config": json.dumps(self.config.to_dict()),
            "new": json.dumps(self.new), "tokenizer": self.tokenizer.to_str(),
            "before": json.dumps(self.moments[2]), "digest": self.digest,
        }  # fmt: skip
        state = safetensors.numpy.save(tensors, about)
        self.save(files.write_file, Path(self.options.out) / STATE, state)

    def save(self, write: Any, *what: Any) -> None:
        """Calls write(*what); if that fails, says how to go on."""
        try:
            write(*what)
        except InputError as error:
            raise InputError(f"{error}; {self.way_on()}") from None

    def way_on(self) -> str:
        """What to do when a run ends before its end."""
        if not (Path(self.options.out) / STATE).exists():
            return "nothing was trained yet"
        command = f"python -m minidact.train --out {shlex.quote(self.options.out)} --resume"
        return f"go on from the last checkpoint with: {command}"


def read_state(out: Path) -> tuple[argparse.Namespace, Start, Progress]:
    """What save_state wrote."""
    parts: dict[str, dict] = {"params": {}, "average": {}, "m": {}, "v": {}, "taught": {}}
    try:
        with safe_open(out / STATE, "np") as file:
            about = file.metadata()
            for key in file.keys():  # noqa: SIM118  safe_open is no dict
                kind, name = key.split("/", 1)
                parts[kind][name] = file.get_tensor(key)
        options = argparse.Namespace(**json.loads(about["options"]))
        config = Config.from_dict(json.loads(about["config"]))
        tokenizer = read_tokenizer(about["tokenizer"])
        new, before = json.loads(about["new"]), json.loads(about["before"])
        done, best, without = int(about["done"]), float(about["best"]), int(about["without"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{out / STATE} is damaged: {error}") from None
    options.out = str(out)  # it may have been moved
    start = Start(config, parts["params"], new, tokenizer)
    moments = (parts["m"], parts["v"], before)
    taught = parts["taught"].get("answers")
    progress = Progress(parts["average"], moments, done, best, taught, without, about.get("digest"))
    return options, start, progress


def read_tokenizer(text: str) -> Tokenizer:
    """Raises ValueError for a text that is no tokenizer's."""
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises no narrower one
        raise ValueError(f"tokenizer: {error}") from None


def digest(*files_of: data.Examples) -> str:
    """What differs if a text or a label does."""
    told = [[examples.texts, examples.pairs, examples.labels] for examples in files_of]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def open_log(path: str | None, done: int) -> Any:
    """The log, cut back to whole records of the steps that are done."""
    if path is None:
        return open(os.devnull, "w")
    check_is_log(path)  # another file may have come there meanwhile
    file = Path(path)
    try:
        lines = file.read_bytes().splitlines(keepends=True) if done else []
    except FileNotFoundError:
        lines = []
    records = ((line, RECORD.fullmatch(line)) for line in lines)
    files.write_file(file, b"".join(line for line, r in records if r and int(r[1]) < done))
    return open(file, "a", buffering=1)


if __name__ == "__main__":
    run_command(main)
