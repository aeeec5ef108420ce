"""The observation noise, found from residuals in training.

For a Normal or LogNormal likelihood

    u = M - 2 max(0, S^2 - 2 P / N M),        M = E[(y - z)^2],   S^2 = Var[z]
    m = (a s^2 + N u) / (a + N)
    v <- (1 - share) v + share m,             share = max(1 / t, rate)
    w <- max(v, w exp(-c learning_rate)),     w = v at t = 1

v is the noise variance, z a member's raw output for one draw, and t the number of the optimizer's
step: the first batch sets v, in whatever unit the target has, and later batches move it. For the
average NLL over members and draws, v at the mean M of the squared residuals is the minimum of the
loss, which an optimizer would reach by crawling along one scalar.

M holds the variance S^2 of a net's outputs over members and draws, and answers add S^2 to v. At
the best width of the posteriors N S^2 <= P v for P random factors of a member, and the members'
means may differ as much again. To count that twice makes up for residuals that are smaller on the
training data than elsewhere, by 2 P v / N (Mallows). What is above is width that training has not
taken away yet, as after `convert`: it is left out of v, and counts once.

Answers have the variance v, the loss of a training step the tempered variance w. It falls no
faster than weights move under Adam, whose steps are the learning rate. A net that is trained at the
small noise of its early residuals ends at larger errors: under w the KL counts for more at first,
and gradients grow while w falls, which makes Adam's steps larger. In a net that is trained already,
v starts where it stays, and w is v.

The prior of a examples whose residual is s, the standard deviation of the batch's targets, is no
more than a floor for a net that fits every row exactly.

For other likelihoods with a scale (HeteroscedasticNormal, StudentT, Laplace) the residuals of the
first batch set where the scale starts, and the optimizer goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_rank1 import heads
from tfp_rank1.keras_internals import layers_of
from tfp_rank1.likelihoods import ClosedFormNoise, Likelihood
from tfp_rank1.losses import AverageNLL, NegativeLogLikelihood
from tfp_rank1.model.all_or_nothing import keep, sum_over_replicas
from tfp_rank1.model.graph import members_of
from tfp_rank1.outputs import Outputs, position_mask
from tfp_rank1.target_weights import weights_by_target

__all__ = [
    "add_tempering",
    "learn_noise",
    "learned_variables",
    "start_scales",
    "without_noise",
]

# Examples that the average remembers, and bounds of its rate: below a thousand residuals the scale
# is uncertain by more than 2 %, and beyond fifty steps the net has changed too much.
_MEMORY, _SLOWEST, _FASTEST = 1000.0, 0.02, 0.5
# Strength a of the prior. On held-out parts of UCI training sets 0.1 is worse than 0.
_PRIOR_EXAMPLES = 0.01
# Fall c of log w at a learning rate of 1, chosen on held-out parts of UCI training sets.
_FALL = 1.7
# Name of the variable log w, `[D]`.
_TEMPERING = "tempered_noise"


def learned_variables(model: Any) -> list[keras.Variable]:
    """The variables that the residuals of a batch set, without any optimizer."""
    variables = []
    for likelihood in model.likelihoods:
        noise = _noise_in_closed_form(model, likelihood)
        variables += [] if noise is None else noise.variables
        if _starts_a_scale(model, likelihood):
            variables.append(likelihood.scale_at_start.variable)
    return variables


def _noise_in_closed_form(model: Any, likelihood: Likelihood) -> ClosedFormNoise | None:
    """The noise that is learned here; None if there is none, or the optimizer learns it.

    Under the NLL of the mixture the mean squared residual is not the minimum, and under a loss of
    Keras there is no noise.
    """
    if not isinstance(model.loss, AverageNLL) or not likelihood.trainable:
        return None
    return likelihood.closed_form_noise


class _Observations(NamedTuple):
    """What one output of a model and its targets say of its noise; a position counts as a row.

    Attributes:
        likelihood: of the output.
        members: raw outputs `[R, K, D]`, without a gradient.
        values: targets that broadcast over the members.
        weights: of targets, `[R, D]`.
        rows: number of examples.
    """

    likelihood: Any
    members: Outputs
    values: tf.Tensor
    weights: tf.Tensor
    rows: tf.Tensor


def learn_noise(model: Any, y: Any, outputs: Any, sample_weight: Any) -> dict[int, tf.Tensor]:
    """Move every learned noise variance towards the squared residuals of a batch.

    Args:
        model: a `BayesianModel` with an optimizer.
        y: targets `[B]` or `[B, targets]`, by output.
        outputs: raw outputs of the batch, `[B, K, D]`, by output.
        sample_weight: optional, `[B]`, or one weight per target, `[B, D]`, or either by output.

    Returns:
        The tempered variance w for the loss of this batch, `[D]`, by the id of the likelihood.
    """
    by_likelihood = ((id(v), _noise_in_closed_form(model, v)) for v in model.likelihoods)
    noises = {key: noise for key, noise in by_likelihood if noise is not None}
    found = _observed(model, set(noises), y, outputs, sample_weight)
    return {id(v.likelihood): _learn(model, noises[id(v.likelihood)], v) for v in found}


def _learn(model: Any, noise: ClosedFormNoise, found: _Observations) -> tf.Tensor:
    """Move the noise variance of one output, and return the tempered one, `[D]`."""
    likelihood, members, values, weights, rows = found
    likelihood.distribution(members.values)  # refuses a scale of another model
    residuals = noise.residuals(values, members.values)
    squares = members.average(tf.square(residuals))
    positions = tf.math.divide_no_nan(tf.cast(tf.shape(squares)[0], tf.float32), rows)
    spread = _squares_around_mean(members.average(residuals + members.values), weights)
    total, draws = (tf.reduce_sum(weights * v, axis=0) for v in (squares, _spread_of(members)))
    sums = total, draws, spread, tf.reduce_sum(weights, axis=0), rows
    total, draws, spread, count, rows = sum_over_replicas(sums)
    mean, draws, targets_variance = (
        tf.math.divide_no_nan(t, count) for t in (total, draws, spread)
    )
    size = tf.cast(model.num_train_examples or _MEMORY, tf.float32)
    observations = size * tf.maximum(positions, 1.0)
    mean = _without_excess(mean, draws, _num_random(model) / observations)
    rate = tf.clip_by_value(rows / tf.minimum(size, _MEMORY), _SLOWEST, _FASTEST)
    inner: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    step = tf.cast(tf.convert_to_tensor(inner.iterations), tf.float32) + 1.0
    mode = noise.mode(mean, observations, _PRIOR_EXAMPLES, targets_variance)
    variance = noise.moved(mode, tf.maximum(1.0 / step, rate))
    # A target that the batch does not hold says nothing of its noise.
    variance = tf.where(count > 0.0, variance, noise.variance())
    accept = tf.reduce_all(tf.math.is_finite(variance))
    for variable in noise.variables:
        keep(variable, noise.raw(variance), accept)
    for variable in _tempering_of(model, likelihood):
        rate = tf.cast(tf.convert_to_tensor(inner.learning_rate), tf.float32)
        logarithm = tf.math.log(variance)
        slowly = tf.maximum(logarithm, variable - _FALL * rate)
        logarithm = tf.where(step > 1.0, slowly, logarithm)
        keep(variable, logarithm, accept)
        variance = tf.exp(logarithm)
    return variance


def _observed(
    model: Any, wanted: set[int], y: Any, outputs: Any, sample_weight: Any
) -> Iterator[_Observations]:
    """What the outputs with the likelihoods `wanted`, by id, say of their noise."""
    if not wanted:
        return
    own = model.likelihood
    y, weights = heads.matched("y", own, y), heads.for_each("sample_weight", own, sample_weight)
    columns = (heads.parts(own, v) for v in (own, y, outputs, weights))
    for name, likelihood, *of_output in zip(heads.names_of(own), *columns, strict=True):
        if id(likelihood) in wanted:
            yield _observations(model, name, likelihood, *of_output)


def _observations(
    model: Any, name: str, likelihood: Any, y: Any, outputs: tf.Tensor, sample_weight: Any
) -> _Observations:
    members = members_of(model, tf.stop_gradient(tf.cast(outputs, tf.float32)), name)
    rows = tf.cast(tf.shape(outputs)[0], tf.float32)
    prepared = likelihood.prepare_targets(y, members.num_outputs, members.positions)
    targets, observed = likelihood.filled(prepared)
    mask = position_mask(outputs, model.has_members)
    if mask is not None:
        observed &= mask[..., tf.newaxis]
    weights = weights_by_target(sample_weight, observed)
    members = members.flatten_positions()
    targets, weights = (tf.reshape(v, [-1, v.shape[-1]]) for v in (targets, weights))
    return _Observations(likelihood, members, members.for_all_samples(targets), weights, rows)


def _spread_of(members: Outputs) -> tf.Tensor:
    """Variance over members and draws of raw outputs, unbiased, `[B, D]`; 0 for a single one."""
    count = members.num_samples
    if count == 1:
        return tf.zeros_like(members.average(members.values))
    return members.variance(members.values) * (count / (count - 1))


def _num_random(model: Any) -> float:
    """P: number of random entries of a member's factors."""
    return float(sum(getattr(layer, "num_random", 0) for layer in layers_of(model)))


def _without_excess(mean: tf.Tensor, spread: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """`u = M - 2 max(0, S^2 - 2 P / N M)`, at least a quarter of M; M itself if P is 0.

    Args:
        mean: M, `[D]`.
        spread: S^2, `[D]`.
        share: `P / N`.
    """
    excess = tf.where(share > 0.0, tf.nn.relu(spread - 2.0 * share * mean), 0.0)
    return tf.maximum(mean - 2.0 * excess, 0.25 * mean)


def add_tempering(model: Any) -> None:
    """Give a model a variable log w for every learned noise, unless it has them."""
    if not model.tempers_noise or model.state_beside_weights:
        return
    for likelihood in model.likelihoods:
        noise = likelihood.closed_form_noise
        for variable in [] if noise is None else noise.variables:  # none before it is built
            logarithm = keras.Variable(
                "zeros",
                shape=variable.shape,
                dtype="float32",
                trainable=False,
                name=_tempering_name(model, likelihood),
            )
            model.state_beside_weights.append(logarithm)


def _tempering_of(model: Any, likelihood: Any) -> list[keras.Variable]:
    """The variable log w of a likelihood's noise, if there is one."""
    name = _tempering_name(model, likelihood)
    return [v for v in model.state_beside_weights if v.name == name]


def _tempering_name(model: Any, likelihood: Any) -> str:
    own = model.likelihood
    pairs = zip(heads.names_of(own), model.likelihoods, strict=True)
    output = next(name for name, other in pairs if other is likelihood)
    return f"{_TEMPERING}_{output}" if output else _TEMPERING


def start_scales(model: Any, is_first: tf.Tensor, y: Any, outputs: Any, sample_weight: Any) -> None:
    """Set the scales of likelihoods from the residuals of the first batch, if there are any to set.

    Args:
        model: a `BayesianModel`.
        is_first: whether this is the first step of training, boolean scalar.
        y: targets `[B]` or `[B, targets]`, by output.
        outputs: raw outputs of the batch, `[B, K, D]` or `[B, D]`, by output.
        sample_weight: optional, `[B]` or `[B, targets]`, or either by output.
    """
    wanted = {id(v) for v in model.likelihoods if _starts_a_scale(model, v)}
    for found in _observed(model, wanted, y, outputs, sample_weight):
        _start(found, is_first)


def _start(found: _Observations, is_first: tf.Tensor) -> None:
    _, members, values, weights, _ = found
    start = found.likelihood.scale_at_start
    squares = members.average(tf.square(start.standardized(values, members.values)))
    total, count = sum_over_replicas(
        (tf.reduce_sum(weights * squares, axis=0), tf.reduce_sum(weights, axis=0))
    )
    keep(start.variable, start.started(tf.math.divide_no_nan(total, count)), is_first)


def _starts_a_scale(model: Any, likelihood: Any) -> bool:
    """Whether a first batch has a scale to set: under a loss of Keras there is none."""
    return isinstance(model.loss, NegativeLogLikelihood) and likelihood.scale_at_start is not None


def _squares_around_mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """`sum_n w_n (values_n - mean)^2` of values `[B, D]`, as `[D]`; mean is the weighted one."""
    total = tf.reduce_sum(weights, axis=0)
    mean = tf.math.divide_no_nan(tf.reduce_sum(weights * values, axis=0), total)
    return tf.reduce_sum(weights * tf.square(values - mean), axis=0)


def without_noise(model: Any) -> list[keras.Variable]:
    """The trainable variables of a model but for noises that are learned in closed form."""
    noises = [_noise_in_closed_form(model, likelihood) for likelihood in model.likelihoods]
    learned = {id(v) for noise in noises if noise is not None for v in noise.variables}
    return [v for v in model.trainable_variables if id(v) not in learned]
