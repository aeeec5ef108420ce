"""Expected calibration error."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.checks import choice, whole
from tfp_rank1.metrics.base import UncertaintyMetric
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
    are cut from a histogram of 4,096 cells: examples of one cell stay in one bin.

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
    model.compile("adam", metrics=[ExpectedCalibrationError()])
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
        mixture = self.mixture(y_pred)
        y, observed = mixture.likelihood.filled(mixture.prepare_targets(y_true))
        confidence, correct = confidence_and_correctness(y, mixture)
        weight = weights_by_target(sample_weight, observed)
        # Cells are closed on the right, (0, 1/b], ..., (1 - 1/b, 1]: a confidence of 1 has a cell.
        cell = tf.cast(tf.math.ceil(confidence * self._cells), tf.int32) - 1
        rows = tf.stack([weight, weight * confidence, weight * correct], axis=-1)
        sums = tf.math.unsorted_segment_sum(
            tf.reshape(rows, [-1, 3]),
            tf.reshape(tf.clip_by_value(cell, 0, self._cells - 1), [-1]),
            self._cells,
        )
        self.sums.assign_add(tf.transpose(sums))

    def result(self) -> tf.Tensor:
        """The calibration error so far, in [0, 1]; 0 without data."""
        sums = tf.convert_to_tensor(self.sums)
        if self.binning == "equal_mass":
            sums = self._merge(sums)
        count, confidence, correct = tf.unstack(sums)
        gap = tf.reduce_sum(tf.abs(correct - confidence))
        return tf.math.divide_no_nan(gap, tf.reduce_sum(count))

    def _merge(self, sums: tf.Tensor) -> tf.Tensor:
        """Sums by cell, `[3, cells]`, merged into bins of equal count, `[3, num_bins]`."""
        count = sums[0]
        total = tf.reduce_sum(count)
        # A cell is never divided: the middle of its ranks among all examples decides its bin.
        rank = tf.math.divide_no_nan(tf.cumsum(count) - 0.5 * count, total)
        index = tf.clip_by_value(tf.cast(rank * self.num_bins, tf.int32), 0, self.num_bins - 1)
        merged = tf.math.unsorted_segment_sum(tf.transpose(sums), index, self.num_bins)
        return tf.transpose(merged)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_bins": self.num_bins, "binning": self.binning}
