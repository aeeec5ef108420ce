"""SeparableConv1DBali and SeparableConv2DBali."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from bali_keras.layers.base import BaliLayer
from bali_keras.layers.conv import Conv1DBali, Conv2DBali
from bali_keras.layers.depthwise_conv import DepthwiseConv1DBali, DepthwiseConv2DBali
from tfp_rank1.serialization import registered

__all__ = [
    "SeparableConv1DBali",
    "SeparableConv2DBali",
]

# Arguments of `BaliLayer` that hold for both convolutions.
SHARED = "sampling", "prior_at_mean", "stored_prior", "statistics_dtype", "seed"


class _SeparableConvBali(keras.layers.Layer):
    """Base of the separable convolutions; a subclass gives the classes of the two within."""

    first: type[BaliLayer]
    second: type[BaliLayer]

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = 1,
        depth_multiplier: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "he_normal",
        pointwise_initializer: Any = "he_normal",
        bias_initializer: Any = "zeros",
        row_covariance: str | int = "auto",
        sampling: str | None = None,
        prior_at_mean: bool = False,
        stored_prior: bool = False,
        statistics_dtype: str | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        shared: dict[str, Any] = {
            "sampling": sampling,
            "prior_at_mean": prior_at_mean,
            "stored_prior": stored_prior,
            "statistics_dtype": statistics_dtype,
            "data_format": data_format,
            "dtype": self.dtype_policy,
        }
        self.depthwise = self.first(
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            depth_multiplier=depth_multiplier,
            dilation_rate=dilation_rate,
            depthwise_initializer=depthwise_initializer,
            use_bias=False,
            seed=seed,
            name="depthwise",
            **shared,
        )
        self.pointwise = self.second(
            filters=filters,
            kernel_size=1,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=pointwise_initializer,
            bias_initializer=bias_initializer,
            row_covariance=row_covariance,
            # Two layers of one seed would have the same draws.
            seed=None if seed is None else seed + 1,
            name="pointwise",
            **shared,
        )

    def build(self, input_shape: Any) -> None:
        """Create both posteriors."""
        self.depthwise.build(input_shape)
        self.pointwise.build(self.depthwise.compute_output_shape(input_shape))
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The pointwise convolution of the depthwise one."""
        return self.pointwise(self.depthwise(inputs, training=training), training=training)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the stock layer."""
        return self.pointwise.compute_output_shape(self.depthwise.compute_output_shape(input_shape))

    @property
    def use_bias(self) -> bool:
        """Whether the pointwise convolution has a bias."""
        return self.pointwise.use_bias

    @property
    def activation(self) -> Any:
        """The activation of the pointwise convolution."""
        return self.pointwise.activation

    @activation.setter
    def activation(self, activation: Any) -> None:
        self.pointwise.activation = activation

    def get_config(self) -> dict[str, Any]:
        first, second = self.depthwise.get_config(), self.pointwise.get_config()
        of_first = ("kernel_size", "strides", "padding", "depth_multiplier", "dilation_rate")
        of_second = ("filters", "activation", "use_bias", "bias_initializer", "row_covariance")
        return {
            **super().get_config(),
            **{name: first[name] for name in (*of_first, *SHARED, "data_format")},
            **{name: second[name] for name in of_second},
            "depthwise_initializer": first["depthwise_initializer"],
            "pointwise_initializer": second["kernel_initializer"],
        }


@registered("bali_keras")
class SeparableConv1DBali(_SeparableConvBali):
    """`keras.layers.SeparableConv1D` of two BALI layers, `depthwise` and `pointwise`.

        z = pointwise(depthwise(x)),   see `DepthwiseConv1DBali` and `Conv1DBali`

    Args:
        filters: k, number of output channels.
        kernel_size, strides, padding, data_format, dilation_rate, depth_multiplier: as in the stock
            layer.
        activation, use_bias: of the pointwise convolution; the depthwise one has neither.
        **kwargs: as for `BaliLayer`, for both.

    Call arguments:
        inputs: `[B, steps, channels]`, or `[B, channels, steps]` if channels come first.

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    first, second = DepthwiseConv1DBali, Conv1DBali


@registered("bali_keras")
class SeparableConv2DBali(_SeparableConvBali):
    """`keras.layers.SeparableConv2D` of two BALI layers, `depthwise` and `pointwise`.

        z = pointwise(depthwise(x)),   see `DepthwiseConv2DBali` and `Conv2DBali`

    Args:
        filters: k, number of output channels.
        kernel_size, strides, padding, data_format, dilation_rate, depth_multiplier: as in the stock
            layer.
        activation, use_bias: of the pointwise convolution; the depthwise one has neither.
        **kwargs: as for `BaliLayer`, for both.

    Call arguments:
        inputs: `[B, height, width, channels]`, or `[B, channels, height, width]`.

    Example:
    ```python
    h = bk.layers.SeparableConv2DBali(32, 3, padding="same", activation="relu")(h)
    ```

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    first, second = DepthwiseConv2DBali, Conv2DBali
