"""One batch of evaluation, by the predictive distribution of the model.

The predictive distribution of an example is a mixture over samples. An exact output layer is
integrated out: each sample of the layers before it gives a Gaussian, not one draw.
"""

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

# Number of points that stand for each Gaussian of an exact output layer in metrics.
NODES = 16


def evaluate_batch(model: Any, data: Any) -> dict[str, tf.Tensor]:
    """Loss and metrics of one batch, for the mixture of `evaluation_samples` samples.

    Args:
        model: a compiled `BaliModel`.
        data: a batch as Keras passes it to `test_step`.

    Returns:
        The logs.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    count, exact = model._options.evaluation_samples, None
    # Losses and metrics of Keras would broadcast the targets over the samples.
    if model._options.stock_names or mean_mode.value or count == 1:
        outputs = model(x, training=False)
    else:
        samples, variance = sample_marginals(model, x, count, next_seed(model.seed_generator))
        if variance is not None:
            exact = PredictiveMixture(model.likelihood, samples, 0, variance)
        outputs = _equal_samples(samples, variance).by_example().values
    objective = model.objective(y, outputs, sample_weight, training=False)
    evaluation = model._options.evaluation_loss
    if exact is not None and evaluation is not None:
        # The NLL found above is that of `_equal_samples`, whose tails are cut off.
        losses = -exact.log_prob(tf.convert_to_tensor(y))
        reduce = _Reduction("nll", evaluation.reduction, dtype="float32")
        nll = reduce(losses, losses, sample_weight)
        nll = by_examples(nll, evaluation, outputs, objective.rows)
        objective = objective._replace(nll=nll, loss=objective.loss - objective.nll + nll)
    return track(model, objective, (x, y, outputs, sample_weight))


def _equal_samples(samples: tf.Tensor, variance: tf.Tensor | None) -> Outputs:
    """Samples of equal weight in place of Gaussians with the given means and variances.

    `NODES` points at the quantiles of each Gaussian have its mean and variance. So moments are
    right, while tails end at two standard deviations.

    Args:
        samples: outputs, or their means, `[S, N, D]`.
        variance: the shape of `samples`; None if these are already samples.
    """
    outputs = Outputs(samples, 0)
    if variance is None:
        return outputs
    points = tf.math.ndtri((tf.range(NODES, dtype=tf.float32) + 0.5) / NODES)
    return outputs.spread(points / tf.math.reduce_std(points), tf.sqrt(variance))


class _Reduction(keras.losses.Loss):
    """Reduces losses per example, given as `y_pred`, with sample weights as Keras does."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return y_pred
