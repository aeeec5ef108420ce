"""Layers that merge several inputs, which count as independent.

E sum_i x_i = sum_i mu_i            Var = sum_i v_i
E x y = mu nu                       Var = mu^2 w + nu^2 v + v w       v, w: variances of x, y
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.gaussian import rectified
from tfp_rank1.moments.registry import register

__all__ = ["added", "joined", "larger", "multiplied"]

layers = keras.layers


def _combined(parts: list[Moments], how: Callable[[Any], tf.Tensor]) -> tf.Tensor | None:
    """A function of the variances of several inputs; None if all are exact."""
    if all(p.is_exact for p in parts):
        return None
    return how([p.variance_or_zeros() for p in parts])


def added(x: Moments, y: Moments) -> Moments:
    """Moments of `x + y`."""
    if y.variance is None or x.variance is None:
        variance = y.variance if x.variance is None else x.variance
        # Broadcast as the means do.
        mean = x.mean + y.mean
        return Moments(mean, None if variance is None else variance + tf.zeros_like(mean))
    return Moments(x.mean + y.mean, x.variance + y.variance)


def multiplied(x: Moments, y: Moments) -> Moments:
    """Moments of `x y`."""
    mean = x.mean * y.mean
    if x.variance is None and y.variance is None:
        return Moments(mean)
    if y.variance is None:
        return Moments(mean, tf.square(y.mean) * x.variance)
    if x.variance is None:
        return Moments(mean, tf.square(x.mean) * y.variance)
    of_y = (tf.square(x.mean) + x.variance) * y.variance
    return Moments(mean, of_y + tf.square(y.mean) * x.variance)


def larger(x: Moments, y: Moments) -> Moments:
    """Moments of `max(x, y) = y + max(x - y, 0)` for independent normal x and y.

    With y the one of the greater mean, nothing large cancels; `Cov(y, max(x - y, 0)) = -w Phi`.

    Source: Clark (1961), "The Greatest of a Finite Set of Random Variables".
    """
    v, w = x.variance_or_zeros(), y.variance_or_zeros()
    distance, total = -tf.abs(x.mean - y.mean), v + w
    own = tf.where(y.mean >= x.mean, w, v)
    mean, variance, shared = rectified(distance, total)
    probability = shared / tf.maximum(total, 1e-30)
    spread = tf.nn.relu(own + variance - 2.0 * own * probability)
    return Moments(tf.maximum(x.mean, y.mean) + mean, spread)


def joined(parts: list[Moments], axis: int) -> Moments:
    """Moments of a concatenation."""
    mean = ops.concatenate([p.mean for p in parts], axis=axis)
    return Moments(mean, _combined(parts, lambda v: ops.concatenate(v, axis=axis)))


@register(layers.Add)
def _add(layer: Any, inputs: list[Moments]) -> Moments:
    return functools.reduce(added, inputs)


@register(layers.Subtract)
def _subtract(layer: Any, inputs: list[Moments]) -> Moments:
    x, y = inputs
    return added(x, y.scaled(-1.0))


@register(layers.Average)
def _average(layer: Any, inputs: list[Moments]) -> Moments:
    return functools.reduce(added, inputs).scaled(1.0 / len(inputs))


@register(layers.Multiply)
def _multiply(layer: Any, inputs: list[Moments]) -> Moments:
    return functools.reduce(multiplied, inputs)


@register(layers.Maximum)
def _maximum(layer: Any, inputs: list[Moments]) -> Moments:
    return functools.reduce(larger, inputs)


@register(layers.Minimum)
def _minimum(layer: Any, inputs: list[Moments]) -> Moments:
    return functools.reduce(larger, [x.scaled(-1.0) for x in inputs]).scaled(-1.0)


@register(layers.Concatenate)
def _concatenate(layer: Any, inputs: list[Moments]) -> Moments:
    return joined(list(inputs), layer.axis)
