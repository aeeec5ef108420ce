"""ResNet-50 with rank-1 factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfp_rank1.model import BayesianModel
from tfp_rank1.models.parts import Parts, input_of

__all__ = [
    "STAGES",
    "resnet50",
]

# Number of blocks and of filters in each of the four stages.
STAGES = (3, 64), (4, 128), (6, 256), (3, 512)


def resnet50(
    input_shape: Sequence[int] = (224, 224, 3),
    num_outputs: int = 1000,
    likelihood: Any = "categorical",
    ensemble_size: int | None = 4,
    l2: float = 1e-4,
    prior_stddev: float | None = None,
    batch_normalization: str = "shared",
    **rank1: Any,
) -> BayesianModel:
    """ResNet-50 v1.5: bottleneck blocks whose 3x3 convolution has the strides.

    Args:
        input_shape: shape of an image, channels last. Defaults to (224, 224, 3).
        num_outputs: number of outputs D. Defaults to 1000.
        likelihood: a `tfp_rank1.likelihoods` object or its name. Defaults to `"categorical"`.
        ensemble_size: number of members K. Defaults to 4. None makes the same net of stock layers.
        l2: strength of the penalty `l2 sum(w^2)` on kernels, biases, scales and offsets.
            Defaults to 1e-4.
        prior_stddev: standard deviation of the prior `N(1, prior_stddev^2)` of Normal posteriors
            (mean 0 if additive). Defaults to 0.05.
        batch_normalization: `"shared"` (default), one for all members; or `"member"`, one per
            member.
        **rank1: arguments of `tfp_rank1.layers.Rank1Mixin`, for all layers.

    Returns:
        A `BayesianModel` from `[B, *input_shape]` to `[B, K, num_outputs]`.

    Raises:
        ValueError: as for `mlp`.

    Example:
    ```python
    model = r1.models.resnet50(num_outputs=10, input_shape=(64, 64, 3))
    ```

    Source: He et al. (2016), "Deep Residual Learning for Image Recognition"; Dusenberry et al.
    (2020). For a trained net: `tfp_rank1.convert(keras.applications.ResNet50())`.
    """
    parts = Parts(ensemble_size, l2, prior_stddev, 0.05, rank1, batch_normalization)
    inputs = input_of(input_shape)
    h = parts.convolution(64, 7, 2)(parts.start(inputs))
    h = keras.layers.ReLU()(parts.batch_normalization()(h))
    h = keras.layers.MaxPooling2D(3, 2, padding="same")(h)
    for stage, (blocks, filters) in enumerate(STAGES):
        for block in range(blocks):
            # The pooling before the first stage has halved its images already.
            strides = 2 if stage and not block else 1
            h = _block(parts, h, filters, strides)
    h = keras.layers.GlobalAveragePooling2D()(h)
    initializer = keras.initializers.RandomNormal(stddev=0.01)
    outputs = parts.layer("Dense", num_outputs, kernel_initializer=initializer)(h)
    return parts.model(inputs, outputs, likelihood, "resnet50")


def _block(parts: Parts, x: Any, filters: int, strides: int) -> Any:
    h = x
    for width, size, step in ((filters, 1, 1), (filters, 3, strides)):
        h = parts.batch_normalization()(parts.convolution(width, size, step)(h))
        h = keras.layers.ReLU()(h)
    h = parts.batch_normalization()(parts.convolution(4 * filters, 1, 1)(h))
    if tuple(x.shape[1:]) != tuple(h.shape[1:]):
        x = parts.batch_normalization()(parts.convolution(4 * filters, 1, strides)(x))
    return keras.layers.ReLU()(keras.layers.Add()([x, h]))
