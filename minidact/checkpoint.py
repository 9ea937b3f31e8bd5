"""A Hugging Face directory <-> a config, a flat dict of arrays, and a tokenizer.

Reading is generous: names with or without `bert.`, LayerNorm's `gamma/beta` or `weight/bias`,
float16, bfloat16, float32 or float64 tensors, tokenizer.json or only vocab.txt. Only safetensors is
ever read: a pickle can run code. Writing is strict, and to the side first, then moved into place.
"""

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.numpy
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from . import bert, network
from .config import Config
from .errors import InputError, known, of_rust
from .files import make_directory, write_file
from .mechanisms import MECHANISMS
from .tensors import KINDS, Tensors, is_finite, open_tensors, release

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # in its place where the weights are cut into several files
FILES = (
    "config.json", WEIGHTS,
    "tokenizer.json", "vocab.txt", "tokenizer_config.json", "added_tokens.json",
)  # fmt: skip
DEFAULT = "sst2-minilm-l6"  # in weights/
STATE = "training.safetensors"  # while a training is under way: all that resuming needs
IGNORED = re.compile(r"bert\.embeddings\.position_ids|cls\.")  # an index; the pretraining heads
CLASSIFIER = "classifier."
POOLER = "bert.pooler."  # a model that halts has none; every backbone brings one
NORMALIZER = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}

# ---------------------------------------------------------------------------- where


def builtin_weights() -> Path:
    """The directory `weights/`: beside the package in a clone, inside it in an installed wheel."""
    here = Path(__file__).resolve().parent
    inside = here / "weights"
    return inside if inside.is_dir() else here.parent / "weights"


def resolve(name: str | os.PathLike | None) -> Path:
    """A model's directory. name: a path, a name in weights/, a hub id, or None for the default.

    A hub id, such as "google-bert/bert-base-uncased", is fetched with huggingface_hub. Raises
    InputError if there is no such directory, or if the hub cannot be reached.
    """
    if name is not None and not isinstance(name, str | os.PathLike):
        raise InputError(f"a model is named by a str or a path, not by {name!r}")
    shipped = {p.parent.name: p.parent for p in builtin_weights().glob("*/config.json")}
    if name is None:
        if DEFAULT not in shipped:
            raise InputError(f"no model was named, and {builtin_weights()} lacks {DEFAULT}")
        return shipped[DEFAULT]
    path = Path(name)
    if os.path.isdir(path):  # not path.is_dir(), which raises where a name is too long
        return path
    if str(name) in shipped:
        return shipped[str(name)]
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name)) and not os.path.exists(path.parent):
        return _fetch(str(name))
    raise InputError(f"no model directory {str(name)!r}, and that is not a hub id (owner/name)")


def _fetch(repository: str) -> Path:
    """Downloads the files we read, and no others, into huggingface_hub's cache."""
    from huggingface_hub import hf_hub_download  # slow to import, and seldom needed
    from huggingface_hub.utils import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        logging,
    )

    logging.set_verbosity_error()  # what goes wrong is said below, once

    def fetch(file: str, required: bool = False) -> str | None:
        try:
            return hf_hub_download(repository, file)
        except RepositoryNotFoundError:
            raise InputError(f"the hub has no model {repository!r} (or it is private)") from None
        except EntryNotFoundError as error:  # "local": no connection, and not in the cache
            if not required:
                return None
            if isinstance(error, LocalEntryNotFoundError):
                raise InputError(
                    f"{repository!r} could not be fetched from the hub: no connection, and no copy "
                    "in the cache"
                ) from None
            raise InputError(f"the hub's {repository!r} has no {file}") from None
        except Exception as error:  # offline, a proxy, a full disk: huggingface_hub raises many
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise InputError(
                f"{repository!r} could not be fetched from the hub: {reason}"
            ) from None

    path = Path(str(fetch(FILES[0], required=True))).parent
    if not fetch(WEIGHTS) and not fetch(INDEX):
        fetch(WEIGHTS, required=True)  # which says why it cannot be had
    for file in weight_files(path):
        fetch(file.name, required=True)
    for name in FILES[2:]:
        fetch(name)
    return path


# ---------------------------------------------------------------------------- reading


def load(name: str | os.PathLike | None) -> tuple[Config, Tensors, Tokenizer]:
    """A whole model: config, float32 parameters for every name in network.shapes, tokenizer.

    Raises InputError for a directory that is not one, or whose parts do not fit each other.
    """
    path = resolve(name)
    config = read_config(path)
    params = read_params(path, network.shapes(config))
    return config, params, read_tokenizer(path, config)


def read_backbone(path: Path, config: Config, heads: bool) -> Tensors:
    """What a training may start from: embeddings, encoder, and of all else what is there.

    heads: also what depends on the labels, the classifier or a mechanism's answering heads.
    """
    known = bert.classifier_shapes(config) | network.shapes(config)
    optional = {n: s for n, s in known.items() if heads or not depends_on_labels(n)}
    return read_params(path, bert.shapes(config), optional=optional, others_allowed=True)


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a model's directory, as they are called here."""
    return [our_name(name) for file in weight_files(path) for name in open_tensors(file)[0]]


def weight_files(path: Path) -> list[Path]:
    """The files with a model's weights: model.safetensors, or those that its index names.

    Raises InputError where there is neither, and says what to do.
    """
    if not (path / INDEX).exists() or (path / WEIGHTS).exists():
        if not (path / WEIGHTS).exists():
            _refuse(path, f"no {WEIGHTS}")
        return [path / WEIGHTS]
    try:
        names = set(json.loads((path / INDEX).read_text("utf-8"))["weight_map"].values())
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("it names no files of its own directory")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path / INDEX} is damaged: {error!r}") from None
    return [path / name for name in sorted(names)]


def _refuse(path: Path, lack: str) -> NoReturn:
    """Raises InputError for a directory that holds no model we can read."""
    if (path / STATE).exists():
        command = f"python -m minidact.train --out {shlex.quote(str(path))} --resume"
        raise InputError(f"{path} has {lack} yet: its training is not done; go on with: {command}")
    if any(path.glob("*.bin")):
        raise InputError(
            f"{path} has {lack}, only pickles (.bin), which can run code and are never read; where "
            "you trust them and have transformers, convert them there: AutoModel (of a fine-tuned "
            "one AutoModelForSequenceClassification)"
            f".from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
        )
    raise InputError(f"{path} has {lack}: it is not a model directory")


def depends_on_labels(name: str) -> bool:
    answering = tuple(m.prefix for m in MECHANISMS.values() if m.answers)
    return name.startswith((CLASSIFIER, *answering))


def read_config(path: Path) -> Config:
    file = path / "config.json"
    try:
        raw = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        _refuse(path, "no config.json")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not readable as JSON: {error}") from None
    return Config.from_dict(raw)


def read_params(
    path: Path, shapes: dict, optional: dict | None = None, others_allowed=False
) -> Tensors:
    """The weights as float32 arrays under our names, checked against tables of shapes."""
    mapped: dict[str, tuple[str, np.ndarray]] = {}
    unexpected, known = [], shapes | (optional or {})
    for file in weight_files(path):
        found, memory = open_tensors(file)
        for raw_name, (kind, array) in found.items():
            name = our_name(raw_name)
            if name in mapped:
                raise InputError(f"{file} holds {name} twice, under two names")
            if name in known:
                _check(kind, array, raw_name, known[name], file)
                mapped[name] = (kind, array)
            elif not IGNORED.match(name) and not name.startswith(POOLER):
                unexpected.append(raw_name)
        release(memory)  # of all that was only checked
    missing = [name for name in shapes if name not in mapped]
    if missing:
        raise InputError(f"{path} lacks {_listed(missing)}{_hint(missing)}")
    if unexpected and not others_allowed:
        raise InputError(
            f"{path} holds tensors that config.json gives no place: {_listed(unexpected)}"
        )
    return Tensors(mapped)


def our_name(name: str) -> str:
    """A checkpoint's tensor name -> the name used here."""
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = f"bert.{name}"
    return re.sub(
        r"LayerNorm\.gamma$",
        "LayerNorm.weight",
        re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name),
    )


def _check(kind: str, array: np.ndarray, name: str, shape: tuple, file: Path) -> None:
    if kind not in KINDS:
        raise InputError(f"{file}: tensor {name} is of type {kind}; {', '.join(KINDS)} are read")
    if array.shape != tuple(shape):
        raise InputError(
            f"{file}: tensor {name} has shape {array.shape}, config.json wants {shape}"
        )
    if not is_finite(kind, array):
        raise InputError(f"{file}: tensor {name} holds NaN or infinity")


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more


def _hint(missing: list[str]) -> str:
    if all(name.startswith((CLASSIFIER, POOLER)) for name in missing):
        return (
            ": it is a backbone without a classifier; fine-tune it first (python -m minidact.train)"
        )
    return ""


# ---------------------------------------------------------------------------- tokenizer


def read_tokenizer(path: Path, config: Config) -> Tokenizer:
    """tokenizer.json, or a WordPiece tokenizer from vocab.txt; cuts texts to the model's limit."""
    with of_rust(f"the tokenizer in {path} cannot be read"):
        if (path / "tokenizer.json").exists():
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        elif (path / "vocab.txt").exists():
            tokenizer = _from_vocabulary(path)
        else:
            raise InputError(f"{path} has neither tokenizer.json nor vocab.txt")
        tokenizer.no_padding()
        tokenizer.enable_truncation(config.max_position_embeddings)
        added = tokenizer.encode("").ids
    if not added:
        raise InputError(f"the tokenizer in {path} adds no [CLS] and [SEP] to a text")
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= config.vocab_size:
        raise InputError(
            f"the tokenizer in {path} has ids up to {highest}, but config.json's vocab_size is "
            f"{config.vocab_size}"
        )
    return tokenizer


def _from_vocabulary(path: Path) -> Tokenizer:
    """BERT's tokenizer from its vocabulary: clean, split at spaces and punctuation, WordPiece."""
    words = (path / "vocab.txt").read_text("utf-8").rstrip("\n").split("\n")
    vocabulary = {word.rstrip("\r"): i for i, word in enumerate(words)}
    absent = [word for word in ("[UNK]", "[CLS]", "[SEP]") if word not in vocabulary]
    if absent:
        raise InputError(f"{path / 'vocab.txt'} lacks {', '.join(absent)}")
    options, added = (_json(path / f"{name}.json") for name in ("tokenizer_config", "added_tokens"))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    options = NORMALIZER | options
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=bool(options["do_lower_case"]),
        strip_accents=options["strip_accents"],
        handle_chinese_chars=bool(options["tokenize_chinese_chars"]),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    tokenizer.add_special_tokens(
        [w for w in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if w in vocabulary]
    )
    tokenizer.add_tokens(sorted(added, key=added.__getitem__))  # words that are never cut
    if any(tokenizer.token_to_id(word) != i for word, i in added.items()):
        raise InputError(f"{path / 'added_tokens.json'}: its ids do not follow vocab.txt's")
    return tokenizer


def _json(file: Path) -> dict[str, Any]:
    """What a file of JSON holds; {} where there is no such file."""
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


# ---------------------------------------------------------------------------- writing


def save(
    directory: str | os.PathLike[str], config: Config, params: Mapping, tokenizer: Tokenizer,
    dtype: Any = np.float32,
) -> None:  # fmt: skip
    """Writes a directory that `load` and transformers (BertModel, AutoTokenizer) both read.

    dtype: float32 or float16, of the tensors on disk. Each file is complete or not there at all.
    """
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    known("dtype", name, ("float32", "float16"))
    directory = make_directory(directory)
    with np.errstate(over="ignore"):  # what does not fit becomes infinity, and is found below
        tensors = {name: np.ascontiguousarray(array, dtype) for name, array in params.items()}
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise InputError(f"{directory} was not written: {name} does not fit {array.dtype}")
    write_file(directory / "model.safetensors", safetensors.numpy.save(tensors, {"format": "pt"}))
    save_config(directory, config)
    tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy: cutting is the reader's choice
    tokenizer.no_truncation()
    write_file(directory / "tokenizer.json", tokenizer.to_str(pretty=True).encode() + b"\n")
    if isinstance(normalizer := tokenizer.normalizer, normalizers.BertNormalizer):
        chosen = normalizer.lowercase, normalizer.strip_accents, normalizer.handle_chinese_chars
        options = dict(zip(NORMALIZER, chosen, strict=True))
        if options != NORMALIZER:  # transformers does not take them from tokenizer.json
            write_file(directory / "tokenizer_config.json", json.dumps(options).encode() + b"\n")


def save_config(directory, config: Config, rehearse: bool = False) -> None:
    """config.json alone; rehearse: not even that, but an InputError if it could not be written."""
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    write_file(Path(directory) / "config.json", text.encode(), rehearse)
