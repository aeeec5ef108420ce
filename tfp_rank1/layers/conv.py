"""Conv1DRank1, Conv2DRank1 and Conv3DRank1."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.keras_internals import causal_padding
from tfp_rank1.layers.rank1 import Rank1Mixin
from tfp_rank1.serialization import registered


class ConvRank1(Rank1Mixin):
    """The rank-independent part: r scales input channels, s scales output channels."""

    @property
    def _channel_axis(self) -> int:
        return -1 if self.data_format == "channels_last" else 1  # type: ignore[attr-defined]

    def build(self, input_shape: Any) -> None:
        """Create kernel, biases and factors."""
        channels = input_shape[self._channel_axis]
        self._build_rank1(input_shape, in_dim=channels, out_dim=self.filters)  # type: ignore[attr-defined]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Outputs under fresh draws of the factors, in training and inference alike."""
        x, seed = self._perturb_inputs(inputs, self._channel_axis)
        return self._finish(self._convolve(x), seed, self._channel_axis)

    def _convolve(self, x: tf.Tensor) -> tf.Tensor:
        return self.convolution_op(x, self.kernel)  # type: ignore[attr-defined]


@registered("tfp_rank1")
class Conv1DRank1(ConvRank1, keras.layers.Conv1D):
    """A 1-D convolution whose kernel is perturbed by random rank-1 matrices, one per member.

        y = activation( s_k o conv(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    r_k scales the input channels and s_k the filters, the same at every position.

    Args:
        filters: number of output channels.
        kernel_size: length of the window.
        **kwargs: every argument of `keras.layers.Conv1D` (strides, padding also `"causal"`,
            dilation_rate, groups, data_format, ...), and those of `tfp_rank1.layers.Rank1Mixin`.

    Input shape: `[K*B, steps, channels]`, or `[K*B, channels, steps]` if channels come first.

    Output shape: that of the stock layer.

    Raises:
        ValueError: if K does not divide the batch, for unknown names, or for a posterior whose
            KL from the prior is infinite.

    Example:
    ```python
    Conv1DRank1(32, 3, padding="causal", dilation_rate=2, ensemble_size=4)
    ```

    Source: Dusenberry et al. (2020).
    """

    def _convolve(self, x: tf.Tensor) -> tf.Tensor:
        padding = self.padding
        if padding == "causal":
            x, padding = ops.pad(x, causal_padding(self)), "valid"
        return ops.conv(
            x,
            self.kernel,
            strides=list(self.strides),
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@registered("tfp_rank1")
class Conv2DRank1(ConvRank1, keras.layers.Conv2D):
    """A 2-D convolution whose kernel is perturbed by random rank-1 matrices, one per member.

        y = activation( s_k o conv(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    r_k scales the input channels and s_k the filters, the same at every pixel.

    Args:
        filters: number of output channels.
        kernel_size: height and width of the window.
        **kwargs: every argument of `keras.layers.Conv2D`, and those of
            `tfp_rank1.layers.Rank1Mixin`.

    Input shape: `[K*B, height, width, channels]`, or `[K*B, channels, height, width]`.

    Output shape: that of the stock layer.

    Raises:
        ValueError: if K does not divide the batch, for unknown names, or for a posterior whose
            KL from the prior is infinite.

    Example:
    ```python
    Conv2DRank1(64, 3, padding="same", use_bias=False, ensemble_size=4)
    ```

    Source: Dusenberry et al. (2020).
    """


@registered("tfp_rank1")
class Conv3DRank1(ConvRank1, keras.layers.Conv3D):
    """A 3-D convolution whose kernel is perturbed by random rank-1 matrices, one per member.

        y = activation( s_k o conv(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    Args:
        filters: number of output channels.
        kernel_size: depth, height and width of the window.
        **kwargs: every argument of `keras.layers.Conv3D`, and those of
            `tfp_rank1.layers.Rank1Mixin`.

    Input shape: `[K*B, depth, height, width, channels]`, or with channels first.

    Output shape: that of the stock layer.

    Raises:
        ValueError: if K does not divide the batch, for unknown names, or for a posterior whose
            KL from the prior is infinite.

    Example:
    ```python
    Conv3DRank1(16, 3, strides=2, ensemble_size=4)
    ```

    Source: Dusenberry et al. (2020).
    """
