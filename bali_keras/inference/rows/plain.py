"""What the forms of a row covariance share: variables of one shape, and rows stored as they are."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from bali_keras.inference.statistics import AddVariable, WeightedAverage
from bali_keras.matrix_normal import add_diagonal, covariance, inverse_factor
from tfp_rank1.model.all_or_nothing import keep

__all__ = ["MatrixRows", "PlainRows", "check_kept", "check_size"]


class PlainRows:
    """Rows stored as tensors `[..., d]`, and a precision stored in one shape.

    Args:
        size: d.
        shape: of R, and of every precision.
        dtype: `"float32"` or `"float64"`.
    """

    average: WeightedAverage

    def __init__(self, size: int, shape: tuple[int, ...], dtype: str) -> None:
        self.size, self.shape, self.dtype = size, shape, dtype

    def add_factor(self, add: AddVariable) -> None:
        self.factor = add("row_factor", self.shape)

    def add_average(self, layer: keras.layers.Layer) -> None:
        self.average = WeightedAverage(layer, "inputs", self.shape, self.dtype)

    def flat(self, h: tf.Tensor, dtype: str) -> tf.Tensor:
        return tf.reshape(tf.cast(h, dtype), [-1, self.size])

    def cross(self, h: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return tf.matmul(h, right, transpose_a=True)

    def product(self, h: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        # Not `tf.matmul`; see `matrix_normal.row_variance`.
        return ops.matmul(h, weights)

    def zeros(self) -> tf.Tensor:
        return tf.zeros(self.shape, self.dtype)

    def has_statistics(self) -> tf.Tensor:
        # R starts at 0, and every factorisation gives it a positive diagonal.
        return self.factor[(0,) * len(self.shape)] > 0.0

    def _factor(self) -> tf.Tensor:
        return tf.convert_to_tensor(self.factor)


class MatrixRows(PlainRows):
    """A precision stored as one matrix, or as the blocks of one: R is upper triangular."""

    def add_covariance(self, add: AddVariable) -> None:
        self.covariance = add("row_covariance", self.shape)

    def precision(self, num_examples: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        return _plus(num_examples * self.average.value(), prior)

    def factorised(self, num_examples: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        return inverse_factor(_plus(_jittered(num_examples * self.average.value()), prior))

    def take(self, factor: tf.Tensor, accept: tf.Tensor) -> None:
        keep(self.factor, factor, accept)
        keep(self.covariance, covariance(factor), accept)

    def diagonal(self) -> tf.Tensor:
        return self._entries(tf.linalg.diag_part(tf.convert_to_tensor(self.covariance)))

    def log_det(self) -> tf.Tensor:
        return -2.0 * tf.reduce_sum(tf.math.log(tf.abs(self._diagonal_of_factor())))

    def condition(self) -> tf.Tensor:
        """`(max diag R / min diag R)^2`."""
        # The singular values of a triangular matrix spread at least as far as its diagonal.
        diagonal = self._diagonal_of_factor()
        ratio = tf.math.divide_no_nan(tf.reduce_max(diagonal), tf.reduce_min(diagonal))
        return tf.cast(tf.square(ratio), tf.float32)

    def _entries(self, values: tf.Tensor) -> tf.Tensor:
        """Numbers by input, `[d]`, or `[G, b]` by block, as `[d]`."""
        return tf.reshape(values, [-1])[: self.size]

    def _diagonal_of_factor(self) -> tf.Tensor:
        return self._entries(tf.linalg.diag_part(self._factor()))


def _plus(data: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
    """`N S + L0`, for a number `l I` too."""
    return add_diagonal(data, prior) if prior.shape.rank == 0 else data + prior


def _jittered(data: tf.Tensor) -> tf.Tensor:
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


def check_size(matrix: np.ndarray, size: int) -> None:
    """Refuse an L0 of another size."""
    if matrix.shape != (size, size):
        raise ValueError(
            f"A matrix `prior_row_precision` must be [{size}, {size}], one row per input and one "
            f"for the bias. Received: shape {matrix.shape}"
        )


def check_kept(matrix: np.ndarray, kept: np.ndarray, form: str) -> None:
    """Refuse an L0 with entries that a form leaves out."""
    if not np.array_equal(matrix, kept):
        raise ValueError(
            f"A layer whose row covariance is {form} takes a `prior_row_precision` of that form "
            "only: 0 elsewhere. Or give the layer row_covariance='dense'. Received: a matrix with "
            f"{np.count_nonzero(matrix - kept)} other entries"
        )
