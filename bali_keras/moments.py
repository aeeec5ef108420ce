"""Moments through BALI layers: `Z = H W` with `W ~ MN(M, L^-1, V)` and random rows of H.

    E z = M' mu
    Cov z = (mu' L^-1 mu + sum_i v_i (L^-1)_ii) V + M' diag(v) M

mu and v are means and variances of a row h; the trailing 1 of the bias has v = 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import ops

from bali_keras.layers import BaliLayer
from tfp_rank1.moments import Moments, activated, mean_slope, register
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
    # Not `tf.matmul`; see `matrix_normal.row_variance`.
    z = ops.matmul(h, mean)
    variance = scale[..., tf.newaxis] * tf.linalg.diag_part(column)
    if v is not None:
        variance += ops.matmul(v, tf.square(mean))
    # Rows that are outputs as they come, `[B, k]`, have covariances between their entries.
    is_linear = layer.activation in (None, keras.activations.linear)
    if z.shape.rank != 2:
        outputs = Moments(layer.arranged(z), layer.arranged(variance))
        return activated(layer.activation, outputs)
    if is_linear and column.shape[0] <= MAX_JOINT:
        covariance = _covariance(layer, x, column, scale, v)
        return Moments(z, tf.linalg.diag_part(covariance), None, lambda: covariance)
    outputs = Moments(z, variance)
    result = activated(layer.activation, outputs)
    slope = mean_slope(layer.activation, outputs)
    return dataclasses.replace(result, shared=_shared(column, scale, slope))


def _row_variance(layer: BaliLayer, h: tf.Tensor, v: tf.Tensor | None) -> tf.Tensor:
    """`c (mu' L^-1 mu + sum_i v_i (L^-1)_ii)`, `[B, ...]`."""
    rows = layer.posterior_state.rows
    variance = rows.variance(h)
    if v is not None:
        diagonal = tf.cast(rows.diagonal(), h.dtype)
        variance += ops.matmul(v, diagonal)
    if mean_mode.value:
        return tf.zeros_like(variance)
    factor = variance_factor()
    return variance if factor is None else tf.cast(factor, h.dtype) * variance


def _covariance(
    layer: BaliLayer, x: Moments, column: tf.Tensor, scale: tf.Tensor, v: tf.Tensor | None
) -> tf.Tensor:
    """The covariance of the outputs, `[B, k, k]`."""
    covariance = scale[:, tf.newaxis, tf.newaxis] * column
    mean = tf.cast(tf.convert_to_tensor(layer.posterior_state.mean), column.dtype)
    size = int(column.shape[0])
    if v is not None:
        pairs = tf.reshape(mean[:, :, tf.newaxis] * mean[:, tf.newaxis], [-1, size * size])
        covariance += tf.reshape(tf.matmul(v, pairs), [-1, size, size])
    if x.shared is not None:
        covariance += x.shared(mean[:-1] if layer.use_bias else mean)
    return covariance


def _shared(
    column: tf.Tensor, scale: tf.Tensor, slope: tf.Tensor
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Computes `s (g o K)' (V - diag V) (g o K)` for a kernel K: the layer's noise, seen by K.

    V is wide in directions in which the net's outputs do not move. Entries that counted as
    independent would see its diagonal in every direction.

    Args:
        column: V, `[k, k]`.
        scale: s, `[B]`.
        slope: g, the mean slopes of the activation, `[B, k]`.
    """
    size = int(column.shape[0])
    across = tf.linalg.set_diag(column, tf.zeros([size], column.dtype))

    def shared(kernel: tf.Tensor) -> tf.Tensor:
        seen = slope[:, tf.newaxis] * tf.transpose(kernel)  # [B, D, k]
        # A plain product of rows; see `moments.nodes.pseudo_samples`.
        moved = tf.reshape(tf.matmul(tf.reshape(seen, [-1, size]), across), tf.shape(seen))
        found = tf.matmul(moved, seen, transpose_b=True)
        return scale[:, tf.newaxis, tf.newaxis] * found

    return shared
