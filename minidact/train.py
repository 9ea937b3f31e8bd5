"""Fine-tuning: `python -m minidact.train --data train.tsv --dev dev.tsv --out DIR`.

The recipe, from top to bottom: read the files, read the backbone, add the heads, then for every
step one ragged batch: soft pass, its backward, clip, AdamW. All randomness of a step follows from
(seed, step) alone, so a resumed run goes on to the same weights, bit for bit.
"""

import argparse
import dataclasses
import json
import math
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from tqdm import tqdm

from . import checkpoint, dact, data, exits, metrics, model, optim, soft, token_gates
from .config import Config, Halting, Planning, Tokens
from .errors import InputError, run_command
from .predict import Model
from .recipe import STATE, check, parser

DECIDED = 0.9  # after this share of the steps token gates are 0 or 1, and the rest gets used to it
AVERAGE_EVERY = 10  # steps between two turns of the moving average, which pass over all weights
# How long a thread of GNU's OpenMP waits awake for the others. By default it is milliseconds, and
# where other programs run, too, those who wait keep those who are waited for from working.
SPINS = "1000"


def main() -> None:
    options = parser().parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when the first kernel starts threads
    if options.resume:
        options, params, average, moments, done, best = read_state(Path(options.out))
        config, _, new, tokenizer = build(options)
    else:
        check(options)
        config, params, new, tokenizer = build(options)
        moments, done, best = optim.zero_moments(params), 0, -math.inf
        average = {n: p.copy() for n, p in params.items()} if options.average else {}
    run = Run(options, config, params, average, moments, new, tokenizer)
    checkpoint.make_directory(Path(options.out))
    with checkpoint.alone_in(Path(options.out)):
        run.go(done, best)


def build(options) -> tuple[Config, dict, list[str], Tokenizer]:
    """The backbone with new heads on it: config, parameters, names of the new ones, tokenizer."""
    examples = data.read_examples(options.data)
    config, params, tokenizer = checkpoint.load_backbone(options.init)
    regression = options.regression or examples.metric == "pearson_spearman"  # STS-B's layout
    use = options.use.split(",")
    if regression and "halting" in use:
        raise InputError("halting needs classes, and the labels are numbers to predict")
    names = ("score",) if regression else data.label_names(examples.labels)
    if options.label_names:
        names = chosen_names(options, names)
    if len(names) < 2 and not regression:
        raise InputError(f"{options.data}: all labels are {names[0]!r}; there is nothing to learn")
    if options.heads != "dact" and set(use) != {"halting"}:
        raise InputError(f"--heads {options.heads} needs --use halting, and no gates beside")
    units = Halting(options.trunk_size, not options.blind, options.heads)
    changes = {
        "id2label": names,
        "budgets": (),  # they were measured on another model
        "problem_type": "regression" if regression else "single_label_classification",
        "halting": units if "halting" in use else None,
        "planning": Planning(options.planner, options.planner_width) if "planning" in use else None,
        "tokens": Tokens(options.bins, options.ranks, options.pool) if "tokens" in use else None,
        "extra": {
            k: v for k, v in config.extra.items() if k in ("pad_token_id", "initializer_range")
        },
    }
    if options.summary:
        changes["summary"] = options.summary
    if config.num_hidden_layers == 1 and {"planning", "tokens"} & set(use):
        raise InputError("gates need two layers at least, and the backbone has one")
    config = dataclasses.replace(config, **changes)
    bias = dact.HALTING_BIAS
    if options.heads == "pondernet":  # q starts as the prior: DACT's start gives most to the end
        bias = math.log((1 - options.prior) / options.prior)
    rng = np.random.default_rng([options.seed, 0])
    fresh = model.init_params(config, rng, halting_bias=bias)
    known = {n: p for n, p in params.items() if n in fresh and p.shape == fresh[n].shape}
    new = [n for n in fresh if n not in known or n.startswith(checkpoint.OURS)]
    if options.freeze_gates:
        if token_gates.NAME not in known:
            raise InputError("--freeze-gates needs --use tokens, and as many token gates in --init")
        known[token_gates.NAME] = token_gates.decided(known[token_gates.NAME])
    return config, fresh | known, new, tokenizer


def chosen_names(options, names: tuple[str, ...]) -> tuple[str, ...]:
    """--label-names, for a file whose labels are 0, 1, ... (what is a name already stays one)."""
    chosen = tuple(options.label_names.split(","))
    if len(chosen) != len(names):
        raise InputError(
            f"--label-names gives {len(chosen)} names, the file has {len(names)} labels"
        )
    if len(set(chosen)) != len(chosen) or "" in chosen:
        raise InputError("--label-names has an empty name, or one name twice")
    if names != tuple(map(str, range(len(names)))):
        raise InputError(f"--label-names is for labels 0, 1, ..; the file's are {', '.join(names)}")
    return chosen


class Run:
    """One training run: what it works on, and its loop."""

    def __init__(self, options, config, params, average, moments, new, tokenizer):
        self.options, self.tokenizer = options, tokenizer
        self.params, self.average, self.moments, self.new = params, average, moments, new
        self.calc = model.calculus(params)
        self.config = self.training_config = config
        if options.dropout is not None:
            p = options.dropout
            self.training_config = dataclasses.replace(
                config, hidden_dropout_prob=p, attention_probs_dropout_prob=p
            )
        train, dev = data.read_examples(options.data), data.read_examples(options.dev)
        regression = config.problem_type == "regression"
        self.metric = metrics.choose(options.metric, train.metric, regression)
        tokenizer.enable_truncation(min(options.max_length, config.max_position_embeddings))
        self.sentences = data.encode(tokenizer, train.texts, train.pairs)
        self.labels = data.label_ids(train, config, options.data)
        self.dev_sentences = data.encode(tokenizer, dev.texts, dev.pairs)
        self.dev_labels = data.label_ids(dev, config, options.dev)
        self.per_epoch = math.ceil(len(self.labels) / options.batch_size)
        self.total = self.per_epoch * options.epochs

    def go(self, done: int, best: float) -> None:
        """Trains from step `done` to the end; saves on the way, and on Ctrl-C.

        best: the highest dev score of the epochs before.
        """
        options, out = self.options, Path(self.options.out)
        # Ctrl-C waits for the end of the step: a half-updated model is no checkpoint
        interrupted = []
        before = signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
        for leftover in out.glob(f".{STATE}.*"):  # of a run that was killed while it saved
            leftover.unlink()
        log = open_log(options.log, done)
        self.save_state(done, best)
        print(
            f"{len(self.labels)} examples, {self.total} steps; the first compiles kernels",
            flush=True,
        )
        try:
            with tqdm(total=self.total, initial=done, unit="step", dynamic_ncols=True) as bar:
                while done < self.total and not interrupted:
                    record = self.step(done)
                    done += 1
                    bar.update()
                    rate = f"{record['tokens_per_s']:.0f}"
                    bar.set_postfix({"loss": f"{record['loss']:.3f}", "tokens/s": rate})
                    if log:
                        log.write(json.dumps(record) + "\n")
                    if done % self.per_epoch == 0:
                        text, value = self.report()
                        bar.write(f"epoch {done // self.per_epoch}: {text}", file=sys.stdout)
                        sys.stdout.flush()
                        if value > best and options.keep == "best":
                            self.save_model()
                        best = max(best, value)
                    if done % options.save_every == 0 and done < self.total:
                        self.save_state(done, best)
        finally:
            signal.signal(signal.SIGINT, before)
            if log:
                log.close()
        if done < self.total:
            self.save_state(done, best)
            print(f"stopped and saved after step {done}; {self.way_on()}")
            sys.exit(130)
        if options.keep == "last":
            self.save_model()
        (out / STATE).unlink(missing_ok=True)
        print(f"saved {out}")

    def step(self, step: int) -> dict:
        """One batch: forward, backward, clip, update. Returns the log's record."""
        o, begin = self.options, time.perf_counter()
        epoch, place = divmod(step, self.per_epoch)
        order = np.arange(len(self.labels))
        if not o.no_shuffle:
            np.random.default_rng([o.seed, 1, epoch]).shuffle(order)
        chosen = order[place * o.batch_size : (place + 1) * o.batch_size]
        batch = data.to_batch([self.sentences[i] for i in chosen])
        rng = np.random.default_rng([o.seed, 2, step])
        if o.heads in exits.FROZEN:
            rng = None  # the backbone stays as it is, so nothing in it is dropped

        costs = self.costs(step)
        terms, cache = soft.soft_forward(
            self.params, self.training_config, batch, self.labels[chosen], costs, self.calc, rng
        )
        grads = soft.soft_backward(cache)
        norm = optim.gradient_norm(grads, self.calc)
        for what, value in (("loss", terms["loss"]), ("gradient's norm", norm)):
            if not np.isfinite(value):
                raise InputError(
                    f"the {what} is {value} at step {step}: training stops here; the last "
                    f"checkpoint in {o.out} is good (try a lower --lr)"
                )

        share = optim.schedule(step, self.total, o.warmup, o.schedule)
        rates = dict.fromkeys(self.params, o.lr * share)
        rates |= dict.fromkeys(self.new, o.head_lr * share)
        if self.config.tokens is not None:
            decided = o.freeze_gates or step >= DECIDED * self.total
            peak = min(0.1, 10 / self.total) if o.gate_lr is None else o.gate_lr
            rates[token_gates.NAME] = 0.0 if decided else peak * share
        optim.adamw(
            self.params, grads, self.moments, step + 1, rates, self.calc,
            weight_decay=o.weight_decay, scale=optim.clip_scale(norm),
        )  # fmt: skip
        if self.config.tokens is not None:
            gates = self.params[token_gates.NAME]
            np.clip(gates, 0, 1, out=gates)
            terms["undecided"] = token_gates.undecided(gates)
            if decided:
                gates[:] = token_gates.decided(gates)
        if self.average and (step + 1) % AVERAGE_EVERY == 0:
            optim.move_average(self.average, self.params, o.average**AVERAGE_EVERY)
            if self.config.tokens is not None:  # the mean of a gate's way to 0 is neither 0 nor 1
                self.average[token_gates.NAME][:] = self.params[token_gates.NAME]
        tokens, seconds = len(batch.ids), time.perf_counter() - begin
        record = {"step": step, "loss": float(terms.pop("loss")), "lr": o.lr * share}
        record |= {"tokens": tokens, "tokens_per_s": tokens / seconds}
        record |= {name: float(value) for name, value in terms.items()}
        return record | ({"tau": costs.tau} if "ponder" in terms else {})

    def costs(self, step: int) -> soft.Costs:
        """The prices at a step: exploring comes first, tau and lambda_1 rise, then lambda_2."""
        o, done = self.options, (step + 1) / self.total
        ramp = min(1.0, done / o.tau_ramp) if o.tau_ramp else 1.0
        explore = self.config.planning is not None and done <= o.explore_share
        return soft.Costs(
            tau=o.tau * ramp,
            alpha=o.alpha,
            distill=o.distill,
            ponder=o.ponder,
            layers=0.0 if explore else o.layer_cost,
            target=o.layer_target,
            explore=o.explore if explore else None,
            tokens=o.token_cost * ramp,
            beta=o.beta,
            prior=o.prior,
            # from 0.4 of the steps, whole when the gates are decided
            bimodal=o.bimodal * min(1.0, max(0.0, (done - 0.4) / (DECIDED - 0.4))),
        )

    def report(self) -> tuple[str, float]:
        """The dev score in full and with every mechanism in use: in words, and the latter."""
        params = self.average or self.params
        trained = Model(self.config, params, self.tokenizer)
        starts = range(0, len(self.dev_labels), 32)
        parts = [self.dev_sentences[start : start + 32] for start in starts]
        values, layers = [], []
        for use in ((), None):
            answers = [trained.run(part, trained.knobs(use)) for part in parts]
            probs = np.concatenate([a.probs for a in answers])
            values.append(metrics.score(self.metric, probs, self.dev_labels))
            layers.append(np.concatenate([a.layers_run.sum(1) for a in answers]).mean())
        text = f"dev {self.metric} {values[0]:.4f}"
        if self.config.mechanisms:
            text += f", {values[1]:.4f} after {layers[1]:.2f} of {layers[0]:.0f} layers"
        if self.config.tokens is not None:  # are the gates fit to be set to 0 and 1?
            batches = map(data.to_batch, parts)
            probs = [soft.soft_answers(params, self.config, b, self.calc) for b in batches]
            value = metrics.score(self.metric, np.concatenate(probs), self.dev_labels)
            far = token_gates.undecided(params[token_gates.NAME])
            text += f"; with token gates as they are, a mean {far:.3f} from 0 or 1: {value:.4f}"
        return text, values[1]

    def save_model(self) -> None:
        o = self.options
        params = self.average or self.params
        self.save(checkpoint.save, o.out, self.config, params, self.tokenizer, np.dtype(o.dtype))

    def save_state(self, done: int, best: float) -> None:
        tensors = {f"params/{name}": array for name, array in self.params.items()}
        for kind, moments in zip(("average", "m", "v"), (self.average, *self.moments), strict=True):
            tensors |= {f"{kind}/{name}": array for name, array in moments.items()}
        about = {"done": str(done), "best": str(best), "options": json.dumps(vars(self.options))}
        state = safetensors.numpy.save(tensors, about)
        self.save(checkpoint.write_file, Path(self.options.out) / STATE, state)

    def save(self, write, *what) -> None:
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


def read_state(out: Path):
    """What save_state wrote: options, params, average, moments, steps done, best dev score."""
    parts = {"params": {}, "average": {}, "m": {}, "v": {}}
    try:
        with safe_open(out / STATE, "np") as file:
            about = file.metadata()
            for key in file.keys():  # noqa: SIM118  safe_open is no dict
                kind, name = key.split("/", 1)
                parts[kind][name] = file.get_tensor(key)
        options = argparse.Namespace(**json.loads(about["options"]))
        done, best = int(about["done"]), float(about["best"])
    except FileNotFoundError:
        raise InputError(f"{out} holds no unfinished run ({STATE}) to go on with") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{out / STATE} is damaged: {error}") from None
    options.out = str(out)  # it may have been moved
    moments = (parts["m"], parts["v"])
    return options, parts["params"], parts["average"], moments, done, best


def open_log(path: str | None, done: int):
    """The log, cut back to the steps that are done."""
    if path is None:
        return None
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)[:done] if done else []
    except FileNotFoundError:
        lines = []
    checkpoint.write_file(Path(path), b"".join(lines))
    return open(path, "a", buffering=1)


if __name__ == "__main__":
    run_command(main)
