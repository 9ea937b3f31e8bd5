"""What the tests of processes and threads ask a model, and how answers are compared."""

import numpy as np

from minidact import Model

TEXTS = ["a gripping, funny, humane film", "it starts well, but", "dull", "not bad at all"]


def figures(model, texts=TEXTS, **knobs):
    return [(answer.label, answer.probs, answer.layers_run) for answer in model(texts, **knobs)]


def close(some, others):
    return all(
        a[0] == b[0]
        and a[2] == b[2]
        and np.allclose(list(a[1].values()), list(b[1].values()), atol=1e-5)
        for a, b in zip(some, others, strict=True)
    )


def ask_shipped(text):
    return figures(Model.from_pretrained(), [text])[0]
