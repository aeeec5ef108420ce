"""Adaptive calibration error."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.checks import whole
from tfp_rank1.metrics.base import UncertaintyMetric
from tfp_rank1.metrics.histogram import (
    cell_of,
    merge_to_equal_mass,
    sums_by_cell,
    unit_of_probability,
)
from tfp_rank1.metrics.probabilistic import class_probabilities, class_rows
from tfp_rank1.serialization import registered
from tfp_rank1.target_weights import weights_by_target

__all__ = ["AdaptiveCalibrationError"]

# By class: 12 KiB, so that a thousand classes take 12 MiB.
_CELLS = 1024


@registered("tfp_rank1")
class AdaptiveCalibrationError(UncertaintyMetric, keras.metrics.Metric):
    """`1/C sum_c sum_b n_cb / n_c |accuracy_cb - confidence_cb|` over bins of equal mass.

    For each class c the probabilities p_c of all examples, not of the predicted class alone, are
    sorted and cut into `num_bins` bins b of equal count. In a bin, `confidence_cb` is the mean of
    p_c and `accuracy_cb` the share of examples that are of class c. Lower is better.

    With a `threshold` only probabilities above it count (thresholded ACE): with many classes almost
    all probabilities are close to 0, and hide the rest. A class without any is left out of the
    mean.

    The state is sums by cell, 1,024 for each class, so the result does not depend on how examples
    are split into batches or replicas. A cell spans 0.002 of a probability near 0.5, and 9 % of it
    near 1e-4 (or of 1 - p near 1 - 1e-4). Examples of one cell stay in one bin, and sums within a
    cell are exact: the result is exact for bins whose edges lie between cells, and a bin is off by
    no more examples than a cell holds.

    Args:
        num_bins: number of bins of each class, at least 1. Defaults to 15.
        threshold: probabilities up to this one are left out, in [0, 1). Defaults to None: all
            count.
        name: name in logs. Defaults to `"ace"`.
        likelihood: Categorical or Bernoulli, whose targets are then the classes. Defaults to that
            of the model, else Categorical.

    Raises:
        ValueError: for a `num_bins` below 1 or a `threshold` outside [0, 1); in `update_state`, for
            a likelihood without probabilities, or another number of classes than before.

    Example:
    ```python
    model.compile("adam", metrics=[r1.metrics.AdaptiveCalibrationError(threshold=0.01)])
    ```

    Source: Nixon et al. (2019), "Measuring Calibration in Deep Learning". There bins count alike,
    and here by their examples, which is the same where the number of examples is divisible by
    `num_bins`.
    """

    default_likelihood = "categorical"
    better = "down"

    def __init__(
        self,
        num_bins: int = 15,
        threshold: float | None = None,
        name: str = "ace",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.num_bins = whole("num_bins", num_bins)
        if threshold is not None and not 0.0 <= float(threshold) < 1.0:
            raise ValueError(
                "Argument `threshold` must be a probability in [0, 1), or None. "
                f"Received: threshold={threshold}"
            )
        self.threshold = None if threshold is None else float(threshold)
        # [classes, cells, 3], with count, sum of confidence, sum of correctness; the first batch
        # says how many classes there are.
        self.sums: keras.Variable | None = None

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: labels `[B]` or `[B, targets]`, logits `[B, K, C]` or `[B, C]`."""
        y_true, mixture, sample_weight = self.by_position(y_true, y_pred, sample_weight)
        y, observed = mixture.filled(mixture.prepare_targets(y_true))
        probability = class_probabilities(mixture)
        weight = weights_by_target(sample_weight, observed) * tf.ones_like(probability)
        if self.threshold is not None:
            weight *= tf.cast(probability > self.threshold, tf.float32)
        rows = tf.stack(
            [weight, weight * probability, weight * class_rows(y, mixture)], axis=-1
        )  # [B, C, 3]
        classes = int(probability.shape[-1])
        cell = tf.range(classes) * _CELLS + cell_of(unit_of_probability(probability), _CELLS)
        found = sums_by_cell(rows, cell, classes * _CELLS)
        self._sums_of(classes).assign_add(tf.reshape(found, [classes, _CELLS, 3]))

    def _sums_of(self, classes: int) -> keras.Variable:
        """The state, made for the first batch."""
        if self.sums is None:
            self.sums = self.add_variable((classes, _CELLS, 3), "zeros", name="sums")
        if self.sums.shape[0] != classes:
            raise ValueError(
                "The number of classes must be that of the first batch, "
                f"{self.sums.shape[0]}. Received: {classes} classes"
            )
        return self.sums

    def result(self) -> tf.Tensor:
        """The calibration error so far, in [0, 1]; 0 without data."""
        if self.sums is None:
            return tf.zeros(())
        bins = merge_to_equal_mass(tf.convert_to_tensor(self.sums), self.num_bins)
        count, confidence, correct = tf.unstack(bins, axis=-1)
        gap = tf.reduce_sum(tf.abs(correct - confidence), axis=-1)
        by_class = tf.math.divide_no_nan(gap, tf.reduce_sum(count, axis=-1))
        counted = tf.cast(tf.reduce_sum(count, axis=-1) > 0.0, tf.float32)
        return tf.math.divide_no_nan(tf.reduce_sum(by_class), tf.reduce_sum(counted))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_bins": self.num_bins, "threshold": self.threshold}
