"""Parameters by role: factors, and slow weights, which may be frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfp_rank1.keras_internals import layers_of

__all__ = [
    "factor_variables",
    "has_kl",
    "normalizations",
    "places_of",
    "slow_parts",
    "slow_weights",
]


def factor_variables(model: keras.Model) -> list[keras.Variable]:
    """Variables of all factors and of their priors, each once."""
    found: dict[int, keras.Variable] = {}
    for layer in layers_of(model, include_self=False):
        if not isinstance(layer, keras.Model):  # its layers are in the list themselves
            found.update({id(v): v for v in getattr(layer, "factor_variables", [])})
    return list(found.values())


def has_kl(model: Any) -> bool:
    """Whether some factor has a prior and is trained: frozen layers have no KL."""
    return any(v.regularizer is not None and v.trainable for v in model.factor_variables)


def slow_weights(model: keras.Model) -> list[keras.Variable]:
    """All other weights of a model: kernels, point biases, weights of stock layers."""
    factors = {id(v) for v in factor_variables(model)}
    return [v for v in model.weights if id(v) not in factors]


def normalizations(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """All batch normalizations; training changes their statistics without any optimizer."""
    layers = layers_of(model, include_self=False)
    return [v for v in layers if isinstance(v, keras.layers.BatchNormalization)]


def slow_parts(model: Any) -> list[Any]:
    """The trainable parts of a model that are no factors: batch normalizations, and weights.

    A learned noise scale of the likelihood is left out: it describes the data, not the kernels.

    Args:
        model: a `BayesianModel`.

    Raises:
        ValueError: if there are no factors that could be trained alone.
    """
    factors = factor_variables(model)
    if not any(v.trainable for v in factors):
        raise ValueError(
            "The model has no factors that could be trained alone. Unfreeze its rank-1 layers "
            f"first. Received: {len(factors)} variables of factors, all frozen"
        )
    noise = {id(v) for likelihood in model.likelihoods for v in likelihood.variables}
    weights = [v for v in slow_weights(model) if id(v) not in noise]
    # Normalizations as layers, since only a frozen layer uses its moving statistics in training.
    return [v for v in [*normalizations(model), *weights] if v.trainable]


def places_of(model: keras.Model, parts: Sequence[Any]) -> list[int]:
    """Indices in `normalizations` of the layers among `parts`, for a config.

    Names would not do: layers of different nested models may share a name.
    """
    chosen = {id(v) for v in parts}
    return [i for i, v in enumerate(normalizations(model)) if id(v) in chosen]
