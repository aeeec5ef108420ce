"""Expected calibration error."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.checks import choice, whole
from tfp_rank1.metrics.base import UncertaintyMetric
from tfp_rank1.metrics.histogram import (
    cell_of,
    merge_to_equal_mass,
    sums_by_cell,
    unit_of_probability,
)
from tfp_rank1.metrics.probabilistic import confidence_and_correctness
from tfp_rank1.serialization import registered
from tfp_rank1.target_weights import weights_by_target

__all__ = [
    "ExpectedCalibrationError",
]

# Bins of equal mass depend on all examples, and a streaming metric cannot keep all: it keeps this
# many cells and merges them at the end.
_FINE_CELLS = 4096


@registered("tfp_rank1")
class ExpectedCalibrationError(UncertaintyMetric, keras.metrics.Metric):
    """`sum_b n_b / n |accuracy_b - confidence_b|` over bins of the confidence.

    The confidence is the probability of the predicted class. The state is sums per bin, so the
    result does not depend on how examples are split into batches or replicas. Bins of equal mass
    are cut from a histogram of 4,096 cells, which resolve 1 - confidence by ratios (2 % near
    1e-4): examples of one cell stay in one bin.

    Args:
        num_bins: number of bins, at least 1. Defaults to 15.
        binning: `"equal_width"` (default) or `"equal_mass"`.
        name: name in logs. Defaults to `"ece"`.
        likelihood: Categorical or Bernoulli. Defaults to that of the model, else Categorical.

    Raises:
        ValueError: for a `num_bins` below 1 or an unknown `binning`; in `update_state`, for a
            likelihood without probabilities.

    Example:
    ```python
    model.compile("adam", metrics=[r1.metrics.ExpectedCalibrationError()])
    ```

    Source: Guo et al. (2017), "On Calibration of Modern Neural Networks"; for bins of equal mass
    Nixon et al. (2019), "Measuring Calibration in Deep Learning".
    """

    default_likelihood = "categorical"
    better = "down"

    def __init__(
        self,
        num_bins: int = 15,
        binning: str = "equal_width",
        name: str = "ece",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.num_bins = whole("num_bins", num_bins)
        self.binning = choice("binning", binning, ("equal_width", "equal_mass"))
        self._cells = self.num_bins if binning == "equal_width" else _FINE_CELLS
        # Rows: count, sum of confidence, sum of correctness.
        self.sums = self.add_variable((3, self._cells), "zeros", name="sums")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: labels `[B]` or `[B, targets]`, logits `[B, K, C]` or `[B, C]`."""
        y_true, mixture, sample_weight = self.by_position(y_true, y_pred, sample_weight)
        y, observed = mixture.filled(mixture.prepare_targets(y_true))
        confidence, correct = confidence_and_correctness(y, mixture)
        weight = weights_by_target(sample_weight, observed)
        rows = tf.stack([weight, weight * confidence, weight * correct], axis=-1)
        self.sums.assign_add(tf.transpose(sums_by_cell(rows, self._cell(confidence), self._cells)))

    def _cell(self, confidence: tf.Tensor) -> tf.Tensor:
        if self.binning == "equal_mass":
            return cell_of(unit_of_probability(confidence), self._cells)
        # Closed on the right, (0, 1/b], ..., (1 - 1/b, 1]: a confidence of 1 has a cell.
        cell = tf.cast(tf.math.ceil(confidence * self._cells), tf.int32) - 1
        return tf.clip_by_value(cell, 0, self._cells - 1)

    def result(self) -> tf.Tensor:
        """The calibration error so far, in [0, 1]; 0 without data."""
        sums = tf.convert_to_tensor(self.sums)
        if self.binning == "equal_mass":
            merged = merge_to_equal_mass(tf.transpose(sums)[tf.newaxis], self.num_bins)
            sums = tf.transpose(merged[0])
        count, confidence, correct = tf.unstack(sums)
        gap = tf.reduce_sum(tf.abs(correct - confidence))
        return tf.math.divide_no_nan(gap, tf.reduce_sum(count))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_bins": self.num_bins, "binning": self.binning}
