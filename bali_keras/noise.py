"""The observation noise of a Normal likelihood, learned in closed form."""

from __future__ import annotations

import tensorflow as tf

from bali_keras.statistics import Accumulation
from tfp_rank1._refusal import keep
from tfp_rank1.likelihoods import Normal

# Smallest variance, in units of `initial_scale` squared: float32 residuals are no finer.
SMALLEST = 1e-10


class LearnedNoise:
    """Posterior mode of the noise variance, from moving averages of squared residuals.

        sigma^2 = (a s^2 + N E[(y - z)^2]) / (a + N)

    The prior counts as a examples whose residual is s, the likelihood's `initial_scale`. The
    expectation is over examples and, for an output layer with a posterior, over its weights.

    Args:
        likelihood: `Normal()` with a learned scale.
        strength: a, above 0.
        weight: how much the average has seen.
    """

    def __init__(self, likelihood: Normal, strength: float, weight: Accumulation) -> None:
        self._likelihood, self._strength, self._weight = likelihood, strength, weight

    def update(
        self,
        squares: tf.Tensor,
        examples: tf.Tensor,
        num_examples: tf.Tensor,
        rate: tf.Tensor,
    ) -> None:
        """Take in one batch.

        Args:
            squares: `sum_n w_n E[(y_n - z_n)^2]`, `[D]`, over all replicas.
            examples: `sum_n w_n`.
            num_examples: N.
            rate: rho.
        """
        a, scale = self._strength, self._likelihood.initial_scale
        mean = tf.math.divide_no_nan(squares, examples)
        batch = (a * scale**2 + num_examples * mean) / (a + num_examples)
        old = tf.square(self._likelihood.scale)
        share = self._weight.share(examples, rate)
        variance = tf.maximum(old + share * (batch - old), SMALLEST * scale**2)
        accept = tf.reduce_all(tf.math.is_finite(variance))
        self._weight.update(examples, rate, accept)
        keep(self._likelihood.rho, _inverse_softplus(tf.sqrt(variance)), accept)


def _inverse_softplus(y: tf.Tensor) -> tf.Tensor:
    """The x with `softplus(x) = y`, also for small y."""
    return y + tf.math.log(-tf.math.expm1(-y))
