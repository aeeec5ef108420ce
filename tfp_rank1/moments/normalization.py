"""Normalizations: affine maps by moving statistics, to first order by those of the example.

    batch    y = gamma (x - mean) / sqrt(variance + epsilon) + beta
    layer    y_i = gamma_i (x_i - mean of x) / sqrt(variance of x + epsilon) + beta_i

The statistics of an example are taken as known: their expectations stand in for them. Of n entries
an entry is in its own mean, so its variance is `v_i (1 - 2 / n) + (mean of v) / n`.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.registry import register

__all__: list[str] = []

layers = keras.layers


def _along(value: Any, x: tf.Tensor, axes: Any) -> tf.Tensor:
    """A variable of a normalization along the axes of x that it belongs to."""
    value = tf.cast(tf.convert_to_tensor(value), x.dtype)
    axes = [axes] if isinstance(axes, int) else list(axes)
    places = {axis % x.shape.rank for axis in axes}
    return tf.reshape(value, [n if i in places else 1 for i, n in enumerate(x.shape)])


@register(layers.BatchNormalization)
def _batch(layer: Any, x: Moments) -> Moments:
    variance = _along(layer.moving_variance, x.mean, layer.axis)
    scale = tf.math.rsqrt(variance + layer.epsilon)
    if layer.scale:
        scale *= _along(layer.gamma, x.mean, layer.axis)
    offset = -_along(layer.moving_mean, x.mean, layer.axis) * scale
    if layer.center:
        offset += _along(layer.beta, x.mean, layer.axis)
    return x.scaled(scale, offset)


@register(layers.Rescaling)
def _rescaling(layer: Any, x: Moments) -> Moments:
    scale = tf.cast(tf.convert_to_tensor(layer.scale), x.mean.dtype)
    return x.scaled(scale, tf.cast(tf.convert_to_tensor(layer.offset), x.mean.dtype))


@register(layers.Normalization)
def _normalization(layer: Any, x: Moments) -> Moments:
    # The layer knows where its statistics lie; it is an affine map.
    offset = tf.cast(layer.call(tf.zeros_like(x.mean)), x.mean.dtype)
    scale = tf.cast(layer.call(tf.ones_like(x.mean)), x.mean.dtype) - offset
    return x.scaled(scale, offset)


def _standardised(x: Moments, axes: list[int], epsilon: float, centered: bool = True) -> Moments:
    """Entries in units of their standard deviation over some axes."""
    v = x.variance_or_zeros()
    shared = ops.mean(v, axis=axes, keepdims=True)
    count = 1.0
    for axis in axes:
        count *= float(x.mean.shape[axis])
    if not centered:
        square = ops.mean(tf.square(x.mean), axis=axes, keepdims=True) + shared
        return x.scaled(tf.math.rsqrt(square + epsilon))
    center = ops.mean(x.mean, axis=axes, keepdims=True)
    residual = x.mean - center
    square = ops.mean(tf.square(residual), axis=axes, keepdims=True)
    scale = tf.math.rsqrt(square + shared * (1.0 - 1.0 / count) + epsilon)
    spread = v * (1.0 - 2.0 / count) + shared / count
    return Moments(residual * scale, tf.square(scale) * tf.nn.relu(spread))


@register(layers.LayerNormalization)
def _layer(layer: Any, x: Moments) -> Moments:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    axes = [axis % x.mean.shape.rank for axis in axes]
    is_rms = getattr(layer, "rms_scaling", False)
    y = _standardised(x, axes, layer.epsilon, centered=not is_rms)
    if is_rms:
        return y.scaled(_along(layer.gamma, x.mean, axes))
    scale = _along(layer.gamma, x.mean, axes) if layer.scale else 1.0
    return y.scaled(scale, _along(layer.beta, x.mean, axes) if layer.center else 0.0)


@register(layers.RMSNormalization)
def _root_mean_square(layer: Any, x: Moments) -> Moments:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    axes = [axis % x.mean.shape.rank for axis in axes]
    y = _standardised(x, axes, layer.epsilon, centered=False)
    return y.scaled(_along(layer.scale, x.mean, axes))


@register(layers.UnitNormalization)
def _unit(layer: Any, x: Moments) -> Moments:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    square = tf.square(x.mean) + x.variance_or_zeros()
    total = ops.sum(square, axis=axes, keepdims=True)
    return x.scaled(tf.math.rsqrt(tf.maximum(total, 1e-12)))
