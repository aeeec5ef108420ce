"""Depthwise and separable convolutions whose kernels are perturbed by rank-1 matrices."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.layers.conv import ConvRank1
from tfp_rank1.layers.docstrings import fill_docstring
from tfp_rank1.serialization import registered

__all__ = [
    "DepthwiseConv1DRank1",
    "DepthwiseConv2DRank1",
    "SeparableConv1DRank1",
    "SeparableConv2DRank1",
]


class _DepthwiseConvRank1(ConvRank1):
    """The part that depthwise convolutions share: s has `channels * depth_multiplier` entries."""

    def build(self, input_shape: Any) -> None:
        """Create kernel, biases and factors."""
        channels = input_shape[self._channel_axis]
        outputs = channels * self.depth_multiplier
        self._build_rank1(input_shape, in_dim=channels, out_dim=outputs)

    def _convolve(self, x: tf.Tensor) -> tf.Tensor:
        # The stock layer has no method for its linear map without bias and activation.
        return ops.depthwise_conv(
            x,
            self.kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


class _SeparableConvRank1(ConvRank1):
    """The part that separable convolutions share: two convolutions that are one linear map."""

    def _convolve(self, x: tf.Tensor) -> tf.Tensor:
        # r and s perturb the product of both kernels: no factor stands between the convolutions.
        return ops.separable_conv(
            x,
            self.depthwise_kernel,
            self.pointwise_kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@registered("tfp_rank1")
@fill_docstring
class DepthwiseConv1DRank1(_DepthwiseConvRank1, keras.layers.DepthwiseConv1D):
    """A depthwise 1-D convolution whose kernel is perturbed by random rank-1 matrices.

        y = activation( s_k o depthwise(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    {{depthwise_convolution}}

    Example: `DepthwiseConv1DRank1(3, padding="same", ensemble_size=4)`

    {{source}}
    """


@registered("tfp_rank1")
@fill_docstring
class DepthwiseConv2DRank1(_DepthwiseConvRank1, keras.layers.DepthwiseConv2D):
    """A depthwise 2-D convolution whose kernel is perturbed by random rank-1 matrices.

        y = activation( s_k o depthwise(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    {{depthwise_convolution}}

    Example: `DepthwiseConv2DRank1(3, strides=2, padding="same", ensemble_size=4)`

    {{source}}
    """


@registered("tfp_rank1")
@fill_docstring
class SeparableConv1DRank1(_SeparableConvRank1, keras.layers.SeparableConv1D):
    """A depthwise and a pointwise 1-D convolution, perturbed as one by random rank-1 matrices.

        y = activation( s_k o pointwise(depthwise(x o r_k, W), P) + b_k )

    Both convolutions together are one convolution, with the product of the kernels W and P.

    {{convolution}}

    Example: `SeparableConv1DRank1(32, 3, padding="same", ensemble_size=4)`

    {{source}}
    """


@registered("tfp_rank1")
@fill_docstring
class SeparableConv2DRank1(_SeparableConvRank1, keras.layers.SeparableConv2D):
    """A depthwise and a pointwise 2-D convolution, perturbed as one by random rank-1 matrices.

        y = activation( s_k o pointwise(depthwise(x o r_k, W), P) + b_k )

    Both convolutions together are one convolution, with the product of the kernels W and P.

    {{convolution}}

    Example: `SeparableConv2DRank1(64, 3, padding="same", ensemble_size=4)`

    {{source}}
    """
