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

__all__ = ["added", "joined", "larger", "multiplied", "of_one_dtype", "smaller", "subtracted"]

layers = keras.layers


def _combined(parts: list[Moments], how: Callable[[Any], tf.Tensor]) -> tf.Tensor | None:
    """A function of the variances of several inputs; None if all are exact."""
    if all(p.is_exact for p in parts):
        return None
    return how([p.variance_or_zeros() for p in parts])


def of_one_dtype(parts: list[Moments]) -> list[Moments]:
    """Several inputs in the widest of their dtypes, float32 at least; one object stays one."""
    dtypes = [p.mean.dtype for p in parts if p.mean.dtype.is_floating]
    dtype = tf.float64 if tf.float64 in dtypes else tf.float32
    cast = {id(p): p for p in parts}
    for key, part in cast.items():
        if part.mean.dtype != dtype:
            variance = None if part.variance is None else tf.cast(part.variance, dtype)
            cast[key] = Moments(tf.cast(part.mean, dtype), variance, part.mask)
    return [cast[id(p)] for p in parts]


def added(x: Moments, y: Moments) -> Moments:
    """Moments of `x + y`; of `2 x` for one and the same x."""
    if x is y:
        return x.scaled(2.0)
    if y.variance is None or x.variance is None:
        variance = y.variance if x.variance is None else x.variance
        # Broadcast as the means do.
        mean = x.mean + y.mean
        return Moments(mean, None if variance is None else variance + tf.zeros_like(mean))
    return Moments(x.mean + y.mean, x.variance + y.variance)


def subtracted(x: Moments, y: Moments) -> Moments:
    """Moments of `x - y`; 0 for one and the same x."""
    return x.scaled(0.0) if x is y else added(x, y.scaled(-1.0))


def multiplied(x: Moments, y: Moments) -> Moments:
    """Moments of `x y`; of `x^2` for one and the same normal x."""
    mean = x.mean * y.mean
    if x is y and x.variance is not None:
        v = x.variance
        return Moments(mean + v, 4.0 * mean * v + 2.0 * tf.square(v))
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
    if x is y:
        return x
    v, w = x.variance_or_zeros(), y.variance_or_zeros()
    distance, total = -tf.abs(x.mean - y.mean), v + w
    own = tf.where(y.mean >= x.mean, w, v)
    mean, variance, shared = rectified(distance, total)
    probability = shared / tf.maximum(total, 1e-30)
    spread = tf.nn.relu(own + variance - 2.0 * own * probability)
    return Moments(tf.maximum(x.mean, y.mean) + mean, spread)


def smaller(x: Moments, y: Moments) -> Moments:
    """Moments of `min(x, y)`."""
    return x if x is y else larger(x.scaled(-1.0), y.scaled(-1.0)).scaled(-1.0)


def joined(parts: list[Moments], axis: int) -> Moments:
    """Moments of a concatenation."""
    parts = of_one_dtype(parts)
    mean = ops.concatenate([p.mean for p in parts], axis=axis)
    return Moments(mean, _combined(parts, lambda v: ops.concatenate(v, axis=axis)))


def _merged(function: Callable[[Moments, Moments], Moments], inputs: list[Moments]) -> Moments:
    return functools.reduce(function, of_one_dtype(inputs))


@register(layers.Add)
def _add(layer: Any, inputs: list[Moments]) -> Moments:
    return _merged(added, inputs)


@register(layers.Subtract)
def _subtract(layer: Any, inputs: list[Moments]) -> Moments:
    return _merged(subtracted, inputs)


@register(layers.Average)
def _average(layer: Any, inputs: list[Moments]) -> Moments:
    return _merged(added, inputs).scaled(1.0 / len(inputs))


@register(layers.Multiply)
def _multiply(layer: Any, inputs: list[Moments]) -> Moments:
    return _merged(multiplied, inputs)


@register(layers.Maximum)
def _maximum(layer: Any, inputs: list[Moments]) -> Moments:
    return _merged(larger, inputs)


@register(layers.Minimum)
def _minimum(layer: Any, inputs: list[Moments]) -> Moments:
    return _merged(smaller, inputs)


@register(layers.Concatenate)
def _concatenate(layer: Any, inputs: list[Moments]) -> Moments:
    return joined(list(inputs), layer.axis)
