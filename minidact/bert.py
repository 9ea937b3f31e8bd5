"""The static network: a BERT with its whole backward pass (Devlin et al., arXiv 1810.04805).

Functions of arrays, from small to large. `params` is a flat dict under Hugging Face's names,
weights stored (out, in); `grads` is a dict with the same keys, which each backward fills. `calc` is
the calculus to compute with, the module `ops` or the module `kernels`. `rng` switches dropout on.
Letters in the shape comments: see ragged.py.
"""

import numpy as np

from . import ops, ragged
from .config import Config
from .errors import InputError, known
from .ragged import Batch

QKV = ("query", "key", "value")  # three maps of a layer's input, worked on as one

# ---------------------------------------------------------------------------- what there is


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every parameter of embeddings and encoder, and its shape: the one table of them."""
    c, f = config.hidden_size, config.intermediate_size
    table = {
        "bert.embeddings.word_embeddings.weight": (config.vocab_size, c),
        "bert.embeddings.position_embeddings.weight": (config.max_position_embeddings, c),
        "bert.embeddings.token_type_embeddings.weight": (config.type_vocab_size, c),
        "bert.embeddings.LayerNorm.weight": (c,),
        "bert.embeddings.LayerNorm.bias": (c,),
    }
    for layer in range(config.num_hidden_layers):
        at = f"bert.encoder.layer.{layer}"
        for name, (outputs, inputs) in {
            "attention.self.query": (c, c),
            "attention.self.key": (c, c),
            "attention.self.value": (c, c),
            "attention.output.dense": (c, c),
            "intermediate.dense": (f, c),
            "output.dense": (c, f),
        }.items():
            table[f"{at}.{name}.weight"] = (outputs, inputs)
            table[f"{at}.{name}.bias"] = (outputs,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            table[f"{at}.{name}.weight"] = (c,)
            table[f"{at}.{name}.bias"] = (c,)
    return table


def classifier_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The head of a plain BertForSequenceClassification: pooler and classifier."""
    c, y = config.hidden_size, config.num_labels
    return {
        "bert.pooler.dense.weight": (c, c),
        "bert.pooler.dense.bias": (c,),
        "classifier.weight": (y, c),
        "classifier.bias": (y,),
    }


def init_params(table: dict, rng: np.random.Generator, dtype=np.float32) -> dict[str, np.ndarray]:
    """BERT's initialisation for a table of shapes: normal(0, 0.02), biases 0, LayerNorm 1 and 0."""
    params = {}
    for name, shape in table.items():
        if name.endswith(".bias"):
            params[name] = np.zeros(shape, dtype)
        elif name.endswith("LayerNorm.weight"):
            params[name] = np.ones(shape, dtype)
        else:
            params[name] = (rng.standard_normal(shape) * 0.02).astype(dtype)
    return params


# ---------------------------------------------------------------------------- named pieces


def linear_forward(params, name, x, calc):
    return calc.linear_forward(x, params[f"{name}.weight"], params[f"{name}.bias"])


def linear_backward(grads, name, dout, cache, calc):
    dx, grads[f"{name}.weight"], grads[f"{name}.bias"] = calc.linear_backward(dout, cache)
    return dx


def _norm_forward(params, name, x, config, calc):
    gamma, beta = params[f"{name}.weight"], params[f"{name}.bias"]
    return calc.layer_norm_forward(x, gamma, beta, config.layer_norm_eps)


def _norm_backward(grads, name, dout, cache, calc):
    dx, grads[f"{name}.weight"], grads[f"{name}.bias"] = calc.layer_norm_backward(dout, cache)
    return dx


# ---------------------------------------------------------------------------- embeddings


TABLES = [
    f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
]


def check_ids(config: Config, batch: Batch) -> None:
    """Raises InputError for ids and places that the tables have no row for."""
    if (longest := ragged.lengths(batch.offsets).max(initial=0)) > config.max_position_embeddings:
        raise InputError(
            f"a text has {longest} tokens, and the model knows {config.max_position_embeddings} "
            "places: cut it, as Model's own tokenizer does"
        )
    ids, segments = batch.ids.max(initial=0), batch.segments.max(initial=0)
    if ids >= config.vocab_size or segments >= config.type_vocab_size:
        raise InputError(
            f"the tokenizer gives ids up to {ids} and segments up to {segments}, but the model has "
            f"{config.vocab_size} and {config.type_vocab_size}"
        )


def embeddings_forward(params, config: Config, batch: Batch, calc=ops, rng=None):
    """Token ids -> x (T, C): word + position + segment, normalised."""
    check_ids(config, batch)
    x, sum_cache = calc.embedding_forward(*batch, *(params[name] for name in TABLES))  # (T, C)
    x, norm_cache = _norm_forward(params, "bert.embeddings.LayerNorm", x, config, calc)
    x, drop_cache = calc.dropout_forward(x, config.hidden_dropout_prob, rng)
    return x, (sum_cache, norm_cache, drop_cache)


def embeddings_backward(dx, cache, grads, calc=ops):
    sum_cache, norm_cache, drop_cache = cache
    dx = calc.dropout_backward(dx, drop_cache)
    dx = _norm_backward(grads, "bert.embeddings.LayerNorm", dx, norm_cache, calc)
    grads.update(zip(TABLES, calc.embedding_backward(dx, sum_cache), strict=True))


# ---------------------------------------------------------------------------- one layer


def attention_forward(
    params, config: Config, layer: int, x, offsets, calc=ops, rng=None, gates=None
):
    """The first half of a layer: x (T, C) -> LayerNorm(x + attention(x)), received (T,), cache.

    received, gates: see ops.attention_forward.
    """
    at = f"bert.encoder.layer.{layer}.attention"
    w = np.concatenate([params[f"{at}.self.{name}.weight"] for name in QKV])  # (3C, C)
    b = np.concatenate([params[f"{at}.self.{name}.bias"] for name in QKV])
    qkv, qkv_cache = calc.linear_forward(x, w, b)  # (T, 3C)
    drop, rate, heads = None, config.attention_probs_dropout_prob, config.num_attention_heads
    if rng is not None and rate > 0:
        drop = calc.dropout_mask(calc.attention_size(offsets, heads), rate, rng, x.dtype)
    mixed, received, mix_cache = calc.attention_forward(qkv, offsets, heads, drop, gates)  # (T, C)
    out, out_cache = linear_forward(params, f"{at}.output.dense", mixed, calc)
    out, drop_cache = calc.dropout_forward(out, config.hidden_dropout_prob, rng)
    out, norm_cache = _norm_forward(params, f"{at}.output.LayerNorm", out + x, config, calc)
    return out, received, (at, qkv_cache, mix_cache, out_cache, drop_cache, norm_cache)


def attention_backward(dout, cache, grads, calc=ops):
    at, qkv_cache, mix_cache, out_cache, drop_cache, norm_cache = cache
    dsum = _norm_backward(grads, f"{at}.output.LayerNorm", dout, norm_cache, calc)
    dmixed = calc.dropout_backward(dsum, drop_cache)
    dmixed = linear_backward(grads, f"{at}.output.dense", dmixed, out_cache, calc)
    dqkv, dgates = calc.attention_backward(dmixed, mix_cache)
    dx, dw, db = calc.linear_backward(dqkv, qkv_cache)
    for name, dw_part, db_part in zip(QKV, np.split(dw, 3), np.split(db, 3), strict=True):
        grads[f"{at}.self.{name}.weight"], grads[f"{at}.self.{name}.bias"] = dw_part, db_part
    dx += dsum  # the residual: x goes into the sum as it is
    return dx, dgates


def feed_forward_forward(params, config: Config, layer: int, x, calc=ops, rng=None):
    """The second half of a layer: x (T, C) -> LayerNorm(x + W2 gelu(W1 x))."""
    at = f"bert.encoder.layer.{layer}"
    wide, in_cache = linear_forward(params, f"{at}.intermediate.dense", x, calc)  # (T, F)
    wide, gelu_cache = calc.gelu_forward(wide)
    out, out_cache = linear_forward(params, f"{at}.output.dense", wide, calc)  # (T, C)
    out, drop_cache = calc.dropout_forward(out, config.hidden_dropout_prob, rng)
    out, norm_cache = _norm_forward(params, f"{at}.output.LayerNorm", out + x, config, calc)
    return out, (at, in_cache, gelu_cache, out_cache, drop_cache, norm_cache)


def feed_forward_backward(dout, cache, grads, calc=ops):
    at, in_cache, gelu_cache, out_cache, drop_cache, norm_cache = cache
    dsum = _norm_backward(grads, f"{at}.output.LayerNorm", dout, norm_cache, calc)
    dwide = calc.dropout_backward(dsum, drop_cache)
    dwide = linear_backward(grads, f"{at}.output.dense", dwide, out_cache, calc)  # (T, F)
    dwide = calc.gelu_backward(dwide, gelu_cache)
    dx = dsum  # the residual; nobody else holds dsum, so it may be added to
    dx += linear_backward(grads, f"{at}.intermediate.dense", dwide, in_cache, calc)
    return dx


def layer_forward(params, config: Config, layer: int, x, offsets, calc=ops, rng=None, gates=None):
    """One encoder layer, post-LN: x (T, C) -> (T, C), received (T,), cache."""
    x, received, first = attention_forward(params, config, layer, x, offsets, calc, rng, gates)
    x, second = feed_forward_forward(params, config, layer, x, calc, rng)
    return x, received, (first, second)


def layer_backward(dx, cache, grads, calc=ops):
    """-> dx (T, C), and dgates (T,) or None."""
    first, second = cache
    dx = feed_forward_backward(dx, second, grads, calc)
    return attention_backward(dx, first, grads, calc)


# ---------------------------------------------------------------------------- encoder


def encoder_forward(params, config: Config, batch: Batch, calc=ops, rng=None):
    """Token ids -> hidden states [x_0 (embeddings), x_1, .., x_L], each (T, C).

    All of BERT in eight lines. soft.py and hard.py go from layer to layer themselves.
    """
    x, cache = embeddings_forward(params, config, batch, calc, rng)
    states, caches = [x], [cache]
    for layer in range(config.num_hidden_layers):
        x, _, cache = layer_forward(params, config, layer, x, batch.offsets, calc, rng)
        states.append(x)
        caches.append(cache)
    return states, caches


def encoder_backward(dstates, caches, grads, calc=ops):
    """dstates: like the hidden states, each (T, C) or None where nothing reads that state."""
    dx = None
    for dstate, cache in zip(reversed(dstates[1:]), reversed(caches[1:]), strict=True):
        dx = added(dx, dstate)
        dx, _ = layer_backward(dx, cache, grads, calc)
    embeddings_backward(added(dx, dstates[0]), caches[0], grads, calc)


def added(a, b):
    """The sum of two gradients, of which either may be None: there is none."""
    return a if b is None else b if a is None else a + b


# ---------------------------------------------------------------------------- sentence level


ROWS = {"cls": "first_rows", "mean": "mean_rows"}  # kinds of summary, and what computes them


def summary_forward(x, offsets, kind: str, calc=ops):
    """What a sentence-level unit reads: x (T, C) -> (B, C); kind "cls" or "mean".

    Raises InputError for another kind.
    """
    rows = ROWS[known("summary", kind, ROWS)]
    out, cache = getattr(calc, f"{rows}_forward")(x, offsets)
    return out, (rows, cache)


def summary_backward(dout, cache, calc=ops):
    rows, rows_cache = cache
    return getattr(calc, f"{rows}_backward")(dout, rows_cache)


def classifier_forward(params, config: Config, summary, calc=ops, rng=None):
    """Summary (B, C) -> logits (B, Y): pooler (linear, tanh), dropout, linear."""
    pooled, pool_cache = linear_forward(params, "bert.pooler.dense", summary, calc)  # (B, C)
    pooled, tanh_cache = calc.tanh_forward(pooled)
    pooled, drop_cache = calc.dropout_forward(pooled, config.hidden_dropout_prob, rng)
    logits, out_cache = linear_forward(params, "classifier", pooled, calc)  # (B, Y)
    return logits, (pool_cache, tanh_cache, drop_cache, out_cache)


def classifier_backward(dlogits, cache, grads, calc=ops):
    pool_cache, tanh_cache, drop_cache, out_cache = cache
    dpooled = linear_backward(grads, "classifier", dlogits, out_cache, calc)
    dpooled = calc.dropout_backward(dpooled, drop_cache)
    dpooled = calc.tanh_backward(dpooled, tanh_cache)
    return linear_backward(grads, "bert.pooler.dense", dpooled, pool_cache, calc)


LOSSES = {"single_label_classification": "cross_entropy", "regression": "squared_error"}


def classifier_loss_forward(summary, params, config: Config, labels, calc=ops, rng=None):
    """The loss of the classifier's answer: summary (B, C) -> losses (B,), cache.

    labels: (B,) classes or (B, Y) probabilities; of a regression (B,) numbers.
    """
    logits, head_cache = classifier_forward(params, config, summary, calc, rng)
    loss = LOSSES[known("problem_type", config.problem_type, LOSSES)]
    losses, loss_cache = getattr(calc, f"{loss}_forward")(logits, labels)
    return losses, (loss, head_cache, loss_cache)


def classifier_loss_backward(dlosses, cache, grads, calc=ops):
    """dlosses (B,) -> dsummary (B, C); fills grads."""
    loss, head_cache, loss_cache = cache
    dlogits = getattr(calc, f"{loss}_backward")(dlosses, loss_cache)
    return classifier_backward(dlogits, head_cache, grads, calc)
