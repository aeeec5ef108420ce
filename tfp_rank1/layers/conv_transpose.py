"""Conv1DTransposeRank1, Conv2DTransposeRank1 and Conv3DTransposeRank1."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.layers.conv import ConvRank1
from tfp_rank1.serialization import registered


class _ConvTransposeRank1(ConvRank1):
    """The rank-independent part."""

    def _convolve(self, x: tf.Tensor) -> tf.Tensor:
        return ops.conv_transpose(
            x,
            self.kernel,  # type: ignore[attr-defined]
            strides=list(self.strides),  # type: ignore[attr-defined]
            padding=self.padding,  # type: ignore[attr-defined]
            output_padding=self.output_padding,  # type: ignore[attr-defined]
            dilation_rate=self.dilation_rate,  # type: ignore[attr-defined]
            data_format=self.data_format,  # type: ignore[attr-defined]
        )


@registered("tfp_rank1")
class Conv1DTransposeRank1(_ConvTransposeRank1, keras.layers.Conv1DTranspose):
    """A transposed 1-D convolution whose kernel is perturbed by random rank-1 matrices.

        y = activation( s_k o conv_transpose(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    Args:
        filters: number of output channels.
        kernel_size: length of the window.
        **kwargs: every argument of `keras.layers.Conv1DTranspose`, and those of
            `tfp_rank1.layers.Rank1Mixin`.

    Input shape: `[K*B, steps, channels]`, or with channels first.

    Output shape: that of the stock layer.

    Raises:
        ValueError: as for `Conv2DRank1`.

    Example:
    ```python
    Conv1DTransposeRank1(16, 4, strides=2, padding="same", ensemble_size=4)
    ```

    Source: Dusenberry et al. (2020).
    """


@registered("tfp_rank1")
class Conv2DTransposeRank1(_ConvTransposeRank1, keras.layers.Conv2DTranspose):
    """A transposed 2-D convolution whose kernel is perturbed by random rank-1 matrices.

        y = activation( s_k o conv_transpose(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    Args:
        filters: number of output channels.
        kernel_size: height and width of the window.
        **kwargs: every argument of `keras.layers.Conv2DTranspose`, and those of
            `tfp_rank1.layers.Rank1Mixin`.

    Input shape: `[K*B, height, width, channels]`, or with channels first.

    Output shape: that of the stock layer.

    Raises:
        ValueError: as for `Conv2DRank1`.

    Example:
    ```python
    Conv2DTransposeRank1(32, 3, strides=2, padding="same", ensemble_size=4)
    ```

    Source: Dusenberry et al. (2020).
    """


@registered("tfp_rank1")
class Conv3DTransposeRank1(_ConvTransposeRank1, keras.layers.Conv3DTranspose):
    """A transposed 3-D convolution whose kernel is perturbed by random rank-1 matrices.

        y = activation( s_k o conv_transpose(x o r_k, W) + b_k ),   r_k ~ q(r_k), s_k ~ q(s_k)

    Args:
        filters: number of output channels.
        kernel_size: depth, height and width of the window.
        **kwargs: every argument of `keras.layers.Conv3DTranspose`, and those of
            `tfp_rank1.layers.Rank1Mixin`.

    Input shape: `[K*B, depth, height, width, channels]`, or with channels first.

    Output shape: that of the stock layer.

    Raises:
        ValueError: as for `Conv2DRank1`.

    Example:
    ```python
    Conv3DTransposeRank1(8, 2, strides=2, ensemble_size=4)
    ```

    Source: Dusenberry et al. (2020).
    """
