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
    """The lower triangular C with `C C' = Cov`, `[..., D, D]`, by sums and products alone.

    Serving formats have no factorisation. A column of zeros takes the place of a pivot that
    rounding left below 0.
    """
    size = covariance.shape[-1]
    columns: list[tf.Tensor] = []
    rest = covariance
    for j in range(size):
        pivot = tf.nn.relu(rest[..., j, j])[..., tf.newaxis]
        # Relative to the entry before: what rounding leaves of a pivot is no variance.
        floor = 1e-6 * covariance[..., j, j][..., tf.newaxis] + 1e-30
        inverse = tf.where(pivot > floor, tf.math.rsqrt(tf.maximum(pivot, floor)), 0.0)
        is_below = tf.constant(np.arange(size) >= j, covariance.dtype)
        column = rest[..., :, j] * inverse * is_below
        columns.append(column)
        if j < size - 1:
            rest -= column[..., :, tf.newaxis] * column[..., tf.newaxis, :]
    return tf.stack(columns, axis=-1)


def pseudo_samples(moments: Moments, num_nodes: int) -> tf.Tensor:
    """Pseudo-samples `[S, B, ..., D]` with the mean and the covariance of some moments.

    Args:
        moments: moments of raw outputs, `[B, ..., D]`.
        num_nodes: S, even.
    """
    mean = moments.mean
    rank = mean.shape.rank
    nodes = tf.constant(normal_nodes(num_nodes, mean.shape[-1]), mean.dtype)
    if moments.joint is None:
        nodes = tf.reshape(nodes, [num_nodes, *[1] * (rank - 1), mean.shape[-1]])
        return mean + tf.sqrt(moments.variance_or_zeros()) * nodes
    factor = cholesky(moments.covariance())
    # One plain product of rows: `tf.matmul` of TensorFlow 2.21 is wrong on some CPUs, or crashes,
    # for `[B, 1, n, d]` times a matrix `[d, k]`, n > 1. Of `[500, 1, 3, 3]` times `[3, 64]` about
    # the first 250 of the 1,500 rows are right. `keras.ops.matmul` flattens the rows by itself.
    rows = tf.matmul(tf.reshape(factor, [-1, factor.shape[-1]]), nodes, transpose_b=True)
    moved = tf.reshape(rows, tf.concat([tf.shape(mean), [num_nodes]], axis=0))
    return mean + tf.transpose(moved, [rank, *range(rank)])
