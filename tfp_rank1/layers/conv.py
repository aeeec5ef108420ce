"""Convolutions whose kernels are perturbed by rank-1 matrices, in one to three dimensions."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.keras_internals import causal_padding
from tfp_rank1.layers.docstrings import fill_docstring
from tfp_rank1.layers.rank1 import Axes, Rank1Mixin
from tfp_rank1.serialization import registered

__all__ = [
    "Conv1DRank1",
    "Conv2DRank1",
    "Conv3DRank1",
    "ConvRank1",
]


class ConvRank1(Rank1Mixin):
    """The part that convolutions of all dimensions share: r on input, s on output channels."""

    @property
    def _channel_axis(self) -> int:
        return -1 if self.data_format == "channels_last" else 1

    @property
    def factor_axes(self) -> tuple[Axes, Axes, Axes]:
        return self._channel_axis, self._channel_axis, self._channel_axis

    def build(self, input_shape: Any) -> None:
        """Create kernel, biases and factors."""
        channels = input_shape[self._channel_axis]
        self._build_rank1(input_shape, in_dim=channels, out_dim=self.filters)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Outputs under fresh draws of the factors, in training and inference alike."""
        x, seed = self._perturb_inputs(inputs, self._channel_axis)
        return self._finish(self._convolve(x), seed, self._channel_axis)

    def _convolve(self, x: tf.Tensor) -> tf.Tensor:
        # The stock `call` would also add a bias, of one row for all members, and the activation.
        return self.convolution_op(x, self.kernel)


@registered("tfp_rank1")
@fill_docstring
class Conv1DRank1(ConvRank1, keras.layers.Conv1D):
    """A 1-D convolution whose kernel is perturbed by random rank-1 matrices, one per member.

        y = activation( s_k o conv(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    {{convolution}}

    Example: `Conv1DRank1(32, 3, padding="causal", dilation_rate=2, ensemble_size=4)`

    {{source}}
    """

    def _convolve(self, x: tf.Tensor) -> tf.Tensor:
        # The stock layer pads causally in `call`, not in `convolution_op`.
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
@fill_docstring
class Conv2DRank1(ConvRank1, keras.layers.Conv2D):
    """A 2-D convolution whose kernel is perturbed by random rank-1 matrices, one per member.

        y = activation( s_k o conv(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    {{convolution}}

    Example: `Conv2DRank1(64, 3, padding="same", use_bias=False, ensemble_size=4)`

    {{source}}
    """


@registered("tfp_rank1")
@fill_docstring
class Conv3DRank1(ConvRank1, keras.layers.Conv3D):
    """A 3-D convolution whose kernel is perturbed by random rank-1 matrices, one per member.

        y = activation( s_k o conv(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    {{convolution}}

    Example: `Conv3DRank1(16, 3, strides=2, ensemble_size=4)`

    {{source}}
    """
