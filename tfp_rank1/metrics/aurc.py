"""Area under the risk-coverage curve."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.metrics.base import UncertaintyMetric
from tfp_rank1.metrics.histogram import cell_of, sums_by_cell, unit_of_positive, unit_of_real
from tfp_rank1.metrics.ood import check_score, default_score, ood_score, unit_score
from tfp_rank1.metrics.risk import area_under_risk, check_loss, default_loss, losses_by_example
from tfp_rank1.serialization import registered

__all__ = ["AURC"]

_CELLS = 32768


@registered("tfp_rank1")
class AURC(UncertaintyMetric, keras.metrics.Metric):
    """`1/N sum_n risk_n`, the mean risk over all numbers n of examples that may be kept.

    `risk_n` is the mean loss of the n examples with the lowest scores. Lower is better: a model
    that knows where it errs makes few errors on what it keeps. AURC falls with the errors
    themselves as well; `excess=True` takes away the area of the best order there is for these
    losses (E-AURC), so that 0 is perfect for every model.

    The state is the sums of weights and losses in 32,768 cells of the score, so the result does not
    depend on how examples are split into batches or replicas. A cell is 0.024 % wide at scores near
    1, 0.2 % at 1e-3 or 1e3 and 0.9 % at 1e-9; energies near 0 are 0.001 nats apart. Examples of
    one cell count as ties, which are in random order: the result is their mean.
    `metrics.risk_coverage` is exact.

    Args:
        score: a score of `ood_score`; examples with high values are rejected first. Defaults to
            None: `"max_probability"` for Categorical, else `"variance"`, the total. With constant
            noise `"epistemic_variance"` has the same order, and is told apart more finely.
        loss: `"error"`, `"log_loss"` or `"squared_error"`. Defaults to None: `"error"` for
            likelihoods with probabilities, 0 if the most probable class is right and 1 if not, and
            `"squared_error"` for regressions, in squared units of the target. Of several targets
            the mean.
        excess: whether to take away the area of the best order. Defaults to False.
        name: name in logs. Defaults to `"aurc"`, or `"e_aurc"`.
        likelihood: defaults to that of the model, else Categorical.

    Raises:
        ValueError: for an unknown score or loss; in `update_state`, for one that the likelihood
            does not have.

    Example:
    ```python
    model.compile("adam", metrics=[r1.metrics.AURC(), r1.metrics.AURC(excess=True)])
    ```

    Source: Geifman & El-Yaniv (2017), "Selective Classification for Deep Neural Networks"; Geifman
    et al. (2019), "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", for E-AURC.
    A sample weight counts as that many examples.
    """

    default_likelihood = "categorical"
    better = "down"

    def __init__(
        self,
        score: str | None = None,
        loss: str | None = None,
        excess: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name or ("e_aurc" if excess else "aurc"), **kwargs)
        self.score = None if score is None else check_score(score)
        self.loss = None if loss is None else check_loss(loss)
        self.excess = bool(excess)
        # Rows: weight, and weight times loss. In the best order examples are sorted by their loss.
        self.by_score = self.add_variable((2, _CELLS), "zeros", name="by_score")
        if self.excess:
            self.by_loss = self.add_variable((2, _CELLS), "zeros", name="by_loss")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: targets `[B]` or `[B, targets]`, raw outputs `[B, K, D]`."""
        y_true, mixture, sample_weight = self.by_position(y_true, y_pred, sample_weight)
        score = self.score or default_score(mixture.likelihood)
        loss = self.loss or default_loss(mixture.likelihood)
        losses, weights = losses_by_example(y_true, mixture, loss, sample_weight)
        scores = ood_score(mixture, score)
        # A variance that does not exist is no sign of certainty.
        scores = tf.where(tf.math.is_nan(scores), float("inf"), scores)
        rows = tf.stack([weights, weights * losses], axis=-1)
        _add(self.by_score, rows, unit_score(scores, score))
        if self.excess:  # a log-loss may be negative
            unit = unit_of_real if loss == "log_loss" else unit_of_positive
            _add(self.by_loss, rows, unit(losses))

    def result(self) -> tf.Tensor:
        """The area so far, in units of the loss; 0 without data."""
        area = area_under_risk(*tf.unstack(tf.convert_to_tensor(self.by_score)))
        if self.excess:
            area -= area_under_risk(*tf.unstack(tf.convert_to_tensor(self.by_loss)))
        return tf.cast(area, tf.float32)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "score": self.score,
            "loss": self.loss,
            "excess": self.excess,
        }


def _add(sums: keras.Variable, rows: tf.Tensor, unit: tf.Tensor) -> None:
    sums.assign_add(tf.transpose(sums_by_cell(rows, cell_of(unit, _CELLS), _CELLS)))
