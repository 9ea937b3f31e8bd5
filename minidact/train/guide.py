"""Whom a policy imitates at first: TR-BERT's residual strategy (mechanisms/selection.py)."""

import numpy as np

from .. import bert
from ..mechanisms import dact, selection
from ..network import Network
from ..ragged import Batch


def scores(net: Network, batch: Batch, labels) -> dict[int, np.ndarray]:
    """How much the loss would feel it if a token were still what it was when it was asked about.

        | <d loss / d h_i, h_i - x_i> |     h_i: its state before the last layer, of the network
                                            with nothing left out; x_i: before the policy's layer

    labels: as soft.soft_forward takes them. Returns {layer: (T,)} for each policy's layer, from 0.
    """
    params, config, calc = net.params, net.config, net.calc
    x, _ = bert.embeddings_forward(params, config, batch, calc)
    last, states, cache = config.num_hidden_layers - 1, [], None
    for layer in range(last + 1):
        states.append(x)
        x, _, cache = bert.layer_forward(params, config, layer, x, batch.offsets, calc)
    s, s_cache = bert.summary_forward(x, batch.offsets, config.summary, calc)
    ds = _answer_backward(net, s, labels)
    dx, _ = bert.layer_backward(bert.summary_backward(ds, s_cache, calc), cache, {}, calc)
    at = selection.places(last + 1, config.mechanisms["selection"].reductions)
    return {n: np.abs(np.einsum("tc,tc->t", dx, states[last] - states[n])) for n in at}


def _answer_backward(net: Network, s, labels):
    """The gradient of the last answer's loss with respect to the last summary s (B, C)."""
    params, config, calc = net.params, net.config, net.calc
    if "halting" not in config.mechanisms:
        losses, cache = bert.classifier_loss_forward(s, params, config, labels, calc)
        return bert.classifier_loss_backward(np.ones_like(losses), cache, {}, calc)
    name = dact.unit_name(config.num_hidden_layers - 1)
    z, y, h, unit_cache = dact.unit_forward(s, params, name, calc)
    losses, cache = calc.cross_entropy_forward(z, labels)
    dz = calc.cross_entropy_backward(np.ones_like(losses), cache)
    return dact.unit_backward(dz, np.zeros_like(y), np.zeros_like(h), unit_cache, {}, calc)
