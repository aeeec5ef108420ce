"""Poisson: counts."""

from __future__ import annotations

from typing import ClassVar

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.likelihoods.base import Likelihood
from tfp_rank1.serialization import registered

__all__ = ["Poisson", "are_counts"]


def are_counts(y: tf.Tensor) -> tf.Tensor:
    """Which numbers are counts, that is whole, finite and at least 0; boolean, the shape of y."""
    return (y >= 0.0) & (tf.floor(y) == y) & tf.math.is_finite(y)


@registered("tfp_rank1.likelihoods")
class Poisson(Likelihood):
    """Counts: `y ~ Poisson(exp(outputs))`.

    Raw outputs are log rates `[..., D]`, targets whole numbers of at least 0. The variance equals
    the rate; a `NegativeBinomial` learns by how much the variance exceeds it.

    Example:
    ```python
    r1.BayesianModel(inputs, outputs, likelihood="poisson")
    ```
    """

    least: ClassVar[float] = 0.0
    discrete: ClassVar[bool] = True
    link_names: ClassVar[tuple[str, ...]] = ("exponential", "exp")

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Poisson` with batch shape `[..., D]`."""
        return tfd.Poisson(log_rate=outputs)

    def cdf(self, outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """In float64: the incomplete gamma function of large counts has no digits in float32."""
        exact = tfd.Poisson(log_rate=tf.cast(outputs, tf.float64))
        rates, targets = tf.cast(outputs, tf.float64), tf.cast(targets, tf.float64)
        # Both of one shape: XLA's incomplete gamma function does not broadcast.
        return tf.cast(exact.cdf(targets + tf.zeros_like(rates)), tf.float32)

    def scores(self, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
        """`sqrt(rate) o e`."""
        return noise * tf.exp(0.5 * outputs)

    def is_in_support(self, y: tf.Tensor, num_outputs: int) -> tf.Tensor:
        """Whole numbers of at least 0."""
        return are_counts(y)

    def support_message(self, num_outputs: int) -> str:
        return "Poisson likelihood: targets must be whole numbers of at least 0. Received:"
