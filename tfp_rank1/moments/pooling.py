"""Pooling over positions, which share the noise of the weights before them.

An independent noise for every position would vanish in a mean over many positions, and the noise of
weights does not: all positions meet the same kernel. Positions of a channel therefore count as
moving together, `x_p = mu_p + s_p xi` with one normal xi per channel and example, and pooling is a
quadrature over xi.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.gaussian import over_nodes
from tfp_rank1.moments.registry import register

__all__ = ["moving_together"]

# Three nodes are exact for a mean, and enough for a maximum.
_NODES = 3

layers = keras.layers


def moving_together(function: Any, x: Moments) -> Moments:
    """Moments of a function whose arguments move together within every channel.

    Args:
        function: of one tensor; channels must not meet.
        x: moments of its argument.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    stddev = tf.sqrt(x.variance_or_zeros())
    values = tf.stack([function(x.mean + float(node) * stddev) for node in nodes])
    return Moments(*over_nodes(values, tf.constant(weights / weights.sum(), values.dtype)))


def _means_together(layer: Any, x: Moments) -> Moments:
    """A mean is linear: `Var = (mean of s_p)^2`."""
    return Moments(layer.call(x.mean), tf.square(layer.call(tf.sqrt(x.variance_or_zeros()))))


@register(
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
)
def _average(layer: Any, x: Moments) -> Moments:
    return _means_together(layer, x)


@register(layers.GlobalAveragePooling1D)
def _average_of_steps(layer: Any, x: Moments) -> Moments:
    mask = x.mask
    stddev = tf.sqrt(x.variance_or_zeros())
    return Moments(layer.call(x.mean, mask=mask), tf.square(layer.call(stddev, mask=mask)))


@register(
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
)
def _maximum(layer: Any, x: Moments) -> Moments:
    return moving_together(layer.call, x)
