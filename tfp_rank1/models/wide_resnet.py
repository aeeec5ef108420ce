"""Wide residual nets with rank-1 factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfp_rank1.model import BayesianModel
from tfp_rank1.models.parts import Parts, input_of

__all__ = [
    "wide_resnet",
]


def wide_resnet(
    input_shape: Sequence[int] = (32, 32, 3),
    num_outputs: int = 10,
    depth: int = 28,
    width: int = 10,
    likelihood: Any = "categorical",
    ensemble_size: int | None = 4,
    l2: float = 1e-4,
    prior_stddev: float | None = None,
    batch_normalization: str = "shared",
    **rank1: Any,
) -> BayesianModel:
    """WRN-`depth`-`width`: residual blocks with activations before their convolutions.

    Args:
        input_shape: shape of an image, channels last. Defaults to (32, 32, 3).
        num_outputs: number of outputs D. Defaults to 10.
        depth: number of layers, `6 n + 4` with n of at least 1. Defaults to 28.
        width: multiplies the 16, 32 and 64 filters of the three groups. Defaults to 10.
        likelihood: a `tfp_rank1.likelihoods` object or its name. Defaults to `"categorical"`.
        ensemble_size: number of members K. Defaults to 4. None makes the same net of stock layers.
        l2: strength of the penalty `l2 sum(w^2)` on kernels, biases, scales and offsets.
            Defaults to 1e-4.
        prior_stddev: standard deviation of the prior `N(1, prior_stddev^2)` of Normal posteriors
            (mean 0 if additive). Defaults to 0.1.
        batch_normalization: `"shared"` (default), one for all members, as in the paper; or
            `"member"`, one per member.
        **rank1: arguments of `tfp_rank1.layers.Rank1Mixin`, for all layers.

    Returns:
        A `BayesianModel` from `[B, *input_shape]` to `[B, K, num_outputs]`.

    Raises:
        ValueError: for a `depth` that is not `6 n + 4`; else as for `mlp`.

    Example:
    ```python
    model = r1.models.wide_resnet(depth=16, width=1)
    ```

    Source: Zagoruyko & Komodakis (2016), "Wide Residual Networks"; Dusenberry et al. (2020).
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"Argument `depth` must be 6 n + 4, n >= 1. Received: depth={depth}")
    parts = Parts(ensemble_size, l2, prior_stddev, 0.1, rank1, batch_normalization)
    inputs = input_of(input_shape)
    h = parts.convolution(16, 3, 1)(parts.start(inputs))
    for group, filters in enumerate((16, 32, 64)):
        for block in range((depth - 4) // 6):
            strides = 2 if group and not block else 1
            h = _block(parts, h, filters * width, strides)
    h = keras.layers.ReLU()(parts.batch_normalization()(h))
    h = keras.layers.GlobalAveragePooling2D()(h)
    outputs = parts.layer("Dense", num_outputs, kernel_initializer="he_normal")(h)
    return parts.model(inputs, outputs, likelihood, "wide_resnet")


def _block(parts: Parts, x: Any, filters: int, strides: int) -> Any:
    h = keras.layers.ReLU()(parts.batch_normalization()(x))
    h = parts.convolution(filters, 3, strides)(h)
    h = keras.layers.ReLU()(parts.batch_normalization()(h))
    h = parts.convolution(filters, 3, 1)(h)
    if tuple(x.shape[1:]) != tuple(h.shape[1:]):
        x = parts.convolution(filters, 1, strides)(x)
    return keras.layers.Add()([x, h])
