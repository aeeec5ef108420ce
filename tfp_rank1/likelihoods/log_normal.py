"""LogNormal: positive targets with relative noise."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.likelihoods.noise import GaussianNoiseLikelihood
from tfp_rank1.serialization import registered

__all__ = ["LogNormal"]

# Smaller numbers are 0 to TensorFlow, and have no logarithm.
_SMALLEST = float(np.finfo("float32").tiny)


@registered("tfp_rank1.likelihoods")
class LogNormal(GaussianNoiseLikelihood):
    """`log y ~ N(outputs, scale^2)`: positive targets with a noise that is relative to their size.

    Such targets are prices, durations or concentrations. Raw outputs `[..., D]` are logarithms of
    medians.

    Args:
        scale: standard deviation of log y, above 0. Defaults to None: it is learned, one per
            output.
        initial_scale: value at which a learned scale starts, above 0. Defaults to 1.
        **kwargs: as for `keras.layers.Layer`.

    Example:
    ```python
    r1.BayesianModel(inputs, outputs, likelihood="log_normal")
    ```
    """

    least: ClassVar[float] = 0.0
    link_names: ClassVar[tuple[str, ...]] = ("exponential", "exp")

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.LogNormal` with batch shape `[..., D]`."""
        return tfd.LogNormal(outputs, self.scale_of(outputs))

    def variance(self, outputs: tf.Tensor) -> tf.Tensor:
        """`(exp(scale^2) - 1) exp(2 z + scale^2)`, by operations that every serving format has."""
        square = tf.square(self.scale_of(outputs))
        # Near 0 the difference has no digits left: the first terms of the series.
        near = square * (1.0 + square / 2.0 * (1.0 + square / 3.0))
        excess = tf.where(square < 0.01, near, tf.exp(square) - 1.0)
        return excess * tf.exp(2.0 * outputs + square)

    def residuals(self, targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """`log y - z`."""
        return tf.math.log(targets) - outputs

    def is_in_support(self, y: tf.Tensor, num_outputs: int) -> tf.Tensor:
        """Finite numbers above 0."""
        return (y >= _SMALLEST) & tf.math.is_finite(y)

    def support_message(self, num_outputs: int) -> str:
        return "LogNormal likelihood: targets must be finite numbers above 0. Received:"
