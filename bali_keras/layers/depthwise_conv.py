"""DepthwiseConv1DBali and DepthwiseConv2DBali."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from bali_keras.inference.rows import ChannelRows
from bali_keras.layers.patches import extract_patches
from bali_keras.layers.spatial import SpatialBali
from tfp_rank1.checks import whole
from tfp_rank1.serialization import registered

__all__ = [
    "DepthwiseConv1DBali",
    "DepthwiseConv2DBali",
]


class _DepthwiseConvBali(SpatialBali):
    """Base of the depthwise convolutions."""

    def __init__(
        self,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: Any = 1,
        depthwise_initializer: Any = "he_normal",
        **kwargs: Any,
    ) -> None:
        for name in ("row_covariance", "kernel_initializer"):
            if name in kwargs:
                raise ValueError(
                    f"{type(self).__name__} takes no `{name}`: its row covariance is that of every "
                    "channel by itself, and its initializer is `depthwise_initializer`. "
                    f"Received: {name}={kwargs[name]!r}"
                )
        arguments = {
            "kernel_size": kernel_size,
            "strides": strides,
            "padding": padding,
            "depth_multiplier": whole("depth_multiplier", depth_multiplier),
            "data_format": data_format,
            "dilation_rate": dilation_rate,
        }
        super().__init__(arguments, kernel_initializer=depthwise_initializer, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Create the posterior."""
        channels = self._channels(input_shape)
        self.num_channels, fan_in = channels, math.prod(self.kernel_size)
        multiplier = self.depth_multiplier
        width = fan_in + int(self.use_bias)
        rows = ChannelRows(channels, width, self._dtype_of_state())
        shape = (*self.kernel_size, channels, multiplier)
        self._create_posterior(shape, channels * multiplier, rows, multiplier, fan_in)

    def _rows(self, inputs: tf.Tensor) -> tf.Tensor:
        """`[B, *positions, channels, prod(kernel_size)]`."""
        how = self.kernel_size, self.strides, self.dilation_rate, self.padding
        patches = extract_patches(self._channels_last(inputs), *how)
        shape = ops.shape(patches)[:-1]
        by_place = ops.reshape(patches, (*shape, math.prod(self.kernel_size), self.num_channels))
        return ops.swapaxes(by_place, -1, -2)

    def _linear(self, inputs: tf.Tensor, h: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        # Without patches, whose gradient costs more than all else.
        x = self._channels_last(ops.cast(inputs, weights.dtype))
        shape = (self.num_channels, -1, self.depth_multiplier)
        kernel, bias = self._parts(ops.reshape(weights, shape))
        how = self.strides, self.padding, "channels_last", self.dilation_rate
        z = ops.depthwise_conv(x, kernel, *how)
        z = ops.reshape(z, (*ops.shape(z)[:-1], self.num_channels, self.depth_multiplier))
        return z if bias is None else z + bias

    def _parts(self, by_channel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """The kernel and the bias, `[C, multiplier]`, of W by channel, `[C, width, multiplier]`."""
        bias = by_channel[:, -1] if self.use_bias else None
        rows = by_channel[:, :-1] if self.use_bias else by_channel
        return ops.reshape(ops.swapaxes(rows, 0, 1), self.kernel_shape), bias

    def _arrange(self, z: tf.Tensor) -> tf.Tensor:
        size = self.num_channels * self.depth_multiplier
        return super()._arrange(ops.reshape(z, (*ops.shape(z)[:-2], size)))

    def _matrix(self, kernel: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
        """W, the rows of one channel after those of another, each with the channel's bias last."""
        columns = self.depth_multiplier
        kernel = ops.reshape(kernel, (-1, self.num_channels, columns))
        by_channel = ops.swapaxes(kernel, 0, 1)  # [C, fan_in, multiplier]
        if bias is not None:
            row = ops.reshape(bias, (self.num_channels, 1, columns))
            by_channel = ops.concatenate([by_channel, row], axis=1)
        return ops.reshape(by_channel, (-1, columns))

    def _by_channel(self) -> tf.Tensor:
        """The mean of W, `[C, width, multiplier]`."""
        mean = tf.convert_to_tensor(self.posterior_state.mean)
        return tf.reshape(mean, [self.num_channels, -1, self.depth_multiplier])

    @property
    def kernel(self) -> tf.Tensor:
        """The posterior mean of the kernel, `[*kernel_size, C, depth_multiplier]`."""
        return self._parts(self._by_channel())[0]

    @property
    def bias(self) -> tf.Tensor | None:
        """The posterior mean of the bias, `[C depth_multiplier]`; None without a bias."""
        bias = self._parts(self._by_channel())[1]
        return None if bias is None else tf.reshape(bias, [-1])

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        initializer = config.pop("kernel_initializer")
        del config["row_covariance"]
        return {**config, "depthwise_initializer": initializer}


@registered("bali_keras")
class DepthwiseConv1DBali(_DepthwiseConvBali):
    """`keras.layers.DepthwiseConv1D` with a matrix-normal posterior over its kernel.

        z_pc = [patch_pc, 1]' W_c,   W_c ~ MN(M_c, L_c^-1, V)

    Every channel c has weights W_c and a row precision L_c of its own; the `depth_multiplier`
    outputs of a channel share V.

    Args:
        kernel_size, strides, padding, depth_multiplier, data_format, dilation_rate: as in the stock
            layer.
        depthwise_initializer: initializer of the kernel's mean. Defaults to `"he_normal"`.
        **kwargs: as for `BaliLayer`, without `row_covariance`.

    Call arguments:
        inputs: `[B, steps, channels]`, or `[B, channels, steps]` if channels come first.

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    spatial_rank = 1
    stock = keras.layers.DepthwiseConv1D


@registered("bali_keras")
class DepthwiseConv2DBali(_DepthwiseConvBali):
    """`keras.layers.DepthwiseConv2D` with a matrix-normal posterior over its kernel.

        z_pc = [patch_pc, 1]' W_c,   W_c ~ MN(M_c, L_c^-1, V)

    Every channel c has weights W_c and a row precision L_c of its own; the `depth_multiplier`
    outputs of a channel share V.

    Args:
        kernel_size, strides, padding, depth_multiplier, data_format, dilation_rate: as in the stock
            layer.
        depthwise_initializer: initializer of the kernel's mean. Defaults to `"he_normal"`.
        **kwargs: as for `BaliLayer`, without `row_covariance`.

    Call arguments:
        inputs: `[B, height, width, channels]`, or `[B, channels, height, width]`.

    Example:
    ```python
    h = bk.layers.DepthwiseConv2DBali(3, padding="same", activation="relu")(inputs)
    ```

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    spatial_rank = 2
    stock = keras.layers.DepthwiseConv2D
