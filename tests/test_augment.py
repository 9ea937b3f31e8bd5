"""More texts for a student: copies with words replaced by similar ones."""

import numpy as np
import pytest
from conftest import TINY, run
from hypothesis import given
from hypothesis import strategies as st

from minidact import data
from minidact.study import augment

OPTIONS = ["--init", TINY, "--similar", 2]


@given(
    rows=st.integers(2, 40),
    count=st.integers(1, 9),
    part=st.integers(1, 50),
    seed=st.integers(0, 9),
)
def test_similar_words_are_those_with_the_largest_cosine(rows, count, part, seed):
    table = np.random.default_rng(seed).standard_normal((rows, 5))
    found = augment.similar(table, count, part)
    assert found.shape == (rows, min(count, rows - 1))
    for i, near in enumerate(found):
        cosines = table @ table[i] / np.linalg.norm(table, axis=1) / np.linalg.norm(table[i])
        others = [j for j in np.argsort(-cosines) if j != i]
        np.testing.assert_allclose(cosines[near], cosines[others[: len(near)]], rtol=1e-12)


def test_known_words_change_and_others_stay(rng):
    others = {"good": ["fine"], "film": ["movie"]}
    assert augment.changed("a good good film !", others, 1, rng) == "a fine fine movie !"
    many = [augment.changed("good", others, 0.25, rng) for _ in range(2000)]
    assert set(many) == {"good", "fine"}
    assert abs(many.count("fine") / 2000 - 0.25) < 0.05  # five standard errors


def test_the_command_keeps_all_texts_and_repeats_itself(tmp_path):
    (tmp_path / "a.tsv").write_text(
        "sentence\tlabel\na film  good\t1\nthe bad story\t0\na film good\t1\n"
    )
    written = []
    for name in ("b.tsv", "c.tsv"):
        options = ["--data", tmp_path / "a.tsv", "--out", tmp_path / name, "--copies", 5]
        result = run("study.augment", *options, *OPTIONS)
        assert result.returncode == 0, result.stderr
        written.append((tmp_path / name).read_text())
    assert written[0] == written[1]
    header, *rows = written[0].splitlines()
    assert header == "text\tlabel"
    assert rows[:2] == ["a film good\t1", "the bad story\t0"]  # whatever copies are labelled
    assert len(rows) == len(set(rows)) > 2
    assert {len(row.split("\t")[0].split()) for row in rows} == {3}
    assert f"{len(rows)} rows, of which 2 are texts" in result.stdout


def test_half_a_character_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "good \\ud800", "label": 1}\n{"text": "bad", "label": 0}\n'
    )
    options = ["--data", tmp_path / "a.jsonl", "--out", tmp_path / "b.tsv"]
    result = run("study.augment", *options, *OPTIONS)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "b.tsv").read_text().splitlines()[1] == "good ?\t1"


def test_scores_stay_scores(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tscore\nthe good film\t1.5\n")
    options = ["--data", tmp_path / "a.tsv", "--out", tmp_path / "b.tsv"]
    assert run("study.augment", *options, *OPTIONS).returncode == 0
    found = data.read_examples(tmp_path / "b.tsv")
    assert found.metric == "pearson_spearman"
    assert set(found.labels) == {"1.5"}


def test_a_copy_never_takes_the_label_of_a_text(tmp_path):
    words, _ = augment.whole_words(TINY)
    given = [f"{word}\t{i % 2}" for i, word in enumerate(words)]
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "\n".join(given))
    options = ["--data", tmp_path / "a.tsv", "--out", tmp_path / "b.tsv", "--share", 1]
    assert run("study.augment", *options, *OPTIONS).returncode == 0
    assert (tmp_path / "b.tsv").read_text().splitlines()[1:] == given  # each copy is one of them


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--share", 0], "--share more than 0"),
        (["--copies", 0], "--copies and --similar must be 1 or more"),
        (["--out", "x.csv"], "--out x.csv: the name must end in .tsv"),
        (["--out", "nowhere/x.tsv"], "could not be written"),
        (["--data", "nowhere.tsv"], "nowhere.tsv cannot be read"),
        (["--init", "nowhere"], "nowhere"),
        (["--out", "README.tsv", "--data", "README.tsv"], "--out and --data are the same file"),
    ],
)
def test_what_cannot_be_made(options, sentence, tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\ngood\t1\nbad\t0\n")
    usual = ["--data", tmp_path / "a.tsv", "--out", tmp_path / "b.tsv", *OPTIONS]
    result = run("study.augment", *usual, *options)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "b.tsv").exists()
