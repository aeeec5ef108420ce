"""Transposed convolutions whose kernels are perturbed by rank-1 matrices."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.layers.conv import ConvRank1
from tfp_rank1.layers.docstrings import fill_docstring
from tfp_rank1.serialization import registered

__all__ = [
    "Conv1DTransposeRank1",
    "Conv2DTransposeRank1",
    "Conv3DTransposeRank1",
]


class _ConvTransposeRank1(ConvRank1):
    """The part that transposed convolutions of all dimensions share."""

    def _convolve(self, x: tf.Tensor) -> tf.Tensor:
        # The stock layer has no method for its linear map without bias and activation.
        return ops.conv_transpose(
            x,
            self.kernel,
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@registered("tfp_rank1")
@fill_docstring
class Conv1DTransposeRank1(_ConvTransposeRank1, keras.layers.Conv1DTranspose):
    """A transposed 1-D convolution whose kernel is perturbed by random rank-1 matrices.

        y = activation( s_k o conv_transpose(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    {{convolution}}

    Example: `Conv1DTransposeRank1(16, 4, strides=2, padding="same", ensemble_size=4)`

    {{source}}
    """


@registered("tfp_rank1")
@fill_docstring
class Conv2DTransposeRank1(_ConvTransposeRank1, keras.layers.Conv2DTranspose):
    """A transposed 2-D convolution whose kernel is perturbed by random rank-1 matrices.

        y = activation( s_k o conv_transpose(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    {{convolution}}

    Example: `Conv2DTransposeRank1(32, 3, strides=2, padding="same", ensemble_size=4)`

    {{source}}
    """


@registered("tfp_rank1")
@fill_docstring
class Conv3DTransposeRank1(_ConvTransposeRank1, keras.layers.Conv3DTranspose):
    """A transposed 3-D convolution whose kernel is perturbed by random rank-1 matrices.

        y = activation( s_k o conv_transpose(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    {{convolution}}

    Example: `Conv3DTransposeRank1(8, 2, strides=2, ensemble_size=4)`

    {{source}}
    """
