"""What a user's type checker sees: mypy --strict must pass this file (test_types.py runs it)."""

from collections.abc import Iterable

from minidact import InputError, Model, Prediction


def label_of(text: str) -> str:
    model = Model.from_pretrained()
    answer: Prediction = model(text)
    return answer.label


def labels_of(texts: Iterable[str], seconds: list[str] | None = None) -> list[str]:
    model = Model.from_pretrained("sst2-minilm-l6")
    try:
        answers = model(texts, seconds, batch_size=8, use=("halting",), slack=0.3)
    except InputError as error:
        return [str(error)]
    return [answer.label for answer in answers]


def probabilities(text: str) -> dict[str, float]:
    one = Model.from_pretrained()([text], budget=0.5)[0]
    return one.probs if one.layers_run else {}


def depth(text: str) -> int:
    return len(Model.from_pretrained()(text, use=()).layers_run)
