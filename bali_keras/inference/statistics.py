"""Moving averages over examples, each with the total sample weight behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_rank1.model.all_or_nothing import keep

__all__ = [
    "Accumulation",
    "AddVariable",
    "BatchRows",
    "BatchSums",
    "Moments",
    "WeightedAverage",
    "state_variable",
]

# `add(name, shape) -> variable` creates a variable in the layer that owns it.
AddVariable = Callable[..., keras.Variable]


class WeightedAverage:
    """A moving average over examples, normalised by the sample weights it has seen.

        A <- (1 - rho) A + rho sum_n w_n a_n
        w <- (1 - rho) w + rho sum_n w_n            value = A / w

    The division by w cures the cold start: after the first batch the value is that batch's average.
    A short last batch counts for the examples it has, and an example of sample weight 2 counts as
    two. Both variables have at least single precision: in half precision small terms vanish.

    Args:
        layer: the Keras layer that owns the variables, `<name>_total` and `<name>_weight`.
        name: name of the average.
        shape: shape of A.
        dtype: dtype of A and w, `"float32"` (default) or `"float64"`.
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
            total: `sum_n w_n a_n` over the batch, on all replicas together.
            weight: `sum_n w_n`, scalar.
            rate: rho, scalar in (0, 1].
            accept: boolean scalar; False leaves the average as it is.
        """
        total, weight, rate = (tf.cast(v, self.total.dtype) for v in (total, weight, rate))
        # A batch whose sample weights are all 0 must not make the average forget.
        rate = tf.where(weight > 0.0, rate, tf.zeros_like(rate))
        keep(self.total, (1.0 - rate) * self.total + rate * total, accept)
        keep(self.weight, (1.0 - rate) * self.weight + rate * weight, accept)

    def value(self) -> tf.Tensor:
        """`A / w`; 0 before the first batch."""
        return tf.math.divide_no_nan(tf.convert_to_tensor(self.total), self.weight)


class Accumulation:
    """The total sample weight of a moving average whose value is stored in another form.

    A posterior mean, for example, is a matrix times the moving average of the natural parameter
    `H'Y`. The mean moves towards the newest batch by that batch's share in the average.

    Args:
        layer: the Keras layer that owns the variable, `<name>_weight`.
        name: name of the average.
    """

    def __init__(self, layer: keras.layers.Layer, name: str) -> None:
        self.weight = state_variable(layer, f"{name}_weight", ())

    def share(self, weight: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        """The share of a batch, scalar: rho, corrected for the cold start.

            rho sum_n w_n / ((1 - rho) w + rho sum_n w_n)

        Args:
            weight: `sum_n w_n`, scalar.
            rate: rho, scalar in (0, 1].
        """
        return tf.math.divide_no_nan(rate * weight, (1.0 - rate) * self.weight + rate * weight)

    def update(self, weight: tf.Tensor, rate: tf.Tensor, accept: tf.Tensor) -> None:
        """As `WeightedAverage.update`."""
        rate = tf.where(weight > 0.0, rate, 0.0)
        keep(self.weight, (1.0 - rate) * self.weight + rate * weight, accept)


class Moments(NamedTuple):
    """What one batch contributes to the covariances of one layer.

    Attributes:
        inputs: `sum_n w_n h_n h_n'`, in the form of the layer's `RowCovariance`.
        fisher: `sum_n w_n s_n s_n'`, `[k, k]`; s_n are scores, see `Likelihood.scores`.
        examples: `sum_n w_n` over examples, scalar.
        rows: `sum_n w_n` over rows; an example of a convolution has one row per position.
        together: `sum_n w_n |sum_t (u'h_nt) s_nt|^2` over rows t and random directions u; 0 if
            every example has one row.
        squares: `sum_n w_n sum_t (u'h_nt)^2`; 0 if every example has one row.
    """

    inputs: tf.Tensor
    fisher: tf.Tensor
    examples: tf.Tensor
    rows: tf.Tensor
    together: tf.Tensor
    squares: tf.Tensor


class BatchRows(NamedTuple):
    """The rows of one layer in one batch, of one replica.

    Attributes:
        inputs: h_r, as `RowCovariance.flat` lists them.
        right: the rows that `H'` is multiplied by, `[R, k]`, see `LayerRole.cross_rows`.
    """

    inputs: tf.Tensor
    right: tf.Tensor


class BatchSums(NamedTuple):
    """What one batch contributes to the natural parameters of one layer.

    Attributes:
        cross: `sum_n h_n (w_n g_n)'`, `[d, k]`; g_n are gradients of the log-likelihood. For an
            exact output layer `sum_n w_n h_n (y_n - M' h_n)'`.
        examples: `sum_n w_n` over examples, scalar.
        moments: the sums for the covariances; 0 in a step that does not collect them.
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
    """A new variable of a layer that no optimizer trains and no dtype policy casts."""
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=initializer,
        dtype=dtype,
        trainable=False,
        autocast=False,
    )
