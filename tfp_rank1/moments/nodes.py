"""Normal points that are the same on every call: pseudo-samples of a net's outputs.

    z_s = E z + C zeta_s,     Cov z = C C'

The points zeta_s are quasi-random (Sobol), come in pairs `zeta, -zeta`, and are standardised: their
mean is 0 and, if there are more points than outputs, their covariance is the identity matrix. The
mean and the covariance of the pseudo-samples are then those of the outputs, exactly.
"""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.moments.carrier import Moments

__all__ = ["cholesky", "normal_nodes", "pseudo_samples"]

# Sobol points of more dimensions have few different values each.
_LARGEST_SOBOL = 40


@functools.lru_cache(maxsize=64)
def normal_nodes(num_nodes: int, num_outputs: int) -> np.ndarray:
    """Standard normal points `[S, D]`, float64, the same on every call.

    Args:
        num_nodes: S, even.
        num_outputs: D.
    """
    half = num_nodes // 2
    with tf.init_scope():
        if num_outputs <= _LARGEST_SOBOL:
            # The first Sobol point is 0, and its normal quantile infinite.
            uniform = tf.math.sobol_sample(num_outputs, half, skip=1, dtype=tf.float64)
            points = tfd.Normal(tf.zeros([], tf.float64), 1.0).quantile(uniform).numpy()
        else:
            points = np.random.default_rng(0).normal(size=(half, num_outputs))
    nodes = np.concatenate([points, -points])
    if half > num_outputs:
        covariance = nodes.T @ nodes / len(nodes)
        return nodes @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    return nodes / np.sqrt(np.mean(nodes**2, axis=0))


def cholesky(covariance: tf.Tensor) -> tf.Tensor:
    """The columns of the lower triangular C with `C C' = Cov`, by sums and products alone.

    Serving formats have no factorisation. A column of zeros takes the place of a pivot that
    rounding left below 0.

    Args:
        covariance: `[..., D, D]`.

    Returns:
        `[D, D, n]`: column j of C, its row i, and the n matrices of the batch. With the matrices
        last, every step runs over long rows of numbers; with the small D last it took 3 times as
        long.
    """
    size = covariance.shape[-1]
    flat = tf.reshape(covariance, [-1, size * size])
    rest = tf.reshape(tf.transpose(flat), [size, size, -1])
    # Relative to the entry before: what rounding leaves of a pivot is no variance.
    floors = [1e-6 * rest[j, j] + 1e-30 for j in range(size)]
    columns: list[tf.Tensor] = []
    for j, floor in enumerate(floors):
        pivot = tf.nn.relu(rest[0, 0])
        inverse = tf.where(pivot > floor, tf.math.rsqrt(tf.maximum(pivot, floor)), 0.0)
        column = rest[0] * inverse
        columns.append(tf.pad(column, [[j, 0], [0, 0]]))
        if j < size - 1:  # LiteRT takes no tensor without entries
            below = column[1:]
            rest = rest[1:, 1:] - below[:, tf.newaxis] * below
    return tf.stack(columns)


def pseudo_samples(moments: Moments, num_nodes: int) -> tf.Tensor:
    """Pseudo-samples `[S, B, ..., D]` with the mean and the covariance of some moments.

    Args:
        moments: moments of raw outputs, `[B, ..., D]`.
        num_nodes: S, even.
    """
    mean = moments.mean
    size = mean.shape[-1]
    nodes = tf.constant(normal_nodes(num_nodes, size), mean.dtype)
    if moments.joint is None:
        nodes = tf.reshape(nodes, [num_nodes, *[1] * (mean.shape.rank - 1), size])
        return mean + tf.sqrt(moments.variance_or_zeros()) * nodes
    columns = cholesky(moments.covariance())
    # One plain product: `tf.matmul` of TensorFlow 2.21 is wrong on some CPUs, or crashes, for
    # `[B, 1, n, d]` times a matrix `[d, k]`, n > 1. Of `[500, 1, 3, 3]` times `[3, 64]` about the
    # first 250 of the 1,500 rows are right. `keras.ops.matmul` flattens the rows by itself.
    # The nodes are the second factor, which the converter of LiteRT needs to keep shapes apart.
    rows = tf.matmul(tf.reshape(columns, [size, -1]), nodes, transpose_a=True, transpose_b=True)
    moved = tf.transpose(tf.reshape(rows, [size, -1, num_nodes]), [2, 1, 0])
    return mean + tf.reshape(moved, tf.concat([[num_nodes], tf.shape(mean)], axis=0))
