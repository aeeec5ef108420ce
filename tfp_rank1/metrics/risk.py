"""Risk and coverage: what a model loses on the examples that are kept.

    coverage(t) = sum_n w_n [score_n <= t] / sum_n w_n
    risk(t)     = sum_n w_n loss_n [score_n <= t] / sum_n w_n [score_n <= t]

Examples with a high score are left to somebody else (rejected), the rest is kept.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_rank1.checks import choice
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.metrics.probabilistic import confidence_and_correctness
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.target_weights import split_weights

__all__ = ["LOSSES", "area_under_risk", "check_loss", "default_loss", "losses_by_example"]

LOSSES = ("error", "log_loss", "squared_error")


def check_loss(loss: str) -> str:
    """`loss`, refused unless it is one of `LOSSES`."""
    return choice("loss", loss, LOSSES)


def default_loss(likelihood: Likelihood) -> str:
    """`"error"` for classes, `"squared_error"` for regressions."""
    return "error" if likelihood.predicts_probabilities else "squared_error"


def losses_by_example(
    y: Any, mixture: PredictiveMixture, loss: str, sample_weight: Any = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """What each example loses, and what it weighs.

    Args:
        y: targets `[N]` or `[N, targets]`; a missing one is NaN, or `ignore_class`.
        mixture: the prediction, `mixture.by_example()`.
        loss: one of

            - `"error"`: 0 if the most probable class is right and 1 if not, for likelihoods with
              probabilities;
            - `"log_loss"`: `-log p(y)`, nats;
            - `"squared_error"`: `(y - E[y])^2`, in squared units, not for Categorical.

            Of several targets `"error"` and `"squared_error"` are means over those observed.
        sample_weight: `[N]`, or one weight per target, `[N, targets]`. Defaults to None: 1.

    Returns:
        Losses and weights, `[N]`. The weight is 0 where no target is observed.

    Raises:
        ValueError: for a loss that the likelihood does not have.
    """
    check_loss(loss)
    targets = mixture.prepare_targets(y)
    filled, observed = mixture.filled(targets)
    examples, by_target = split_weights(sample_weight, observed.shape[-1])
    counted = tf.cast(observed, tf.float32)
    counted = counted if by_target is None else counted * by_target
    total = tf.reduce_sum(counted, axis=-1)
    if loss == "log_loss":
        losses = -mixture.log_prob(targets, by_target)
    else:
        values = _values(filled, mixture, loss)
        losses = tf.math.divide_no_nan(tf.reduce_sum(counted * values, axis=-1), total)
    weights = tf.cast(total > 0.0, tf.float32)
    return losses, weights if examples is None else weights * examples


def _values(y: tf.Tensor, mixture: PredictiveMixture, loss: str) -> tf.Tensor:
    """The loss of each target, `[N, targets]`."""
    if loss == "error":
        return 1.0 - confidence_and_correctness(y, mixture)[1]
    if mixture.likelihood.is_categorical:
        raise ValueError(
            "loss='squared_error' needs a numeric target; for classes use 'error' or 'log_loss'. "
            f"Received: likelihood={type(mixture.likelihood).__name__}"
        )
    return (y - mixture.mean()) ** 2


def area_under_risk(weight: tf.Tensor, loss: tf.Tensor) -> tf.Tensor:
    """Area under the curve of risk against coverage; groups of equal score in random order.

        1/N sum_n risk_n,   risk_n: mean loss of the n examples with the lowest scores

    A group of m examples with the sum of losses l, behind n examples with the sum L, adds

        sum_j=1..m (L + j l / m) / (n + j) = l + (L - n l / m) (H(n + m) - H(n))

    in the mean over the orders of the group. H(n) are the harmonic numbers, digamma(n + 1) up to
    a constant, which counts weights that are not whole as well.

    Args:
        weight: number of examples in each group, or the sum of their weights, `[G]`.
        loss: sum of weight times loss in each group, `[G]`.

    Returns:
        A float64 number; 0 without examples.
    """
    # In float32 the digamma function at n and at n + 1 are one number from n = 1e5 on.
    weight, loss = tf.cast(weight, tf.float64), tf.cast(loss, tf.float64)
    after = tf.cumsum(weight)
    before = after - weight
    mean = tf.math.divide_no_nan(loss, weight)
    harmonic = tf.math.digamma(after + 1.0) - tf.math.digamma(before + 1.0)
    parts = loss + (tf.cumsum(loss, exclusive=True) - before * mean) * harmonic
    return tf.math.divide_no_nan(tf.reduce_sum(parts), tf.reduce_sum(weight))
