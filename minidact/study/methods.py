"""What is compared: tasks, and methods as the options of their trainings.

All methods start from the same backbone, with the same heads. Each has its authors' loss and its
own rule for stopping. A method that starts from another one trains longer: `epochs` counts all.
"""

from typing import NamedTuple


class Task(NamedTuple):
    """epochs of a first training, and of one that starts from another; more options; files."""

    epochs: int
    again: int
    options: str = ""
    dev: str = "dev.tsv"


class Method(NamedTuple):
    """start: the method that it starts from, or None, the backbone. options: of its training.

    curves: to sweep; none: it has no knob. asked: options of its evaluation.
    """

    start: str | None
    options: str
    curves: tuple[str, ...] = ()
    asked: str = ""


TASKS = {
    "SST-2": Task(1, 1, "--label-names negative,positive"),
    "CoLA": Task(3, 2),
    "MRPC": Task(3, 2),
    "RTE": Task(3, 2),
    "TREC": Task(3, 2, dev="test.tsv"),
    "IMDB": Task(2, 2, "--max-length 512 --batch-size 16"),
}
ALWAYS = "--summary mean --lr 5e-5 --dtype float16"
DACT = "--use halting --tau 0.02 --distill 0.5"
ALL = (  # a gentle second training, which starts from DACT's model
    "--use halting,planning,tokens --epochs {again} --lr 2e-5 --head-lr 2e-4"
    " --tau 0.02 --distill 0.5 --layer-cost 1 --layer-target 0.35 --explore 0.1 --explore-share 0.1"
    " --token-cost 0.15 --bimodal 1"
)
STOPS, ALL_CURVES = ("halting", "confidence", "fixed"), ("halting", "planning", "tokens", "all")
# TR-BERT's order: the policies alone on a fine-tuned model, then everything, taught by that model
POLICY = (
    "--use selection --selection-pool left --policy-only --estimator gumbel --epochs 1"
    " --head-lr 1e-2 --selection-cost 0.5"
)
SELECTION = (
    "--use halting,selection --teacher {plain} --estimator gumbel --epochs {again}"
    " --selection-cost 0.3 --tau 0.02 --distill 0.5"
)
SMALLER = ("small", "cut")  # curves of plain networks with fewer layers, or that read fewer words
METHODS = {
    "plain": Method(None, "--use ''"),
    "small-2": Method(None, "--use '' --layers 2"),
    "small-3": Method(None, "--use '' --layers 3"),
    "small-4": Method(None, "--use '' --layers 4"),
    "dact": Method(None, DACT, STOPS),
    # the paper's order: plain fine-tuning comes first
    "dact-after": Method("plain", f"{DACT} --lr 2e-5", STOPS),
    "pabee": Method(None, "--use halting --heads pabee", ("patience",)),
    "pondernet": Method(None, "--use halting --heads pondernet", ("cumulated",)),
    "berxit": Method(None, "--use halting --heads berxit", ("certain",)),
    "deebert": Method("plain", "--use halting --heads deebert", ("entropy",)),
    "fastbert": Method("plain", "--use halting --heads fastbert", ("uncertainty",)),
    "all": Method("dact", ALL, ALL_CURVES),
    "all-after": Method("dact-after", ALL, ALL_CURVES),
    "policy": Method("plain", POLICY, ("selection",)),
    "selection": Method("policy", SELECTION, ("halting", "selection", "all")),
}
CHOICES = {  # they run only if --methods names them: texts cut short, and one choice changed
    **{
        f"cut-{most}": Method(None, f"--use '' --max-length {most}", asked=f"--max-length {most}")
        for most in (64, 128, 256)
    },
    "all-left": Method("dact", f"{ALL} --pool left", ("tokens", "all")),
    "all-absolute": Method("dact", f"{ALL} --ranks absolute", ("tokens", "all")),
    "all-path": Method("dact", f"{ALL} --planner path", ("planning", "all")),
    # for long texts: a price of words that closes token gates in few steps
    "all-dear": Method("dact", f"{ALL} --epochs 1 --token-cost 1 --pool left", ALL_CURVES),
    "all-frozen": Method("all", f"{ALL} --freeze-gates", ("tokens", "all")),
}
EVERY = METHODS | CHOICES


def training(name: str, task: Task, plain: str) -> str:
    """The options of a method's training on a task; plain: the directory of the plain model."""
    own = EVERY[name].options.format(again=task.again, plain=plain)
    return f"{ALWAYS} --epochs {task.epochs} {task.options} {own}"


def epochs(name: str, task: Task) -> int:
    """How many epochs a method trains, in all its stages."""
    method = EVERY[name]
    words = training(name, task, "").split()
    last = len(words) - 1 - words[::-1].index("--epochs")
    return int(words[last + 1]) + (epochs(method.start, task) if method.start else 0)
