"""Layers around other layers."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfp_rank1 import layers as rank1_layers
from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.merging import added, joined, multiplied
from tfp_rank1.moments.registry import WAY_OUT, propagate, register

__all__: list[str] = []

layers = keras.layers


@register(layers.TimeDistributed, rank1_layers.TimeDistributedRank1)
def _time_distributed(layer: Any, x: Moments) -> Moments:
    """All time steps as rows of one call; independent of each other, as all entries are."""
    steps = ops.shape(x.mean)[1]
    rows = x.moved(lambda v: ops.reshape(v, (-1, *ops.shape(v)[2:])))
    outputs = propagate(layer.layer, rows)
    return outputs.moved(lambda v: ops.reshape(v, (-1, steps, *ops.shape(v)[1:])))


@register(layers.Bidirectional)
def _bidirectional(layer: Any, x: Moments, initial_state: Any = None) -> Moments:
    if initial_state is not None or layer.return_state:
        raise ValueError(
            f"Moments pass through Bidirectional without states; {layer.name!r} takes or returns "
            f"some: {WAY_OUT}. Received: a layer with states"
        )
    forward, backward = propagate(layer.forward_layer, x), propagate(layer.backward_layer, x)
    if layer.return_sequences:
        backward = backward.moved(lambda v: ops.flip(v, axis=1))
    match layer.merge_mode:
        case "concat":
            return joined([forward, backward], -1)
        case "mul":
            return multiplied(forward, backward)
        case "sum":
            return added(forward, backward)
        case "ave":
            return added(forward, backward).scaled(0.5)
    return [forward, backward]  # type: ignore[return-value]
