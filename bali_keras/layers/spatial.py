"""`SpatialBali`, the base of all convolutions: the stock layer's arguments, and channels."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import ops

from bali_keras.layers.base import BaliLayer

__all__ = ["SpatialBali"]


class SpatialBali(BaliLayer):
    """A layer of positions and channels; a subclass gives the stock layer and its rank.

    Args:
        arguments: those of the stock layer's constructor that the config holds.
        **kwargs: as for `BaliLayer`.
    """

    spatial_rank: int
    stock: Any

    def __init__(self, arguments: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The stock layer normalises the arguments as Keras does, and refuses what Keras refuses.
        self._arguments = arguments
        stock = self._stock()
        for name in arguments:
            setattr(self, name, getattr(stock, name))

    def _stock(self) -> Any:
        return self.stock(**self._arguments, dtype="float32")

    def _channels(self, input_shape: Any) -> int:
        """The number of input channels.

        Raises:
            ValueError: if it is not known.
        """
        channels = input_shape[-1 if self.data_format == "channels_last" else 1]
        if channels is None:
            raise ValueError(
                f"{type(self).__name__} needs a channel axis of known size. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        return int(channels)

    def _channels_last(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs with the channels on the last axis."""
        return ops.moveaxis(inputs, 1, -1) if self.data_format == "channels_first" else inputs

    def _arrange(self, z: tf.Tensor) -> tf.Tensor:
        return ops.moveaxis(z, -1, 1) if self.data_format == "channels_first" else z

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the stock layer."""
        return self._stock().compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **{name: getattr(self, name) for name in self._arguments}}
