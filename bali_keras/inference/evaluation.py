"""One batch of evaluation: the predictive distribution, its exact output layer integrated out."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.model.objective import by_examples
from tfp_rank1.model.step import track
from tfp_rank1.outputs import Outputs
from tfp_rank1.predictive import PredictiveMixture, sample_marginals
from tfp_rank1.random import next_seed
from tfp_rank1.scopes import mean_mode

__all__ = ["evaluate_batch"]

# Points by which metrics see the Gaussians of an exact output layer.
NODES = 16


def evaluate_batch(model: Any, data: Any) -> dict[str, tf.Tensor]:
    """Loss and metrics of one batch, of `evaluation_samples` samples' mixture."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    count, exact = model.options.evaluation_samples, None
    if model.options.stock_names or mean_mode.value or count == 1:
        outputs = model(x, training=False)
    else:
        samples, variance = sample_marginals(model, x, count, next_seed(model.seed_generator))
        if variance is not None:
            exact = PredictiveMixture(model.likelihood, samples, 0, variance)
        outputs = _equal_samples(samples, variance).by_example().values
    objective = model.objective(y, outputs, sample_weight, training=False)
    evaluation = model.options.evaluation_loss
    if exact is not None and evaluation is not None:
        losses = -exact.log_prob(tf.convert_to_tensor(y))
        reduce = _Reduction("nll", evaluation.reduction, dtype="float32")
        nll = reduce(losses, losses, sample_weight)
        nll = by_examples(nll, evaluation, outputs, objective.rows)
        objective = objective._replace(nll=nll, loss=objective.loss - objective.nll + nll)
    return track(model, objective, (x, y, outputs, sample_weight))


def _equal_samples(samples: tf.Tensor, variance: tf.Tensor | None) -> Outputs:
    """Samples of outputs with means and variances, which metrics weigh alike.

    Each Gaussian is `NODES` points at its quantiles, of the same mean and variance: moments are
    right, tails end at two standard deviations. The NLL is computed without them.
    """
    outputs = Outputs(samples, 0)
    if variance is None:
        return outputs
    points = tf.math.ndtri((tf.range(NODES, dtype=tf.float32) + 0.5) / NODES)
    return outputs.spread(points / tf.math.reduce_std(points), tf.sqrt(variance))


class _Reduction(keras.losses.Loss):
    """Reduces losses per example that are given as `y_pred`, with weights, as Keras does."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """The losses."""
        return y_pred
