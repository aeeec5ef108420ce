"""Depthwise and separable convolutions with rank-1 factors."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.layers.conv import ConvRank1
from tfp_rank1.serialization import registered


class _DepthwiseConvRank1(ConvRank1):
    """The rank-independent part: s scales the `channels * depth_multiplier` outputs."""

    def build(self, input_shape: Any) -> None:
        """Create kernel, biases and factors."""
        channels = input_shape[self._channel_axis]
        outputs = channels * self.depth_multiplier  # type: ignore[attr-defined]
        self._build_rank1(input_shape, in_dim=channels, out_dim=outputs)

    def _convolve(self, x: tf.Tensor) -> tf.Tensor:
        return ops.depthwise_conv(
            x,
            self.kernel,  # type: ignore[attr-defined]
            strides=self.strides,  # type: ignore[attr-defined]
            padding=self.padding,  # type: ignore[attr-defined]
            dilation_rate=self.dilation_rate,  # type: ignore[attr-defined]
            data_format=self.data_format,  # type: ignore[attr-defined]
        )


class _SeparableConvRank1(ConvRank1):
    """The rank-independent part: the two convolutions are one linear map."""

    def _convolve(self, x: tf.Tensor) -> tf.Tensor:
        return ops.separable_conv(
            x,
            self.depthwise_kernel,  # type: ignore[attr-defined]
            self.pointwise_kernel,  # type: ignore[attr-defined]
            strides=self.strides,  # type: ignore[attr-defined]
            padding=self.padding,  # type: ignore[attr-defined]
            dilation_rate=self.dilation_rate,  # type: ignore[attr-defined]
            data_format=self.data_format,  # type: ignore[attr-defined]
        )


@registered("tfp_rank1")
class DepthwiseConv1DRank1(_DepthwiseConvRank1, keras.layers.DepthwiseConv1D):
    """A depthwise 1-D convolution with random factors on its channels.

        y = activation( s_k o depthwise(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    Args:
        kernel_size: length of the window.
        **kwargs: every argument of `keras.layers.DepthwiseConv1D`, and those of
            `tfp_rank1.layers.Rank1Mixin`.

    Input shape: `[K*B, steps, channels]`, or with channels first.

    Output shape: that of the stock layer.

    Raises:
        ValueError: as for `Conv2DRank1`.

    Example:
    ```python
    DepthwiseConv1DRank1(3, padding="same", ensemble_size=4)
    ```

    Source: Dusenberry et al. (2020).
    """


@registered("tfp_rank1")
class DepthwiseConv2DRank1(_DepthwiseConvRank1, keras.layers.DepthwiseConv2D):
    """A depthwise 2-D convolution with random factors on its channels.

        y = activation( s_k o depthwise(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    Args:
        kernel_size: height and width of the window.
        **kwargs: every argument of `keras.layers.DepthwiseConv2D`, and those of
            `tfp_rank1.layers.Rank1Mixin`.

    Input shape: `[K*B, height, width, channels]`, or with channels first.

    Output shape: that of the stock layer.

    Raises:
        ValueError: as for `Conv2DRank1`.

    Example:
    ```python
    DepthwiseConv2DRank1(3, strides=2, padding="same", use_bias=False, ensemble_size=4)
    ```

    Source: Dusenberry et al. (2020).
    """


@registered("tfp_rank1")
class SeparableConv1DRank1(_SeparableConvRank1, keras.layers.SeparableConv1D):
    """A depthwise and a pointwise 1-D convolution, together perturbed by rank-1 matrices.

        y = activation( s_k o pointwise(depthwise(x o r_k, W), P) + b_k )

    Together they are one convolution, of kernel W P: r_k scales its input channels, s_k its
    filters.

    Args:
        filters: number of output channels.
        kernel_size: length of the window.
        **kwargs: every argument of `keras.layers.SeparableConv1D`, and those of
            `tfp_rank1.layers.Rank1Mixin`.

    Input shape: `[K*B, steps, channels]`, or with channels first.

    Output shape: that of the stock layer.

    Raises:
        ValueError: as for `Conv2DRank1`.

    Example:
    ```python
    SeparableConv1DRank1(32, 3, padding="same", ensemble_size=4)
    ```

    Source: Dusenberry et al. (2020).
    """


@registered("tfp_rank1")
class SeparableConv2DRank1(_SeparableConvRank1, keras.layers.SeparableConv2D):
    """A depthwise and a pointwise 2-D convolution, together perturbed by rank-1 matrices.

        y = activation( s_k o pointwise(depthwise(x o r_k, W), P) + b_k )

    Together they are one convolution, of kernel W P: r_k scales its input channels, s_k its
    filters.

    Args:
        filters: number of output channels.
        kernel_size: height and width of the window.
        **kwargs: every argument of `keras.layers.SeparableConv2D`, and those of
            `tfp_rank1.layers.Rank1Mixin`.

    Input shape: `[K*B, height, width, channels]`, or with channels first.

    Output shape: that of the stock layer.

    Raises:
        ValueError: as for `Conv2DRank1`.

    Example:
    ```python
    SeparableConv2DRank1(64, 3, padding="same", ensemble_size=4)
    ```

    Source: Dusenberry et al. (2020).
    """
