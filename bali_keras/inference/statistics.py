"""Moving averages of per-example sums, each carrying its own weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_rank1.model.all_or_nothing import keep

__all__ = [
    "Accumulation",
    "AddVariable",
    "BatchSums",
    "Moments",
    "WeightedAverage",
    "state_variable",
]

# `add(name, shape) -> variable`, of the layer that owns it.
AddVariable = Callable[..., keras.Variable]


class WeightedAverage:
    """A moving average of what examples contribute, which knows how much it has seen.

        A <- (1 - rho) A + rho sum_n w_n a_n
        w <- (1 - rho) w + rho sum_n w_n            value = A / w

    The weight cures the cold start (after the first batch the value is that batch's average),
    makes a short last batch count for the examples it has, and an example of weight 2 count as
    two. Never in half precision, where small contributions vanish.

    Args:
        layer: the Keras layer that owns the variables, `<name>_total` and `<name>_weight`.
        name: of the average.
        shape: of A.
        dtype: of both, "float32" (default) or "float64".
    """

    def __init__(
        self, layer: keras.layers.Layer, name: str, shape: tuple[int, ...], dtype: str = "float32"
    ) -> None:
        self.total = state_variable(layer, f"{name}_total", shape, dtype=dtype)
        self.weight = state_variable(layer, f"{name}_weight", (), dtype=dtype)

    def update(
        self, total: tf.Tensor, weight: tf.Tensor, rate: tf.Tensor, accept: tf.Tensor
    ) -> None:
        """Take in one batch.

        Args:
            total: `sum_n w_n a_n` over the batch, and over all replicas.
            weight: `sum_n w_n`, scalar.
            rate: rho, scalar in (0, 1].
            accept: boolean scalar; False leaves the average as it is.
        """
        total, weight, rate = (tf.cast(v, self.total.dtype) for v in (total, weight, rate))
        # Like the batch, so that a batch whose examples all have weight 0 changes nothing.
        rate = tf.where(weight > 0.0, rate, tf.zeros_like(rate))
        keep(self.total, (1.0 - rate) * self.total + rate * total, accept)
        keep(self.weight, (1.0 - rate) * self.weight + rate * weight, accept)

    def value(self) -> tf.Tensor:
        """`A / w`; 0 before the first batch."""
        return tf.math.divide_no_nan(tf.convert_to_tensor(self.total), self.weight)


class Accumulation:
    """The weight alone of a moving average whose value is kept in another form.

    The mean of a posterior is the average of the natural parameter `H'Y`, times a matrix. Its
    step towards the newest batch is that batch's share in the average.

    Args:
        layer: the Keras layer that owns the variable, `<name>_weight`.
        name: of the average.
    """

    def __init__(self, layer: keras.layers.Layer, name: str) -> None:
        self.weight = state_variable(layer, f"{name}_weight", ())

    def share(self, weight: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        """`rho sum w / ((1 - rho) w + rho sum w)`: rho, corrected for the cold start."""
        return tf.math.divide_no_nan(rate * weight, (1.0 - rate) * self.weight + rate * weight)

    def update(self, weight: tf.Tensor, rate: tf.Tensor, accept: tf.Tensor) -> None:
        """As `WeightedAverage.update`."""
        rate = tf.where(weight > 0.0, rate, 0.0)
        keep(self.weight, (1.0 - rate) * self.weight + rate * weight, accept)


class Moments(NamedTuple):
    """What one batch contributes to the covariances of one layer.

    Attributes:
        inputs: `sum_n w_n h_n h_n'`, in the form of the layer's rows.
        fisher: `sum_n w_n s_n s_n'`, `[k, k]`; s are the gradients that estimate the Fisher.
        examples: `sum_n w_n`, scalar.
        rows: the same over rows; an example has several (positions of a convolution).
        together: `sum_n w_n |sum_t (u'h_nt) s_nt|^2` over rows t and random directions u.
        squares: `sum_n w_n sum_t (u'h_nt)^2`; 0, both, where every example is one row.
    """

    inputs: tf.Tensor
    fisher: tf.Tensor
    examples: tf.Tensor
    rows: tf.Tensor
    together: tf.Tensor
    squares: tf.Tensor


class BatchSums(NamedTuple):
    """What one batch contributes to the natural parameters of one layer.

    Attributes:
        cross: `sum_n h_n (w_n g_n)'`, `[d, k]`; g are the gradients of the log-likelihood. For the
            output layer of a Normal likelihood `sum_n w_n h_n (y_n - M' h_n)'`.
        examples: `sum_n w_n`, scalar.
        moments: for the covariances; all zero in a step that does not collect them.
    """

    cross: tf.Tensor
    examples: tf.Tensor
    moments: Moments


def state_variable(
    layer: keras.layers.Layer,
    name: str,
    shape: tuple[int, ...],
    initializer: Any = "zeros",
    dtype: str = "float32",
) -> keras.Variable:
    """A variable that no optimizer touches and no dtype policy casts."""
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=initializer,
        dtype=dtype,
        trainable=False,
        autocast=False,
    )
