"""Figures in README and the card are those of the files that the commands beside them wrote."""

import json
import re
from statistics import fmean, median

import pytest
from conftest import ROOT

from minidact.mechanisms import KNOBS
from minidact.study import compare, scores

DATA = ROOT / "tutorials" / "data"
SWEEP = json.loads((DATA / "sst2-sweep.json").read_text())
CONFIG = json.loads((ROOT / "weights" / "sst2-minilm-l6" / "config.json").read_text())["minidact"]
PAGES = ["README.md", "weights/sst2-minilm-l6/README.md"]


def prose(page):
    """The text of a page, or of a notebook without its code."""
    text = (ROOT / page).read_text()
    if page.endswith(".ipynb"):
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    return text


def table(page, heading):
    """The cells of the rows of the table under a line that begins so."""
    lines = prose(page).splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith(heading))
    rows = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def point(label):
    """The point of the sweep that a row's first cell names by its options."""
    if label == "full":
        return SWEEP["points"][0]
    options = dict(re.findall(r"--(\S+) ([^\s`]+)", label))
    curve = options.pop("use", "all")
    if layer := re.search(r"layer (\d)", label):
        curve, options = "fixed", {"at": layer[1]}
    knobs = {name.replace("-", "_"): float(value) for name, value in options.items()}
    found = [
        p
        for p in SWEEP["points"]
        if p["curve"] == curve
        and all(
            value == knobs.get(name, KNOBS[name].usual)
            for name, value in p["knobs"].items()
            if name not in ("use", "rule")
        )
    ]
    assert len(found) == 1, label
    return found[0]


@pytest.mark.parametrize("page", PAGES)
def test_scores_and_costs_are_the_sweeps(page):
    rows = table(page, "| | accuracy | layers | multiply-adds | ms per text |")
    assert len(rows) >= 8
    for label, *told in rows:
        p, full = point(label), "_full" if label == "full" else ""
        layers, share = (p["num_layers"], 1) if full else (p["layers_mean"], p["macs_fraction"])
        cells = f"{p['value' + full]:.4f}", f"{layers:.2f}", f"{100 * share:.0f} %"
        assert told == [*cells, f"{p['ms_per_text' + full]:.2f}"], label


def test_areas_are_the_sweeps():
    rows = table(PAGES[1], "| | mean accuracy |")
    assert {name.split(",")[0] for name, _ in rows} >= {"halting", "all", "grid", "confidence"}
    for name, value in rows:
        assert value == f"{SWEEP['areas'][name.split(',')[0]]:.4f}", name


def test_certificates_are_those_that_ship():
    found = []
    for c in sorted(CONFIG["certificates"], key=lambda c: (-c["bits"], c["risk"])):
        use, slack = "+".join(c["knobs"]["use"]), c["knobs"]["slack"]
        differed = f"{c['disagreements']} of {c['examples']:,}"
        cost = f"{100 * c['macs_fraction']:.0f} %"
        found.append([str(c["risk"]), str(c["bits"]), differed, use, str(slack), cost])
    assert table(PAGES[1], "| risk | bits |") == found


# ---------------------------------------------------------------------------- results.md


RESULTS = "tutorials/results.md"
STUDY = json.loads((DATA / "study.json").read_text())
LONG = {row["row"]: row for row in json.loads((DATA / "imdb.json").read_text())}


@pytest.mark.parametrize(
    ("page", "count"), [(RESULTS, len(LONG)), ("tutorials/11_long_texts.ipynb", 6)]
)
def test_scores_of_long_texts_are_evaluates(page, count):
    rows = table(page, "| | accuracy | multiply-adds | time |")
    assert len(rows) == count
    for label, *told in rows:
        row = LONG[label]
        shares = [f"{100 * row[key]:.0f} %" for key in ("macs_fraction", "time_fraction")]
        assert told == [f"{row['value']:.3f}", *shares], label


def test_the_studys_tables_are_its_own():
    found = {row["task"] for row in STUDY}
    assert found >= {"TREC", "CoLA", "MRPC", "RTE", "SST-2", "IMDB"}
    for task in found:
        rows = [compare.cells(row) for row in STUDY if row["task"] == task]
        assert table(RESULTS, f"| {task} | epochs | seeds |") == rows


def test_on_rte_only_token_gates_are_not_level():
    compared = [row for row in STUDY if row["task"] == "RTE" and "word" in row]
    assert len(compared) == 14
    for row in compared:
        assert row["against"] == ["pondernet", "cumulated"]
        assert row["word"] == ("below" if row["curve"] == "tokens" else "level"), row["curve"]


def test_shares_beside_those_of_others_are_the_sweeps():
    rows = table(RESULTS, "| SST-2 | layers | the cost is | of the full score |")
    ours = [(label, told) for label, layers, _, told in rows if layers == "6"]
    assert len(ours) == 4
    for label, told in ours:
        p = point(label)
        kept, share = p["value"] / p["value_full"], p["macs_fraction"]
        assert told == f"{100 * kept:.1f} % at {100 * share:.0f} %", label


# ---------------------------------------------------------------------------- speed


SPEED = json.loads((DATA / "speed.json").read_text())
AVX2 = json.loads((DATA / "speed-avx2.json").read_text())
CONTENDERS = {
    "`--bits 8`": "minidact 8 bits",
    "exact halting": "halting",
    "the same": "ONNX Runtime",
}
COLUMNS = ["`--bits 8`", "PyTorch", "ONNX Runtime", "the same, int8", "OpenVINO int8"]


def contender(label):
    """What bench calls the contender that a table names by this."""
    for ours, its in CONTENDERS.items():
        label = label.replace(ours, its)
    return label if "minidact" in label else label.replace(",", "")


def milliseconds(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


@pytest.mark.parametrize(("corner", "speed"), [("", SPEED), (" AVX2", AVX2)])
def test_times_of_products_are_the_benchmarks(corner, speed):
    cases = {row["case"]: row for row in speed["rows"]}
    rows = table("tutorials/speed.md", f"|{corner} | minidact | `--bits 8` |")
    assert len(rows) == 9
    for case, ours, *others in rows:
        measured = cases[case]
        assert ours == milliseconds(measured["ms"]["minidact"]), case
        for cell, column in zip(others, COLUMNS, strict=True):
            name = contender(column)
            if name not in measured["ms"]:
                assert cell == ""
                continue
            eight = "int8" in name
            share = measured["ratio_8_bits" if eight else "ratio"][name]
            bracket = "" if "minidact" in name else f" ({share:.2f})"
            assert cell == milliseconds(measured["ms"][name]) + bracket, (case, name)


@pytest.mark.parametrize(
    ("page", "corner", "speed"),
    [
        ("README.md", "", SPEED),
        ("tutorials/speed.md", "", SPEED),
        ("tutorials/speed.md", " AVX2", AVX2),
    ],
)
def test_times_from_a_text_to_its_label_are_the_benchmarks(page, corner, speed):
    alone, batches = speed["labels"]
    assert (alone["batch_size"], batches["batch_size"]) == (1, 32)
    rows = table(page, f"|{corner} | accuracy | mean | 50 % | 95 % | 99 % |")
    assert len(rows) >= 7
    for label, accuracy, *times in rows:
        name = contender(label)
        assert accuracy == f"{alone['accuracy'][name]:.4f}", label
        found = [alone[key][name] for key in ("ms", "p50", "p95", "p99")] + [batches["ms"][name]]
        assert times == [f"{value:.2f}" for value in found[: len(times)]], label


# ---------------------------------------------------------------------------- sentences


def percent(share):
    return f"{100 * share:.0f} %"


ROWS = {(row["task"], row["method"], row["curve"]): row for row in STUDY}


def area(*name):
    return f"{100 * ROWS[name]['area']:.1f}"


def varies(*name):
    return f"{area(*name)} ± {100 * ROWS[name]['spread']:.1f}"


def full(*name):
    return f"{100 * fmean(ROWS[name]['full']):.1f}"


def kept(cost, *name):
    return f"{100 * ROWS[name]['kept'][cost]:.1f} %"


def compared(*name, with_):
    """The word and the interval; it is checked what the row is compared with."""
    row = ROWS[name]
    assert row["against"] == list(with_), name
    low, high = (f"{100 * row[key]:+.1f}" for key in ("low", "high"))
    return f"{row['word']} ({100 * row['difference']:+.1f}, {low} to {high})"


def lag(task, size):
    """A setting's share of the time less its share of the multiply-adds, in points: the median."""
    times = [at for row in STUDY if row["task"] == task for at in row.get("times", [])]
    found = [at for at in times if at["batch_size"] == size]
    return 100 * median(at["time_fraction"] - at["macs_fraction"] for at in found)


def beside_onnx(row):
    """Exact halting in eight bits, as a share of ONNX Runtime's time in eight bits."""
    return f"{row['ms']['minidact 8 bits, halting'] / row['ms']['ONNX Runtime int8']:.2f}"


QUESTIONS, MARKS = ("TREC", "all-after", "halting"), ("CoLA", "all-after", "halting")
PAIRS, CONFIDENCE = ("MRPC", "all-after", "halting"), ("dact", "confidence")
UNCERTAIN = ("fastbert", "uncertainty")
OPINIONS, GENTLY = ("SST-2", "all", "all"), ("SST-2", "all-after", "all")
LATER, LATEST = ("RTE", "dact-after", "halting"), ("RTE", "all-after", "halting")
REVIEWS, SELECTED = ("IMDB", "selection", "all"), ("MRPC", "selection", "selection")
CHOSEN, DEAR = ("IMDB", "policy", "selection"), ("IMDB", "all-dear", "tokens")
HALTING, SLACK = point("`--use halting`: exact"), point("`--use halting --slack 0.4`")
POLICY = point("`--use selection`")
SURER = point("`--use selection --selection-threshold 0.001`")
RISKS = {row["risk"]: row for row in json.loads((DATA / "sst2-risk.json").read_text())}
SURE, LESS_SURE = RISKS[0.01], RISKS[0.05]
LIMITS, START, SAID = SPEED["limits"], SPEED["startup"], AVX2["labels"][0]["accuracy"]
TIMED = ["TREC", "CoLA", "SST-2", "MRPC", "RTE", "IMDB"]
LAGS, BATCHED = ([lag(task, size) for task in TIMED] for size in (1, 32))
EIGHT = [row["ratio_8_bits"]["minidact"] for row in AVX2["rows"] if row["ratio_8_bits"]]
SENTENCES = {
    "README.md": [
        f"the same class as in full for {percent(HALTING['macs_fraction'])} of the work",
        f"nothing dearer than {percent(CONFIG['budgets'][-1]['macs_fraction'])} scored better",
    ],
    PAGES[1]: [
        " ".join(scores.table(RISKS[0.02]).split()),
        f"With `--risk 0.01` {100 * SURE['agreement']:.1f} % of the classes are as in full, at "
        f"{percent(SURE['macs_fraction'])} of the multiply-adds. With `--risk 0.05` it is "
        f"{100 * LESS_SURE['agreement']:.1f} % of them, at {percent(LESS_SURE['macs_fraction'])}",
    ],
    "tutorials/speed.md": [
        f"here {LIMITS['gflops']:.0f} GFLOP/s, {LIMITS['gops_int8']:.0f} G operations/s in eight "
        f"bits, and {LIMITS['gb_per_s']:.0f} GB/s from memory",
        f"The whole process of `infer` takes {START['infer_s']:.1f} s and "
        f"{START['infer_mb']:.0f} MB",
        f"the kernels are compiled after it, in {START['compiled_s']:.0f} s",
        f"A pass takes {min(EIGHT):.2f} to {max(EIGHT):.2f} of its time in float32",
        "From a text to its label, `--bits 8` with exact halting takes "
        f"{beside_onnx(AVX2['labels'][0])} of the time of ONNX Runtime in eight bits, and "
        f"{beside_onnx(AVX2['labels'][1])} in batches",
        f"scores {SAID['minidact 8 bits, full']:.4f} in full ({SAID['minidact, full']:.4f} in "
        f"float32) and {SAID['minidact 8 bits, all']:.4f} with all three mechanisms "
        f"({SAID['minidact, all']:.4f} in float32)",
    ],
    "tutorials/07_all_three_together.ipynb": [
        f"Selection with halting keeps {percent(ROWS[REVIEWS]['kept']['0.25'])} of its full score "
        f"({ROWS[REVIEWS]['full'][0]:.3f}; plain fine-tuning has "
        f"{ROWS['IMDB', 'plain', 'full']['full'][0]:.3f}) at a quarter of the work, where "
        f"FastBERT keeps {percent(ROWS['IMDB', *UNCERTAIN]['kept']['0.25'])}",
        "a price of their own. With it they keep "
        f"{percent(ROWS[DEAR]['kept']['0.5'])} of the score at half of the work",
    ],
    RESULTS: [
        f"score {SURER['value']:.4f} at {percent(SURER['macs_fraction'])} of the multiply-adds "
        f"(`--selection-threshold {SURER['knobs']['selection_threshold']}`) and "
        f"{POLICY['value']:.4f} at {percent(POLICY['macs_fraction'])} (as they ship). Halting has "
        f"{SLACK['value']:.4f} there, the full model's score, at {percent(SLACK['macs_fraction'])}",
        f"was fine-tuned and then trained for all three: {area(*QUESTIONS)}. It is "
        + compared(*QUESTIONS, with_=("dact-after", "confidence")),
        f"On CoLA the best is FastBERT's uncertainty, {area('CoLA', *UNCERTAIN)}, and the curve "
        f"that is best on TREC is {compared(*MARKS, with_=UNCERTAIN)} with it",
        f"the best is confidence on DACT's heads, {area('MRPC', *CONFIDENCE)}. DACT's own rule is "
        + compared("MRPC", "dact", "halting", with_=CONFIDENCE),
        "share the first place, "
        f"{area('SST-2', 'dact-after', 'halting')}: "
        + compared("SST-2", "dact-after", "halting", with_=("dact-after", "confidence")),
        f"all three score {full(*OPINIONS)} in full (halting alone "
        f"{full('SST-2', 'dact', 'halting')}), and {full(*GENTLY)} where plain fine-tuning came "
        f"first ({full('SST-2', 'dact-after', 'halting')}). At a quarter of the work they keep "
        f"{kept('0.25', *OPINIONS)} and {kept('0.25', *GENTLY)} of that",
        f"On SST-2 it is {area('SST-2', 'dact-after', 'halting')} (2 epochs) and "
        f"{area('SST-2', 'dact', 'halting')} (1 epoch)",
        f"On MRPC it brought next to nothing ({area('MRPC', 'dact-after', 'halting')} after "
        f"fine-tuning, {area('MRPC', 'dact', 'halting')} at once), and on IMDB nothing "
        f"({area('IMDB', 'dact-after', 'halting')} and {area('IMDB', 'dact', 'halting')})",
        "On MRPC the policies' network is nearly as good at a quarter of the work as in full "
        f"({kept('0.25', *SELECTED)}), but its full score is {full(*SELECTED)}, where the plain "
        f"one's is {full('MRPC', 'plain', 'full')}. A policy alone varies with its seed: "
        f"{varies('MRPC', 'policy', 'selection')} on MRPC, {varies('CoLA', 'policy', 'selection')} "
        "on CoLA",
        "On CoLA the network that was trained with a policy scores only "
        f"{full('CoLA', 'selection', 'selection')} in full, where plain fine-tuning has "
        f"{full('CoLA', 'plain', 'full')}",
        f"plain fine-tuning {full('RTE', 'plain', 'full')}. DACT after fine-tuning (6 epochs) has "
        f"{full(*LATER)} in full, and all three trained after it (8 epochs) {full(*LATEST)}, but "
        "only the upper layers learn it: a quarter of the work keeps "
        f"{kept('0.25', *LATER)} and {kept('0.25', *LATEST)}",
        f"level with PonderNet's, {area('RTE', 'pondernet', 'cumulated')}",
        f"DACT after fine-tuning (6 epochs) has {area('CoLA', 'dact-after', 'halting')} on CoLA, "
        f"DACT at once (3 epochs) {area('CoLA', 'dact', 'halting')}, which is "
        f"{ROWS['CoLA', 'dact', 'halting']['word']} FastBERT (6 epochs)",
        f"keeps {kept('0.5', 'TREC', 'small', 'full')} of the score on TREC, "
        f"{kept('0.5', 'CoLA', 'small', 'full')} on CoLA, "
        f"{kept('0.5', 'MRPC', 'small', 'full')} on MRPC, {kept('0.5', 'RTE', 'small', 'full')} on "
        f"RTE and {kept('0.5', 'SST-2', 'small', 'full')} on SST-2 at half of the work. There "
        "halting, in the network that was fine-tuned and then trained for all three, keeps "
        f"{kept('0.5', *QUESTIONS)}, {kept('0.5', *MARKS)}, {kept('0.5', *PAIRS)}, "
        f"{kept('0.5', *LATEST)} and {kept('0.5', 'SST-2', 'all-after', 'halting')} of its own. On "
        f"IMDB smaller networks keep {kept('0.5', 'IMDB', 'small', 'full')} at that cost, halting "
        f"in the network for all three {kept('0.5', 'IMDB', 'all', 'halting')}",
        f"Selection with halting keeps {kept('0.25', *REVIEWS)} of its full score at a quarter of "
        "the work, halting alone in the same network "
        f"{kept('0.25', 'IMDB', 'selection', 'halting')}, selection alone "
        f"{kept('0.25', 'IMDB', 'selection', 'selection')}, and FastBERT's heads, the best of the "
        f"related rules there, {kept('0.25', 'IMDB', *UNCERTAIN)}. Over the low half selection "
        f"with halting is {compared(*REVIEWS, with_=UNCERTAIN)} with FastBERT",
        "and so is DACT's rule "
        + compared("IMDB", "dact", "halting", with_=UNCERTAIN).removeprefix("level "),
        "they alone keep "
        f"{kept('0.5', *DEAR)} of the score at half of the work and {kept('0.25', *DEAR)} at a "
        f"quarter. That is {compared(*DEAR, with_=UNCERTAIN)} FastBERT over the low half",
        "Halting in that network has the highest curve here, "
        f"{area('IMDB', 'all-dear', 'halting')}, "
        f"{compared('IMDB', 'all-dear', 'halting', with_=UNCERTAIN)} with FastBERT",
        "The policies alone, trained on the plain network as it is, keep "
        f"{kept('0.25', *CHOSEN)} of its score at a quarter of the work and "
        f"{kept('0.5', *CHOSEN)} at half",
        f"multiply-adds by {min(BATCHED):.1f} to {max(BATCHED):.1f} points, whatever the task",
        "one text at a time it is above its share of the multiply-adds by "
        "{:.1f} points on TREC, {:.1f} on CoLA, {:.1f} on SST-2, {:.1f} on MRPC, "
        "{:.1f} on RTE and {:.1f} on IMDB".format(*LAGS),
    ],
}


@pytest.mark.parametrize("page", SENTENCES)
def test_figures_in_sentences_are_those_of_the_files(page):
    text = " ".join(prose(page).split())
    for sentence in SENTENCES[page]:
        assert sentence in text
