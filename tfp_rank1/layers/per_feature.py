"""What the embeddings of a table's columns share: a check of the width, and their weights."""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["check_width", "feature_weight"]


def check_width(layer: keras.layers.Layer, input_shape: Any, features: int) -> None:
    """Refuse inputs that are not `[B, P]` with the layer's number of features P.

    Raises:
        ValueError: for another rank or width.
    """
    if len(input_shape) != 2 or input_shape[-1] != features:
        raise ValueError(
            f"Layer '{layer.name}' takes inputs [B, {features}], one column per feature. "
            f"Received: inputs of shape {tuple(input_shape)}"
        )


def feature_weight(
    layer: Any, name: str, shape: tuple[int, ...], bound: float, place: int
) -> keras.Variable:
    """A weight of a layer that starts uniformly within a bound.

    Args:
        layer: the layer, whose `seed` is an integer or None.
        name: of the weight.
        shape: of the weight.
        bound: largest magnitude at the start.
        place: number of the weight in the layer, so that no two have the same draws.
    """
    seed = None if layer.seed is None else layer.seed + place
    start = keras.initializers.RandomUniform(-bound, bound, seed=seed)
    return layer.add_weight(name=name, shape=shape, initializer=start)
