"""Looking instead of reading: the trace in a terminal, a Prediction in a notebook, the plots."""

import json
import os
import pty
import re
import subprocess
import sys
from html.parser import HTMLParser
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import FIXTURES, TINY, run
from hypothesis import given
from hypothesis import strategies as st

from minidact import InputError, Model, plot, show

SENTENCE = "it starts well, but it never becomes the film it wants to be"
ANSI = re.compile(r"\033\[\d*m")


@pytest.fixture(scope="module")
def prediction():
    return Model.from_pretrained()(SENTENCE)


def test_a_layer_line_for_every_layer(prediction):
    lines = list(show.terminal(prediction))
    numbers = [line.split()[1] for line in lines if line.startswith("layer ")]
    assert numbers == [str(n + 1) for n in range(prediction.num_layers)]
    last = max(*prediction.layers_run, prediction.settled)
    assert sum("not run" in line for line in lines) == prediction.num_layers - 1 - last
    assert sum("left out" in line for line in lines) == last + 1 - len(prediction.layers_run)
    assert sum("can change no more" in line for line in lines) == 1


def test_dropped_words_are_dots_of_their_width(prediction):
    lines = list(show.terminal(prediction))
    full, rest = lines[0], lines[lines.index(next(x for x in lines if "layer 4" in x)) + 1]
    assert len(rest) == show.INDENT + len(full)
    shown = rest.split()
    assert sum(set(word) != {"·"} for word in shown) == prediction.tokens_per_layer[-1]


@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)),
       st.integers(1, 40))  # fmt: skip
def test_wrapping_keeps_all_words_and_the_width(words, width):
    lines = list(show.wrapped([(word, word) for word in words], width))
    assert [word for line in lines for _, word in line] == words
    for line in lines:
        used = sum(show.columns(word) for word, _ in line) + len(line) - 1
        assert used <= width or len(line) == 1


def test_columns():
    assert show.columns("abc") == 3
    assert show.columns("映画") == 4
    assert show.columns("e\u0301") == 1


def test_colour_changes_nothing_but_colour(prediction):
    plain = list(show.terminal(prediction, 40))
    coloured = list(show.terminal(prediction, 40, colour=True))
    assert any(ANSI.search(line) for line in coloured)
    assert [ANSI.sub("", line) for line in coloured] == plain
    assert max(len(line) for line in plain if not line.startswith("layer")) <= 40


def on_a_terminal(environment):
    """What --trace prints to a terminal of 50 columns."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "minidact.infer", "--trace", SENTENCE]
    keep = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    environment = keep | {"COLUMNS": "50", "TERM": "xterm"} | environment
    with subprocess.Popen(command, stdout=slave, env=environment) as process:
        os.close(slave)
        text = b""
        try:
            while part := os.read(master, 4096):
                text += part
        except OSError:  # Linux says so when the other end is closed
            pass
    os.close(master)
    assert process.returncode == 0
    return text.decode()


def test_a_terminal_gets_colours_unless_it_refuses_them():
    coloured, plain = on_a_terminal({}), on_a_terminal({"NO_COLOR": "1"})
    assert ANSI.search(coloured)
    assert "\033" not in plain
    words = [x for x in plain.splitlines() if not x.startswith(("layer", "negative"))]
    assert max(map(len, words)) <= 50 < sum(map(len, words))


class Cells(HTMLParser):
    """The text of every element by its tag, and whether all tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.found.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.found[tag][-1] += data


def test_a_notebook_shows_it(prediction):
    page = Cells(prediction._repr_html_())
    assert not page.open
    assert len(page.found["tr"]) == prediction.num_layers
    words = [text for text in page.found["span"] if text]
    assert words == prediction.pieces
    dropped = prediction._repr_html_().count("dropped before layer")
    assert dropped == sum(stayed < prediction.num_layers for stayed in prediction.stayed)
    assert "can change no more" in "".join(page.found["tr"])
    assert str(prediction) in "".join(page.found["div"])


def test_markup_in_a_text_is_text():
    html = Model.from_pretrained()("<script>alert(1)</script> & more")._repr_html_()
    assert "<script" not in html
    assert "&lt;" in html
    assert "&amp;" in html


def test_a_plain_model_shows_itself_too():
    page = Cells(Model.from_pretrained(TINY)("good")._repr_html_())
    assert all("tokens" in text for text in page.found["tr"])


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    log, result = tmp_path / "log.jsonl", tmp_path / "sweep.json"
    records = [
        {"step": i, "loss": 1 / (i + 1), "lr": 0.1, "tokens": 9, "tokens_per_s": 9.0, "ponder": 0.5}
        for i in range(120)
    ]
    log.write_text("\n".join(map(json.dumps, records)))
    data = ["--data", FIXTURES / "reviews.tsv", "--sweep", "--curves", "all,fixed"]
    swept = run("evaluate", *data, "--json", "--plot", tmp_path / "direct.png")
    assert swept.returncode == 0, swept.stderr
    assert (tmp_path / "direct.png").stat().st_size > 1000
    result.write_text(swept.stdout)
    for file in (log, result):
        picture = tmp_path / f"{file.stem}.svg"
        done = run("plot", file, "--out", picture)
        assert done.returncode == 0, done.stderr
        assert picture.read_text().count("<path") > 5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "is empty"), ("{}", "is neither"), ("[1]", "is neither"), ("step 1", "is neither"),
     (None, "cannot be read")],
)  # fmt: skip
def test_what_is_no_log(text, sentence, tmp_path):
    file = tmp_path / "log.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=sentence):
        plot.read(str(file))


@pytest.mark.parametrize("text", ['{"loss": 1}', '{"points": [], "areas": {}}', '{"points": 1}'])
def test_a_damaged_log(text, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "log.jsonl").write_text(text)
    done = run("plot", tmp_path / "log.jsonl", "--out", tmp_path / "x.png")
    assert done.returncode == 2
    assert "is damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_picture_that_another_program_cannot_draw(tmp_path, monkeypatch):
    """As where .pgf needs a LaTeX that is not there."""
    plt = pytest.importorskip("matplotlib.pyplot")
    figure = plt.figure()
    monkeypatch.setattr(figure, "savefig", Mock(side_effect=RuntimeError("xelatex not found")))
    with pytest.raises(InputError, match=r"x\.pgf cannot be drawn: xelatex not found"):
        plot.save(figure, str(tmp_path / "x.pgf"))


def test_running_mean():
    values = plot.running_mean([1.0, 3.0, 5.0, 7.0], 2)
    assert values.tolist() == [1.0, 2.0, 4.0, 6.0]
    values = plot.running_mean([np.nan, 1.0, np.nan, np.nan, 3.0, 5.0], 2)
    np.testing.assert_array_equal(values, [np.nan, 1.0, 1.0, np.nan, 3.0, 4.0])


def test_only_the_first_settled_layer_says_so():
    full = Model.from_pretrained()(SENTENCE, use=())
    assert sum(margin >= 0 for _, _, margin in full.steps) > 1
    assert sum("can change no more" in line for line in show.terminal(full)) == 1


def test_a_class_may_be_settled_by_a_layer_that_is_left_out():
    said = "the score, all cellos and distant bells, gives the mystery a wonderful sense of dread"
    prediction = Model.from_pretrained()(said, use=("halting", "planning"))
    assert prediction.steps[-1][2] < 0
    assert prediction.settled > max(prediction.layers_run)
    lines = list(show.terminal(prediction))[1:]
    assert lines[prediction.settled].endswith("left out  (can change no more)")
    assert "left out</td>" in show.html(prediction)
    assert show.html(prediction).count("can change no more") == 1
