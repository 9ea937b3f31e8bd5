"""The page to move knobs in, in a real browser: it shows what `evaluate` measures."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT, TINY, run
from training import arguments

from minidact import Model, data
from minidact.mechanisms.exits import HEADS, RULES
from minidact.study import explore
from minidact.study.scores import Full

REVIEWS = ROOT / "tutorials" / "data" / "reviews.tsv"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
in_a_browser = pytest.mark.skipif(not BROWSER, reason="there is no Chromium here")
SETTINGS = [  # what is moved in the page, and the same for a Model
    ("rule=dact&knob=0&gates=0", {"use": ("halting",)}),
    ("rule=dact&knob=0.4&gates=0", {"use": ("halting",), "slack": 0.4}),
    ("rule=dact&knob=0&gates=1", {}),
    ("rule=dact&knob=0.5&gates=1", {"slack": 0.5}),
    ("rule=fixed&knob=3&gates=0", {"use": ("halting",), "rule": "fixed", "at": 3}),
    ("rule=confidence&knob=0.9&gates=0", {"use": ("halting",), "rule": "confidence", "at": 0.9}),
    ("rule=entropy&knob=0.2&gates=0", {"use": ("halting",), "rule": "entropy", "at": 0.2}),
    ("rule=patience&knob=1&gates=0", {"use": ("halting",), "rule": "patience", "at": 1}),
    ("rule=cumulated&knob=0.5&gates=0", {"use": ("halting",), "rule": "cumulated", "at": 0.5}),
]  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "page.html"
    result = run("evaluate", "--data", REVIEWS, "--explore", file)
    assert result.returncode == 0, result.stderr
    return file


def dom(file, moved="", script=""):
    """The page as a browser has made it; script: runs at its end."""
    if script:
        file = shutil.copy(file, file.with_name("moved.html"))
        file.write_text(file.read_text().replace("</body>", f"<script>{script}</script></body>"))
    profile = f"--user-data-dir={file.parent / 'profile'}"
    switches = ["--headless=new", "--no-sandbox", "--disable-gpu", profile, "--dump-dom"]
    command = [BROWSER, *switches, f"file://{file}#{moved}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(text):
    found = dict(re.findall(r'<b id="(\w+)">([^<]*)</b>', text))
    exits = [int(count) for count in re.findall(r'data-count="(\d+)"', text)]
    return found, exits


@in_a_browser
def test_it_shows_what_evaluate_measures(page):
    model, rows = Model.from_pretrained(), [r.split("\t") for r in REVIEWS.read_text().splitlines()]
    texts, truth = [r[0] for r in rows[1:]], np.array([int(r[1]) for r in rows[1:]])
    names = {"negative": 0, "positive": 1}
    full = np.array([names[p.label] for p in model(texts, use=())])
    for moved, knobs in SETTINGS:
        answers = model(texts, **knobs)
        said = np.array([names[p.label] for p in answers])
        found, exits = figures(dom(page, moved))
        assert found["score"] == f"{(said == truth).mean():.4f}", moved
        cost = sum(p.macs for p in answers) / sum(p.macs_full for p in answers)
        assert found["cost"] == f"{100 * cost:.1f} %", moved
        layers = [len(p.layers_run) for p in answers]
        assert abs(float(found["layers"]) - np.mean(layers)) <= 0.00501, moved
        assert int(found["differ"]) == (said != full).sum(), moved
        assert int(found["better"]) == ((said != full) & (said == truth)).sum(), moved
        assert int(found["worse"]) == ((said != full) & (full == truth)).sum(), moved
        assert sum(exits) == len(texts)
        if "gates=0" in moved:
            assert exits == np.bincount(layers, minlength=7)[1:].tolist(), moved


def test_in_full_is_what_evaluate_compares_with():
    """The float32 network's classes, also of a model in eight bits: not what the page computes."""
    model, examples = Model.from_pretrained(bits=8), data.read_examples(REVIEWS)
    said = np.arange(240) % 2
    page = explore.page(model, examples, said, "accuracy", Full(0.5, 1.0, said))
    (full,) = re.findall(r'"full": (\[[\d, ]+])', page)
    assert json.loads(full) == said.tolist()


@in_a_browser
def test_hands_move_it(page):
    """Slider, rule, search, order, and the arrow keys in the list."""
    slide = """
        at("knob").value = at("knob").max;
        at("knob").dispatchEvent(new Event("input"));
    """
    found, exits = figures(dom(page, "rule=dact&knob=0&gates=0", slide))
    assert exits == [240, 0, 0, 0, 0, 0]  # slack 1 stops after the first layer
    assert float(found["layers"]) == 1
    move = """
        at("gates").click();
        at("rule").value = "patience";
        at("rule").dispatchEvent(new Event("change"));
        at("search").value = "FILM";
        at("search").dispatchEvent(new Event("input"));
        const press = key => at("rows").firstElementChild.nextElementSibling.dispatchEvent(
            new KeyboardEvent("keydown", {key, bubbles: true}));
        at("rows").querySelector("button").click();
        press("ArrowDown"); press("ArrowDown"); press("ArrowUp");
        document.title = location.hash + " " + document.activeElement.dataset.row;
    """
    text = dom(page, "rule=dact&knob=0&gates=1", move)
    films = [i for i, line in enumerate(REVIEWS.read_text().splitlines()[1:])
             if "film" in line.split("\t")[0].lower()]  # fmt: skip
    assert f"{len(films)} of 240 texts" in text
    (title,) = re.findall("<title>(.*)</title>", text)
    assert title == f"#rule=patience&amp;knob=2&amp;gates=0&amp;text={films[1]} 1"
    assert "patience stops" in text


@in_a_browser
def test_what_is_in_texts_and_labels_stays_text(tmp_path):
    label, text = (
        "<b>bold</b>",
        "</script><img src=x onerror=document.title='broken'> \u2028 \ud800 <!--",
    )
    data = [{"text": text, "label": label}, {"text": "the good film", "label": "a"}] * 8
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    options = ["--data", tmp_path / "data.jsonl", "--init", TINY, "--out", tmp_path / "out"]
    more = ["--dev", tmp_path / "data.jsonl", "--use", "halting", "--epochs", "1"]
    trained = run("train", *options, *more)
    assert trained.returncode == 0, trained.stderr
    page = tmp_path / "page.html"
    told = run("evaluate", "--data", tmp_path / "data.jsonl", "--model", tmp_path / "out",
               "--explore", page)  # fmt: skip
    assert told.returncode == 0, told.stderr
    shown = dom(page, "text=0")
    assert "<title>minidact: where texts stop</title>" in shown
    assert "<img" not in shown.split("</script>", 1)[0]
    assert "&lt;/script&gt;&lt;img src=x" in shown
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown


@in_a_browser
@pytest.mark.parametrize("heads", ["pondernet", "berxit"])
def test_heads_that_learnt_another_way(heads, task, tmp_path):
    out, data = tmp_path / "out", task / "dev.tsv"
    options = {"use": "halting", "heads": heads, "epochs": 2, "summary": "mean"}
    trained = run("train", *arguments(task, out, **options))
    assert trained.returncode == 0, trained.stderr
    page, rule = tmp_path / "page.html", RULES[HEADS[heads].rule]
    told = run("evaluate", "--data", data, "--model", out, "--explore", page)
    assert told.returncode == 0, told.stderr
    model, lines = Model.from_pretrained(out), data.read_text().splitlines()[1:]
    depths = set()
    for at in (*rule.knob.sweep[0:8:2], rule.knob.usual):
        answers = model([line.split("\t")[0] for line in lines], rule=HEADS[heads].rule, at=at)
        layers = np.array([len(p.layers_run) for p in answers])
        _, exits = figures(dom(page, f"rule={HEADS[heads].rule}&knob={at}"))
        assert exits == np.bincount(layers, minlength=3)[1:].tolist(), at
        depths.add(layers.mean())
    assert len(depths) > 1


def test_the_page_needs_nothing_beside_it(page):
    text = page.read_text()
    assert not re.findall(r"(?:src|href)=|https?://(?!www\.w3\.org)|@import|url\(", text)
    assert len(text) * 500 / 240 < 2e6


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--explore", "page.txt"], "--explore page.txt: the name must end in .html"),
        (["--explore", "nowhere/page.html"], "nowhere/page.html could not be written"),
        (["--explore", "page.html", "--sweep"], "--explore goes with neither --sweep nor"),
        (["--explore", "page.html", "--model", TINY], "the model needs halting"),
    ],
)
def test_what_cannot_be_explored(options, sentence, tmp_path):
    data = tmp_path / "data.tsv"
    data.write_text("text\tlabel\ngood\tLABEL_0\n")
    result = run("evaluate", "--data", data, *options, cwd=ROOT)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert not (ROOT / "page.html").exists()
