"""Scores of a predictive distribution: NLL, accuracy, Brier, RMSE, intervals, CRPS."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1 import checks
from tfp_rank1.metrics.base import MixtureMean, UncertaintyMetric
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.serialization import registered
from tfp_rank1.target_weights import split_weights, weights_by_target

__all__ = [
    "CRPS",
    "Accuracy",
    "BrierScore",
    "IntervalCoverage",
    "IntervalWidth",
    "PredictiveNLL",
    "RootMeanSquaredError",
    "class_probabilities",
    "class_rows",
    "confidence_and_correctness",
]


@registered("tfp_rank1")
class PredictiveNLL(UncertaintyMetric, keras.metrics.Mean):
    """`-log 1/K sum_k p(y | member k)`, in nats per example; lower is better.

    Args:
        name: name in logs. Defaults to `"predictive_nll"`.
        likelihood: defaults to that of the model.

    Example: `model.compile("adam", metrics=[PredictiveNLL(), Accuracy()])`
    """

    better = "down"

    def __init__(self, name: str = "predictive_nll", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: targets `[B]` or `[B, targets]`, raw outputs `[B, K, D]`."""
        mixture = self.mixture(y_pred)
        targets = mixture.prepare_targets(y_true)
        observed = mixture.observed(targets)
        examples, weights = split_weights(sample_weight, observed.shape[-1], mixture.positions)
        is_seen = tf.reduce_any(observed, axis=list(range(1, int(observed.shape.rank))))
        is_seen = tf.cast(is_seen, tf.float32)
        examples = is_seen if examples is None else is_seen * examples
        super().update_state(-mixture.log_prob(targets, weights), examples)


@registered("tfp_rank1")
class Accuracy(MixtureMean):
    """Share of examples whose most probable class is right.

    With several Bernoulli targets it is the share of targets.

    Args:
        name: name in logs. Defaults to `"accuracy"`.
        likelihood: Categorical or Bernoulli. Defaults to that of the model, else Categorical.

    Raises:
        ValueError: in `update_state`, for a likelihood without probabilities.
    """

    default_likelihood = "categorical"
    better = "up"

    def __init__(self, name: str = "accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def values(self, y: tf.Tensor, mixture: PredictiveMixture) -> tf.Tensor:
        return confidence_and_correctness(y, mixture)[1]


@registered("tfp_rank1")
class BrierScore(MixtureMean):
    """`sum_c (p_c - 1[y = c])^2` in [0, 2]; for Bernoulli the mean of `(p - y)^2` over targets.

    Lower is better.

    Args:
        name: name in logs. Defaults to `"brier"`.
        likelihood: Categorical or Bernoulli. Defaults to that of the model, else Categorical.

    Raises:
        ValueError: in `update_state`, for a likelihood without probabilities.

    Source: Brier (1950), "Verification of Forecasts Expressed in Terms of Probability".
    """

    default_likelihood = "categorical"
    better = "down"

    def __init__(self, name: str = "brier", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def values(self, y: tf.Tensor, mixture: PredictiveMixture) -> tf.Tensor:
        squares = (class_probabilities(mixture) - class_rows(y, mixture)) ** 2
        if mixture.likelihood.is_categorical:
            return tf.reduce_sum(squares, axis=-1, keepdims=True)
        return squares


@registered("tfp_rank1")
class RootMeanSquaredError(UncertaintyMetric, keras.metrics.RootMeanSquaredError):
    """`sqrt(mean (y - E[y])^2)` of the predictive mean `E[y]`, in units of the target.

    Args:
        name: name in logs. Defaults to `"rmse"`.
        likelihood: defaults to that of the model; not Categorical.

    Raises:
        ValueError: in `update_state`, for a Categorical likelihood.
    """

    better = "down"

    def __init__(self, name: str = "rmse", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: targets `[B]` or `[B, targets]`, raw outputs `[B, K, D]`."""
        y_true, mixture, sample_weight = self.by_position(y_true, y_pred, sample_weight)
        if mixture.likelihood.is_categorical:
            raise ValueError(
                "RootMeanSquaredError needs a numeric target; for classes use BrierScore. "
                f"Received: likelihood={type(mixture.likelihood).__name__}"
            )
        y, observed = mixture.filled(mixture.prepare_targets(y_true))
        # As columns: Keras would average the squares of an example before it weighs them.
        y, mean, weights = (
            tf.reshape(v, [-1, 1])
            for v in (y, mixture.mean(), weights_by_target(sample_weight, observed))
        )
        super().update_state(y, mean, weights)


class _Interval(MixtureMean):
    """A metric of the central credible interval of a level."""

    def __init__(self, level: float = 0.9, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.level = checks.level(level)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "level": self.level}


@registered("tfp_rank1")
class IntervalCoverage(_Interval):
    """Share of targets inside the central credible interval; a calibrated model has `level`.

    Args:
        level: probability of the interval, strictly between 0 and 1. Defaults to 0.9.
        name: name in logs. Defaults to `"coverage"`.
        likelihood: defaults to that of the model; not Categorical.

    Raises:
        ValueError: for a `level` outside (0, 1).
    """

    def __init__(self, level: float = 0.9, name: str = "coverage", **kwargs: Any) -> None:
        super().__init__(level, name, **kwargs)

    def values(self, y: tf.Tensor, mixture: PredictiveMixture) -> tf.Tensor:
        tail = 0.5 * (1.0 - self.level)
        # y >= q(tail) <=> cdf(y) >= tail, and y <= q(1 - tail) <=> P(Y < y) < 1 - tail. Quantiles
        # of a mixture would have to be searched for. Counts are whole, so P(Y < y) is cdf(y - 1).
        below = mixture.cdf(y - 1.0) if mixture.likelihood.discrete else mixture.cdf(y)
        inside = (mixture.cdf(y) >= tail) & (below < 1.0 - tail)
        return tf.cast(inside, tf.float32)


@registered("tfp_rank1")
class IntervalWidth(_Interval):
    """Mean width of the central credible interval, in units of the target.

    Args:
        level: probability of the interval, strictly between 0 and 1. Defaults to 0.9.
        name: name in logs. Defaults to `"interval_width"`.
        likelihood: defaults to that of the model; not Categorical.

    Raises:
        ValueError: for a `level` outside (0, 1).
    """

    better = "down"

    def __init__(self, level: float = 0.9, name: str = "interval_width", **kwargs: Any) -> None:
        super().__init__(level, name, **kwargs)

    def values(self, y: tf.Tensor, mixture: PredictiveMixture) -> tf.Tensor:
        low, high = mixture.credible_interval(self.level)
        return high - low


@registered("tfp_rank1")
class CRPS(MixtureMean):
    """Continuous ranked probability score of a mixture of Normals, in units of the target.

        CRPS = 1/K sum_k A(y - m_k, s_k^2) - 1/(2 K^2) sum_kl A(m_k - m_l, s_k^2 + s_l^2)
        A(m, v) = 2 sqrt(v) phi(m / sqrt(v)) + m (2 Phi(m / sqrt(v)) - 1)

    m_k and s_k are mean and standard deviation of member k, phi and Phi density and distribution
    function of N(0, 1). Lower is better; for a point forecast CRPS is the absolute error.

    Args:
        name: name in logs. Defaults to `"crps"`.
        likelihood: Normal or HeteroscedasticNormal. Defaults to that of the model.

    Raises:
        ValueError: in `update_state`, for another likelihood.

    Source: Grimit et al. (2006), "The continuous ranked probability score for circular variables
    and its application to mesoscale forecast ensemble verification".
    """

    better = "down"

    def __init__(self, name: str = "crps", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def values(self, y: tf.Tensor, mixture: PredictiveMixture) -> tf.Tensor:
        if not mixture.likelihood.is_gaussian:
            raise ValueError(
                "CRPS has its closed form for Gaussian likelihoods only, such as Normal. "
                f"Received: {type(mixture.likelihood).__name__}"
            )
        mean, variance = mixture.member_moments()
        error = _expected_absolute(y[:, tf.newaxis] - mean, variance)
        pairs = _expected_absolute(
            mean[:, :, tf.newaxis] - mean[:, tf.newaxis],
            variance[:, :, tf.newaxis] + variance[:, tf.newaxis],
        )
        return tf.reduce_mean(error, axis=1) - 0.5 * tf.reduce_mean(pairs, axis=[1, 2])


def confidence_and_correctness(
    y: tf.Tensor, mixture: PredictiveMixture
) -> tuple[tf.Tensor, tf.Tensor]:
    """Probability of the predicted class, and whether the class is right.

    Args:
        y: targets `[B, targets]`.
        mixture: the prediction, of a likelihood with probabilities.

    Returns:
        Two tensors `[B, decisions]`, the second of 0 and 1. There is one decision per example for
        Categorical, one per target for Bernoulli.

    Raises:
        ValueError: for a likelihood without probabilities.
    """
    probabilities = class_probabilities(mixture)
    if mixture.likelihood.is_categorical:
        predicted = tf.argmax(probabilities, axis=-1, output_type=tf.int32)[:, tf.newaxis]
        confidence = tf.reduce_max(probabilities, axis=-1, keepdims=True)
        if (
            y.shape[-1] == probabilities.shape[-1] != 1
        ):  # rows of probabilities: the likeliest is right
            y = tf.argmax(y, axis=-1)[:, tf.newaxis]
        return confidence, tf.cast(tf.equal(predicted, tf.cast(y, tf.int32)), tf.float32)
    predicted_yes = tf.cast(probabilities > 0.5, tf.float32)
    confidence = tf.maximum(probabilities, 1.0 - probabilities)
    return confidence, tf.cast(tf.equal(predicted_yes, y), tf.float32)


def class_probabilities(mixture: PredictiveMixture) -> tf.Tensor:
    """Probabilities of the classes, `[B, C]`; of yes, by target, `[B, targets]` for Bernoulli.

    Raises:
        ValueError: for a likelihood without probabilities.
    """
    if not mixture.likelihood.predicts_probabilities:
        raise ValueError(
            "This metric needs class probabilities: a Categorical or Bernoulli likelihood. "
            f"Received: {type(mixture.likelihood).__name__}"
        )
    return mixture.mean()


def class_rows(y: tf.Tensor, mixture: PredictiveMixture) -> tf.Tensor:
    """Targets `[B, targets]` in the shape of `class_probabilities`: labels as one-hot rows."""
    classes = mixture.outputs.shape[-1]
    is_label = mixture.likelihood.is_categorical and (y.shape[-1] != classes or classes == 1)
    return tf.one_hot(tf.cast(y[:, 0], tf.int32), classes) if is_label else y


def _expected_absolute(mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    """`E|X|` for `X ~ N(mean, variance)`."""
    stddev = tf.sqrt(variance)
    standard = tfd.Normal(tf.zeros(()), tf.ones(()))
    z = mean / stddev
    return 2.0 * stddev * standard.prob(z) + mean * (2.0 * standard.cdf(z) - 1.0)
