"""Laplace: absolute errors in place of squared ones."""

from __future__ import annotations

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.likelihoods.noise import ScaleAtStart, ScaledLikelihood
from tfp_rank1.serialization import registered

__all__ = ["Laplace"]


@registered("tfp_rank1.likelihoods")
class Laplace(ScaledLikelihood):
    """`y ~ Laplace(outputs, scale)`, with the density `exp(-|y - outputs| / scale) / (2 scale)`.

    Raw outputs `[..., D]` are medians, which outliers move less than the means of `Normal`.

    Args:
        scale: mean absolute error of the noise, in units of the target, above 0. Defaults to None:
            the residuals of the first batch start it, one per output, and the optimizer learns it.
        initial_scale: value at which a learned scale starts, above 0. Defaults to 1.
        **kwargs: as for `keras.layers.Layer`.

    Example:
    ```python
    r1.BayesianModel(inputs, outputs, likelihood="laplace")
    ```
    """

    @property
    def scale_at_start(self) -> ScaleAtStart | None:
        """The residuals of the first batch."""
        return self.started_by_residuals()

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Laplace` with batch shape `[..., D]`."""
        return tfd.Laplace(outputs, self.scale_of(outputs))

    def mean(self, outputs: tf.Tensor) -> tf.Tensor:
        """The outputs."""
        return tf.identity(outputs)

    def variance(self, outputs: tf.Tensor) -> tf.Tensor:
        """`2 scale^2`."""
        return 2.0 * tf.square(self.scale_of(outputs)) + tf.zeros_like(outputs)

    def scores(self, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
        """`e / scale`."""
        return noise / self.scale
