"""Moments through BALI layers: `Z = H W` with `W ~ MN(M, L^-1, V)` and random rows of H.

    E z = M' mu
    Cov z = (mu' L^-1 mu + tr(L^-1 Cov h)) V + M' Cov(h) M

mu are the means of a row h, and Cov h is diagonal but for what `Moments.shared` knows; the trailing
1 of the bias has no variance. Behind a layer without an activation both are exact.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import keras
import tensorflow as tf

from bali_keras.layers import (
    BaliLayer,
    GRUBali,
    LSTMBali,
    MultiHeadAttentionBali,
    SeparableConv1DBali,
    SeparableConv2DBali,
)
from tfp_rank1.moments import Moments, activated, propagate, register
from tfp_rank1.moments.activations import with_shared
from tfp_rank1.moments.attention import attention
from tfp_rank1.moments.cells import gru_states, lstm_states, parts
from tfp_rank1.moments.linear import MAX_JOINT, covariance_behind
from tfp_rank1.moments.merging import added
from tfp_rank1.moments.recurrent import last, over_time
from tfp_rank1.scopes import mean_mode, variance_factor

__all__: list[str] = []


@register(BaliLayer)
def _bali(layer: BaliLayer, x: Moments) -> Moments:
    dtype = x.mean.dtype if x.mean.dtype.is_floating else tf.float32
    h, v = layer.row_moments(tf.cast(x.mean, dtype), x.variance)
    state = layer.posterior_state
    mean = tf.cast(tf.convert_to_tensor(state.mean), dtype)
    column = tf.cast(tf.convert_to_tensor(state.column_covariance), dtype)
    scale = _row_variance(layer, h, v, x.shared)
    z = state.rows.product(h, mean)
    variance = scale[..., tf.newaxis] * tf.linalg.diag_part(column)
    if v is not None:
        variance += state.rows.product(v, tf.square(mean))
    # Rows that are outputs as they come, `[B, k]`, have covariances between their entries.
    is_linear = layer.activation in (None, keras.activations.linear)
    if z.shape.rank != 2:
        outputs = Moments(layer.arranged(z), layer.arranged(variance))
        return activated(layer.activation, outputs)
    if is_linear and column.shape[0] <= MAX_JOINT:
        covariance = _covariance(layer, x, column, scale, v)
        joint = Moments(z, _diagonal(covariance), None, lambda: covariance)
        return dataclasses.replace(joint, shared=functools.partial(_within, covariance))
    outputs = Moments(z, variance, shared=functools.partial(_shared, column, scale))
    return with_shared(activated(layer.activation, outputs), outputs, layer.activation)


register(MultiHeadAttentionBali)(attention)


@register(SeparableConv1DBali, SeparableConv2DBali)
def _separable(layer: Any, x: Moments) -> Moments:
    return propagate(layer.pointwise, propagate(layer.depthwise, x))


@register(LSTMBali)
def _lstm(layer: LSTMBali, x: Moments) -> Moments:
    def step(before: list[Moments], of_x: Moments) -> list[Moments]:
        of_h = _of_state(layer, before[0])
        return lstm_states(layer, added(of_x, of_h), before)

    return _recurrent(layer, x, step)


@register(GRUBali)
def _gru(layer: GRUBali, x: Moments) -> Moments:
    def step(before: list[Moments], of_x: Moments) -> list[Moments]:
        of_h = _of_state(layer, before[0])
        return gru_states(layer, parts(of_x, 3), parts(of_h, 3), before)

    return _recurrent(layer, x, step)


def _of_state(layer: LSTMBali | GRUBali, h: Moments) -> Moments:
    """`U'h`, `[B, k]`, as rows of one position: no step asks for covariances of its gates."""
    found = propagate(layer.recurrent_map, h.moved(lambda value: value[:, tf.newaxis]))
    return found.moved(lambda value: value[:, 0])


def _recurrent(layer: LSTMBali | GRUBali, x: Moments, step: Any) -> Moments:
    """Time steps, gates and states count as independent, as in `tfp_rank1.moments.recurrent`."""
    of_x = dataclasses.replace(propagate(layer.input_map, x), mask=x.mask)
    zeros = tf.zeros([tf.shape(of_x.mean)[0], layer.units], of_x.mean.dtype)

    def with_output(before: list[Moments], of_x: Moments) -> list[Moments]:
        states = step(before[1:], of_x)
        return [states[0], *states]

    found = over_time(
        with_output,
        of_x,
        [Moments(zeros)] * (1 + layer.num_states),
        go_backwards=layer.go_backwards,
        zero_output_for_mask=layer.return_sequences and layer.zero_output_for_mask,
    )[0]
    return found if layer.return_sequences else last(found)


def _row_variance(layer: BaliLayer, h: tf.Tensor, v: tf.Tensor | None, shared: Any) -> tf.Tensor:
    """`c (mu' L^-1 mu + tr(L^-1 Cov h))`, `[B, ...]`.

    Of wide rows the trace is that of the variances alone, `sum_i v_i (L^-1)_ii`.
    """
    rows = layer.posterior_state.rows
    variance = rows.variance(h)
    if v is not None:
        diagonal = tf.cast(rows.diagonal(), h.dtype)
        variance += rows.product(v, diagonal[:, tf.newaxis])[..., 0]
    if shared is not None and rows.size <= MAX_JOINT + 1:
        factor = tf.cast(rows.dense_factor(), h.dtype)  # L^-1 = R R'
        factor = factor[:-1] if layer.use_bias else factor
        variance += tf.reduce_sum(_diagonal(shared(tf.transpose(factor)[tf.newaxis])), axis=-1)
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
    if v is not None:
        covariance += covariance_behind(mean, v)
    if x.shared is not None:
        kernel = mean[:-1] if layer.use_bias else mean
        covariance += x.shared(tf.transpose(kernel)[tf.newaxis])
    return covariance


def _shared(column: tf.Tensor, scale: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
    """`s K' (V - diag V) K`: what the noise of a layer adds to covariances behind a kernel K.

    V is wide in directions in which the net's outputs do not move. Entries that counted as
    independent would see its diagonal in every direction.

    Args:
        column: V, `[k, k]`.
        scale: s, `[B]`.
        seen: `K'`, `[B, D, k]` or `[1, D, k]`.
    """
    size = int(column.shape[0])
    across = _off_diagonal(column)
    # A plain product of rows; see `moments.nodes.pseudo_samples`.
    moved = tf.reshape(tf.matmul(tf.reshape(seen, [-1, size]), across), tf.shape(seen))
    return scale[:, tf.newaxis, tf.newaxis] * tf.matmul(moved, seen, transpose_b=True)


def _within(covariance: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
    """`K' (Cov - diag Cov) K` for the covariances `[B, k, k]` of a layer without an activation."""
    across = _off_diagonal(covariance)
    seen = tf.broadcast_to(seen, tf.concat([tf.shape(covariance)[:1], tf.shape(seen)[1:]], 0))
    return tf.matmul(tf.matmul(seen, across), seen, transpose_b=True)


def _diagonal(matrices: tf.Tensor) -> tf.Tensor:
    """The diagonals `[B, k]` of `[B, k, k]`, by operations that LiteRT has."""
    return tf.reduce_sum(matrices * tf.eye(int(matrices.shape[-1]), dtype=matrices.dtype), axis=-1)


def _off_diagonal(matrices: tf.Tensor) -> tf.Tensor:
    """Matrices `[..., k, k]` with zeros on the diagonal."""
    return matrices * (1.0 - tf.eye(int(matrices.shape[-1]), dtype=matrices.dtype))
