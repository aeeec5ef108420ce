"""Metrics of Keras, and of the user's own, on the predictive mean of a model."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.keras_internals import better_direction, set_better_direction
from tfp_rank1.metrics.base import UncertaintyMetric
from tfp_rank1.metrics.probabilistic import Accuracy, PredictiveNLL
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.serialization import registered, serialize
from tfp_rank1.target_weights import weights_by_example

__all__ = ["OfPredictiveMean", "on_predictive_mean"]

# Names by which Keras chooses a metric from the shapes of targets and outputs.
_OWN = {"accuracy": Accuracy, "acc": Accuracy, "crossentropy": PredictiveNLL, "ce": PredictiveNLL}


def on_predictive_mean(metric: Any) -> Any:
    """A metric of `compile` as one that reads raw outputs.

    Args:
        metric: an `UncertaintyMetric`, which stays as it is; a metric of Keras or of the user's
            own, a function `(y, mean) -> values`, or a name, as `keras.Model.compile` takes them;
            or None.

    Raises:
        ValueError: for an unknown name.
    """
    if metric is None or isinstance(metric, UncertaintyMetric):
        return metric
    if isinstance(metric, str) and metric.lower() in _OWN:
        return _OWN[metric.lower()](name=metric)
    try:
        found = keras.metrics.get(metric)
    except ValueError as error:
        raise ValueError(
            "Unknown metric: expected an object, a function, 'accuracy', 'crossentropy', or a name "
            f"of a metric of Keras. Received: metrics={metric!r}"
        ) from error
    name = metric if isinstance(metric, str) else getattr(found, "name", None)
    if not isinstance(found, keras.metrics.Metric):
        name = name or getattr(found, "__name__", type(found).__name__)
        found = keras.metrics.MeanMetricWrapper(found, name=name)
    return OfPredictiveMean(found, name=name)


@registered("tfp_rank1")
class OfPredictiveMean(UncertaintyMetric, keras.metrics.Metric):
    """A metric that sees targets and the predictive mean `E[y]`, never raw outputs.

    `compile` puts every metric of Keras into one. For a Categorical likelihood the mean are the
    probabilities of the classes, and the metric gets what it was made for: a metric of labels
    (`SparseCategoricalAccuracy`, `SparseTopKCategoricalAccuracy`) the labels; a metric of yes or
    no (`AUC`, `Precision`, `Recall`, `BinaryAccuracy`) of two classes the label and the second
    probability; all others of Keras one-hot rows. A metric of the user's own gets the targets as
    they are. Missing targets are left out.

    Args:
        metric: a `keras.metrics.Metric`.
        name: name in logs. Defaults to None: that of `metric`.
        likelihood: defaults to that of the model.

    Example:
    ```python
    model.compile("adam", metrics=[keras.metrics.AUC(), "mae"])        # two of these
    ```
    """

    def __init__(
        self, metric: Any, name: str | None = None, likelihood: Any = None, **kwargs: Any
    ) -> None:
        if isinstance(metric, dict):  # as in a saved model
            metric = keras.saving.deserialize_keras_object(metric)
        super().__init__(name=name or metric.name, likelihood=likelihood, **kwargs)
        self.metric: keras.metrics.Metric = metric
        direction = better_direction(metric)
        if direction is not None:
            set_better_direction(self, direction)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: targets `[B]` or `[B, targets]`, raw outputs `[B, K, D]`."""
        mixture = self.mixture(y_pred)
        targets = mixture.prepare_targets(y_true)
        observed = mixture.observed(targets)
        weight = weights_by_example(sample_weight, observed)
        targets = tf.where(observed, targets, mixture.likelihood.placeholder)
        y, mean = self._arguments(y_true, targets, mixture)
        arguments: dict[str, Any] = {}
        if "sample_weight" in inspect.signature(self.metric.update_state).parameters:
            arguments["sample_weight"] = weight
        self.metric.update_state(y, mean, **arguments)

    def _arguments(
        self, y_true: Any, targets: tf.Tensor, mixture: PredictiveMixture
    ) -> tuple[Any, tf.Tensor]:
        """Targets and predictive mean in the form that the metric takes."""
        mean = mixture.mean()
        if not mixture.likelihood.is_categorical:
            return targets, mean
        function = getattr(self.metric, "fn", None)
        maker = type(self.metric) if function is None else function
        if not maker.__module__.startswith("keras"):
            return y_true, mean
        classes = mean.shape[-1]
        is_label = targets.shape[-1] != classes
        if _takes_labels(self.metric):
            return (targets if is_label else tf.argmax(targets, axis=-1)[:, tf.newaxis]), mean
        rows = tf.one_hot(tf.cast(targets[:, 0], tf.int32), classes) if is_label else targets
        if classes == 2 and _asks_yes_or_no(self.metric):
            return rows[:, 1:], mean[:, 1:]
        return rows, mean

    def result(self) -> Any:
        """The result of the metric."""
        return self.metric.result()

    def reset_state(self) -> None:
        """Forget all batches."""
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "metric": serialize(self.metric)}


def _name_of(metric: Any) -> str:
    """The name of what a metric computes: of its function, or its class."""
    function = getattr(metric, "fn", None)
    return str(getattr(function, "__name__", type(metric).__name__)).lower()


def _takes_labels(metric: Any) -> bool:
    """Whether a metric of Keras takes labels of classes, and not one-hot rows."""
    return _name_of(metric).startswith("sparse") or bool(getattr(metric, "sparse_y_true", False))


def _asks_yes_or_no(metric: Any) -> bool:
    """Whether a metric of Keras takes one probability per example."""
    # `class_id`, `top_k` and `multi_label` choose among columns: such a metric wants all columns.
    choices = (getattr(metric, name, None) for name in ("class_id", "top_k", "multi_label"))
    if any(choice not in (None, False) for choice in choices):
        return False
    return hasattr(metric, "thresholds") or _name_of(metric).startswith("binary")
