"""Shows what every layer did for one text, in a terminal or in a notebook.

Both show the same. A token is shown until it is dropped. A layer is shown as run, as left out, or,
after the last one that ran, as not run. With halting, the answer after each layer is shown.
"""

import unicodedata
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from .errors import visible

BOLD, FAINT = "1", "2"  # ANSI codes
INDENT = 9


class Layer(NamedTuple):
    """One layer, as a line shows it. number counts from 1; state: "run", "left out" or "not run".

    settled: is it the first with a margin of 0 or more. The other fields are set only if it ran.
    tokens: how many it worked on. words: for each token, (the word piece, is it still there).
    dropped: are some of them gone. step: the layer's entry in Prediction.steps, or None without
    halting. chances: (the word piece, its chance to stay) of those that a policy was asked about
    before it.
    """

    number: int
    state: str
    tokens: int = 0
    words: tuple = ()
    dropped: bool = False
    settled: bool = False
    step: tuple | None = None
    chances: tuple = ()


def layers(prediction) -> Iterator[Layer]:
    """Yields every layer of the model in order, for a model.Prediction."""
    p = prediction
    last = max(*p.layers_run, -1 if p.settled is None else p.settled)
    for n in range(p.num_layers):
        if n not in p.layers_run:
            state = "left out" if n <= last else "not run"
            yield Layer(n + 1, state, settled=n == p.settled)
            continue
        place = p.layers_run.index(n)
        words = tuple(
            (visible(w), stayed > n) for w, stayed in zip(p.pieces, p.stayed, strict=True)
        )
        dropped = not all(there for _, there in words)
        step = p.steps[place] if p.steps else None
        asked = zip(p.pieces, p.chances.get(n, ()), strict=False)
        chances = tuple((visible(piece), pi) for piece, pi in asked if pi is not None)
        tokens = p.tokens_per_layer[place]
        yield Layer(n + 1, "run", tokens, words, dropped, n == p.settled, step, chances)


def figures(layer: Layer, label_width: int = 0) -> list[str]:
    """Returns what a line says of a layer: its number, its state or tokens, what halting saw.

    label_width: the label is padded to that many characters.
    """
    parts = [f"layer {layer.number}"]
    parts.append(f"{layer.tokens} tokens" if layer.state == "run" else layer.state)
    if layer.step:
        answer, doubt, margin = layer.step
        label = max(answer, key=answer.get)
        parts.append(f"{visible(label):{label_width}} {answer[label]:.3f}")
        if margin is not None:
            parts += [f"doubt {doubt:.3f}", f"margin {margin:+.3f}"]
    return parts


def terminal(prediction, width: int | None = None, colour: bool = False) -> Iterator[str]:
    """Yields the lines of `infer --trace`, for a model.Prediction.

    width: wrap the tokens at so many columns; None: never. colour: use ANSI's bold and faint.
    """

    def paint(text, code):
        return f"\033[{code}m{text}\033[0m" if colour else text

    def sentence(words, indent):
        shown = [(w, w) if there else ("·" * columns(w), None) for w, there in words]
        for line in wrapped(shown, width and width - indent):
            text = (shown if word else paint(shown, FAINT) for shown, word in line)
            yield " " * indent + " ".join(text)

    yield from sentence([(visible(piece), True) for piece in prediction.pieces], 0)
    label_width = max(len(visible(label)) for label in prediction.probs)
    for layer in layers(prediction):
        line = "  ".join(figures(layer, label_width))
        if layer.settled:
            yield paint(line + "  (can change no more)", BOLD)
        else:
            yield line if layer.state == "run" else paint(line, FAINT)
        if layer.dropped:
            yield from sentence(layer.words, INDENT)
        if layer.chances:
            said = ["chances:", *(f"{word} {pi:.2f}" for word, pi in layer.chances)]
            for part in wrapped([(text, None) for text in said], width and width - INDENT):
                yield paint(" " * INDENT + " ".join(text for text, _ in part), FAINT)


def columns(text: str) -> int:
    """Returns how many columns a terminal needs for the text.

    Chinese characters and emoji take two columns, combining accents take none.
    """
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def wrapped(words: list[tuple[str, str | None]], width: int | None) -> Iterator[list]:
    """Yields the list cut into lines of at most `width` columns; a longer word gets its own line.

    words: (text, anything). width None: all in one line.
    """
    line: list[tuple[str, str | None]] = []
    used = 0
    for word in words:
        more = columns(word[0]) + bool(line)
        if width is not None and line and used + more > width:
            yield line
            line, used, more = [], 0, columns(word[0])
        line.append(word)
        used += more
    yield line


# --- in a notebook --------------------------------------------------------------------------------
# only opacity and the page's own colours are used, so it fits light pages and dark ones

CELL = "text-align:left;padding:1px 10px 1px 0;vertical-align:middle;white-space:nowrap"
BAR = "display:inline-block;height:0.7em;background:currentColor"


def html(prediction) -> str:
    """Returns the HTML for a model.Prediction: the sentence, then a table with a row per layer.

    The earlier a token was dropped, the fainter it is.
    """
    p = prediction
    rows = "".join(f'<tr style="background:none">{row(layer)}</tr>' for layer in layers(p))
    return (
        '<div style="font-family:monospace;line-height:1.5">'
        f'<div style="white-space:normal">{fading(p)}</div>'
        f'<table style="border:none;margin:4px 0">{rows}</table>'
        f"<div>{escape(str(p))}</div></div>"
    )


def fading(p) -> str:
    """Returns the sentence as HTML; the earlier a token was dropped, the fainter it is."""
    words = []
    for i, (piece, stayed) in enumerate(zip(p.pieces, p.stayed, strict=True)):
        asked = p.chances.get(stayed)
        chance = "" if asked is None else f", with a chance of {asked[i]:.2f}"
        never = stayed >= p.num_layers
        note = "" if never else f' title="dropped before layer {stayed + 1}{chance}"'
        opacity = 1 if never else 0.25 + 0.5 * stayed / p.num_layers
        words.append(f'<span style="opacity:{opacity:.2f}"{note}>{escape(piece)}</span>')
    return " ".join(words)


def row(layer: Layer) -> str:
    """Returns the cells of a layer's table row, as HTML."""
    cells, faint = [escape(part) for part in figures(layer)], layer.state != "run"
    if layer.step:
        answer = layer.step[0]
        cells.insert(3, bar(max(answer.values()), len(answer)))
    if layer.settled:
        cells.append("<b>can change no more</b>")
    style = f"border:none;{CELL}" + (";opacity:0.5" if faint else "")
    return "".join(f'<td style="{style}">{cell}</td>' for cell in cells)


def bar(probability: float, classes: int) -> str:
    """Returns a bar as HTML that is filled to the probability and is 8 em wide.

    With one class, a regression, it is empty text: the answer is no probability.
    """
    if classes == 1:
        return ""
    full = f'<span style="{BAR};width:{8 * probability:.2f}em"></span>'
    return full + f'<span style="{BAR};width:{8 * (1 - probability):.2f}em;opacity:0.15"></span>'
