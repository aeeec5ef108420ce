"""Moments through BALI layers: `Z = H W` with `W ~ MN(M, L^-1, V)` and random rows of H.

    E z = M' mu
    Cov z = (mu' L^-1 mu + sum_i v_i (L^-1)_ii) V + M' diag(v) M

mu and v are means and variances of a row h; the trailing 1 of the bias has v = 0.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from bali_keras.layers import BaliLayer
from tfp_rank1.moments import Moments, activated, register
from tfp_rank1.moments.linear import MAX_JOINT
from tfp_rank1.scopes import mean_mode, variance_factor

__all__: list[str] = []


@register(BaliLayer)
def _bali(layer: BaliLayer, x: Moments) -> Moments:
    dtype = x.mean.dtype if x.mean.dtype.is_floating else tf.float32
    h, v = layer.row_moments(tf.cast(x.mean, dtype), x.variance)
    state = layer.posterior_state
    mean = tf.cast(tf.convert_to_tensor(state.mean), dtype)
    column = tf.cast(tf.convert_to_tensor(state.column_covariance), dtype)
    scale = _row_variance(layer, h, v)
    z = tf.matmul(h, mean)
    variance = scale[..., tf.newaxis] * tf.linalg.diag_part(column)
    if v is not None:
        variance += tf.matmul(v, tf.square(mean))
    outputs = Moments(layer.arranged(z), layer.arranged(variance))
    is_linear = layer.activation in (None, keras.activations.linear)
    result = activated(layer.activation, outputs)
    # Only rows that are outputs as they come: `[B, k]`.
    has_joint = is_linear and z.shape.rank == 2 and column.shape[0] <= MAX_JOINT
    joint = _joint(mean, column, scale, v) if has_joint else None
    return Moments(result.mean, result.variance, None, joint)


def _row_variance(layer: BaliLayer, h: tf.Tensor, v: tf.Tensor | None) -> tf.Tensor:
    """`c (mu' L^-1 mu + sum_i v_i (L^-1)_ii)`, `[B, ...]`."""
    rows = layer.posterior_state.rows
    variance = rows.variance(h)
    if v is not None:
        diagonal = tf.cast(rows.diagonal(), h.dtype)
        variance += tf.linalg.matvec(v, diagonal)
    if mean_mode.value:
        return tf.zeros_like(variance)
    factor = variance_factor()
    return variance if factor is None else tf.cast(factor, h.dtype) * variance


def _joint(
    mean: tf.Tensor, column: tf.Tensor, scale: tf.Tensor, v: tf.Tensor | None
) -> Callable[[], tf.Tensor]:
    """Computes the covariance of the outputs, `[B, k, k]`."""

    def joint() -> tf.Tensor:
        covariance = scale[:, tf.newaxis, tf.newaxis] * column
        if v is None:
            return covariance
        size = int(column.shape[0])
        pairs = tf.reshape(mean[:, :, tf.newaxis] * mean[:, tf.newaxis], [-1, size * size])
        return covariance + tf.reshape(tf.matmul(v, pairs), [-1, size, size])

    return joint
