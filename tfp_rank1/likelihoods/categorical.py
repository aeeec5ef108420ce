"""Categorical: one of C classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.likelihoods.base import Likelihood, checked_positions
from tfp_rank1.serialization import registered

__all__ = ["Categorical"]


@registered("tfp_rank1.likelihoods")
class Categorical(Likelihood):
    """One of C classes: `p(y = c) = softmax(outputs)_c`.

    Raw outputs are logits `[..., C]`. Targets are whole numbers `[B]` or `[B, 1]` in `[0, C)`, or
    a row of probabilities per example, `[B, C]`: one-hot, or soft with `log p = sum_c y_c log p_c`.

    Args:
        ignore_class: the label of examples whose class is missing, such as -1 or 255: they count
            in no loss and no metric. Defaults to None: no label is missing.
        **kwargs: as for `keras.layers.Layer`.

    Raises:
        ValueError: when a model with one output is made with it.

    Example:
    ```python
    r1.BayesianModel(inputs, outputs, likelihood="categorical")
    ```
    """

    discrete: ClassVar[bool] = True
    predicts_probabilities: ClassVar[bool] = True
    is_categorical: ClassVar[bool] = True
    link_names: ClassVar[tuple[str, ...]] = ("softmax",)
    placeholder: ClassVar[float] = 0.0

    def __init__(self, ignore_class: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        is_whole = isinstance(ignore_class, int | np.integer) and ignore_class is not True
        if ignore_class is not None and not is_whole:
            raise ValueError(
                "Argument `ignore_class` must be the whole number that stands for a missing class, "
                f"or None. Received: ignore_class={ignore_class!r}"
            )
        self.ignore_class = None if ignore_class is None else int(ignore_class)

    def build(self, input_shape: Any) -> None:
        """Refuses one output, which would be a single class of probability 1."""
        if input_shape[-1] == 1:
            raise ValueError(
                "A Categorical likelihood needs an output for every class. For yes or no give the "
                'model likelihood="bernoulli", or give its last layer two outputs. Received: '
                f"outputs of shape {tuple(input_shape)}"
            )
        self.built = True

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """`tfd.Categorical` with batch shape `[...]`."""
        return tfd.Categorical(logits=outputs)

    def mean(self, outputs: tf.Tensor) -> tf.Tensor:
        """Class probabilities `[..., C]`."""
        return _softmax(outputs)

    def log_prob(
        self, outputs: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """`log softmax(outputs)[target]`, `[...]`, 0 for a missing class."""
        log_probs = self._log_prob(outputs, targets)
        return log_probs if weights is None else weights[..., 0] * log_probs

    def _log_prob(self, outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        log_probabilities = tf.nn.log_softmax(outputs)
        if self._are_rows(targets, outputs.shape[-1]):
            # 0 log 0 is 0: a class of probability 0 may have the weight 0.
            products = tf.math.multiply_no_nan(log_probabilities, targets)
            return tf.reduce_sum(products, axis=-1)
        label = targets[..., 0]
        # A bad label is infinite under XLA, see `prepare_targets`. No index stands for it, so the
        # loss becomes infinite as well.
        is_bad, is_observed = tf.math.is_inf(label), self.observed(targets)[..., 0]
        index = tf.cast(tf.where(is_bad | ~is_observed, 0.0, label), tf.int32)
        one_hot = tf.one_hot(index, outputs.shape[-1])
        chosen = tf.reduce_sum(tf.math.multiply_no_nan(log_probabilities, one_hot), axis=-1)
        return tf.where(is_observed, tf.where(is_bad, -float("inf"), chosen), 0.0)

    @property
    def has_missing_targets(self) -> bool:
        """Whether `ignore_class` is given."""
        return self.ignore_class is not None

    def observed(self, targets: tf.Tensor) -> tf.Tensor:
        """All but `ignore_class`; rows of probabilities are observed."""
        labels = targets[..., :1]
        if self.ignore_class is None or targets.shape[-1] != 1:
            return tf.ones_like(labels, tf.bool)
        return tf.not_equal(labels, float(self.ignore_class))

    @property
    def has_temperature(self) -> bool:
        """True: the logits are divided by it."""
        return True

    def tempered(self, outputs: tf.Tensor, temperature: Any) -> tf.Tensor:
        """`outputs / temperature`."""
        return outputs / tf.cast(temperature, outputs.dtype)

    def scores(self, outputs: tf.Tensor, noise: tf.Tensor) -> tf.Tensor | None:
        """`sqrt(p) o e - p (sqrt(p)' e)`, of covariance `diag(p) - p p'`."""
        probabilities = _softmax(outputs)
        root = tf.sqrt(probabilities) * noise
        return root - probabilities * tf.reduce_sum(root, axis=-1, keepdims=True)

    def shape_targets(
        self, targets: Any, num_outputs: int, positions: Sequence[Any] = ()
    ) -> tf.Tensor:
        """Labels as `[B, ..., 1]`; rows of probabilities stay `[B, ..., C]`."""
        y = tf.convert_to_tensor(targets)
        if y.shape.rank == 2 + len(positions) and self._are_rows(y, num_outputs):
            message = self._shape_message(num_outputs, positions)
            return checked_positions(tf.cast(y, tf.float32), positions, message)
        return super().shape_targets(y, num_outputs, positions)

    @staticmethod
    def _are_rows(targets: tf.Tensor, num_outputs: int) -> bool:
        """Whether targets `[..., T]` are probabilities of all classes, and not labels."""
        return num_outputs > 1 and targets.shape[-1] == num_outputs

    def is_in_support(self, y: tf.Tensor, num_outputs: int) -> tf.Tensor:
        """Whole numbers in `[0, C)`, or rows of numbers of at least 0 that sum to 1."""
        if self._are_rows(y, num_outputs):
            total = tf.reduce_sum(y, axis=-1, keepdims=True)
            return (y >= 0.0) & (tf.abs(total - 1.0) < 1e-3)
        return (y >= 0.0) & (y < float(num_outputs)) & (tf.floor(y) == y)

    def support_message(self, num_outputs: int) -> str:
        return (
            f"Categorical likelihood with {num_outputs} classes: labels must be whole numbers in "
            f"[0, {num_outputs}), or rows of {num_outputs} probabilities; subtract 1 from labels "
            "that begin at 1, and name the label of a missing class, "
            "Categorical(ignore_class=...). Received:"
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ignore_class": self.ignore_class}


def _softmax(outputs: tf.Tensor) -> tf.Tensor:
    """The softmax over the last axis; TensorFlow's own takes at most five axes on a CPU."""
    if outputs.shape.rank <= 5:
        return tf.nn.softmax(outputs)
    flat = tf.nn.softmax(tf.reshape(outputs, [-1, outputs.shape[-1]]))
    return tf.ensure_shape(tf.reshape(flat, tf.shape(outputs)), outputs.shape)
