"""Sentences held out of a training set: none of them trains anything, nor do their phrases."""

import pytest
from conftest import run
from hypothesis import given
from hypothesis import strategies as st

from minidact import InputError
from minidact.study import holdout

words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=6)


def parts(sentence):
    """All phrases of a sentence, with itself."""
    n = len(sentence)
    return {" ".join(sentence[i:j]) for i in range(n) for j in range(i + 1, n + 1)}


@given(sentences=st.lists(words, min_size=1, max_size=8), data=st.data())
def test_no_phrase_of_a_held_out_sentence_trains(sentences, data):
    texts = [text for s in sentences for text in sorted(parts(s))]
    whole = {
        text for text in texts if not any(f" {text} " in f" {t} " and t != text for t in texts)
    }
    counts = data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole))))
    if sum(counts) > len(whole):
        with pytest.raises(InputError, match=f"there are {len(whole)} whole sentences"):
            holdout.split(texts, *counts, seed=0)
        return
    certify, choose, train = ({texts[i] for i in rows} for rows in holdout.split(texts, *counts, 0))
    assert (len(certify), len(choose)) == counts
    assert certify | choose <= whole
    kept = whole - certify - choose
    assert not certify & choose
    assert train == {t for t in texts if any(f" {t} " in f" {k} " for k in kept)}


def test_the_command_writes_whole_rows(tmp_path):
    texts = ["good film", "a good film .", "film", "film", "a bad film .", "bad", "the end ."]
    rows = [f"{text}\t{i % 2}\n" for i, text in enumerate(texts)]
    rows[2] = "a\rfilm\t0\n"  # which is one row
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    options = ["--data", tmp_path / "train.tsv", "--certify", 1, "--choose", 1, "--out"]
    files = {}
    for name in ("one", "two"):
        result = run("study.holdout", *options, tmp_path / name)
        assert result.returncode == 0, result.stderr
        files[name] = [file.read_bytes() for file in sorted((tmp_path / name).iterdir())]
    assert files["one"] == files["two"]
    held = [[f"{line}\n" for line in text.decode().split("\n")[:-1]] for text in files["one"]]
    assert [lines[0] for lines in held] == ["sentence\tlabel\n"] * 3
    assert len(held[0]) == len(held[1]) == 2
    assert set().union(*(lines[1:] for lines in held)) <= set(rows)


@pytest.mark.parametrize("there", ["train.tsv", "certify.tsv"])
def test_no_file_is_replaced(there, tmp_path):
    (tmp_path / there).write_text("text\tlabel\ngood film\t1\nbad film\t0\n")
    options = ["--data", tmp_path / there, "--out", tmp_path, "--certify", 1, "--choose", 0]
    result = run("study.holdout", *options)
    assert result.returncode == 2
    assert f"{there} is there already; choose another --out" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [there]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--certify", 500], "there are 2 whole sentences; 500 + 0 were to be held out"),
        (["--certify", -1], "must be 0 or more"),
        (["--data", "blank.tsv"], "the first line must be the header"),
        (["--data", "pairs.tsv"], "has two texts in a row"),
        (["--data", "README.md"], "README.md: the name must end in .tsv"),
    ],
)
def test_what_cannot_be_held_out(options, sentence, tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\ngood\t1\nbad\t0\n")
    (tmp_path / "blank.tsv").write_bytes(b"\r\ntext\tlabel\r\ngood\t1\r\nbad\t0\r\n")
    (tmp_path / "pairs.tsv").write_text("text\ttext_pair\tlabel\ngood\tbad\t1\n")
    options = [tmp_path / o if o in ("blank.tsv", "pairs.tsv") else o for o in options]
    usual = ["--data", tmp_path / "a.tsv", "--out", tmp_path / "out", "--choose", 0]
    result = run("study.holdout", *usual, *options)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert not (tmp_path / "out").exists()
