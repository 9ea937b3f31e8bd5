"""The study: trains, sweeps, does nothing twice, and says how sure its comparisons are."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY, run, seeds
from hypothesis import given
from hypothesis import strategies as st

from minidact import InputError, metrics
from minidact.study import bootstrap, compare, methods, sweep
from minidact.study.__main__ import remember


@pytest.fixture(scope="module")
def options(task, tmp_path_factory):
    """Of a study in which one small task stands for TREC, already run once."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("study")
    (data / "TREC").mkdir()
    for name, copy in (("train", "train"), ("dev", "test")):
        text = (task / f"{name}.tsv").read_text()
        (data / "TREC" / f"{copy}.tsv").write_text(text)
    return ["--data", data, "--init", TINY, "--out", out, "--tasks", "TREC", "--seeds", "0,1"]


def test_it_trains_sweeps_and_compares(options):
    methods = ["--methods", "plain,small-2,cut-64,pabee,deebert"]
    first = run("study", *options, *methods, "--json")
    assert first.returncode == 0, first.stderr
    commands = [line for line in first.stderr.splitlines() if line.startswith("python -m")]
    trained = [line.split(" --")[-1] for line in commands if line.split()[2] == "minidact.train"]
    assert len(trained) == 10  # twice each
    rows = json.loads(first.stdout)
    names = [(r["method"], r["curve"]) for r in rows]
    rules = [("pabee", "patience"), ("deebert", "entropy")]
    assert sorted(names) == sorted([("plain", "full"), ("small", "full"), ("cut", "full"), *rules])
    for r in rows:
        assert r["seeds"] == [0, 1]
        assert all(0 <= value <= 1 for value in r["full"])
        if "area" in r:
            assert r["area"] > 0
            assert r["spread"] >= 0
            assert set(r["kept"]) == {"0.25", "0.5"}
    deebert = next(r for r in rows if r["method"] == "deebert")
    assert deebert["epochs"] == 6  # 3 as plain, 3 more
    assert {(t["cost"], t["batch_size"]) for t in deebert["times"]} == {(0.5, 1), (0.5, 32)}

    again = run("study", *options, *methods)
    assert again.returncode == 0, again.stderr
    assert "python -m" not in again.stderr  # all is there
    lines = again.stdout.splitlines()
    assert lines[0].startswith("| TREC | epochs | seeds |")
    assert [tuple(line.split(" | ")[0][2:].split(", ")) for line in lines[2:]] == names

    more = ["--methods", "dact,deebert", "--seeds", "0,7", "--finished", "--json"]
    more = run("study", *options, *more)
    assert more.returncode == 0, more.stderr
    assert "python -m" not in more.stderr
    assert [(r["method"], r["seeds"]) for r in json.loads(more.stdout)] == [("deebert", [0])]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--tasks", "WNLI"], "--tasks 'WNLI' is unknown; there are: SST-2"),
        (["--methods", "magic"], "--methods 'magic' is unknown"),
        (["--seeds", "one"], "it must be numbers"),
        (["--seeds", ""], "--seeds names none"),
        (["--methods", ","], "--methods names none"),
        (["--methods", "small-2"], "--methods needs plain"),
        (["--tasks", "RTE", "--methods", "plain"], "the same study goes on from here"),
    ],
)
def test_what_cannot_work(options, more, sentence):
    result = run("study", *options, *more)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_a_study_is_of_one_backbone_and_data(tmp_path):
    given = {"out": tmp_path / "out", "data": tmp_path / "data", "init": str(TINY)}
    remember(SimpleNamespace(**given))
    remember(SimpleNamespace(**given))
    for name, other in (("data", tmp_path / "others"), ("init", "a/hub-id")):
        with pytest.raises(InputError, match=f"holds a study with --{name} .*; choose another"):
            remember(SimpleNamespace(**given | {name: other}))


@pytest.mark.parametrize("name", [compare.SWEEP, compare.TEXTS, compare.TIMES])
def test_what_is_damaged_can_be_made_anew(name, tmp_path):
    (tmp_path / compare.SWEEP).write_text('{"points": []}')
    np.savez(tmp_path / compare.TEXTS, labels=np.zeros(2))
    (tmp_path / name).write_bytes(b'[{"curve"')
    with pytest.raises(InputError, match=f"{name} cannot be read .*: delete it"):
        compare.found_in(tmp_path)


# ---------------------------------------------------------------------------- the bootstrap


def a_curve(rng, points=4, texts=30, classes=3):
    labels, said = rng.integers(0, classes, texts), rng.integers(0, classes, (points, texts))
    macs = rng.integers(1, 100, (points, texts))
    return bootstrap.Curve(said, macs, np.full(texts, 100), labels)


@given(seeds, st.sampled_from(["accuracy", "f1", "matthews"]), st.integers(2, 4))
def test_scores_of_draws_are_the_metrics_own(seed, metric, classes):
    rng = np.random.default_rng(seed)
    curve, counts = a_curve(rng, classes=classes), bootstrap.draws(30, 5, seed)
    found = bootstrap.scores(metric, curve.classes, curve.labels, counts)
    for row, count in zip(found, counts, strict=True):
        again = np.repeat(np.arange(30), count.astype(int))
        expected = [metrics.METRICS[metric](c[again], curve.labels[again]) for c in curve.classes]
        np.testing.assert_allclose(row, expected, atol=1e-9)


def test_draws_are_of_as_many_texts(rng):
    counts = bootstrap.draws(30, 500)
    assert (counts[0] == 1).all()
    assert (counts.sum(1) == 30).all()
    assert abs((counts[1:] == 0).mean() - (1 - 1 / 30) ** 30) < 0.01
    found = bootstrap.summary(a_curve(rng), "accuracy", counts, 0.2)
    assert found.area.shape == (501,)
    assert found.at.shape == (2, 501)


@given(seeds)
def test_the_first_draw_is_the_sweep(seed):
    curve = a_curve(np.random.default_rng(seed))
    found = bootstrap.summary(curve, "accuracy", bootstrap.draws(30, 3), 0.2)
    points = [
        (macs.mean() / 100, (said == curve.labels).mean())
        for said, macs in zip(curve.classes, curve.macs, strict=True)
    ]
    assert found.area[0] == pytest.approx(sweep.area(points, 0.2))


def test_seeds_are_drawn_too():
    each = [np.full(2001, 0.0), np.full(2001, 1.0)]
    mean = bootstrap.over_seeds(each)
    assert mean[0] == 0.5
    assert mean[1:].mean() == pytest.approx(0.5, abs=0.05)
    assert mean[1:].var() == pytest.approx(np.var([0, 1], ddof=1) / 2, rel=0.1)  # of a mean of two
    assert (bootstrap.over_seeds(each) == mean).all()  # two methods meet the same draws
    assert bootstrap.compared(mean, mean)["word"] == "level"


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Two methods, right in 80 and in 75 % of all texts, most of them the same ones."""
    rng, held, words = np.random.default_rng(0), 0, []
    for _ in range(200):
        easy = rng.random(300)
        a, b = easy + 0.05 * rng.standard_normal(300) < 0.8, easy < 0.75
        counts = bootstrap.draws(300, 200, int(rng.integers(2**31)))
        right = np.array([a, b]).astype(int)
        scores = bootstrap.scores("accuracy", right, np.ones(300, int), counts)
        found = bootstrap.compared(*scores.T)
        held += found["low"] <= 0.05 <= found["high"]
        words.append(found["word"])
    assert 0.91 <= held / 200 <= 0.98
    assert "below" not in words
    assert words.count("above") > 150


# ---------------------------------------------------------------------------- rows


def a_find(rng, right, costs, full=0.9):
    """A curve whose settings are right so often, at these shares of the cost; 400 texts."""
    said = (rng.random((len(right), 400)) < np.array(right)[:, None]).astype(int)
    macs = np.tile(np.round(1000 * np.array(costs))[:, None], 400).astype(int)
    curve = bootstrap.Curve(said, macs, np.full(400, 1000), np.ones(400, int))
    return compare.Found(curve, full, "accuracy", 6, [])


def test_rows_compare_a_mechanism_with_the_best_of_the_others(rng):
    costs = [0.17, 0.3, 0.5]
    good, small = a_find(rng, [0.7] * 3, costs), a_find(rng, [0.6], [1 / 3])
    found = {
        "plain": {0: {"full": a_find(rng, [0.9], [1.0])}},
        "small-2": {0: {"full": small}},
        "dact": {
            seed: {"halting": a_find(rng, [0.9] * 3, costs), "fixed": a_find(rng, [0.5] * 3, costs)}
            for seed in (0, 1)
        },
        "pabee": {0: {"patience": good}, 1: {"patience": good}},
        "berxit": {1: {"certain": a_find(rng, [0.95] * 3, costs)}},
        "selection": {0: {"selection": good}},
        "policy": {0: {"selection": a_find(rng, [0.2] * 3, costs)}},
    }
    rows = {
        (r["method"], r["curve"]): r for r in compare.rows("TREC", methods.TASKS["TREC"], found)
    }
    assert "area" not in rows["plain", "full"]
    assert rows["small", "full"]["kept"]["0.5"] == pytest.approx(small.curve.classes.mean() / 0.9)
    words = {name: r["word"] for name, r in rows.items() if "word" in r}
    assert words == {
        ("dact", "halting"): "above",
        ("selection", "selection"): "level",
        ("policy", "selection"): "below",
    }
    halting = rows["dact", "halting"]  # BERxiT is better, but has not both seeds
    assert halting["against"] == ["pabee", "patience"]
    assert halting["seeds"] == [0, 1]
    assert halting["low"] < halting["difference"] < halting["high"]
    assert "above: pabee, patience" in compare.table(list(rows.values()))
    first, *others = halting["corners"]
    assert len(others) == 1
    assert [cost for cost, _ in first] == sorted(cost for cost, _ in first)
    assert first[0] == [0.17, pytest.approx(found["dact"][0]["halting"].curve.classes[0].mean())]


def test_methods_are_compared_on_the_same_texts(rng):
    ours, other = (a_find(rng, [0.9] * 3, [0.17, 0.3, 0.5]) for _ in range(2))
    other.curve.labels[0] = 0
    found = {"dact": {0: {"halting": ours}}, "pabee": {0: {"patience": other}}}
    with pytest.raises(InputError, match="pabee was scored on other texts"):
        compare.rows("TREC", methods.TASKS["TREC"], found)


def test_a_table_tells_times_and_the_work_that_was_timed():
    row = {"task": "TREC", "method": "dact", "curve": "halting", "epochs": 3, "seeds": [0],
           "full": [0.9], "area": 0.8, "spread": None, "kept": {"0.25": 0.9, "0.5": None},
           "times": [{"cost": 0.25, "batch_size": n, "macs_fraction": 0.238, "time_fraction": share}
                     for n, share in ((1, 0.311), (32, 0.27))]}  # fmt: skip
    cells = ["dact, halting", "3", "1", "90.0", "80.0", "90.0%", "24%: 31%, 27%", "", "", ""]
    assert compare.cells(row) == cells
    head, _, line = compare.table([row]).splitlines()
    assert head.count("|") == line.count("|") == 11


def test_epochs_count_all_stages():
    trec = methods.TASKS["TREC"]
    assert [methods.epochs(m, trec) for m in ("plain", "dact", "dact-after", "all-after")] == [
        3,
        3,
        6,
        8,
    ]
    assert methods.epochs("selection", trec) == 3 + 1 + 2
    assert "--teacher PLAIN" in methods.training("selection", trec, "PLAIN")
