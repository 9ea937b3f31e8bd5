"""What every layer did for one text, to look at: in a terminal, and in a notebook.

Both show the same: each word until the layer that it was dropped before, the layers that ran, were
left out or came after the end, and how the answer grew. They need a predict.Prediction's fields.
"""

import unicodedata
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

BOLD, FAINT = "1", "2"  # ANSI's numbers
INDENT = 9


class Layer(NamedTuple):
    """One line: its number from 1; "run", "left out" or "not run"; the rest only of a run one.

    words: (word piece, is it still there). dropped: some are not. step: one of Prediction.steps,
    None without halting. settled: the first with a margin of 0 or more.
    """

    number: int
    state: str
    tokens: int = 0
    words: tuple = ()
    dropped: bool = False
    settled: bool = False
    step: tuple | None = None


def layers(prediction) -> Iterator[Layer]:
    p, last = prediction, max(prediction.layers_run)
    safe = [margin is not None and margin >= 0 for _, _, margin in p.steps]
    settled = next((n for n, is_safe in zip(p.layers_run, safe, strict=False) if is_safe), None)
    for n in range(p.num_layers):
        if n not in p.layers_run:
            yield Layer(n + 1, "left out" if n < last else "not run")
            continue
        place = p.layers_run.index(n)
        words = tuple((w, stayed > n) for w, stayed in zip(p.pieces, p.stayed, strict=True))
        dropped = not all(there for _, there in words)
        step = p.steps[place] if p.steps else None
        yield Layer(n + 1, "run", p.tokens_per_layer[place], words, dropped, n == settled, step)


def figures(layer: Layer, label_width: int = 0) -> list[str]:
    """What both say of a layer: its number, its state or tokens, and what halting saw."""
    parts = [f"layer {layer.number}"]
    parts.append(f"{layer.tokens} tokens" if layer.state == "run" else layer.state)
    if layer.step:
        answer, doubt, margin = layer.step
        label = max(answer, key=answer.get)
        parts.append(f"{label:{label_width}} {answer[label]:.3f}")
        if margin is not None:
            parts += [f"doubt {doubt:.3f}", f"margin {margin:+.3f}"]
    return parts


def terminal(prediction, width: int | None = None, colour: bool = False) -> Iterator[str]:
    """The lines of `infer --trace`. width: columns to wrap the words at; None: never."""

    def paint(text, code):
        return f"\033[{code}m{text}\033[0m" if colour else text

    def sentence(words, indent):
        shown = [(w, w) if there else ("·" * columns(w), None) for w, there in words]
        for line in wrapped(shown, width and width - indent):
            text = (shown if word else paint(shown, FAINT) for shown, word in line)
            yield " " * indent + " ".join(text)

    yield from sentence([(piece, True) for piece in prediction.pieces], 0)
    label_width = max(map(len, prediction.probs))
    for layer in layers(prediction):
        if layer.state != "run":
            yield paint("  ".join(figures(layer)), FAINT)
            continue
        line = "  ".join(figures(layer, label_width))
        yield paint(line + "  (can change no more)", BOLD) if layer.settled else line
        if layer.dropped:
            yield from sentence(layer.words, INDENT)


def columns(text: str) -> int:
    """How wide a terminal shows it: Chinese signs and emoji take two columns, accents none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def wrapped(words: list[tuple[str, str | None]], width: int | None) -> Iterator[list]:
    """Cuts the list into lines of at most that many columns; a word that is longer has its own."""
    line, used = [], 0
    for word in words:
        more = columns(word[0]) + bool(line)
        if width is not None and line and used + more > width:
            yield line
            line, used, more = [], 0, columns(word[0])
        line.append(word)
        used += more
    yield line


# --- in a notebook --------------------------------------------------------------------------------
# only opacity and the page's own colours, so that light and dark pages both show it

CELL = "text-align:left;padding:1px 10px 1px 0;vertical-align:middle;white-space:nowrap"
BAR = "display:inline-block;height:0.7em;background:currentColor"


def html(prediction) -> str:
    """A table: the sentence, a line per layer; words get fainter the earlier they were dropped."""
    p = prediction
    rows = "".join(f'<tr style="background:none">{row(layer)}</tr>' for layer in layers(p))
    return (
        '<div style="font-family:monospace;line-height:1.5">'
        f'<div style="white-space:normal">{fading(p)}</div>'
        f'<table style="border:none;margin:4px 0">{rows}</table>'
        f"<div>{escape(str(p))}</div></div>"
    )


def fading(p) -> str:
    words = []
    for piece, stayed in zip(p.pieces, p.stayed, strict=True):
        never = stayed >= p.num_layers
        note = "" if never else f' title="dropped before layer {stayed + 1}"'
        opacity = 1 if never else 0.25 + 0.5 * stayed / p.num_layers
        words.append(f'<span style="opacity:{opacity:.2f}"{note}>{escape(piece)}</span>')
    return " ".join(words)


def row(layer: Layer) -> str:
    cells, faint = [escape(part) for part in figures(layer)], layer.state != "run"
    if layer.step:
        answer = layer.step[0]
        cells.insert(3, bar(max(answer.values()), len(answer)))
    if layer.settled:
        cells.append("<b>can change no more</b>")
    style = f"border:none;{CELL}" + (";opacity:0.5" if faint else "")
    return "".join(f'<td style="{style}">{cell}</td>' for cell in cells)


def bar(probability: float, classes: int) -> str:
    """A bar of that share of 8 em; none for regression, whose answers are no shares."""
    if classes == 1:
        return ""
    full = f'<span style="{BAR};width:{8 * probability:.2f}em"></span>'
    return full + f'<span style="{BAR};width:{8 * (1 - probability):.2f}em;opacity:0.15"></span>'
