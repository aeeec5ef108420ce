"""The observation noise, found from residuals in training.

For a Normal or LogNormal likelihood

    m = (a s^2 + N E[(y - z)^2]) / (a + N)
    v <- (1 - share) v + share m,             share = max(1 / t, rate)

v is the noise variance, z a member's raw output for one draw, and t the number of the optimizer's
step: the first batch sets v, in whatever unit the target has, and later batches move it. For the
average NLL over members and draws, v at the mean of the squared residuals is the minimum of the
loss, which an optimizer would reach by crawling along one scalar.

The prior counts for a examples whose residual is s, the standard deviation of the batch's targets:
a net of thousands of parameters can fit a few hundred rows better than it will fit the next one.

For other likelihoods with a scale (HeteroscedasticNormal, StudentT, Laplace) the residuals of the
first batch set where the scale starts, and the optimizer goes on from there.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.likelihoods import ClosedFormNoise
from tfp_rank1.losses import AverageNLL, NegativeLogLikelihood
from tfp_rank1.model.all_or_nothing import keep, sum_over_replicas
from tfp_rank1.outputs import as_members
from tfp_rank1.target_weights import weights_by_target

__all__ = [
    "learn_noise",
    "noise_in_closed_form",
    "start_scale",
    "starts_a_scale",
    "without_noise",
]

# Examples that the average remembers, and bounds of its rate: below a thousand residuals the scale
# is uncertain by more than 2 %, and beyond fifty steps the net has changed too much.
_MEMORY, _SLOWEST, _FASTEST = 1000.0, 0.02, 0.5
# Strength a of the prior, chosen on held-out parts of the training sets of UCI.
_PRIOR_EXAMPLES = 0.5


def noise_in_closed_form(model: Any) -> ClosedFormNoise | None:
    """The noise that is learned here; None if there is none, or the optimizer learns it.

    Under the NLL of the mixture the mean squared residual is not the minimum, and under a loss of
    Keras there is no noise.
    """
    if not isinstance(model.loss, AverageNLL) or not model.likelihood.trainable:
        return None
    return model.likelihood.closed_form_noise


def learn_noise(
    model: Any, noise: ClosedFormNoise, y: Any, outputs: tf.Tensor, sample_weight: Any
) -> None:
    """Move the noise variance towards the squared residuals of a batch.

    Args:
        model: a `BayesianModel` with an optimizer.
        noise: what `noise_in_closed_form` returned.
        y: targets `[B]` or `[B, targets]`.
        outputs: raw outputs of the batch, `[B, K, D]`.
        sample_weight: optional, `[B]`, or one weight per target, `[B, D]`.
    """
    members = as_members(tf.stop_gradient(tf.cast(outputs, tf.float32)))
    model.likelihood.distribution(members.values)  # refuses a scale of another model
    targets = model.likelihood.prepare_targets(y, members.num_outputs)
    observed = model.likelihood.observed(targets)
    targets = tf.where(observed, targets, model.likelihood.placeholder)
    weights = weights_by_target(sample_weight, observed)
    residuals = noise.residuals(members.for_all_samples(targets), members.values)
    squares = members.average(tf.square(residuals))
    rows = tf.cast(tf.shape(squares)[0], tf.float32)
    spread = _squares_around_mean(members.average(residuals + members.values), weights)
    total = tf.reduce_sum(weights * squares, axis=0)
    sums = total, spread, tf.reduce_sum(weights, axis=0), rows
    total, spread, count, rows = sum_over_replicas(sums)
    mean, targets_variance = (tf.math.divide_no_nan(t, count) for t in (total, spread))
    size = tf.cast(model.num_train_examples or _MEMORY, tf.float32)
    rate = tf.clip_by_value(rows / tf.minimum(size, _MEMORY), _SLOWEST, _FASTEST)
    inner: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    step = tf.cast(tf.convert_to_tensor(inner.iterations), tf.float32) + 1.0
    mode = noise.mode(mean, size, _PRIOR_EXAMPLES, targets_variance)
    variance = noise.moved(mode, tf.maximum(1.0 / step, rate))
    # A target that the batch does not hold says nothing of its noise.
    variance = tf.where(count > 0.0, variance, noise.variance())
    accept = tf.reduce_all(tf.math.is_finite(variance))
    for variable in noise.variables:
        keep(variable, noise.raw(variance), accept)


def start_scale(
    model: Any, is_first: tf.Tensor, y: Any, outputs: tf.Tensor, sample_weight: Any
) -> None:
    """Set a scale of the likelihood from the residuals of the first batch, if it has one to set.

    Args:
        model: a `BayesianModel`.
        is_first: whether this is the first step of training, boolean scalar.
        y: targets `[B]` or `[B, targets]`.
        outputs: raw outputs of the batch, `[B, K, D]` or `[B, D]`.
        sample_weight: optional, `[B]` or `[B, targets]`.
    """
    likelihood = model.likelihood
    start = likelihood.scale_at_start
    members = as_members(tf.stop_gradient(tf.cast(outputs, tf.float32)))
    targets = likelihood.prepare_targets(y, members.num_outputs)
    observed = likelihood.observed(targets)
    weights = weights_by_target(sample_weight, observed)
    values = members.for_all_samples(tf.where(observed, targets, likelihood.placeholder))
    squares = members.average(tf.square(start.standardized(values, members.values)))
    total, count = sum_over_replicas(
        (tf.reduce_sum(weights * squares, axis=0), tf.reduce_sum(weights, axis=0))
    )
    keep(start.variable, start.started(tf.math.divide_no_nan(total, count)), is_first)


def starts_a_scale(model: Any) -> bool:
    """Whether `start_scale` has a scale to set: under a loss of Keras there is none."""
    is_nll = isinstance(model.loss, NegativeLogLikelihood)
    return is_nll and model.likelihood.scale_at_start is not None


def _squares_around_mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """`sum_n w_n (values_n - mean)^2` of values `[B, D]`, as `[D]`; mean is the weighted one."""
    total = tf.reduce_sum(weights, axis=0)
    mean = tf.math.divide_no_nan(tf.reduce_sum(weights * values, axis=0), total)
    return tf.reduce_sum(weights * tf.square(values - mean), axis=0)


def without_noise(model: Any) -> list[keras.Variable]:
    """The trainable variables of a model but for a noise that is learned in closed form."""
    noise = noise_in_closed_form(model)
    learned = {id(v) for v in noise.variables} if noise is not None else set()
    return [v for v in model.trainable_variables if id(v) not in learned]
