"""Laplace: absolute errors in place of squared ones."""

from __future__ import annotations

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.likelihoods.noise import ScaledLikelihood
from tfp_rank1.serialization import registered

__all__ = ["Laplace"]


@registered("tfp_rank1.likelihoods")
class Laplace(ScaledLikelihood):
    """`y ~ Laplace(outputs, scale)`, with the density `exp(-|y - outputs| / scale) / (2 scale)`.

    Raw outputs `[..., D]` are medians, which outliers move less than the means of `Normal`.

    Args:
        scale: mean absolute error of the noise, in units of the target, above 0. Defaults to None:
            it is learned, one per output, by the optimizer.
        initial_scale: value at which a learned scale starts, above 0. Defaults to 1.
        **kwargs: as for `keras.layers.Layer`.

    Example:
    ```python
    r1.BayesianModel(inputs, outputs, likelihood="laplace")
    ```
    """

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Laplace` with batch shape `[..., D]`."""
        return tfd.Laplace(outputs, self.scale_of(outputs))

    def scores(self, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
        """`e / scale`."""
        return noise / self.scale
