"""Layers that move, repeat or leave out numbers, and layers that only act in training."""

from __future__ import annotations

import dataclasses
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
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.AlphaDropout,
    Likelihood,
)
def _unchanged(layer: Any, x: Moments) -> Moments:
    return dataclasses.replace(x, mask=None)


@register(layers.Masking)
def _masking(layer: Any, x: Moments) -> Moments:
    is_data = tf.reduce_any(tf.not_equal(x.mean, layer.mask_value), axis=-1, keepdims=True)
    return Moments(tf.where(is_data, x.mean, 0.0), tf.where(is_data, x.variance_or_zeros(), 0.0))
