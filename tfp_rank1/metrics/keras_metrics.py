"""Metrics of Keras, and of the user's own, on the predictive mean of a model."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.keras_internals import better_direction, function_within, set_better_direction
from tfp_rank1.metrics.base import UncertaintyMetric
from tfp_rank1.metrics.probabilistic import Accuracy, PredictiveNLL
from tfp_rank1.predictive.mixture import PredictiveMixture
from tfp_rank1.serialization import registered, serialize
from tfp_rank1.target_weights import weights_by_example, weights_by_target

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
        ValueError: for an unknown name, or a loss object.
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
    if isinstance(found, keras.losses.Loss):
        raise ValueError(
            "A loss object averages over a batch by itself and is no metric: use the metric of the "
            f"same name, keras.metrics.{type(found).__name__}(). Received: {found!r}"
        )
    if not isinstance(found, keras.metrics.Metric):
        name = name or getattr(found, "__name__", type(found).__name__)
        found = keras.metrics.MeanMetricWrapper(found, name=name)
    return OfPredictiveMean(found, name=name)


@registered("tfp_rank1")
class OfPredictiveMean(UncertaintyMetric, keras.metrics.Metric):
    """A metric that sees targets and the predictive mean `E[y]`, never raw outputs.

    `compile` puts every metric of Keras into one. For a Categorical likelihood the mean are the
    probabilities of the classes, and the metric gets what it was made for: a metric of labels
    (`SparseCategoricalAccuracy`, `MeanIoU`) the labels; a metric of yes or no (`AUC`, `Precision`,
    `Recall`, `BinaryAccuracy`) of two classes the label and the second probability; all others of
    Keras one-hot rows. A metric or function of the user's own gets targets and weights as they are,
    numbers as `[B, targets]`, with NaN where one is missing.

    Missing targets are left out, one by one where the metric is a mean over targets. A metric that
    takes an example as a whole (`R2Score`, `F1Score`, `CosineSimilarity`) sees the examples without
    missing targets, weighted by the mean over their targets. The result is NaN if nothing counted.

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
        self.counted = self.add_variable((), "zeros", name="counted")
        direction = better_direction(metric)
        if direction is not None:
            set_better_direction(self, direction)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: targets `[B]` or `[B, targets]`, raw outputs `[B, K, D]`."""
        y_true, mixture, sample_weight = self.by_position(y_true, y_pred, sample_weight)
        if not _is_of_keras(self.metric):
            self.counted.assign_add(1.0)
            # As columns: `[B]` less `[B, 1]` would be `[B, B]`.
            y = y_true if mixture.likelihood.is_categorical else mixture.prepare_targets(y_true)
            self._update(y, mixture.mean(), sample_weight)
            return
        targets, observed = mixture.filled(mixture.prepare_targets(y_true))
        weights = weights_by_target(sample_weight, observed)
        self.counted.assign_add(tf.reduce_sum(tf.cast(weights > 0.0, tf.float32)))
        y, mean = self._arguments(targets, mixture)
        if _is_by_target(self.metric) and not mixture.likelihood.is_categorical:
            y, mean, weights = (tf.reshape(v, [-1, 1]) for v in (y, mean, weights))
            weights = weights[:, 0]
        else:
            weights = weights_by_example(sample_weight, observed)
        if sample_weight is None:  # 0 and 1, also for metrics that count in integers
            is_whole = "int" in str(self.metric.dtype)
            weights = tf.cast(weights, tf.int32) if is_whole else weights
            may_miss = mixture.likelihood.has_missing_targets or mixture.mask is not None
            weights = weights if may_miss else None
        self._update(y, mean, weights)

    def _update(self, y: Any, mean: tf.Tensor, weights: Any) -> None:
        takes = inspect.signature(self.metric.update_state).parameters
        arguments = {"sample_weight": weights} if "sample_weight" in takes else {}
        self.metric.update_state(y, mean, **arguments)

    def _arguments(
        self, targets: tf.Tensor, mixture: PredictiveMixture
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Targets and predictive mean in the form that a metric of Keras takes."""
        mean = mixture.mean()
        if not mixture.likelihood.is_categorical:
            return targets, mean
        classes = mean.shape[-1]
        is_label = targets.shape[-1] != classes or classes == 1
        rows = tf.one_hot(tf.cast(targets[:, 0], tf.int32), classes) if is_label else targets
        if classes == 2 and _asks_yes_or_no(self.metric):
            return rows[:, 1:], mean[:, 1:]
        if not _takes_labels(self.metric):
            return rows, mean
        labels = targets if is_label else tf.argmax(targets, axis=-1)[:, tf.newaxis]
        if getattr(self.metric, "sparse_y_pred", False):
            return labels, tf.argmax(mean, axis=-1)[:, tf.newaxis]
        return labels, mean

    def result(self) -> Any:
        """The result of the metric; NaN if nothing counted."""
        found = self.metric.result()
        is_empty = tf.equal(self.counted, 0.0)
        return tf.nest.map_structure(
            lambda v: tf.where(is_empty, tf.cast(float("nan"), v.dtype), v), found
        )

    def reset_state(self) -> None:
        """Forget all batches."""
        self.metric.reset_state()
        self.counted.assign(0.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "metric": serialize(self.metric)}


# Functions of Keras that are means over the last axis of what they compute target by target.
_BY_TARGET = {
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "rootmeansquarederror",
    "log_cosh",
    "huber",
    "poisson",
    "binary_accuracy",
    "binary_crossentropy",
}


def _maker_of(metric: Any) -> Any:
    """What computes a metric: the function that it averages, or the class with `update_state`."""
    function = function_within(metric)
    if function is not None:
        return function
    return next(cls for cls in type(metric).__mro__ if "update_state" in vars(cls))


def _is_of_keras(metric: Any) -> bool:
    maker = _maker_of(metric)
    return str(getattr(maker, "__module__", type(maker).__module__)).startswith("keras.")


def _name_of(metric: Any) -> str:
    """The name of what a metric computes: of its function, or its class."""
    function = function_within(metric)
    found = _maker_of(metric) if function is None else function
    return str(getattr(found, "__name__", type(found).__name__)).lower()


def _takes_labels(metric: Any) -> bool:
    """Whether a metric of Keras takes labels of classes, and not one-hot rows."""
    return _name_of(metric).startswith("sparse") or bool(getattr(metric, "sparse_y_true", False))


def _is_by_target(metric: Any) -> bool:
    """Whether a metric of Keras is a mean, or a count, over all targets one by one."""
    return _name_of(metric) in _BY_TARGET or _asks_yes_or_no(metric)


def _asks_yes_or_no(metric: Any) -> bool:
    """Whether a metric of Keras takes one probability per example."""
    # `class_id`, `top_k` and `multi_label` choose among columns: such a metric wants all columns.
    choices = (getattr(metric, name, None) for name in ("class_id", "top_k", "multi_label"))
    if any(choice not in (None, False) for choice in choices):
        return False
    is_binary = type(metric).__name__.startswith("Binary") or _name_of(metric).startswith("binary")
    return hasattr(metric, "thresholds") or is_binary
