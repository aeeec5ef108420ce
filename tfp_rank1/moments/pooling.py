"""Pooling: positions count as independent here, as all entries do.

    mean       E = mean of mu_p             Var = mean of v_p / n
    maximum    two by two, in a tree: max(max(x_1, x_2), max(x_3, x_4)), each pair normal

What positions share does not vanish in a mean, and this rule lets it: a net with positions is
therefore asked in several passes that draw it, see `predictive.moments`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.merging import larger
from tfp_rank1.moments.registry import register

__all__: list[str] = []

layers = keras.layers
# Stands for minus infinity, whose square would not be a number.
_LOWEST = -1e9


@register(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D)
def _average(layer: Any, x: Moments) -> Moments:
    # At a padded border fewer entries are averaged; the number is that of a whole window.
    count = float(math.prod(layer.pool_size))
    return Moments(layer.call(x.mean), layer.call(x.variance_or_zeros()) / count)


@register(layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D)
def _global_average(layer: Any, x: Moments) -> Moments:
    mean = layer.call(x.mean)
    # Channels are left out of the count, and kept axes of size 1 do not change it.
    count = tf.cast(tf.size(x.mean), mean.dtype) / tf.cast(tf.size(mean), mean.dtype)
    return Moments(mean, layer.call(x.variance_or_zeros()) / count)


@register(layers.GlobalAveragePooling1D)
def _average_of_steps(layer: Any, x: Moments) -> Moments:
    mean, v = layer.call(x.mean, mask=x.mask), x.variance_or_zeros()
    steps = 1 if layer.data_format == "channels_last" else 2
    if x.mask is None:
        count = tf.cast(tf.shape(x.mean)[steps], mean.dtype)
    else:
        count = tf.reduce_sum(tf.cast(x.mask, mean.dtype), axis=-1)
        count = tf.reshape(tf.maximum(count, 1.0), [-1, *[1] * (mean.shape.rank - 1)])
    return Moments(mean, layer.call(v, mask=x.mask) / count)


@register(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D)
def _global_maximum(layer: Any, x: Moments) -> Moments:
    is_last = layer.data_format == "channels_last"
    shape = ops.shape(x.mean)
    channels = shape[-1] if is_last else shape[1]

    def flat(value: tf.Tensor) -> tf.Tensor:
        value = value if is_last else ops.moveaxis(value, 1, -1)
        return ops.reshape(value, (-1, math.prod(shape[1:]) // channels, channels))

    top = _largest(x.moved(flat), 1)
    target = ops.shape(layer.call(x.mean))
    return top.moved(lambda value: ops.reshape(value, (-1, *target[1:])))


@register(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)
def _maximum(layer: Any, x: Moments) -> Moments:
    is_last = layer.data_format == "channels_last"
    if not is_last:
        x = x.moved(lambda value: ops.moveaxis(value, 1, -1))
    windows = Moments(_windows(layer, x.mean, _LOWEST), _windows(layer, x.variance_or_zeros(), 0.0))
    top = _largest(windows, 1)
    return top if is_last else top.moved(lambda value: ops.moveaxis(value, -1, 1))


def _windows(layer: Any, x: tf.Tensor, outside: float) -> tf.Tensor:
    """The entries under every window, `[B, n, *positions, C]`, one strided slice per entry."""
    sizes = list(x.shape[1:-1])
    pads, counts = [], []
    for size, pool, stride in zip(sizes, layer.pool_size, layer.strides, strict=True):
        count = -(-size // stride) if layer.padding == "same" else (size - pool) // stride + 1
        total = max((count - 1) * stride + pool - size, 0) if layer.padding == "same" else 0
        pads.append([total // 2, total - total // 2])
        counts.append(count)
    x = tf.pad(x, [[0, 0], *pads, [0, 0]], constant_values=outside)
    slices = [
        x[
            (
                slice(None),
                *(
                    slice(o, o + s * (n - 1) + 1, s)
                    for o, s, n in zip(offsets, layer.strides, counts, strict=True)
                ),
            )
        ]
        for offsets in itertools.product(*map(range, layer.pool_size))
    ]
    return tf.stack(slices, axis=1)


def _largest(x: Moments, axis: int) -> Moments:
    """Moments of the maximum over an axis of known size."""
    while (size := int(x.mean.shape[axis])) > 1:
        half = size // 2
        pairs = larger(_taken(x, 0, half, axis), _taken(x, half, 2 * half, axis))
        x = pairs if size == 2 * half else _followed(pairs, _taken(x, 2 * half, size, axis), axis)
    return x.moved(lambda value: tf.squeeze(value, axis))


def _taken(x: Moments, start: int, stop: int, axis: int) -> Moments:
    return x.moved(lambda value: tf.gather(value, range(start, stop), axis=axis))


def _followed(x: Moments, y: Moments, axis: int) -> Moments:
    variance = tf.concat([x.variance_or_zeros(), y.variance_or_zeros()], axis)
    return Moments(tf.concat([x.mean, y.mean], axis), variance)
