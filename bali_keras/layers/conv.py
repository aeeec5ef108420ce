"""Conv1DBali, Conv2DBali and Conv3DBali."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from bali_keras.layers.patches import extract_patches
from bali_keras.layers.spatial import SpatialBali
from tfp_rank1.checks import whole
from tfp_rank1.serialization import registered

__all__ = [
    "Conv1DBali",
    "Conv2DBali",
    "Conv3DBali",
]


class _ConvBali(SpatialBali):
    """Base of the convolutions."""

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = 1,
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("groups", 1) != 1:
            raise ValueError(
                f"{type(self).__name__} has no groups: each would need a posterior of its own. "
                "Split the channels and use one layer per group. Received: groups other than 1"
            )
        arguments = {
            "filters": whole("filters", filters),
            "kernel_size": kernel_size,
            "strides": strides,
            "padding": padding,
            "data_format": data_format,
            "dilation_rate": dilation_rate,
        }
        super().__init__(arguments, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Create the posterior."""
        shape = (*self.kernel_size, self._channels(input_shape), self.filters)
        self._build_posterior(shape, self.spatial_rank + 1)

    def _rows(self, inputs: tf.Tensor) -> tf.Tensor:
        how = self.kernel_size, self.strides, self.dilation_rate, self.padding
        return extract_patches(self._channels_last(inputs), *how)

    def _linear(self, inputs: tf.Tensor, h: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        # Without patches, whose gradient costs more than all else.
        x = self._channels_last(ops.cast(inputs, weights.dtype))
        padding = self.padding
        if padding == "causal":
            (size,), (dilation,) = self.kernel_size, self.dilation_rate
            x = ops.pad(x, [[0, 0], [dilation * (size - 1), 0], [0, 0]])
            padding = "valid"
        kernel = ops.reshape(weights[:-1] if self.use_bias else weights, self.kernel_shape)
        z = ops.conv(x, kernel, self.strides, padding, "channels_last", self.dilation_rate)
        return z + weights[-1] if self.use_bias else z


@registered("bali_keras")
class Conv1DBali(_ConvBali):
    """`keras.layers.Conv1D` with a matrix-normal posterior over its kernel.

        z_p = [patch_p, 1]' W,   W ~ MN(M, L^-1, V),   L = L0 + N * average over examples of
                                                              sum_p patch_p patch_p'

    Every position is a row with the same W; an example contributes all of its positions.

    Args:
        filters: k, number of output channels.
        kernel_size, strides, padding, data_format, dilation_rate: as in the stock layer.
        **kwargs: as for `BaliLayer`.

    Call arguments:
        inputs: `[B, steps, channels]`, or `[B, channels, steps]` if channels come first.

    Raises:
        ValueError: for `groups` other than 1, and for what the stock layer refuses.

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    spatial_rank = 1
    stock = keras.layers.Conv1D


@registered("bali_keras")
class Conv2DBali(_ConvBali):
    """`keras.layers.Conv2D` with a matrix-normal posterior over its kernel.

        z_p = [patch_p, 1]' W,   W ~ MN(M, L^-1, V),   L = L0 + N * average over examples of
                                                              sum_p patch_p patch_p'

    Every position is a row with the same W; an example contributes all of its positions.

    Args:
        filters: k, number of output channels.
        kernel_size, strides, padding, data_format, dilation_rate: as in the stock layer.
        **kwargs: as for `BaliLayer`.

    Call arguments:
        inputs: `[B, height, width, channels]`, or `[B, channels, height, width]`.

    Raises:
        ValueError: for `groups` other than 1, and for what the stock layer refuses.

    Example:
    ```python
    h = bk.layers.Conv2DBali(16, 3, strides=2, activation="relu")(inputs)
    ```

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    spatial_rank = 2
    stock = keras.layers.Conv2D


@registered("bali_keras")
class Conv3DBali(_ConvBali):
    """`keras.layers.Conv3D` with a matrix-normal posterior over its kernel.

        z_p = [patch_p, 1]' W,   W ~ MN(M, L^-1, V),   L = L0 + N * average over examples of
                                                              sum_p patch_p patch_p'

    Every position is a row with the same W; an example contributes all of its positions.

    Args:
        filters: k, number of output channels.
        kernel_size, strides, padding, data_format, dilation_rate: as in the stock layer.
        **kwargs: as for `BaliLayer`.

    Call arguments:
        inputs: `[B, depth, height, width, channels]`, or with channels first.

    Raises:
        ValueError: for `groups` other than 1, and for what the stock layer refuses.

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    spatial_rank = 3
    stock = keras.layers.Conv3D
