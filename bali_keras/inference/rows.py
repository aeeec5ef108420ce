"""The row covariance of a layer: how `L = L0 + N S` is stored, factorised and applied.

A layer's posterior `W ~ MN(M, L^-1, V)` has two covariances. The column covariance V is a small
dense matrix. The row covariance `L^-1` grows with the layer's inputs, and its form decides what a
step costs. All other code uses `L` through the methods of `RowCovariance`, and does not know its
shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf

from bali_keras.inference.statistics import AddVariable, WeightedAverage
from bali_keras.matrix_normal import (
    add_diagonal,
    covariance,
    inverse_factor,
    log_diagonal,
    row_variance,
)
from tfp_rank1.model.all_or_nothing import keep

__all__ = ["DenseRows", "RowCovariance", "rows_for"]

# Multiplies a matrix `[d, n]` by L0.
TimesPrior = Callable[[tf.Tensor], tf.Tensor]


class RowCovariance(Protocol):
    """What a form of the row covariance must be able to do.

    W has d rows and k columns. Three methods create the variables, `add_factor`, `add_covariance`
    and `add_average`, because saved files keep variables in the order of their creation, and
    `LayerPosterior` creates others in between.

    Attributes:
        size: d.
        average: moving average of `h h'` over examples, in this form.
    """

    size: int
    average: WeightedAverage

    def add_factor(self, add: AddVariable) -> None:
        """Create R, the Cholesky factor of `L^-1 = R R'`; 0 before the first factorisation."""

    def add_covariance(self, add: AddVariable) -> None:
        """Create the variables derived from R, for products that every step needs."""

    def add_average(self, layer: keras.layers.Layer) -> None:
        """Create `average`."""

    def second_moment(self, inputs: tf.Tensor, weighted: tf.Tensor) -> tf.Tensor:
        """`sum_r w_r h_r h_r'` in this form.

        Args:
            inputs: rows h_r, `[R, d]`.
            weighted: `w_r h_r`, `[R, d]`.
        """

    def zeros(self) -> tf.Tensor:
        """The second moment of no rows at all."""

    def factorised(self, num_examples: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        """R of `L = L0 + N S` for the present average; not finite if the factorisation fails.

        Args:
            num_examples: N, divided by the temperature.
            prior: L0, either the scalar l of `l I` or a matrix `[d, d]`.
        """

    def take(self, factor: tf.Tensor, accept: tf.Tensor) -> None:
        """Assign a new R, and all that is derived from R, if accepted."""

    def apply(self, right: tf.Tensor) -> tf.Tensor:
        """`L^-1 B` for B `[d, n]`."""

    def variance(self, h: tf.Tensor) -> tf.Tensor:
        """`h' L^-1 h` for rows h `[..., d]`, `[...]`, in the dtype of h."""

    def diagonal(self) -> tf.Tensor:
        """The diagonal of `L^-1`, `[d]`."""

    def log_det(self) -> tf.Tensor:
        """`log |L|`, scalar."""

    def trace_with(self, times_prior: TimesPrior) -> tf.Tensor:
        """`tr(L0 L^-1)`, scalar."""

    def condition(self) -> tf.Tensor:
        """A lower bound of the condition number of L, float32 scalar."""

    def dense_factor(self) -> tf.Tensor:
        """R as a matrix `[d, d]`, for samples and for `layer.posterior`."""

    def has_statistics(self) -> tf.Tensor:
        """Whether R has been computed at least once, boolean scalar."""

    @property
    def num_parameters(self) -> int:
        """Number of entries of R that may differ from 0."""

    @property
    def factorising_cost(self) -> int:
        """Half of the multiplications of `factorised`, roughly."""

    @property
    def collecting_cost(self) -> int:
        """Multiplications of `second_moment` and `variance` together, per row."""

    def applying_cost(self, columns: int) -> int:
        """Multiplications of `apply` for a matrix of that many columns."""


class DenseRows:
    """An unrestricted row covariance: R is an upper triangular matrix `[d, d]`.

    Args:
        size: d.
        dtype: `"float32"` or `"float64"`.
    """

    average: WeightedAverage

    def __init__(self, size: int, dtype: str) -> None:
        self.size, self.dtype = size, dtype

    def add_factor(self, add: AddVariable) -> None:
        self.factor = add("row_factor", (self.size, self.size))

    def add_covariance(self, add: AddVariable) -> None:
        self.covariance = add("row_covariance", (self.size, self.size))

    def add_average(self, layer: keras.layers.Layer) -> None:
        self.average = WeightedAverage(layer, "inputs", (self.size, self.size), self.dtype)

    def second_moment(self, inputs: tf.Tensor, weighted: tf.Tensor) -> tf.Tensor:
        return tf.matmul(inputs, weighted, transpose_a=True)

    def zeros(self) -> tf.Tensor:
        return tf.zeros((self.size, self.size), self.dtype)

    def factorised(self, num_examples: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        data = num_examples * self.average.value()
        # Jitter bounds the condition number of L. It changes the steps of M, but not where M comes
        # to rest: there the bracket that L^-1 multiplies is 0.
        data = add_diagonal(data, _jitter(data) * tf.linalg.diag_part(data))
        is_number = prior.shape.rank == 0
        return inverse_factor(add_diagonal(data, prior) if is_number else data + prior)

    def take(self, factor: tf.Tensor, accept: tf.Tensor) -> None:
        keep(self.factor, factor, accept)
        keep(self.covariance, covariance(factor), accept)

    def apply(self, right: tf.Tensor) -> tf.Tensor:
        return tf.matmul(self.covariance, right)

    def variance(self, h: tf.Tensor) -> tf.Tensor:
        return row_variance(tf.cast(tf.convert_to_tensor(self.factor), h.dtype), h)

    def diagonal(self) -> tf.Tensor:
        return tf.linalg.diag_part(tf.convert_to_tensor(self.covariance))

    def log_det(self) -> tf.Tensor:
        return -2.0 * log_diagonal(tf.convert_to_tensor(self.factor))

    def trace_with(self, times_prior: TimesPrior) -> tf.Tensor:
        factor = tf.convert_to_tensor(self.factor)
        return tf.reduce_sum(factor * times_prior(factor))

    def condition(self) -> tf.Tensor:
        """`(max diag R / min diag R)^2`."""
        # The singular values of a triangular matrix spread at least as far as its diagonal.
        diagonal = tf.linalg.diag_part(self.factor)
        ratio = tf.math.divide_no_nan(tf.reduce_max(diagonal), tf.reduce_min(diagonal))
        return tf.cast(tf.square(ratio), tf.float32)

    def dense_factor(self) -> tf.Tensor:
        return tf.convert_to_tensor(self.factor)

    def has_statistics(self) -> tf.Tensor:
        # R starts at 0, and every factorisation gives it a positive diagonal.
        return self.factor[0, 0] > 0.0

    @property
    def num_parameters(self) -> int:
        return self.size * (self.size + 1) // 2

    @property
    def factorising_cost(self) -> int:
        return self.size**3

    @property
    def collecting_cost(self) -> int:
        return 2 * self.size**2

    def applying_cost(self, columns: int) -> int:
        return self.size**2 * columns


def rows_for(layer: keras.layers.Layer, size: int, dtype: str) -> RowCovariance:
    """The form in which a layer's row covariance is stored.

    Args:
        layer: the layer, which may say what its inputs are like.
        size: d.
        dtype: "float32" or "float64".
    """
    return DenseRows(size, dtype)


def _jitter(data: tf.Tensor) -> tf.Tensor:
    """The rounding error of the eigenvalues of a matrix `[d, d]`, in units of its diagonal, scalar.

    The error is the precision of the dtype times the largest eigenvalue of the correlation matrix,
    for which the Frobenius norm is an upper bound. Where many inputs say the same, the smallest
    eigenvalues are noise of that size.
    """
    scale = tf.math.divide_no_nan(1.0, tf.sqrt(tf.linalg.diag_part(data)))
    correlations = data * scale[:, tf.newaxis] * scale
    norm = tf.sqrt(tf.reduce_sum(tf.square(correlations)))
    precision = np.finfo(data.dtype.as_numpy_dtype).eps
    return tf.maximum(tf.cast(8.0 * precision, data.dtype), precision * norm)
