"""Conv1DTransposeBali, Conv2DTransposeBali and Conv3DTransposeBali."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from bali_keras.layers.patches import extract_patches, spread
from bali_keras.layers.spatial import SpatialBali
from tfp_rank1.checks import whole
from tfp_rank1.serialization import registered

__all__ = [
    "Conv1DTransposeBali",
    "Conv2DTransposeBali",
    "Conv3DTransposeBali",
]


class _ConvTransposeBali(SpatialBali):
    """Base of the transposed convolutions.

    A transposed convolution is a plain one, of the inputs with zeros between them and with the
    kernel turned round: every output position has one row of inputs.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        output_padding: Any = None,
        data_format: str | None = None,
        dilation_rate: Any = 1,
        **kwargs: Any,
    ) -> None:
        arguments = {
            "filters": whole("filters", filters),
            "kernel_size": kernel_size,
            "strides": strides,
            "padding": padding,
            "output_padding": output_padding,
            "data_format": data_format,
            "dilation_rate": dilation_rate,
        }
        super().__init__(arguments, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Create the posterior."""
        # The order of W: kernel elements, inputs, outputs. `kernel` puts outputs before inputs.
        shape = (*self.kernel_size, self._channels(input_shape), self.filters)
        self._build_posterior(shape, self.spatial_rank + 1)

    def _rows(self, inputs: tf.Tensor) -> tf.Tensor:
        inputs = self._channels_last(inputs)
        sizes = self._output_sizes(inputs)
        wide = spread(
            inputs, self.kernel_size, self.strides, self.dilation_rate, self.padding, sizes
        )
        ones = (1,) * self.spatial_rank
        return extract_patches(wide, self.kernel_size, ones, self.dilation_rate, "valid")

    def _linear(self, inputs: tf.Tensor, h: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        x = self._channels_last(ops.cast(inputs, weights.dtype))
        kernel = ops.reshape(weights[:-1] if self.use_bias else weights, self.kernel_shape)
        z = ops.conv_transpose(
            x,
            self._turned(kernel),
            self.strides,
            self.padding,
            self.output_padding,
            "channels_last",
            self.dilation_rate,
        )
        return z + weights[-1] if self.use_bias else z

    def _output_sizes(self, inputs: tf.Tensor) -> list[Any]:
        """The size of every spatial axis of the outputs, known or as a tensor."""
        sizes = list(inputs.shape[1:-1])
        known = [2**20 if n is None else n for n in sizes]  # sizes are linear in those of inputs
        shape = (None, *known, inputs.shape[-1])
        if self.data_format == "channels_first":
            shape = (None, inputs.shape[-1], *known)
        found = self._stock().compute_output_shape(shape)
        found = found[2:] if self.data_format == "channels_first" else found[1:-1]
        dynamic = tf.unstack(tf.shape(inputs)[1:-1])
        return [
            out if n is not None else stride * (now - 2**20) + out
            for out, n, now, stride in zip(found, sizes, dynamic, self.strides, strict=True)
        ]

    @property
    def kernel(self) -> tf.Tensor:
        """The posterior mean of the kernel, `[*kernel_size, filters, channels]`."""
        return self._turned(super().kernel)

    def as_matrix(self, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
        """As `BaliLayer.as_matrix`."""
        return super().as_matrix(self._turned(kernel), bias)

    def _turned(self, kernel: tf.Tensor) -> tf.Tensor:
        """A kernel with every spatial axis reversed, and its last two axes exchanged."""
        kernel = tf.reverse(kernel, list(range(self.spatial_rank)))
        return ops.swapaxes(kernel, -1, -2)


@registered("bali_keras")
class Conv1DTransposeBali(_ConvTransposeBali):
    """`keras.layers.Conv1DTranspose` with a matrix-normal posterior over its kernel.

        z_p = [inputs that reach position p, 1]' W,   W ~ MN(M, L^-1, V)

    Every output position is a row with the same W.

    Args:
        filters: k, number of output channels.
        kernel_size, strides, padding, output_padding, data_format, dilation_rate: as in the stock
            layer.
        **kwargs: as for `BaliLayer`.

    Call arguments:
        inputs: `[B, steps, channels]`, or `[B, channels, steps]` if channels come first.

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    spatial_rank = 1
    stock = keras.layers.Conv1DTranspose


@registered("bali_keras")
class Conv2DTransposeBali(_ConvTransposeBali):
    """`keras.layers.Conv2DTranspose` with a matrix-normal posterior over its kernel.

        z_p = [inputs that reach position p, 1]' W,   W ~ MN(M, L^-1, V)

    Every output position is a row with the same W.

    Args:
        filters: k, number of output channels.
        kernel_size, strides, padding, output_padding, data_format, dilation_rate: as in the stock
            layer.
        **kwargs: as for `BaliLayer`.

    Call arguments:
        inputs: `[B, height, width, channels]`, or `[B, channels, height, width]`.

    Example:
    ```python
    h = bk.layers.Conv2DTransposeBali(16, 3, strides=2, padding="same")(h)
    ```

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    spatial_rank = 2
    stock = keras.layers.Conv2DTranspose


@registered("bali_keras")
class Conv3DTransposeBali(_ConvTransposeBali):
    """`keras.layers.Conv3DTranspose` with a matrix-normal posterior over its kernel.

        z_p = [inputs that reach position p, 1]' W,   W ~ MN(M, L^-1, V)

    Every output position is a row with the same W.

    Args:
        filters: k, number of output channels.
        kernel_size, strides, padding, output_padding, data_format, dilation_rate: as in the stock
            layer.
        **kwargs: as for `BaliLayer`.

    Call arguments:
        inputs: `[B, depth, height, width, channels]`, or with channels first.

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    spatial_rank = 3
    stock = keras.layers.Conv3DTranspose
