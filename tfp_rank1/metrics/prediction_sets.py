"""Metrics of prediction sets: how often they hold the target, and how large they are."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.keras_internals import set_better_direction
from tfp_rank1.serialization import registered
from tfp_rank1.target_weights import weights_by_target

__all__ = ["Coverage", "SetSize"]


class _OfSets(keras.metrics.Mean):
    """A mean over examples of a value of their sets."""

    better: str | None = None

    def __init__(
        self, ignore_class: int | None = None, name: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        if self.better is not None:
            set_better_direction(self, self.better)
        self.ignore_class = ignore_class

    def _observed(self, labels: tf.Tensor) -> tf.Tensor:
        if self.ignore_class is None:
            return tf.ones_like(labels, tf.bool)
        return tf.not_equal(labels, self.ignore_class)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ignore_class": self.ignore_class}


@registered("tfp_rank1")
class Coverage(_OfSets):
    """Share of examples whose target lies in their prediction set; compare it with the level.

        1/N sum_n [y_n in set_n]

    Args:
        ignore_class: the label of examples whose class is missing. Defaults to None: no label is.
        name: name in logs. Defaults to `"set_coverage"`.

    Raises:
        ValueError: in `update_state`, for sets that are neither boolean `[N, C]` nor a pair, or
            shapes that do not fit.
        tf.errors.InvalidArgumentError: in `update_state`, for a label outside `[0, C)`.

    Example:
    ```python
    metric = r1.metrics.Coverage()
    metric.update_state(y_test, p.mean() >= 0.1)                     # boolean [N, C]
    metric.update_state(y_test, p.credible_interval(0.9))            # (low, high)
    ```

    Source: Vovk et al. (2005), "Algorithmic Learning in a Random World".
    """

    def __init__(
        self, ignore_class: int | None = None, name: str = "set_coverage", **kwargs: Any
    ) -> None:
        super().__init__(ignore_class, name, **kwargs)

    def update_state(self, y_true: Any, sets: Any, sample_weight: Any = None) -> None:
        """Add a batch.

        Args:
            y_true: labels `[N, ...]`, `[N, ..., 1]` or one-hot `[N, ..., C]`; for intervals
                numbers `[N, ...]` or `[N, ..., targets]`, NaN where missing. The axes between are
                positions, which count one by one.
            sets: boolean `[N, ..., C]`, True where a class belongs to the set; or a tuple of the
                lower and upper ends of intervals, of the shape of the targets, or with a last axis
                of 1. Ends belong to their intervals.
            sample_weight: `[N]`, or one per position, such as the mask of what is no padding, which
                sets do not know; for intervals also one per target. Defaults to None: 1.
        """
        if isinstance(sets, tuple):
            inside, observed = _inside_intervals(y_true, sets)
        else:
            sets = _boolean_sets(sets)
            labels = _labels(y_true, sets)
            observed = self._observed(labels)
            inside = _inside_sets(tf.where(observed, labels, 0), sets)
        weights = weights_by_target(sample_weight, observed)
        super().update_state(tf.cast(inside, tf.float32), weights)


@registered("tfp_rank1")
class SetSize(_OfSets):
    """Mean number of classes in a prediction set; at equal coverage, smaller is better.

    For the width of intervals see `metrics.IntervalWidth`.

    Args:
        ignore_class: the label of examples whose class is missing. Defaults to None: no label is.
        name: name in logs. Defaults to `"set_size"`.

    Raises:
        ValueError: in `update_state`, for sets that are not boolean `[N, C]`.

    Example:
    ```python
    metric = r1.metrics.SetSize()
    metric.update_state(y_test, p.mean() >= 0.1)
    ```
    """

    better = "down"

    def __init__(
        self, ignore_class: int | None = None, name: str = "set_size", **kwargs: Any
    ) -> None:
        super().__init__(ignore_class, name, **kwargs)

    def update_state(self, y_true: Any, sets: Any, sample_weight: Any = None) -> None:
        """Add a batch: labels as for `Coverage`, or None, and sets, boolean `[N, ..., C]`."""
        sets = _boolean_sets(sets)
        sizes = tf.reduce_sum(tf.cast(sets, tf.float32), axis=-1, keepdims=True)
        observed = tf.ones_like(sizes, tf.bool)
        if y_true is not None:
            observed = self._observed(_labels(y_true, sets))
        super().update_state(sizes, weights_by_target(sample_weight, observed))


def _boolean_sets(sets: Any) -> tf.Tensor:
    sets = tf.convert_to_tensor(sets)
    if sets.dtype != tf.bool or sets.shape.rank < 2:
        raise ValueError(
            "Prediction sets must be boolean, [examples, ..., classes], such as p.mean() >= 0.1. "
            "Metrics of `compile` see probabilities, and no sets. "
            f"Received: {sets.dtype.name} of shape {sets.shape}"
        )
    return sets


def _labels(y: Any, sets: tf.Tensor) -> tf.Tensor:
    """Labels as int32 `[N, ..., 1]`."""
    y = tf.convert_to_tensor(y)
    shape = sets.shape.as_list()
    if y.shape == sets.shape and shape[-1] != 1:
        return tf.argmax(y, axis=-1, output_type=tf.int32)[..., tf.newaxis]
    if y.shape.rank == len(shape) - 1:
        y = y[..., tf.newaxis]
    if y.shape != [*shape[:-1], 1]:
        raise ValueError(
            f"Labels must have shape {shape[:-1]}, {[*shape[:-1], 1]} or {shape}, for sets of "
            f"shape {shape}. Received: labels of shape {y.shape}"
        )
    return tf.cast(y, tf.int32)


def _inside_sets(labels: tf.Tensor, sets: tf.Tensor) -> tf.Tensor:
    # On a GPU `gather` takes any index, and a label outside would count as missed.
    classes = tf.shape(sets)[-1]
    is_valid = tf.reduce_all((labels >= 0) & (labels < classes))
    message = ["Labels must lie in [0, classes), or be `ignore_class`. Received:", labels]
    check = tf.debugging.Assert(is_valid, message, summarize=3)
    with tf.control_dependencies([check] if check is not None else []):
        return tf.gather(sets, labels, batch_dims=int(sets.shape.rank) - 1)


def _inside_intervals(y: Any, ends: tuple[Any, ...]) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether each target lies in its interval, and which are observed, `[N, targets]`."""
    if len(ends) != 2:
        raise ValueError(f"Intervals are a pair (low, high). Received: {len(ends)} parts")
    y, low, high = (tf.cast(tf.convert_to_tensor(v), tf.float32) for v in (y, *ends))
    rank = max(2, *(int(v.shape.rank) for v in (y, low, high)))
    y, low, high = (_columns(v, rank) for v in (y, low, high))
    if not y.shape == low.shape == high.shape:
        raise ValueError(
            "Targets, lower and upper ends must have one shape. "
            f"Received: {y.shape}, {low.shape} and {high.shape}"
        )
    return (low <= y) & (y <= high), ~tf.math.is_nan(y)


def _columns(values: tf.Tensor, rank: int) -> tf.Tensor:
    """Numbers with a last axis of 1 where others have a last axis of targets."""
    return values[..., tf.newaxis] if values.shape.rank == rank - 1 else values
