"""Moments of activation functions of a normal pre-activation.

    E f = int f(m + s z) phi(z) dz,     Var f = int (f(m + s z) - E f)^2 phi(z) dz

Piecewise linear functions and the exponential have closed forms. For all others the integral is a
sum over nodes, see `gaussian.quadrature_nodes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.gaussian import (
    expm1,
    normal_pdf_cdf,
    over_nodes,
    quadrature_nodes,
    ratio,
    rectified,
)
from tfp_rank1.moments.registry import WAY_OUT, propagate, register

__all__ = ["activated", "clipped", "integrated", "leaky", "mean_slope", "softened", "with_shared"]

Function = Callable[[tf.Tensor], tf.Tensor]

layers, activations = keras.layers, keras.activations


def integrated(function: Function, x: Moments) -> Moments:
    """Moments of a function that acts entry by entry, by quadrature.

    Args:
        function: of one tensor.
        x: moments of its argument.
    """
    nodes, weights = quadrature_nodes()
    stddev = tf.sqrt(x.variance_or_zeros())
    points = tf.reshape(tf.constant(nodes, x.mean.dtype), [-1] + [1] * x.mean.shape.rank)
    values = tf.convert_to_tensor(function(x.mean + points * stddev))
    return Moments(*over_nodes(values, tf.constant(weights, values.dtype)))


def leaky(x: Moments, slope: Any) -> Moments:
    """Moments of `a x + (1 - a) max(x, 0)`; the slope a is 0 for a rectifier.

    Var = a^2 s^2 + (1 - a)^2 Var max(x, 0) + 2 a (1 - a) Cov(x, max(x, 0))
    """
    variance = x.variance_or_zeros()
    mean, above, shared = rectified(x.mean, variance)
    if isinstance(slope, float) and slope == 0.0:
        return Moments(mean, above)
    rest = 1.0 - slope
    spread = slope * slope * variance + rest * rest * above + 2.0 * slope * rest * shared
    return Moments(slope * x.mean + rest * mean, spread)


def clipped(x: Moments, low: float, high: float) -> Moments:
    """Moments of x clipped to a range: `low + max(x - low, 0) - max(x - high, 0)`.

    With `p = max(x - low, 0)` and `q = max(x - high, 0)` the covariance of p and q is
    `Var q + E q (high - E clip)`, because p is `q + high - low` wherever q is above 0.
    """
    variance = x.variance_or_zeros()
    mean_p, var_p, _ = rectified(x.mean - low, variance)
    mean_q, var_q, _ = rectified(x.mean - high, variance)
    mean = low + mean_p - mean_q
    return Moments(mean, tf.nn.relu(var_p - var_q - 2.0 * mean_q * (high - mean)))


def softened(x: Moments, axis: Any = -1) -> Moments:
    """Moments of a softmax, to first order around the softmax p of the means.

    Var p_i = p_i^2 ((1 - 2 p_i) v_i + sum_j p_j^2 v_j)
    """
    axis = list(axis) if isinstance(axis, (list, tuple)) else axis
    shifted = tf.exp(x.mean - tf.reduce_max(x.mean, axis=axis, keepdims=True))
    p = shifted / tf.reduce_sum(shifted, axis=axis, keepdims=True)
    variance = x.variance_or_zeros()
    shared = tf.reduce_sum(tf.square(p) * variance, axis=axis, keepdims=True)
    return Moments(p, tf.square(p) * tf.nn.relu((1.0 - 2.0 * p) * variance + shared))


def _exponential(x: Moments) -> Moments:
    """Moments of a log-normal: `exp(m + v / 2)` and `(exp(v) - 1) E^2`."""
    variance = x.variance_or_zeros()
    mean = tf.exp(x.mean + 0.5 * variance)
    return Moments(mean, expm1(variance) * tf.square(mean))


def _log_softmax(x: Moments) -> Moments:
    """To first order: `Var = v_i (1 - 2 p_i) + sum_j p_j^2 v_j`."""
    p, variance = tf.nn.softmax(x.mean), x.variance_or_zeros()
    shared = tf.reduce_sum(tf.square(p) * variance, axis=-1, keepdims=True)
    spread = tf.nn.relu((1.0 - 2.0 * p) * variance + shared)
    return Moments(tf.nn.log_softmax(x.mean), spread)


_CLOSED: dict[Any, Callable[[Moments], Moments]] = {
    activations.linear: lambda x: x,
    activations.relu: lambda x: leaky(x, 0.0),
    activations.leaky_relu: lambda x: leaky(x, 0.2),
    activations.relu6: lambda x: clipped(x, 0.0, 6.0),
    activations.hard_tanh: lambda x: clipped(x, -1.0, 1.0),
    activations.hard_sigmoid: lambda x: clipped(x, -3.0, 3.0).scaled(1.0 / 6.0, 0.5),
    activations.exponential: _exponential,
    activations.softmax: softened,
    activations.log_softmax: _log_softmax,
}


# Functions of Keras that call what serving formats lack, in other words.
_EXPRESSED: dict[Any, Function] = {
    activations.gelu: lambda z: z * normal_pdf_cdf(z)[1],
}


def activated(activation: Any, x: Moments) -> Moments:
    """Moments of an activation: a function of Keras, a function that acts entry by entry, a layer.

    Args:
        activation: the activation of a layer, or None.
        x: moments of the pre-activations.

    Raises:
        ValueError: for a function of the user's that mixes entries.
    """
    if activation is None or x.is_exact:
        if activation is None or isinstance(activation, keras.layers.Layer):
            return x if activation is None else propagate(activation, x)
        return Moments(tf.convert_to_tensor(activation(x.mean)))
    if isinstance(activation, keras.layers.Layer):
        return propagate(activation, x)
    if activation in _CLOSED:
        return _CLOSED[activation](x)
    _check_entry_by_entry(activation, x.mean.shape[-1] or 2)
    return integrated(_EXPRESSED.get(activation, activation), x)


def mean_slope(activation: Any, x: Moments) -> tf.Tensor:
    """`E f'(x) = Cov(f(x), x) / Var x` of a normal x, in the shape of x; 1 without an activation.

    To first order the covariance of two activations is that of the pre-activations times both
    slopes.

    Source: Stein (1981), "Estimation of the Mean of a Multivariate Normal Distribution".
    """
    if activation in (None, activations.linear):
        return tf.ones_like(x.mean)
    if activation is activations.softmax:  # of which a step of all entries changes nothing
        p = softened(x).mean
        return p * (1.0 - p)
    if activation is activations.relu:
        a, _ = ratio(x.mean, x.variance_or_zeros())
        return normal_pdf_cdf(a)[1]
    nodes, weights = quadrature_nodes()
    _, stddev = ratio(x.mean, x.variance_or_zeros())
    points = tf.reshape(tf.constant(nodes, x.mean.dtype), [-1] + [1] * x.mean.shape.rank)
    values = tf.convert_to_tensor(activation(x.mean + points * stddev))
    weighted = tf.reshape(tf.constant(weights, values.dtype), points.shape) * points
    return tf.reduce_sum(weighted * values, axis=0) / stddev


def with_shared(result: Moments, x: Moments, activation: Any) -> Moments:
    """The moments of an activation, with what its entries share to first order, by `mean_slope`."""
    if x.shared is None:
        return result
    slope, shared = mean_slope(activation, x), x.shared
    return dataclasses.replace(result, shared=lambda seen: shared(seen * slope[:, tf.newaxis]))


def _check_entry_by_entry(function: Any, width: int) -> None:
    """Refuse a function of which an entry of the result depends on another entry.

    Args:
        function: of a tensor `[B, width]`.
        width: number of entries of a row, which a function may know.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, width)).astype("float32")
    is_alone = True
    for column in (0, width - 1):
        other = rng.normal(size=x.shape).astype("float32")
        other[::2, column] = x[::2, column]  # every second row keeps this entry, and no other
        with tf.init_scope():
            first, second = (np.asarray(function(tf.constant(v))) for v in (x, other))
        is_alone &= first.shape == x.shape
        is_alone = is_alone and np.array_equal(first[::2, column], second[::2, column])
    if not is_alone:
        name = getattr(function, "__name__", type(function).__name__)
        raise ValueError(
            f"Moments pass through functions that act entry by entry, and {name!r} mixes entries. "
            "Put it into a layer and teach that layer by tfp_rank1.moments.register, or "
            f"{WAY_OUT}. Received: activation={name}"
        )


@register(layers.Activation)
def _activation(layer: Any, x: Moments) -> Moments:
    if layer.activation is activations.linear:
        return x
    return with_shared(activated(layer.activation, x), x, layer.activation)


@register(layers.ReLU)
def _relu(layer: Any, x: Moments) -> Moments:
    slope, threshold = float(layer.negative_slope), float(layer.threshold)
    if threshold:
        return integrated(layer, x)  # a jump
    if layer.max_value is None:
        found = leaky(x, slope)
        return found if slope else with_shared(found, x, activations.relu)
    if slope:
        return integrated(layer, x)
    return clipped(x, 0.0, float(layer.max_value))


@register(layers.LeakyReLU)
def _leaky_relu(layer: Any, x: Moments) -> Moments:
    return leaky(x, float(layer.negative_slope))


@register(layers.PReLU)
def _prelu(layer: Any, x: Moments) -> Moments:
    return leaky(x, tf.cast(tf.convert_to_tensor(layer.alpha), x.mean.dtype))


@register(layers.ELU)
def _elu(layer: Any, x: Moments) -> Moments:
    return integrated(
        lambda z: tf.where(z > 0.0, z, layer.alpha * (tf.exp(tf.minimum(z, 0.0)) - 1.0)), x
    )


@register(layers.Softmax)
def _softmax(layer: Any, x: Moments, mask: Moments | None = None) -> Moments:
    if mask is not None:
        penalty = (1.0 - tf.cast(mask.mean, x.mean.dtype)) * -1e9
        x = Moments(x.mean + penalty, x.variance)
    return softened(x, layer.axis)
