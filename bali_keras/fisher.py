"""Random score vectors of a likelihood, whose covariance is its Fisher information."""

from __future__ import annotations

import tensorflow as tf

from tfp_rank1 import likelihoods
from tfp_rank1.likelihoods import Likelihood


def score(likelihood: Likelihood, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
    """Vectors s `[B, D]` with `E[s s'] = E_y[grad log p(y | outputs) grad log p(y | outputs)']`.

    The gradient for a label sampled from the model has this covariance; so has a linear map of
    standard normal noise, in closed form and without the noise of a discrete label:

        Categorical             sqrt(p) o e - p (sqrt(p)' e),     covariance diag(p) - p p'
        Bernoulli               sqrt(p (1 - p)) o e
        Poisson                 sqrt(rate) o e
        Normal                  e / scale
        HeteroscedasticNormal   (e_1 / scale, sqrt(2) e_2 scale' / scale),  scale' = d scale / d raw

    Args:
        likelihood: of the model.
        outputs: raw outputs `[B, D]`.
        noise: standard normal, `[B, D]`.

    Returns:
        s, or None for a likelihood that is not in the table.
    """
    if isinstance(likelihood, likelihoods.Categorical):
        probabilities = tf.nn.softmax(outputs)
        root = tf.sqrt(probabilities) * noise
        total = tf.reduce_sum(tf.sqrt(probabilities) * noise, axis=-1, keepdims=True)
        return root - probabilities * total
    if isinstance(likelihood, likelihoods.Bernoulli):
        return noise * tf.sqrt(tf.sigmoid(outputs) * tf.sigmoid(-outputs))
    if isinstance(likelihood, likelihoods.Poisson):
        return noise * tf.exp(0.5 * outputs)
    if isinstance(likelihood, likelihoods.Normal):
        return noise / likelihood.scale
    if isinstance(likelihood, likelihoods.HeteroscedasticNormal):
        _, raw = tf.split(outputs, 2, axis=-1)
        scale = tf.nn.softplus(raw) + likelihood.min_scale
        first, second = tf.split(noise, 2, axis=-1)
        return tf.concat([first, tf.sqrt(2.0) * second * tf.sigmoid(raw)], -1) / tf.concat(
            [scale, scale], -1
        )
    return None


def sampled_log_prob(likelihood: Likelihood, outputs: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """`log p(y | outputs)`, `[B]`, for y drawn from the model's own predictive distribution.

    Its gradient is a score with the Fisher information as covariance, for any likelihood.

    Args:
        likelihood: of the model.
        outputs: raw outputs `[B, D]`.
        seed: int32 `[2]`.
    """
    drawn = tf.stop_gradient(likelihood.distribution(outputs).sample(seed=seed))
    if drawn.shape.rank == 1:
        drawn = drawn[:, tf.newaxis]
    return likelihood.log_prob(outputs, tf.cast(drawn, tf.float32))
