"""A multilayer perceptron with rank-1 factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfp_rank1.model import BayesianModel
from tfp_rank1.models.parts import Parts, input_of

__all__ = [
    "mlp",
]


def mlp(
    input_shape: Sequence[int],
    num_outputs: int,
    hidden: Sequence[int] = (100, 100),
    activation: Any = "relu",
    likelihood: Any = "categorical",
    ensemble_size: int | None = 4,
    l2: float = 0.0,
    prior_stddev: float | None = None,
    **rank1: Any,
) -> BayesianModel:
    """Dense layers on flattened inputs, the last one without an activation.

    Args:
        input_shape: shape of one example.
        num_outputs: number of outputs D, as many as the likelihood takes.
        hidden: sizes of the hidden layers. Defaults to (100, 100).
        activation: activation of the hidden layers. Defaults to `"relu"`.
        likelihood: a `tfp_rank1.likelihoods` object or its name. Defaults to `"categorical"`.
        ensemble_size: number of members K. Defaults to 4. None makes the same net of stock layers.
        l2: strength of the penalty `l2 sum(w^2)` on kernels and biases. Defaults to 0.
        prior_stddev: standard deviation of the prior `N(1, prior_stddev^2)` of Normal posteriors
            (mean 0 if additive). Defaults to None: the start and the prior of
            `tfp_rank1.priors.default_pair`, as in any rank-1 layer.
        **rank1: arguments of `tfp_rank1.layers.Rank1Mixin`, for all layers.

    Returns:
        A `BayesianModel` from `[B, *input_shape]` to `[B, K, num_outputs]`.

    Raises:
        ValueError: for an `input_shape` that is no tuple; for `prior_stddev` where no factor has a
            Normal posterior without a prior; for arguments of factors with `ensemble_size=None`.

    Example:
    ```python
    model = r1.models.mlp((28, 28), 10)
    ```
    """
    parts = Parts(ensemble_size, l2, prior_stddev, None, rank1)
    inputs = input_of(input_shape)
    h = parts.start(inputs)
    h = keras.layers.Flatten()(h) if len(input_shape) > 1 else h
    for units in hidden:
        h = parts.layer("Dense", units, activation=activation)(h)
    return parts.model(inputs, parts.layer("Dense", num_outputs)(h), likelihood, "mlp")
