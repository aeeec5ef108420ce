"""`DiagonalRows` and `OneHotRows`: every input of a layer by itself."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from bali_keras.inference.rows.plain import PlainRows, check_kept, check_size
from bali_keras.inference.statistics import AddVariable
from tfp_rank1.model.all_or_nothing import keep

__all__ = ["DiagonalRows", "OneHotRows"]


class DiagonalRows(PlainRows):
    """A diagonal row covariance; exact where no row has two entries other than 0.

    R and every precision are their diagonals, `[d]`.

    Args:
        size: d.
        dtype: `"float32"` or `"float64"`.
    """

    def __init__(self, size: int, dtype: str) -> None:
        super().__init__(size, (size,), dtype)

    def add_covariance(self, add: AddVariable) -> None:
        """None: `R^2` costs no more than reading it."""

    def second_moment(self, h: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
        squares = tf.square(h)
        weighted = squares if weight is None else squares * weight[:, tf.newaxis]
        return tf.reduce_sum(weighted, axis=0)

    def variance(self, h: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.square(h * tf.cast(self._factor(), h.dtype)), axis=-1)

    def factorised(self, num_examples: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        return tf.math.rsqrt(self.precision(num_examples, prior))

    def precision(self, num_examples: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
        return prior + num_examples * self.average.value()

    def take(self, factor: tf.Tensor, accept: tf.Tensor) -> None:
        keep(self.factor, factor, accept)

    def apply(self, right: tf.Tensor) -> tf.Tensor:
        return tf.square(self._factor())[:, tf.newaxis] * right

    def applied_cross(self, h: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return self.apply(self.cross(h, right))

    def perturbation(self, noise: tf.Tensor) -> tf.Tensor:
        return self._factor()[:, tf.newaxis] * noise

    def diagonal(self) -> tf.Tensor:
        return tf.square(self._factor())

    def log_det(self) -> tf.Tensor:
        return -2.0 * tf.reduce_sum(tf.math.log(self._factor()))

    def condition(self) -> tf.Tensor:
        """`max L^-1 / min L^-1`, exactly."""
        variances = self.diagonal()
        ratio = tf.math.divide_no_nan(tf.reduce_max(variances), tf.reduce_min(variances))
        return tf.cast(ratio, tf.float32)

    def operator(self) -> tf.linalg.LinearOperator:
        return tf.linalg.LinearOperatorDiag(self._factor(), is_non_singular=True)

    def dense_factor(self) -> tf.Tensor:
        return tf.linalg.diag(self._factor())

    def of_matrix(self, matrix: np.ndarray) -> tf.Tensor:
        check_size(matrix, self.size)
        check_kept(matrix, np.diag(np.diag(matrix)), "diagonal")
        return tf.constant(np.diag(matrix), self.dtype)

    def times(self, prior: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return prior * right if prior.shape.rank == 0 else prior[:, tf.newaxis] * right

    def log_det_of(self, prior: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.math.log(prior + tf.zeros((self.size,), prior.dtype)))

    def trace_with(self, prior: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(prior * self.diagonal())

    @property
    def num_parameters(self) -> int:
        return self.size

    @property
    def factorising_cost(self) -> int:
        return self.size

    @property
    def collecting_cost(self) -> int:
        return 2 * self.size

    def applying_cost(self, columns: int) -> int:
        return self.size * columns


class OneHotRows(DiagonalRows):
    """Rows of which one entry is 1 and all others are 0, stored as the index of the 1, `[...]`."""

    def flat(self, h: tf.Tensor, dtype: str) -> tf.Tensor:
        return tf.reshape(h, [-1])

    def second_moment(self, h: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
        ones = tf.ones(tf.shape(h), self.dtype) if weight is None else weight
        return tf.math.unsorted_segment_sum(ones, h, self.size)

    def cross(self, h: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return tf.math.unsorted_segment_sum(right, h, self.size)

    def product(self, h: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        return tf.gather(weights, h)

    def variance(self, h: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.diagonal(), h)

    @property
    def collecting_cost(self) -> int:
        return 2
