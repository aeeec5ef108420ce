"""Layers that multiply by a kernel: `z = W'x + b`, `E z = W' mu + b`, `Var z = W^2' v`.

A linear map takes a layer, a tensor, and a function of the kernel: with the kernel itself it maps
means, with its squares variances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.keras_internals import causal_padding
from tfp_rank1.moments.activations import activated
from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.registry import WAY_OUT, register

__all__ = [
    "MAX_JOINT",
    "LinearMap",
    "covariance_behind",
    "covariance_of_dense",
    "has_joint",
    "is_dense",
    "linear_map_of",
    "mapped",
]

KernelFunction = Callable[[tf.Tensor], tf.Tensor]
LinearMap = Callable[[Any, tf.Tensor, KernelFunction], tf.Tensor]
# Up to this number of outputs a net's last layer has the covariance of all pairs of outputs.
MAX_JOINT = 32

layers = keras.layers


def _kernel(kernel: Any, x: tf.Tensor, of: KernelFunction) -> tf.Tensor:
    return of(tf.cast(tf.convert_to_tensor(kernel), x.dtype))


def check_kernel(layer: Any) -> None:
    """Refuse a layer of which the kernel is not what multiplies.

    Raises:
        ValueError: for a quantized layer.
    """
    mode = getattr(layer, "quantization_mode", None)
    if mode is not None:
        raise ValueError(
            f"Moments need the kernel of {type(layer).__name__} {layer.name!r}, and a quantized "
            f"layer has integers in its place: {WAY_OUT}. Received: quantization_mode={mode!r}"
        )


def _dense(layer: Any, x: tf.Tensor, of: KernelFunction) -> tf.Tensor:
    return ops.matmul(x, _kernel(layer.kernel, x, of))


def _einsum(layer: Any, x: tf.Tensor, of: KernelFunction) -> tf.Tensor:
    return ops.einsum(layer.equation, x, _kernel(layer.kernel, x, of))


def _convolve(layer: Any, x: tf.Tensor, of: KernelFunction) -> tf.Tensor:
    padding = layer.padding
    if padding == "causal":
        x, padding = ops.pad(x, causal_padding(layer)), "valid"
    return ops.conv(
        x,
        _kernel(layer.kernel, x, of),
        strides=list(layer.strides),
        padding=padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _transposed(layer: Any, x: tf.Tensor, of: KernelFunction) -> tf.Tensor:
    return ops.conv_transpose(
        x,
        _kernel(layer.kernel, x, of),
        strides=list(layer.strides),
        padding=layer.padding,
        output_padding=layer.output_padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _depthwise(layer: Any, x: tf.Tensor, of: KernelFunction) -> tf.Tensor:
    return ops.depthwise_conv(
        x,
        _kernel(layer.kernel, x, of),
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _separable(layer: Any, x: tf.Tensor, of: KernelFunction) -> tf.Tensor:
    # With a depth multiplier above 1 the square of a sum of products of both kernels would be
    # exact, and as large as the kernel of a full convolution.
    return ops.separable_conv(
        x,
        _kernel(layer.depthwise_kernel, x, of),
        _kernel(layer.pointwise_kernel, x, of),
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


_MAPS: dict[type, LinearMap] = {
    layers.Dense: _dense,
    layers.EinsumDense: _einsum,
    layers.Conv1D: _convolve,
    layers.Conv2D: _convolve,
    layers.Conv3D: _convolve,
    layers.Conv1DTranspose: _transposed,
    layers.Conv2DTranspose: _transposed,
    layers.Conv3DTranspose: _transposed,
    layers.DepthwiseConv1D: _depthwise,
    layers.DepthwiseConv2D: _depthwise,
    layers.SeparableConv1D: _separable,
    layers.SeparableConv2D: _separable,
}


def linear_map_of(layer: Any) -> LinearMap:
    """The linear map of a layer, by the class of Keras that it is or descends from."""
    return next(_MAPS[cls] for cls in type(layer).__mro__ if cls in _MAPS)


def mapped(layer: Any, x: Moments) -> Moments:
    """Moments of `W'x` for entries x that are independent, without a bias."""
    check_kernel(layer)
    linear = linear_map_of(layer)
    mean = linear(layer, x.mean, tf.identity)
    return Moments(mean, None if x.variance is None else linear(layer, x.variance, tf.square))


def is_dense(layer: Any) -> bool:
    """Whether a layer's linear map is a product of the last axis with `kernel`."""
    return linear_map_of(layer) is _dense


def has_joint(layer: Any) -> bool:
    """Whether the outputs of a linear layer get the covariance of all pairs."""
    return is_dense(layer) and layer.units <= MAX_JOINT


def covariance_of_dense(layer: Any, variance: tf.Tensor) -> tf.Tensor:
    """The covariance `W' diag(v) W`, `[B, ..., D, D]`, of the outputs of a dense layer.

    Args:
        layer: a layer with `is_dense`.
        variance: v of its inputs, `[B, ..., d]`.
    """
    return covariance_behind(tf.cast(tf.convert_to_tensor(layer.kernel), variance.dtype), variance)


def covariance_behind(kernel: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    """`K' diag(v) K`, `[B, ..., D, D]`, for a kernel `[d, D]` and variances `[B, ..., d]`."""
    size = int(kernel.shape[-1])
    pairs = tf.reshape(kernel[:, :, tf.newaxis] * kernel[:, tf.newaxis], [-1, size * size])
    flat = ops.matmul(variance, pairs)
    return tf.reshape(flat, tf.concat([tf.shape(flat)[:-1], [size, size]], axis=0))


@register(*_MAPS)
def _stock_linear(layer: Any, x: Moments) -> Moments:
    z = mapped(layer, x)
    variance, joint = x.variance, None
    if variance is not None and has_joint(layer):

        def joint() -> tf.Tensor:
            return covariance_of_dense(layer, variance)

    # The layer itself knows the shape of its bias.
    bias = getattr(layer, "bias", None)
    if bias is not None:
        channels_first = getattr(layer, "data_format", None) == "channels_first"
        z = Moments(_with_bias(z.mean, bias, channels_first), z.variance)
    is_linear = layer.activation is None or layer.activation is keras.activations.linear
    outputs = activated(layer.activation, z)
    return Moments(outputs.mean, outputs.variance, None, joint if is_linear else None)


def _with_bias(z: tf.Tensor, bias: Any, channels_first: bool) -> tf.Tensor:
    bias = tf.cast(tf.convert_to_tensor(bias), z.dtype)
    if channels_first and bias.shape.rank == 1:
        bias = tf.reshape(bias, [-1] + [1] * (z.shape.rank - 2))
    return z + bias
