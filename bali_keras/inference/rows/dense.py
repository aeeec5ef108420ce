"""`DenseRows`: an unrestricted row covariance."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from bali_keras.inference.statistics import AddVariable, WeightedAverage
from bali_keras.matrix_normal import (
    add_diagonal,
    covariance,
    inverse_factor,
    log_diagonal,
    row_variance,
    upper_operator,
)
from tfp_rank1.model.all_or_nothing import keep

__all__ = ["DenseRows", "check_size", "jittered"]


class DenseRows:
    """R is an upper triangular matrix `[d, d]`, and so is every precision symmetric `[d, d]`.

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

    def flat(self, h: tf.Tensor, dtype: str) -> tf.Tensor:
        return tf.reshape(tf.cast(h, dtype), [-1, self.size])

    def second_moment(self, h: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
        weighted = h if weight is None else h * weight[:, tf.newaxis]
        return tf.matmul(h, weighted, transpose_a=True)

    def cross(self, h: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return tf.matmul(h, right, transpose_a=True)

    def product(self, h: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        # Not `tf.matmul`; see `matrix_normal.row_variance`.
        return ops.matmul(h, weights)

    def variance(self, h: tf.Tensor) -> tf.Tensor:
        return row_variance(tf.cast(tf.convert_to_tensor(self.factor), h.dtype), h)

    def zeros(self) -> tf.Tensor:
        return tf.zeros((self.size, self.size), self.dtype)

    def factorised(self, num_examples: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        data = jittered(num_examples * self.average.value())
        is_number = prior.shape.rank == 0
        return inverse_factor(add_diagonal(data, prior) if is_number else data + prior)

    def precision(self, num_examples: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        data = num_examples * self.average.value()
        return add_diagonal(data, prior) if prior.shape.rank == 0 else data + prior

    def take(self, factor: tf.Tensor, accept: tf.Tensor) -> None:
        keep(self.factor, factor, accept)
        keep(self.covariance, covariance(factor), accept)

    def has_statistics(self) -> tf.Tensor:
        # R starts at 0, and every factorisation gives it a positive diagonal.
        return self.factor[0, 0] > 0.0

    def apply(self, right: tf.Tensor) -> tf.Tensor:
        return tf.matmul(self.covariance, right)

    def applied_cross(self, h: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return self.cross(tf.matmul(h, self.covariance), right)

    def perturbation(self, noise: tf.Tensor) -> tf.Tensor:
        return tf.matmul(self.factor, noise)

    def diagonal(self) -> tf.Tensor:
        return tf.linalg.diag_part(tf.convert_to_tensor(self.covariance))

    def log_det(self) -> tf.Tensor:
        return -2.0 * log_diagonal(tf.convert_to_tensor(self.factor))

    def condition(self) -> tf.Tensor:
        """`(max diag R / min diag R)^2`."""
        # The singular values of a triangular matrix spread at least as far as its diagonal.
        diagonal = tf.linalg.diag_part(self.factor)
        ratio = tf.math.divide_no_nan(tf.reduce_max(diagonal), tf.reduce_min(diagonal))
        return tf.cast(tf.square(ratio), tf.float32)

    def operator(self) -> tf.linalg.LinearOperator:
        return upper_operator(tf.convert_to_tensor(self.factor))

    def dense_factor(self) -> tf.Tensor:
        return tf.convert_to_tensor(self.factor)

    def of_matrix(self, matrix: np.ndarray) -> tf.Tensor:
        check_size(matrix, self.size)
        return tf.constant(matrix, self.dtype)

    def times(self, prior: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return prior * right if prior.shape.rank == 0 else tf.matmul(prior, right)

    def log_det_of(self, prior: tf.Tensor) -> tf.Tensor:
        return self.size * tf.math.log(prior) if prior.shape.rank == 0 else tf.linalg.logdet(prior)

    def trace_with(self, prior: tf.Tensor) -> tf.Tensor:
        factor = tf.convert_to_tensor(self.factor)
        return tf.reduce_sum(factor * self.times(prior, factor))

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


def check_size(matrix: np.ndarray, size: int) -> None:
    """Refuse an L0 of another size."""
    if matrix.shape != (size, size):
        raise ValueError(
            f"A matrix `prior_row_precision` must be [{size}, {size}], one row per input and one "
            f"for the bias. Received: shape {matrix.shape}"
        )


def jittered(data: tf.Tensor) -> tf.Tensor:
    """Matrices `[..., d, d]` with the rounding error of their eigenvalues added to the diagonals.

    The error is, in units of the diagonal, the precision of the dtype times the largest eigenvalue
    of the correlation matrix, for which the Frobenius norm is an upper bound. Where many inputs say
    the same, the smallest eigenvalues are noise of that size. Jitter bounds the condition number of
    L. It changes the steps of M, but not where M comes to rest: there the bracket that `L^-1`
    multiplies is 0.
    """
    diagonal = tf.linalg.diag_part(data)
    scale = tf.math.divide_no_nan(1.0, tf.sqrt(diagonal))
    correlations = data * scale[..., tf.newaxis] * scale[..., tf.newaxis, :]
    norm = tf.sqrt(tf.reduce_sum(tf.square(correlations), axis=[-2, -1]))
    precision = np.finfo(data.dtype.as_numpy_dtype).eps
    jitter = tf.maximum(tf.cast(8.0 * precision, data.dtype), precision * norm)
    return add_diagonal(data, jitter[..., tf.newaxis] * diagonal)
