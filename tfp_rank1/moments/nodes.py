"""Normal points that are the same on every call: pseudo-samples of a net's outputs.

    z_s = E z + C zeta_s,     Cov z = C C'

The points zeta_s are quasi-random (Sobol), come in pairs `zeta, -zeta`, and are standardised: their
mean is 0 and, if there are more points than outputs, their covariance is the identity matrix. The
mean and the covariance of the pseudo-samples are then those of the outputs, exactly.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_rank1.moments.carrier import Moments

__all__ = ["cholesky", "nodes_in_parts", "normal_nodes", "pseudo_samples"]

# Sobol points of more dimensions have few different values each.
_LARGEST_SOBOL = 40


@functools.lru_cache(maxsize=64)
def normal_nodes(num_nodes: int, num_outputs: int) -> np.ndarray:
    """Standard normal points `[S, D]`, float64, the same on every call.

    Args:
        num_nodes: S, even.
        num_outputs: D.
    """
    points = _points(num_nodes // 2, num_outputs)
    nodes = np.concatenate([points, -points])
    if num_nodes // 2 > num_outputs:
        covariance = nodes.T @ nodes / len(nodes)
        return nodes @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    return nodes / np.sqrt(np.mean(nodes**2, axis=0))


@functools.lru_cache(maxsize=64)
def nodes_in_parts(num_parts: int, num_nodes: int, num_outputs: int) -> np.ndarray:
    """Standard normal points in P parts, `[P, S, D]`, for the passes and members of one answer.

    Where S points have the right covariance by themselves, all parts are the same. Fewer points lie
    in few directions: there the parts share out a set of P S points.

    Args:
        num_parts: P.
        num_nodes: S of one part, even.
        num_outputs: D.
    """
    if num_nodes // 2 > num_outputs:
        return np.broadcast_to(
            normal_nodes(num_nodes, num_outputs), (num_parts, num_nodes, num_outputs)
        )
    half = normal_nodes(num_parts * num_nodes, num_outputs)[: num_parts * num_nodes // 2]
    half = half.reshape(num_parts, num_nodes // 2, num_outputs)
    return np.concatenate([half, -half], axis=1)


def _points(count: int, size: int) -> np.ndarray:
    """Normal points `[count, size]`, quasi-random ones where these span as many directions."""
    if size <= _LARGEST_SOBOL:
        with tf.init_scope():
            # The first Sobol point is the middle of the cube, and its normal quantile 0.
            uniform = tf.math.sobol_sample(size, count, skip=1, dtype=tf.float64)
            points = tfd.Normal(tf.zeros([], tf.float64), 1.0).quantile(uniform).numpy()
        if np.linalg.matrix_rank(points) == min(count, size):
            return points
    return np.random.default_rng(0).normal(size=(count, size))


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


def pseudo_samples(
    moments: Moments, num_nodes: int, part: Any = 0, num_parts: int = 1
) -> tf.Tensor:
    """Pseudo-samples `[S, B, K, ..., D]` with the mean and the covariance of some moments.

    Args:
        moments: moments of raw outputs, `[B, K, ..., D]`.
        num_nodes: S, even.
        part: number of this pass, among `num_parts`; a tensor in a loop. Defaults to 0.
        num_parts: number of passes. Defaults to 1.
    """
    mean = moments.mean
    size, members = int(mean.shape[-1]), int(mean.shape[1])
    table = nodes_in_parts(num_parts * members, num_nodes, size)
    is_one = bool(np.all(table == table[0]))
    if is_one:  # [1, S, D]: one small constant
        nodes = tf.constant(table[:1], mean.dtype)
    else:
        table = table.reshape(num_parts, members, num_nodes, size)
        nodes = tf.gather(tf.constant(table, mean.dtype), part)  # [K, S, D]
    if moments.joint is None:
        positions = [1] * (mean.shape.rank - 3)
        moved = tf.reshape(
            tf.transpose(nodes, [1, 0, 2]), [num_nodes, 1, nodes.shape[0], *positions, size]
        )
        return mean + tf.sqrt(moments.variance_or_zeros()) * moved
    columns = cholesky(moments.covariance())
    # One plain product: `tf.matmul` of TensorFlow 2.21 is wrong on some CPUs, or crashes, for
    # `[B, 1, n, d]` times a matrix `[d, k]`, n > 1. Of `[500, 1, 3, 3]` times `[3, 64]` about the
    # first 250 of the 1,500 rows are right. `keras.ops.matmul` flattens the rows by itself.
    # The nodes are the second factor, which the converter of LiteRT needs to keep shapes apart.
    if is_one:
        rows = tf.matmul(
            tf.reshape(columns, [size, -1]), nodes[0], transpose_a=True, transpose_b=True
        )
    else:
        inner: Any = tf.reduce_prod(tf.shape(mean)[2:-1]) if mean.shape.rank > 3 else 1
        by_member = tf.reshape(columns, [size, -1, members, inner])
        first = tf.reshape(tf.transpose(by_member, [2, 1, 3, 0]), [members, -1, size])
        moved = tf.matmul(first, nodes, transpose_b=True)  # [K, D B P, S]
        moved = tf.reshape(moved, [members, -1, inner, num_nodes])
        rows = tf.reshape(tf.transpose(moved, [1, 0, 2, 3]), [-1, num_nodes])
    moved = tf.transpose(tf.reshape(rows, [size, -1, num_nodes]), [2, 1, 0])
    return mean + tf.reshape(moved, tf.concat([[num_nodes], tf.shape(mean)], axis=0))
