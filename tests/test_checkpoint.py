"""Hugging Face directories in all their forms, the hub, and what is wrong with broken ones."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import TINY, run
from damage import BROKEN, edit_tensors
from safetensors.numpy import load_file, save_file

from minidact import InputError, Model, checkpoint, files, network, tensors
from minidact.config import Config
from minidact.fast import host
from minidact.mechanisms.exits import Halting

TEXTS = ["the good film!", "bad."]


@pytest.fixture(scope="module")
def tiny():
    return Model.from_pretrained(TINY)


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


def in_shards(directory):
    """As large models come: cut into files, with an index."""
    tensors = load_file(directory / "model.safetensors")
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        part = {name: t for name, t in tensors.items() if where[name] == file}
        save_file(part, directory / file)
    index = {"metadata": {}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()


def test_weights_in_several_files(tiny, copy):
    in_shards(copy)
    same_answers(Model.from_pretrained(copy), tiny)
    assert set(checkpoint.tensor_names(copy)) >= set(tiny.params)


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


def test_what_answers_is_never_widened_as_a_whole(tiny, tmp_path):
    """Weights are packed as they are stored, layer by layer, and words stay in the file."""
    tiny.save_pretrained(tmp_path, np.float16)
    model = Model.from_pretrained(tmp_path)
    model("the good film", use=())
    made = [name for name, array in model.params.data.items() if array is not None]
    assert made
    assert not [name for name in made if ".layer." in name and "LayerNorm" not in name]
    assert ("bert.embeddings.word_embeddings.weight" in made) != host.HALVES
    name = "bert.encoder.layer.0.output.dense.weight"
    assert model.params.stored(name).dtype == np.float16
    assert not model.params.stored(name).flags.writeable
    array = model.params[name]
    np.testing.assert_array_equal(array, load_file(tmp_path / "model.safetensors")[name])
    array[:] = 7  # what was asked for once is kept
    assert model.params[name] is array is model.params.stored(name)


def test_a_layer_is_packed_when_it_is_reached():
    model = Model.from_pretrained()
    for bits in (None, 8):
        model = Model(model.config, model.params, model.tokenizer, bits=bits)
        assert not model.layers._packed
        prediction = model("a gripping, funny, humane film", use="halting")
        assert list(model.layers._packed) == prediction.layers_run
        assert len(prediction.layers_run) < model.config.num_hidden_layers


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16"])
def test_numbers_that_are_not_finite(kind):
    dtype, infinite = tensors.KINDS[kind]
    good = np.full((3, 5), 1.5, np.float32)
    good = (good.view(np.uint32) >> 16).astype(np.uint16) if kind == "BF16" else good.astype(dtype)
    assert tensors.is_finite(kind, good)
    np.testing.assert_array_equal(tensors.widened(kind, good), np.full((3, 5), 1.5, np.float32))
    for bits in (infinite, infinite | infinite.dtype.type(1)):  # infinity, NaN
        bad = good.copy()
        bad.view(infinite.dtype)[2, 4] = bits
        assert not np.isfinite(tensors.widened(kind, bad)).all()
        assert not tensors.is_finite(kind, bad)
    assert not tensors.is_finite("F64", np.array([1e300]))  # it does not fit float32


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
    cased = Model.from_pretrained(copy)
    assert cased("GOOD").pieces == ["[CLS]", "[UNK]", "[SEP]"]
    cased.save_pretrained(copy / "saved")
    assert Model.from_pretrained(copy / "saved")("GOOD").pieces == ["[CLS]", "[UNK]", "[SEP]"]
    told = json.loads((copy / "saved" / "tokenizer_config.json").read_text())
    assert told == checkpoint.NORMALIZER | {"do_lower_case": False}  # for transformers


def test_added_tokens_are_never_cut(copy):
    last = len((copy / "vocab.txt").read_text().split())
    (copy / "added_tokens.json").write_text(json.dumps({"[ENT]": last}))
    found = checkpoint.read_tokenizer(copy, Config(vocab_size=64, max_position_embeddings=24))
    assert found.encode("a [ENT] good").ids[2] == last
    (copy / "added_tokens.json").write_text(json.dumps({"[ENT]": last + 1}))
    with pytest.raises(InputError, match="its ids do not follow"):
        checkpoint.read_tokenizer(copy, Config(vocab_size=80, max_position_embeddings=24))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("halting", [None, Halting(6, True)])
def test_what_is_saved_is_what_was_there(dtype, halting, tiny, tmp_path, rng):
    config = Config(
        vocab_size=63, hidden_size=12, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=24, id2label=("no", "yes"), summary="mean",
        mechanisms={"halting": halting} if halting else {}, extra={"initializer_range": 0.02},
    )  # fmt: skip
    params = {
        n: p.astype(dtype).astype(np.float32) for n, p in network.init_params(config, rng).items()
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


def test_a_hub_id_with_weights_in_several_files(hub, tiny, copy, monkeypatch):
    in_shards(copy)
    monkeypatch.setattr(Hub, "files", copy)
    result = run("infer", "--model", "somebody/tiny", "--json", "the good film!", env=hub)
    assert result.returncode == 0, result.stderr
    assert f'"label": "{tiny("the good film!").label}"' in result.stdout
    assert "model-00002-of-00002.safetensors" in Hub.asked


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


def test_a_backbone_keeps_its_pooler_and_its_classifier_if_that_is_wanted(copy, tiny):
    pooler, classifier = "bert.pooler.dense.weight", "classifier.weight"
    for heads in (True, False):
        params = checkpoint.read_backbone(copy, tiny.config, heads)
        assert np.array_equal(params[pooler], tiny.params[pooler])
        assert (classifier in params) == heads
    edit_tensors(copy, lambda t: {n: a for n, a in t.items() if "pooler" not in n})
    assert pooler not in checkpoint.read_backbone(copy, tiny.config, True)


def test_names_that_lead_nowhere():
    for name in ("no/such/directory", "/nowhere", "nothing", ".", ""):
        with pytest.raises(InputError):
            checkpoint.load(name)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "x"
    files.write_file(file, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match="No space left"):
        files.write_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_file_is_as_open_as_its_owner_wants(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_file(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    (tmp_path / "new").chmod(0o600)
    files.write_file(tmp_path / "new", b"again")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_tensors_are_a_dict_like_any_other():
    halves = np.array([1, 2], np.float16)
    params = tensors.Tensors({"a": ("F16", halves), "b": ("F16", halves)})
    more = {"z": np.ones(1)} | params
    assert list(more) == ["z", "a", "b"]
    assert all(array.tolist() == [1, 2] for array in (more["a"], more["b"]))
    params = tensors.Tensors({"a": ("F16", halves), "b": ("F16", halves)})
    params["new"] = np.zeros(1, np.float32)
    assert tensors.stored(params, "new") is params["new"]
    assert tensors.stored(params, "a") is halves
    assert params["a"].dtype == tensors.stored(params, "a").dtype == np.float32
    assert tensors.stored(tensors.unread(params), "a") is halves
    assert tensors.unread(plain := {"a": halves}) is plain
