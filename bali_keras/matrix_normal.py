"""The matrix-normal family: conversions, samples, marginals, divergence. Pure algebra, no Keras.

    W ~ MN(M, L^-1, V)       p(W) = exp(-1/2 tr(V^-1 (W - M)' L (W - M))) / normalizer

W `[d, k]`, mean M `[d, k]`, row precision L `[d, d]`, column covariance V `[k, k]`. As a vector,
rows of W one after the other, W is normal with covariance `L^-1 (x) V` (Kronecker product).

All functions work on two upper triangular Cholesky factors, `L^-1 = R R'` and `V = C C'`: no
variance can become negative, and samples and marginals are matrix products. All functions keep the
dtype of their arguments, float32 or float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf
from keras import ops
from tensorflow_probability import distributions as tfd

__all__ = [
    "SMALL",
    "MatrixNormal",
    "NaturalParameters",
    "add_diagonal",
    "correlated",
    "covariance",
    "damp",
    "inverse_factor",
    "log_diagonal",
    "precision",
    "product",
    "row_variance",
    "solve",
    "upper_operator",
    "upper_solve",
]

# Largest size of a triangular matrix that is inverted in one piece.
SMALL = 256


class NaturalParameters(NamedTuple):
    """A matrix normal by its natural parameters.

    Attributes:
        row_precision: L, `[d, d]`.
        linear: L M, `[d, k]`.
        column_precision: V^-1, `[k, k]`.
    """

    row_precision: tf.Tensor
    linear: tf.Tensor
    column_precision: tf.Tensor


class MatrixNormal(NamedTuple):
    """A matrix normal by its mean and the Cholesky factors of its two covariances.

    Attributes:
        mean: M, `[d, k]`.
        row_factor: R with `L^-1 = R R'`, `[d, d]`, upper triangular.
        column_factor: C with `V = C C'`, `[k, k]`, upper triangular.

    Example:
    ```python
    found = bk.matrix_normal.NaturalParameters(L, L @ M, tf.linalg.inv(V))
    q = bk.matrix_normal.MatrixNormal.from_natural(found)
    q.sample(10, seed=(1, 2))                # [10, d, k]
    q.row_variance(h)                        # Var[h' W] = row_variance * V
    ```
    """

    mean: tf.Tensor
    row_factor: tf.Tensor
    column_factor: tf.Tensor

    # -- conversions ----------------------------------------------------------------------------

    @classmethod
    def from_natural(cls, natural: NaturalParameters) -> MatrixNormal:
        """Mean form of natural parameters; one Cholesky factorisation of each matrix."""
        row_factor = inverse_factor(natural.row_precision)
        mean = solve(row_factor, natural.linear)
        return cls(mean, row_factor, inverse_factor(natural.column_precision))

    def natural(self) -> NaturalParameters:
        """Natural parameters."""
        row_precision = precision(self.row_factor)
        linear = tf.matmul(row_precision, self.mean)
        return NaturalParameters(row_precision, linear, precision(self.column_factor))

    def row_covariance(self) -> tf.Tensor:
        """`L^-1`, `[d, d]`."""
        return covariance(self.row_factor)

    def column_covariance(self) -> tf.Tensor:
        """`V`, `[k, k]`."""
        return covariance(self.column_factor)

    def distribution(self) -> tfd.MatrixNormalLinearOperator:
        """The same as a TFP distribution, event shape `[d, k]`."""
        return tfd.MatrixNormalLinearOperator(
            loc=self.mean,
            scale_row=upper_operator(self.row_factor),
            scale_column=upper_operator(self.column_factor),
        )

    # -- answers --------------------------------------------------------------------------------

    def sample(self, num_samples: int, seed: tf.Tensor) -> tf.Tensor:
        """`M + R E C'` with standard normal E, `[num_samples, d, k]`.

        Args:
            num_samples: at least 1.
            seed: int32 `[2]`.
        """
        shape = tf.concat([[num_samples], tf.shape(self.mean)], axis=0)
        noise = tf.random.stateless_normal(shape, seed, dtype=self.mean.dtype)
        return self.perturb(noise)

    def perturb(self, noise: tf.Tensor) -> tf.Tensor:
        """`M + R E C'` for given standard normal E `[..., d, k]`."""
        right = tf.matmul(noise, tf.cast(self.column_factor, noise.dtype), transpose_b=True)
        return self.mean + tf.matmul(self.row_factor, right)

    def row_variance(self, h: tf.Tensor) -> tf.Tensor:
        """`h' L^-1 h` of rows `[..., d]`, `[...]`: `h' W` has covariance `row_variance * V`."""
        return row_variance(self.row_factor, h)

    def log_prob(self, w: tf.Tensor) -> tf.Tensor:
        """`log p(W)` of `[..., d, k]`, `[...]`, nats.

            -1/2 [ |R^-1 (W - M) C'^-1|^2 + d k log 2 pi + k log|L^-1| + d log|V| ]

        with R R' = L^-1 and C C' = V.
        """
        d, k = self._size()
        quadratic = tf.reduce_sum(tf.square(self._whiten(w - self.mean)), axis=[-2, -1])
        constant = d * k * tf.constant(math.log(2.0 * math.pi), self.mean.dtype)
        return -0.5 * (quadratic + constant + self._log_volume())

    def kl_divergence(self, prior: MatrixNormal) -> tf.Tensor:
        """`KL(self || prior)`, scalar, nats.

            1/2 [ tr(L0 L^-1) tr(V0^-1 V) + tr(V0^-1 (M - M0)' L0 (M - M0)) - d k
                  + k (log|L| - log|L0|) + d (log|V0| - log|V|) ]

        Args:
            prior: `MN(M0, L0^-1, V0)` of the same shape.
        """
        d, k = self._size()
        rows = tf.reduce_sum(tf.square(upper_solve(prior.row_factor, self.row_factor)))
        columns = tf.reduce_sum(tf.square(upper_solve(prior.column_factor, self.column_factor)))
        shift = tf.reduce_sum(tf.square(prior._whiten(self.mean - prior.mean)))
        volume = prior._log_volume() - self._log_volume()
        return 0.5 * (rows * columns + shift - d * k + volume)

    def _size(self) -> tuple[tf.Tensor, tf.Tensor]:
        d, k = tf.unstack(tf.cast(tf.shape(self.mean), self.mean.dtype))
        return d, k

    def _whiten(self, x: tf.Tensor) -> tf.Tensor:
        """`C^-1 (R^-1 X)'` of `[..., d, k]`: standard normal entries if X + M is a sample."""
        left = upper_solve(self.row_factor, x)
        return upper_solve(self.column_factor, tf.linalg.matrix_transpose(left))

    def _log_volume(self) -> tf.Tensor:
        """`log |L^-1 (x) V| = k log|L^-1| + d log|V|`."""
        d, k = self._size()
        return 2.0 * (k * log_diagonal(self.row_factor) + d * log_diagonal(self.column_factor))


def product(a: NaturalParameters, b: NaturalParameters) -> NaturalParameters:
    """The normalized product of two matrix normals with one column covariance.

    Row precisions and linear terms add, which is a Bayesian update. The product of matrix normals
    with different column covariances is no matrix normal: the result has the column covariance of
    `a`, and the caller must give `b` the same.
    """
    return NaturalParameters(
        a.row_precision + b.row_precision, a.linear + b.linear, a.column_precision
    )


def damp(matrix: tf.Tensor, absolute: float, relative: float) -> tf.Tensor:
    """`X + (absolute + relative tr(X) / k) I`: bounded away from singular.

    Args:
        matrix: X `[k, k]`, positive semidefinite.
        absolute: added whatever the scale of X.
        relative: added in units of the mean eigenvalue of X.
    """
    size = tf.cast(tf.shape(matrix)[-1], matrix.dtype)
    added = tf.cast(absolute, matrix.dtype) + relative * tf.linalg.trace(matrix) / size
    return add_diagonal(matrix, added)


def add_diagonal(matrix: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """`X + value I` for X `[..., d, d]`, value a scalar or `[..., d]`."""
    diagonal = tf.linalg.diag_part(matrix)
    return tf.linalg.set_diag(matrix, diagonal + tf.cast(value, matrix.dtype))


def inverse_factor(matrix: tf.Tensor) -> tf.Tensor:
    """R, upper triangular, with `X^-1 = R R'`.

    With D the inverse root of X's diagonal, `D X D = B B'` (Cholesky) and `R = D B'^-1`: rows of
    very different scales, such as unscaled features, cost no precision.

    Args:
        matrix: X `[..., n, n]`, symmetric positive definite, n statically known.

    Returns:
        R, `[..., n, n]`. If X is not positive definite, R is NaN and TensorFlow raises no error.
    """
    scale = tf.math.rsqrt(tf.linalg.diag_part(matrix))
    rows, columns = scale[..., tf.newaxis], scale[..., tf.newaxis, :]
    cholesky = tf.linalg.cholesky(matrix * rows * columns)
    return rows * tf.linalg.matrix_transpose(_lower_inverse(cholesky))


def _lower_inverse(lower: tf.Tensor) -> tf.Tensor:
    """`B^-1` of lower triangular B `[..., n, n]`, by halves: most work is then matrix products.

        B = [B1  0]      B^-1 = [      B1^-1            0  ]
            [E  B2]             [-B2^-1 E B1^-1    B2^-1]

    The Cholesky factorisation itself does not go by halves: in float32 the Schur complement of an
    ill-conditioned matrix may not be positive definite.
    """
    size = lower.shape[-1]
    if size <= SMALL:
        eye = tf.eye(size, batch_shape=lower.shape[:-2], dtype=lower.dtype)
        return tf.linalg.triangular_solve(lower, eye)
    half = size // 2
    first = _lower_inverse(lower[..., :half, :half])
    last = _lower_inverse(lower[..., half:, half:])
    corner = -tf.matmul(last, tf.matmul(lower[..., half:, :half], first))
    return _blocks(first, tf.zeros_like(lower[..., :half, half:]), corner, last)


def covariance(factor: tf.Tensor) -> tf.Tensor:
    """`R R'` of upper triangular R `[..., n, n]`, by halves: half of the product is saved."""
    half = factor.shape[-1] // 2
    upper, last = factor[..., :half, :], factor[..., half:, half:]
    right = tf.matmul(factor[..., :half, half:], last, transpose_b=True)
    return _blocks(
        tf.matmul(upper, upper, transpose_b=True),
        right,
        tf.linalg.matrix_transpose(right),
        tf.matmul(last, last, transpose_b=True),
    )


def _blocks(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
    """`[[a, b], [c, d]]` as one matrix."""
    return tf.concat([tf.concat([a, b], axis=-1), tf.concat([c, d], axis=-1)], axis=-2)


def solve(factor: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """`X^-1 B = R (R' B)` for `X^-1 = R R'`."""
    return tf.matmul(factor, tf.matmul(factor, right, transpose_a=True))


def precision(factor: tf.Tensor) -> tf.Tensor:
    """`X = R'^-1 R^-1` from an upper triangular R with `X^-1 = R R'`."""
    inverse = upper_solve(factor, tf.eye(tf.shape(factor)[-1], dtype=factor.dtype))
    return tf.matmul(inverse, inverse, transpose_a=True)


def row_variance(row_factor: tf.Tensor, h: tf.Tensor) -> tf.Tensor:
    """`h' R R' h` of rows h `[..., d]` and R upper triangular, `[...]`.

    Columns before `end` are 0 in the rows behind it: with columns in four blocks this saves three
    eighths of the matrix product.
    """
    # Not `tf.matmul`, which for rows `[B, 1, n, d]` reads past their end on some CPUs (TensorFlow
    # 2.21): wrong numbers, or a crash. Images of height 1 have such rows.
    return tf.add_n(
        [
            tf.reduce_sum(tf.square(ops.matmul(h[..., :end], row_factor[:end, begin:end])), -1)
            for begin, end in _column_blocks(row_factor)
        ]
    )


def correlated(noise: tf.Tensor, column_factor: tf.Tensor) -> tf.Tensor:
    """Rows `C e` of rows e `[..., k]` and C upper triangular, `[..., k]`, in blocks as well."""
    parts = [
        ops.matmul(noise[..., begin:], ops.transpose(column_factor[begin:end, begin:]))
        for begin, end in _column_blocks(column_factor)
    ]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)


def _column_blocks(factor: tf.Tensor) -> list[tuple[int, int]]:
    """Beginnings and ends of the blocks in which a triangular matrix is multiplied."""
    size = int(factor.shape[0])
    blocks = 4 if size >= 256 else 1
    ends = [size * (i + 1) // blocks for i in range(blocks)]
    return list(zip([0, *ends], ends, strict=False))


def log_diagonal(factor: tf.Tensor) -> tf.Tensor:
    """`log |det R|` of a triangular R."""
    return tf.reduce_sum(tf.math.log(tf.abs(tf.linalg.diag_part(factor))))


def upper_solve(upper: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """`R^-1 B` for upper triangular R `[n, n]` and B `[..., n, m]`."""
    shape = tf.concat([tf.shape(right)[:-2], tf.shape(upper)], axis=0)
    return tf.linalg.triangular_solve(tf.broadcast_to(upper, shape), right, lower=False)


def upper_operator(upper: tf.Tensor) -> tf.linalg.LinearOperator:
    """An upper triangular matrix `[..., n, n]` as the adjoint of a lower triangular operator."""
    lower = tf.linalg.matrix_transpose(upper)
    lower = tf.linalg.LinearOperatorLowerTriangular(lower, is_non_singular=True)
    return lower.adjoint()
