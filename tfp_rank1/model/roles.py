"""Parameters by role: factors, and slow weights, which may be frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfp_rank1.keras_internals import layers_of

__all__ = ["factor_variables", "normalizations", "places_of", "slow_parts", "slow_weights"]


def factor_variables(model: keras.Model) -> list[keras.Variable]:
    """Variables of all factors and their priors, each once."""
    found: dict[int, keras.Variable] = {}
    for layer in layers_of(model, include_self=False):
        if not isinstance(layer, keras.Model):  # the layers within come by themselves
            found.update({id(v): v for v in getattr(layer, "factor_variables", [])})
    return list(found.values())


def slow_weights(model: keras.Model) -> list[keras.Variable]:
    """All other weights of a model: kernels, point biases, stock layers."""
    factors = {id(v) for v in factor_variables(model)}
    return [v for v in model.weights if id(v) not in factors]


def normalizations(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Batch normalizations, which change in training also where no optimizer trains them."""
    layers = layers_of(model, include_self=False)
    return [v for v in layers if isinstance(v, keras.layers.BatchNormalization)]


def slow_parts(model: Any) -> list[Any]:
    """What is trainable now and no factor: batch normalizations, and weights of layers.

    A learned noise of the likelihood is left out: it belongs to the data, not to the kernels.

    Raises:
        ValueError: if there are no factors that could be trained alone.
    """
    factors = factor_variables(model)
    if not any(v.trainable for v in factors):
        raise ValueError(
            "The model has no factors that could be trained alone. Unfreeze its rank-1 layers "
            f"first. Received: {len(factors)} variables of factors, all frozen"
        )
    noise = {id(v) for v in model.likelihood.variables}
    weights = [v for v in slow_weights(model) if id(v) not in noise]
    return [v for v in [*normalizations(model), *weights] if v.trainable]


def places_of(model: keras.Model, parts: Sequence[Any]) -> list[int]:
    """Which of `normalizations` are among `parts`: names may repeat in nested models."""
    chosen = {id(v) for v in parts}
    return [i for i, v in enumerate(normalizations(model)) if id(v) in chosen]
