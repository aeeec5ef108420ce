"""Conv1DBali, Conv2DBali and Conv3DBali."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from bali_keras.layers.base import BaliLayer
from bali_keras.layers.patches import extract_patches
from tfp_rank1.checks import whole
from tfp_rank1.serialization import registered

__all__ = [
    "Conv1DBali",
    "Conv2DBali",
    "Conv3DBali",
]


class _ConvBali(BaliLayer):
    """Base of the convolutions; a subclass gives the number of spatial axes and the stock layer."""

    spatial_rank: int
    stock: Any

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
        super().__init__(**kwargs)
        self.filters = whole("filters", filters)
        # The stock layer normalises the arguments as Keras does, and refuses what Keras refuses.
        self._arguments = (filters, kernel_size, strides, padding, data_format, dilation_rate)
        stock = self._stock()
        self.kernel_size, self.strides = stock.kernel_size, stock.strides
        self.padding, self.dilation_rate = stock.padding, stock.dilation_rate
        self.data_format = stock.data_format

    def _stock(self) -> Any:
        return self.stock(*self._arguments, dtype="float32")

    def build(self, input_shape: Any) -> None:
        """Create the posterior."""
        channels = input_shape[-1 if self.data_format == "channels_last" else 1]
        if channels is None:
            raise ValueError(
                f"{type(self).__name__} needs a channel axis of known size. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self._build_posterior((*self.kernel_size, channels, self.filters), self.spatial_rank + 1)

    def _rows(self, inputs: tf.Tensor) -> tf.Tensor:
        if self.data_format == "channels_first":
            inputs = ops.moveaxis(inputs, 1, -1)
        return extract_patches(
            inputs, self.kernel_size, self.strides, self.dilation_rate, self.padding
        )

    def _linear(self, inputs: tf.Tensor, h: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        # Without patches, whose gradient costs more than all else.
        x = ops.cast(inputs, weights.dtype)
        x = ops.moveaxis(x, 1, -1) if self.data_format == "channels_first" else x
        padding = self.padding
        if padding == "causal":
            (size,), (dilation,) = self.kernel_size, self.dilation_rate
            x = ops.pad(x, [[0, 0], [dilation * (size - 1), 0], [0, 0]])
            padding = "valid"
        kernel = ops.reshape(weights[:-1] if self.use_bias else weights, self.kernel_shape)
        z = ops.conv(x, kernel, self.strides, padding, "channels_last", self.dilation_rate)
        return z + weights[-1] if self.use_bias else z

    def _arrange(self, z: tf.Tensor) -> tf.Tensor:
        return ops.moveaxis(z, -1, 1) if self.data_format == "channels_first" else z

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the stock layer."""
        return self._stock().compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "data_format": self.data_format,
            "dilation_rate": self.dilation_rate,
        }


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
    h = bali_keras.layers.Conv2DBali(16, 3, strides=2, activation="relu")(inputs)
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
