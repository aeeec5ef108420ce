"""Scores of split conformal prediction: how badly a target fits a prediction.

For classes, with probabilities p sorted from the largest, and r the rank of class c from 1:

    LAC     s(c) = 1 - p_c
    APS     s(c) = p_(1) + ... + p_(r)
    RAPS    s(c) = p_(1) + ... + p_(r) + penalty max(0, r - free_classes)

For numbers, with mean m, standard deviation d and quantiles q of the prediction:

    normalized    s(y) = |y - m| / d
    CQR           s(y) = max(q_low - y, y - q_high)
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import tensorflow as tf

from tfp_rank1.predictive.mixture import PredictiveMixture

__all__ = [
    "APS",
    "CLASSES",
    "CQR",
    "LAC",
    "NUMBERS",
    "RAPS",
    "ClassScore",
    "Normalized",
    "NumberScore",
]


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """Base of the scores of classes; parameters of a score are fields of its dataclass.

    Attributes:
        name: of the method.
        never_empty: whether the likeliest class belongs to every set. Sets of summed probabilities
            would else be empty for the examples of which the model is most certain.
    """

    name: ClassVar[str]
    never_empty: ClassVar[bool] = True

    def of_classes(self, probabilities: tf.Tensor) -> tf.Tensor:
        """The score of every class, `[N, C]`, from probabilities `[N, C]`."""
        order = tf.argsort(probabilities, axis=-1, direction="DESCENDING", stable=True)
        ranked = tf.gather(probabilities, order, batch_dims=1)
        ranks = tf.range(1.0, tf.cast(tf.shape(ranked)[-1], ranked.dtype) + 1.0, dtype=ranked.dtype)
        sums = tf.cumsum(ranked, axis=-1) + self._penalties(ranks)
        return tf.gather(sums, tf.argsort(order, axis=-1), batch_dims=1)

    def _penalties(self, ranks: tf.Tensor) -> tf.Tensor:
        """What is added to the sums at ranks `[C]`."""
        return tf.zeros_like(ranks)

    def holds(self, probabilities: tf.Tensor, thresholds: tf.Tensor) -> tf.Tensor:
        """The prediction sets, boolean `[N, C]`.

        Args:
            probabilities: `[N, C]`.
            thresholds: broadcast to `[N, C]`.
        """
        sets = self.of_classes(probabilities) <= thresholds
        if not self.never_empty:
            return sets
        best = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
        return sets | tf.one_hot(best, tf.shape(probabilities)[-1], True, False, dtype=tf.bool)


@dataclasses.dataclass(frozen=True)
class LAC(ClassScore):
    """`s(c) = 1 - p_c`: the smallest sets on average; hard examples are covered less than easy.

    Source: Sadinle, Lei & Wasserman (2019), "Least Ambiguous Set-Valued Classifiers With Bounded
    Error Levels".
    """

    name: ClassVar[str] = "lac"
    never_empty: ClassVar[bool] = False

    def of_classes(self, probabilities: tf.Tensor) -> tf.Tensor:
        return 1.0 - probabilities


@dataclasses.dataclass(frozen=True)
class APS(ClassScore):
    """`s(c) = p_(1) + ... + p_(r)`: large sets for hard examples, without random numbers.

    The score of the least likely class is 1 for every example, and that of a confident answer is
    close to 1. Such ties make sets larger than they must be: with two classes, or a net that is
    right more often than the coverage asks for, they hold the target far more often than promised.
    `LAC` has no such ties.

    Source: Romano, Sesia & Candès (2020), "Classification with Valid and Adaptive Coverage".
    """

    name: ClassVar[str] = "aps"


@dataclasses.dataclass(frozen=True)
class RAPS(ClassScore):
    """`s(c) = p_(1) + ... + p_(r) + penalty max(0, r - free_classes)`: APS without huge sets.

    Args:
        penalty: lambda of the paper, at least 0.
        free_classes: k_reg of the paper, the size of a set that costs no penalty, at least 0.

    Source: Angelopoulos et al. (2021), "Uncertainty Sets for Image Classifiers using Conformal
    Prediction".
    """

    penalty: float
    free_classes: int

    name: ClassVar[str] = "raps"

    def _penalties(self, ranks: tf.Tensor) -> tf.Tensor:
        return self.penalty * tf.nn.relu(ranks - float(self.free_classes))


@dataclasses.dataclass(frozen=True)
class NumberScore:
    """Base of the scores of numbers; parameters of a score are fields of its dataclass.

    Attributes:
        name: of the method.
    """

    name: ClassVar[str]

    def of_targets(self, mixture: PredictiveMixture, y: tf.Tensor) -> tf.Tensor:
        """The score of every target, `[N, targets]`, from targets of that shape."""
        raise NotImplementedError

    def interval(
        self, mixture: PredictiveMixture, threshold: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Ends `[N, targets]` of the interval of all y whose score is at most the threshold.

        Args:
            mixture: predictions of N examples.
            threshold: `[N or 1, targets]`.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Normalized(NumberScore):
    """`s(y) = |y - m| / d`: intervals around the mean, as wide as the model is uncertain.

    Source: Lei et al. (2018), "Distribution-Free Predictive Inference for Regression".
    """

    name: ClassVar[str] = "normalized"

    def of_targets(self, mixture: PredictiveMixture, y: tf.Tensor) -> tf.Tensor:
        mean, stddev = map(tf.convert_to_tensor, (mixture.mean(), mixture.stddev()))
        return tf.abs(y - mean) / stddev

    def interval(
        self, mixture: PredictiveMixture, threshold: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        mean, stddev = map(tf.convert_to_tensor, (mixture.mean(), mixture.stddev()))
        return mean - threshold * stddev, mean + threshold * stddev


@dataclasses.dataclass(frozen=True)
class CQR(NumberScore):
    """`s(y) = max(q_low - y, y - q_high)`: the central interval, moved out or in by a constant.

    Args:
        coverage: probability between the two quantiles, which the model predicts.

    Source: Romano, Patterson & Candès (2019), "Conformalized Quantile Regression".
    """

    coverage: float

    name: ClassVar[str] = "cqr"

    def of_targets(self, mixture: PredictiveMixture, y: tf.Tensor) -> tf.Tensor:
        low, high = self._quantiles(mixture)
        return tf.maximum(low - y, y - high)

    def interval(
        self, mixture: PredictiveMixture, threshold: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        # Quantiles that the model predicts too far apart are moved in, at most until they meet.
        low, high = self._quantiles(mixture)
        middle = 0.5 * (low + high)
        return tf.minimum(low - threshold, middle), tf.maximum(high + threshold, middle)

    def _quantiles(self, mixture: PredictiveMixture) -> tuple[tf.Tensor, tf.Tensor]:
        low, high = mixture.credible_interval(self.coverage)
        return tf.convert_to_tensor(low), tf.convert_to_tensor(high)


# The scores by the name of their method; the first is the default.
CLASSES: dict[str, Any] = {score.name: score for score in (LAC, APS, RAPS)}
NUMBERS: dict[str, Any] = {score.name: score for score in (Normalized, CQR)}
