"""What the tests of training share: a command's arguments, and how weights are compared."""

import numpy as np
from conftest import TINY
from safetensors.numpy import load_file


def arguments(task, out, *more, **options):
    chosen = {"data": task / "train.tsv", "dev": task / "dev.tsv", "init": TINY, "out": out}
    chosen |= {"epochs": 3, "lr": 3e-3, "head-lr": 3e-3} | options
    return [str(x) for name, value in chosen.items() for x in (f"--{name}", value)] + list(more)


def weights(out):
    return load_file(out / "model.safetensors")


def same(a, b):
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)
