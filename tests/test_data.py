"""Files in every accepted layout, rows that are wrong, labels, batches, metrics."""

import numpy as np
import pytest
from conftest import TINY
from damage import BAD
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from minidact import InputError, checkpoint, data, metrics
from minidact.config import Config

LAYOUTS = {
    "sst2.tsv": (
        'sentence\tlabel\na "good film\t1\nbad . \t0\n',
        ['a "good film', "bad . "],
        None,
        ["1", "0"],
        "accuracy",
    ),
    "cola.tsv": (
        "gj04\t1\t\tThey sailed.\ncj99\t0\t*\tSailed they it.\n",
        ["They sailed.", "Sailed they it."],
        None,
        ["1", "0"],
        "matthews",
    ),
    "mrpc.tsv": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t2\t3\ta\tb\r\n",
        ["a"],
        ["b"],
        ["1"],
        "f1",
    ),
    "rte.tsv": (
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
        ["a"],
        ["b"],
        ["entailment"],
        "accuracy",
    ),
    "qnli.tsv": (
        "index\tquestion\tsentence\tlabel\n0\tq\ts\tentailment\n",
        ["q"],
        ["s"],
        ["entailment"],
        "accuracy",
    ),
    "qqp.tsv": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta\tb\t1\n",
        ["a"],
        ["b"],
        ["1"],
        "accuracy",
    ),
    "mnli.tsv": (
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tentailment\n",
        ["a"],
        ["b"],
        ["entailment"],
        "accuracy",
    ),
    "stsb.tsv": (
        "index\tgenre\tsentence1\tsentence2\tscore\n0\tx\ta\tb\t4.750\n",
        ["a"],
        ["b"],
        ["4.750"],
        "pearson_spearman",
    ),
    "trec.tsv": (
        "sentence\tlabel\tfine_label\nwho ?\tHUM\tHUM:ind\n",
        ["who ?"],
        None,
        ["HUM"],
        "accuracy",
    ),
    "own.tsv": ("label\ttext\nx\ta b\n\ny\tc\n", ["a b", "c"], None, ["x", "y"], "accuracy"),
    "own.csv": (
        'text,text_pair,label\n"a, ""b""\nc",d,x\n',
        ['a, "b"\nc'],
        ["d"],
        ["x"],
        "accuracy",
    ),
    "own.jsonl": (
        '{"label": 1, "text": "a"}\n{"text": "b", "label": 0}\n',
        ["a", "b"],
        None,
        ["1", "0"],
        "accuracy",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, tmp_path):
    content, *expected = LAYOUTS[name]
    (tmp_path / name).write_bytes(content.encode())
    examples = data.read_examples(tmp_path / name)
    assert list(examples[:4]) == expected
    assert len(examples.lines) == len(examples.texts)


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_their_line(name, tmp_path):
    content, sentence = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        data.read_examples(tmp_path / name)
    assert sentence in str(error.value)
    assert name in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "directory.tsv").mkdir()
    for path in (tmp_path / "none.tsv", tmp_path / "directory.tsv"):
        with pytest.raises(InputError, match="cannot be read"):
            data.read_examples(path)


def examples(*labels):
    lines = list(range(2, 2 + len(labels)))
    return data.Examples(["x"] * len(labels), None, list(labels), "accuracy", lines)


def test_label_names_and_ids():
    assert data.label_names(["10", "9", "1"]) == ("1", "9", "10")
    assert data.label_names(["b", "a", "b", "1"]) == ("1", "a", "b")
    assert data.label_names(["2", "-1", "10"]) == ("-1", "2", "10")
    assert data.label_names(["--1", "2"]) == ("--1", "2")
    assert len(data.label_names(["9" * 5000, "1"])) == 2  # no number that fits
    assert data.label_names(["10.0", "2.0", "1.0"]) == ("1.0", "2.0", "10.0")
    config = Config(id2label=("negative", "positive"))
    assert data.label_ids(examples("1", "positive", "negative"), config).tolist() == [1, 1, 0]
    with pytest.raises(InputError, match="line 3: unknown label 'maybe'; there are: negative"):
        data.label_ids(examples("1", "maybe"), config)
    regression = Config(id2label=("score",), problem_type="regression")
    assert data.label_ids(examples("1.5", "2"), regression).tolist() == [1.5, 2.0]
    for wrong in ("x", "nan", "inf", "1e39"):  # float32 ends at 3e38
        with pytest.raises(InputError, match=r"line 3: .* is not a number"):
            data.label_ids(examples("1", wrong), regression)


def test_where_names_are_numbers_they_are_names_only():
    config = Config(id2label=("1", "2"))
    assert data.label_ids(examples("1", "2"), config).tolist() == [0, 1]
    with pytest.raises(InputError, match="unknown label '0'"):
        data.label_ids(examples("0"), config)
    with pytest.raises(InputError, match="unknown label '1'"):  # by its place that is 2.0
        data.label_ids(examples("1"), Config(id2label=("1.0", "2.0", "3.0")))


def test_lines_are_the_files_own(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"one\ntwo",1\n\nthree,2\n')
    assert data.read_examples(tmp_path / "a.csv").lines == [2, 5]


def tokenizer():
    config = checkpoint.read_config(TINY)
    return checkpoint.read_tokenizer(TINY, config)


def test_a_batch_holds_its_sentences_end_to_end():
    sentences = data.encode(tokenizer(), ["good", "bad film", "the good film"], ["x", "", "good"])
    batch = data.to_batch(sentences)
    assert batch.offsets[0] == 0
    assert batch.offsets[-1] == len(batch.ids) == len(batch.segments)
    for i, sentence in enumerate(sentences):
        rows = slice(batch.offsets[i], batch.offsets[i + 1])
        assert batch.ids[rows].tolist() == sentence.ids.tolist()
        assert batch.ids[rows][0] == 2  # [CLS]
        assert batch.segments[rows].tolist() == sentence.segments.tolist()
    assert sentences[0].segments.tolist() == [0, 0, 0, 1, 1]


@given(st.text())
def test_any_text_is_encoded(text):
    (sentence,) = data.encode(tokenizer(), [text])
    assert 2 <= len(sentence.ids) <= 24
    assert sentence.ids.max() < 63


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t", "\x00\x07", "🎬🙂", "\ud83c", "a" * 10**6, "a " * 10**6]
)
def test_strange_texts(text):
    (sentence,) = data.encode(tokenizer(), [text])
    assert len(sentence.ids) >= 2
    assert sentence.truncated == (len(text) == 10**6 or len(text) == 2 * 10**6)


@pytest.mark.parametrize("word", ["good ", "a" * 500 + " "])
def test_of_a_long_text_no_more_is_read_than_the_model_could(word):
    """And what is shorter than that is read as it always was."""
    most = data.most_characters(tokenizer())
    assert most == 64 * 24
    whole, read = word * 10_000, (word * 10_000)[:most]
    (long,), (short,) = data.encode(tokenizer(), [whole]), data.encode(tokenizer(), [read])
    assert long.ids.tolist() == short.ids.tolist() == tokenizer().encode(read).ids
    assert long.truncated
    assert short.truncated == bool(tokenizer().encode(read).overflowing)
    (pair,) = data.encode(tokenizer(), ["good"], [whole])
    assert pair.truncated


# ---------------------------------------------------------------------------- metrics


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_metrics_by_their_definitions(pairs):
    predicted, labels = np.array(pairs, int).T
    tp, tn = np.sum(predicted & labels), np.sum((1 - predicted) & (1 - labels))
    fp, fn = np.sum(predicted & (1 - labels)), np.sum((1 - predicted) & labels)
    assert metrics.accuracy(predicted, labels) == pytest.approx((tp + tn) / len(labels))
    assert metrics.f1(predicted, labels) == pytest.approx(2 * tp / max(2 * tp + fp + fn, 1))
    scale = np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    expected = (tp * tn - fp * fn) / scale if scale else 0
    assert metrics.matthews(predicted, labels) == pytest.approx(expected, abs=1e-12)


def test_correlations():
    x = np.array([1.0, 2, 3, 4])
    assert metrics.pearson_spearman(x, 2 * x + 1) == pytest.approx(1)
    assert metrics.pearson_spearman(x, -x) == pytest.approx(-1)
    assert metrics.pearson_spearman(np.ones(4), x) == 0
    y = np.array([1.0, 4, 2, 3])
    usual = metrics.pearson_spearman(x, y)
    assert usual == pytest.approx((pearsonr(x, y)[0] + spearmanr(x, y)[0]) / 2)
    for factor in (1e-30, 5e37):  # whose squares float32 does not have
        assert metrics.pearson_spearman(np.float32(factor * x), y) == pytest.approx(usual)


def test_which_metric():
    assert metrics.choose(None, "matthews", False) == "matthews"
    assert metrics.choose(None, "accuracy", True) == "pearson_spearman"
    assert metrics.choose(None, "pearson_spearman", False) == "accuracy"
    assert metrics.choose("f1", "accuracy", False) == "f1"
    for wanted, regression in (("accuracy", True), ("pearson_spearman", False)):
        with pytest.raises(InputError, match="does not fit"):
            metrics.choose(wanted, "accuracy", regression)
