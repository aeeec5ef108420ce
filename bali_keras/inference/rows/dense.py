"""`DenseRows`: an unrestricted row covariance."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from bali_keras.inference.rows.plain import MatrixRows, check_size
from bali_keras.matrix_normal import row_variance, upper_operator

__all__ = ["DenseRows"]


class DenseRows(MatrixRows):
    """R is an upper triangular matrix `[d, d]`, and so is every precision symmetric `[d, d]`.

    Args:
        size: d.
        dtype: `"float32"` or `"float64"`.
    """

    def __init__(self, size: int, dtype: str) -> None:
        super().__init__(size, (size, size), dtype)

    def second_moment(self, h: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
        weighted = h if weight is None else h * weight[:, tf.newaxis]
        return tf.matmul(h, weighted, transpose_a=True)

    def variance(self, h: tf.Tensor) -> tf.Tensor:
        return row_variance(tf.cast(self._factor(), h.dtype), h)

    def apply(self, right: tf.Tensor) -> tf.Tensor:
        return tf.matmul(self.covariance, right)

    def applied_cross(self, h: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return self.cross(tf.matmul(h, self.covariance), right)

    def perturbation(self, noise: tf.Tensor) -> tf.Tensor:
        return tf.matmul(self.factor, noise)

    def operator(self) -> tf.linalg.LinearOperator:
        return upper_operator(self._factor())

    def dense_factor(self) -> tf.Tensor:
        return self._factor()

    def of_matrix(self, matrix: np.ndarray) -> tf.Tensor:
        check_size(matrix, self.size)
        return tf.constant(matrix, self.dtype)

    def times(self, prior: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return prior * right if prior.shape.rank == 0 else tf.matmul(prior, right)

    def log_det_of(self, prior: tf.Tensor) -> tf.Tensor:
        return self.size * tf.math.log(prior) if prior.shape.rank == 0 else tf.linalg.logdet(prior)

    def trace_with(self, prior: tf.Tensor) -> tf.Tensor:
        factor = self._factor()
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
