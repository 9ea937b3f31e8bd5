"""What other models answer, to be learnt in place of a file's labels: distillation.

(Hinton, Vinyals, Dean; arXiv 1503.02531.) TR-BERT's last stage learns so from the full model; the
mean of several models has more to teach than any of them.
"""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from .. import data
from ..config import Config
from ..errors import InputError
from ..model import Model


def answers(
    teachers: Sequence[str], examples: data.Examples, config: Config, most: int
) -> np.ndarray:
    """The mean of what the teachers, with nothing left out, answer to the examples.

    teachers: directories, hub ids, or names in weights/. config: of the model that learns; most:
    how many tokens of a text are read. Returns (N, Y) float32 probabilities in the order of
    config's labels, or (N,) numbers of a regression. Raises InputError for a teacher with other
    labels.
    """
    total = np.zeros((len(examples.texts), config.num_labels), np.float32)
    for name in teachers:
        model = Model.from_pretrained(name)
        order = _order(name, model.config, config)
        model.tokenizer.enable_truncation(min(most, model.config.max_position_embeddings))
        sentences = data.encode(model.tokenizer, examples.texts, examples.pairs)
        by_length = np.argsort([len(s.ids) for s in sentences], kind="stable")
        with tqdm(total=len(by_length), desc=f"teacher {name}", unit="text") as bar:
            for start in range(0, len(by_length), 32):
                part = by_length[start : start + 32]
                probs = model.run([sentences[i] for i in part], model.knobs(())).probs
                total[part] += probs[:, order]
                bar.update(len(part))
    mean = total / np.float32(len(teachers))
    return mean[:, 0] if config.problem_type == "regression" else mean


def _order(name: str, theirs: Config, ours: Config) -> list[int]:
    """Where a teacher has each of our labels."""
    if theirs.problem_type == ours.problem_type == "regression":
        return [0]
    said, wanted = theirs.meanings(), ours.meanings()
    if theirs.problem_type != ours.problem_type or set(said) != set(wanted):
        raise InputError(
            f"--teacher {name} answers {', '.join(theirs.id2label)}; what is trained answers "
            f"{', '.join(ours.id2label)}"
        )
    return [said.index(label) for label in wanted]
