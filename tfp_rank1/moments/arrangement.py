"""Layers that move, repeat or leave out numbers, and layers that only act in training."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.registry import register

__all__: list[str] = []

layers = keras.layers


@register(
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.Flatten,
    layers.Permute,
    layers.RepeatVector,
    layers.Reshape,
    layers.UpSampling1D,
    layers.UpSampling3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
)
def _arranged(layer: Any, x: Moments) -> Moments:
    return x.moved(layer.call)


@register(layers.UpSampling2D)
def _upsampled(layer: Any, x: Moments) -> Moments:
    """Copies; between pixels (bilinear and so on) neighbours count as moving together."""
    if layer.interpolation == "nearest" or x.variance is None:
        return x.moved(layer.call)
    stddev = layer.call(tf.sqrt(x.variance))
    return Moments(layer.call(x.mean), tf.square(stddev))


@register(
    layers.ActivityRegularization,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.AlphaDropout,
    Likelihood,
)
def _unchanged(layer: Any, x: Moments, training: bool = False) -> Moments:
    _refuse_training(layer, training)
    return Moments(x.mean, x.variance, None, x.joint)


@register(layers.Dropout)
def _dropped(layer: Any, x: Moments, training: bool = False) -> Moments:
    """Nothing; in a layer that is on in prediction as well, `Var = (mu^2 + v) / (1 - p) - mu^2`.

    Source: Gal & Ghahramani (2016), "Dropout as a Bayesian Approximation".
    """
    if not training or not layer.rate:
        return Moments(x.mean, x.variance, None, x.joint)
    if layer.noise_shape is not None:
        _refuse_training(layer, training)
    odds = layer.rate / (1.0 - layer.rate)
    variance = x.variance_or_zeros()
    return Moments(x.mean, variance + odds * (tf.square(x.mean) + variance))


@register(layers.Masking)
def _masking(layer: Any, x: Moments) -> Moments:
    is_data = tf.reduce_any(tf.not_equal(x.mean, layer.mask_value), axis=-1, keepdims=True)
    return Moments(tf.where(is_data, x.mean, 0.0), tf.where(is_data, x.variance_or_zeros(), 0.0))


def _refuse_training(layer: Any, training: bool) -> None:
    if training:
        raise ValueError(
            f"Moments know {type(layer).__name__} {layer.name!r} as a layer that acts in training "
            "only. Teach it a rule by tfp_rank1.moments.register, or ask for samples: "
            "method='samples'. Received: a call with training=True"
        )
