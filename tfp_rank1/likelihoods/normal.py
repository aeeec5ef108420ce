"""Normal: a Gaussian around the outputs."""

from __future__ import annotations

from typing import ClassVar

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.likelihoods.noise import GaussianNoiseLikelihood
from tfp_rank1.serialization import registered

__all__ = ["Normal"]


@registered("tfp_rank1.likelihoods")
class Normal(GaussianNoiseLikelihood):
    """`y ~ N(outputs, scale^2)`, one scale per output.

    Raw outputs `[..., D]` are means, targets `[B, D]` are finite numbers.

    Args:
        scale: standard deviation of the noise, in units of the target, above 0. Defaults to None:
            it is learned, one per output.
        initial_scale: value at which a learned scale starts, above 0. Defaults to 1, right for a
            standardized target.
        **kwargs: as for `keras.layers.Layer`.

    Example:
    ```python
    r1.BayesianModel(inputs, outputs, likelihood=r1.likelihoods.Normal())
    ```
    """

    is_gaussian: ClassVar[bool] = True
    has_closed_form_marginal: ClassVar[bool] = True

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Normal` with batch shape `[..., D]`."""
        return tfd.Normal(outputs, self.scale_of(outputs))

    def noise_variance(self) -> tf.Tensor:
        """`scale^2`."""
        return tf.square(self.scale)

    def marginal(self, outputs: tf.Tensor, output_variance: tf.Tensor) -> tfd.Distribution:
        """`N(outputs, scale^2 + output_variance)`."""
        scale = self.scale_of(outputs)
        return tfd.Normal(outputs, tf.sqrt(tf.square(scale) + output_variance))
