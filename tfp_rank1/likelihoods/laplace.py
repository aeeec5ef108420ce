"""Laplace: absolute errors in place of squared ones."""

from __future__ import annotations

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.likelihoods.noise import ScaledLikelihood
from tfp_rank1.serialization import registered

__all__ = ["Laplace"]


@registered("tfp_rank1.likelihoods")
class Laplace(ScaledLikelihood):
    """`y ~ Laplace(outputs, scale)`, of density `exp(-|y - outputs| / scale) / (2 scale)`.

    The outputs are medians: outliers pull less than under `Normal`.

    Args:
        scale: mean absolute error of the noise, in units of the target, above 0. Defaults to None:
            it is learned, one per output, by the optimizer.
        initial_scale: where a learned scale starts. Defaults to 1.
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
