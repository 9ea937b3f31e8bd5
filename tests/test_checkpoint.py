"""Hugging Face directories in all their forms, the hub, and what is wrong with broken ones."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import TINY, run
from safetensors.numpy import load_file, save_file

from minidact import InputError, Model, checkpoint, model
from minidact.config import Config, Halting

TEXTS = ["the good film!", "bad."]


@pytest.fixture(scope="module")
def tiny():
    return Model.from_pretrained(TINY)


@pytest.fixture
def copy(tmp_path):
    """A copy of tiny/ to damage, and functions to rewrite its parts."""
    directory = tmp_path / "model"
    directory.mkdir()
    for file in ("config.json", "model.safetensors", "vocab.txt"):
        (directory / file).write_bytes((TINY / file).read_bytes())
    return directory


def edit_config(directory, **changes):
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(raw | changes))


def edit_tensors(directory, function):
    file = directory / "model.safetensors"
    save_file(function(load_file(file)), file)


def same_answers(a: Model, b: Model, tolerance=0.0):
    for x, y in zip(a(TEXTS), b(TEXTS), strict=True):
        assert x.probs == pytest.approx(y.probs, abs=tolerance)


# ---------------------------------------------------------------------------- forms


def without_prefix(tensors):
    return {name.removeprefix("bert."): t for name, t in tensors.items()}


def old_names(tensors):
    swap = lambda n: n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")  # noqa: E731
    return {swap(name): t for name, t in tensors.items()}


def with_strangers(tensors):
    ids = np.arange(24).reshape(1, 24)
    return tensors | {"bert.embeddings.position_ids": ids, "cls.predictions.bias": np.ones(3)}


def in_float32(tensors):
    return {name: t.astype(np.float32) for name, t in tensors.items()}


def in_float64(tensors):
    return {name: t.astype(np.float64) for name, t in tensors.items()}


@pytest.mark.parametrize(
    "form", [without_prefix, old_names, with_strangers, in_float32, in_float64]
)
def test_forms_of_a_checkpoint(form, tiny, copy):
    edit_tensors(copy, form)
    same_answers(Model.from_pretrained(copy), tiny)


def test_bfloat16(tiny, copy):
    tensors = in_float32(load_file(copy / "model.safetensors"))
    halves = {name: (t.view(np.uint32) >> 16).astype(np.uint16) for name, t in tensors.items()}
    save_file(halves, copy / "model.safetensors")  # as 16-bit integers; then the header lies
    data = (copy / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b'"U16"', b'"BF16"')
    head = len(header).to_bytes(8, "little") + header
    (copy / "model.safetensors").write_bytes(head + data[8 + size :])
    same_answers(Model.from_pretrained(copy), tiny, 0.05)
    params = Model.from_pretrained(copy).params
    for name, t in tensors.items():
        np.testing.assert_allclose(params[name], t, rtol=2**-7)


def test_tokenizer_json_and_vocabulary_alone_agree(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    assert not (tmp_path / "vocab.txt").exists()
    same_answers(Model.from_pretrained(tmp_path), tiny)


def test_a_tokenizer_that_pads_and_cuts_is_told_not_to(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    tokenizer = checkpoint.read_tokenizer(tmp_path, tiny.config)
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(4)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    assert Model.from_pretrained(tmp_path)("the good film!").tokens == 6


def test_lower_case_is_an_option(copy):
    assert Model.from_pretrained(copy)("GOOD").pieces == ["[CLS]", "good", "[SEP]"]
    (copy / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Model.from_pretrained(copy)("GOOD").pieces == ["[CLS]", "[UNK]", "[SEP]"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("halting", [None, Halting(6, True)])
def test_what_is_saved_is_what_was_there(dtype, halting, tiny, tmp_path, rng):
    config = Config(
        vocab_size=63, hidden_size=12, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=24, id2label=("no", "yes"), summary="mean",
        halting=halting, extra={"initializer_range": 0.02},
    )  # fmt: skip
    params = {
        n: p.astype(dtype).astype(np.float32) for n, p in model.init_params(config, rng).items()
    }
    saved = Model(config, params, tiny.tokenizer)
    saved.save_pretrained(tmp_path, dtype)
    loaded = Model.from_pretrained(tmp_path)
    assert loaded.config == config
    assert loaded.config.extra["initializer_range"] == 0.02
    assert set(loaded.params) == set(params)
    for name, array in loaded.params.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, params[name])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


# ---------------------------------------------------------------------------- the hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's file server as huggingface_hub asks of it."""

    files = TINY
    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        owner_and_name, _, file = self.path.lstrip("/").partition("/resolve/main/")
        Hub.asked.append(file)
        source = self.files / file
        if owner_and_name != "somebody/tiny":
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif not source.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            data = source.read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{file}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    """Environment variables that point huggingface_hub at a file server on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Hub.asked.clear()
    yield {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_id_is_fetched_and_only_what_is_read(hub, tiny):
    result = run("infer", "--model", "somebody/tiny", "--json", "the good film!", env=hub)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["probs"] == pytest.approx(
        tiny("the good film!").probs, abs=1e-5
    )
    assert set(Hub.asked) == set(checkpoint.FILES)
    offline = {**hub, "HF_HUB_OFFLINE": "1"}
    again = run("infer", "--model", "somebody/tiny", "--json", "the good film!", env=offline)
    assert again.returncode == 0, again.stderr


def test_a_hub_id_that_is_not_there(hub):
    result = run("infer", "--model", "somebody/else", "x", env=hub)
    assert result.returncode == 2
    assert result.stderr.startswith("error: the hub has no model 'somebody/else'")
    assert "Traceback" not in result.stderr


def test_no_hub_at_all(hub):
    env = {**hub, "HF_HUB_OFFLINE": "1"}
    result = run("infer", "--model", "somebody/tiny", "x", env=env)
    assert result.returncode == 2
    assert "could not be fetched from the hub" in result.stderr
    assert "Traceback" not in result.stderr


# ---------------------------------------------------------------------------- broken


def truncated(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lying_header(directory):
    file = directory / "model.safetensors"
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])


def no_tensors(directory):
    (directory / "model.safetensors").unlink()


def pickle_only(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def missing(directory):
    edit_tensors(
        directory, lambda t: {n: a for n, a in t.items() if "layer.1.output.dense" not in n}
    )


def no_classifier(directory):
    edit_tensors(directory, lambda t: {n: a for n, a in t.items() if n.startswith("bert.")})


def unexpected(directory):
    edit_tensors(directory, lambda t: t | {"bert.encoder.layer.7.odd": np.ones(2, np.float32)})


def misshapen(directory):
    edit_tensors(directory, lambda t: t | {"classifier.bias": np.ones(5, np.float32)})


def not_a_number(directory):
    edit_tensors(directory, lambda t: t | {"classifier.bias": np.full(3, np.nan, np.float32)})


def infinite(directory):
    edit_tensors(directory, lambda t: t | {"classifier.bias": np.full(3, np.inf, np.float32)})


def integers(directory):
    edit_tensors(directory, lambda t: t | {"classifier.bias": np.ones(3, np.int32)})


def no_config(directory):
    (directory / "config.json").unlink()


def bad_json(directory):
    (directory / "config.json").write_text('{"hidden_size": ')


def a_list(directory):
    (directory / "config.json").write_text("[]")


def no_tokenizer(directory):
    (directory / "vocab.txt").unlink()


def bad_tokenizer(directory):
    (directory / "tokenizer.json").write_text("{}")


def poor_vocabulary(directory):
    (directory / "vocab.txt").write_text("a\nb\n")


def rich_vocabulary(directory):
    with open(directory / "vocab.txt", "a") as file:
        file.write("".join(f"word{i}\n" for i in range(50)))


def bare_tokenizer(directory):
    """It adds no [CLS] and [SEP], so an empty text would have no tokens at all."""
    whole = checkpoint.read_tokenizer(directory, checkpoint.read_config(directory))
    raw = json.loads(whole.to_str())
    (directory / "tokenizer.json").write_text(json.dumps(raw | {"post_processor": None}))


def config(**changes):
    def change(directory):
        edit_config(directory, **changes)

    change.__name__ = "config " + " ".join(changes)
    return change


BROKEN = [
    (truncated, "damaged or not a safetensors file"),
    (lying_header, "damaged or not a safetensors file"),
    (no_tensors, "no model.safetensors"),
    (pickle_only, "pickles, are never read"),
    (missing, "lacks bert.encoder.layer.1.output.dense.bias"),
    (no_classifier, "fine-tune it first"),
    (unexpected, "bert.encoder.layer.7.odd"),
    (misshapen, "tensor classifier.bias has shape (5,), config.json wants (3,)"),
    (not_a_number, "tensor classifier.bias holds NaN or infinity"),
    (infinite, "tensor classifier.bias holds NaN or infinity"),
    (integers, "classifier.bias is of type I32"),
    (no_config, "no config.json"),
    (bad_json, "not readable as JSON"),
    (a_list, "does not hold a JSON object"),
    (no_tokenizer, "neither tokenizer.json nor vocab.txt"),
    (bad_tokenizer, "the tokenizer in"),
    (bare_tokenizer, "adds no [CLS] and [SEP]"),
    (poor_vocabulary, "lacks [UNK], [CLS], [SEP]"),
    (rich_vocabulary, "ids up to 112"),
    (config(model_type="roberta"), "'roberta' model, not 'bert'"),
    (config(hidden_act="relu"), "only 'gelu'"),
    (config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    (config(hidden_size="36"), "hidden_size is '36'"),
    (config(num_attention_heads=5), "not a multiple"),
    (config(id2label={"0": "a", "5": "b"}), "id2label"),
    (config(id2label=7), "id2label"),
    (config(position_embedding_type="relative_key"), "relative positions"),
    (config(minidact={"halting": {"trunk_size": 0}}), "trunk_size is 0"),
    (config(minidact={"planning": {"planner": "tree"}}), "planner is 'tree', not one of steps"),
    (config(minidact={"tokens": {"bins": 10**9}}), "bins is 1000000000, not a whole number in"),
    (config(minidact={"tokens": {"rank": 3}}), "minidact.tokens may hold bins, ranks, pool only"),
    (
        config(minidact={"budgets": [{"macs_fraction": "much", "knobs": {}}]}),
        "budgets is not a list",
    ),
    (config(minidact={"summary": "max"}), "summary is 'max'"),
    (config(minidact={"halting": {}}), "lacks dact.layer.0"),
    (config(problem_type="regression"), "3 labels do not fit a regression"),
    (config(is_decoder=True), "only encoders"),
]


@pytest.mark.parametrize(("damage", "sentence"), BROKEN, ids=lambda v: getattr(v, "__name__", ""))
def test_broken_models_are_named(damage, sentence, copy):
    damage(copy)
    with pytest.raises(InputError) as error:
        Model.from_pretrained(copy)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_what_float16_cannot_hold_is_not_saved(tiny, tmp_path):
    params = tiny.params | {"classifier.bias": np.full(3, 1e6, np.float32)}
    with pytest.raises(InputError, match=r"classifier\.bias does not fit float16"):
        Model(tiny.config, params, tiny.tokenizer).save_pretrained(tmp_path, np.float16)
    assert not list(tmp_path.iterdir())


def test_a_backbone_keeps_its_pooler_but_not_its_classifier(copy, tiny):
    _, params, _ = checkpoint.load_backbone(copy)
    assert np.array_equal(
        params["bert.pooler.dense.weight"], tiny.params["bert.pooler.dense.weight"]
    )
    assert "classifier.weight" not in params
    edit_tensors(copy, lambda t: {n: a for n, a in t.items() if "pooler" not in n})
    assert "bert.pooler.dense.weight" not in checkpoint.load_backbone(copy)[1]


def test_names_that_lead_nowhere():
    for name in ("no/such/directory", "/nowhere", "nothing", ".", ""):
        with pytest.raises(InputError):
            checkpoint.load(name)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "x"
    checkpoint.write_file(file, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match="No space left"):
        checkpoint.write_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
