"""A layer with members at every time step."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1.keras_internals import accepts_in_call
from tfp_rank1.serialization import registered

__all__ = [
    "TimeDistributedRank1",
]


@registered("tfp_rank1")
class TimeDistributedRank1(keras.layers.TimeDistributed):
    """`keras.layers.TimeDistributed` for a layer with members: every time step is a row.

        [K*B, T, ...] -> [K*B*T, ...] -> layer -> [K*B, T, ...]

    All time steps go through the layer in one call. The order of rows stays member-major. If the
    layer has `sampling="example"`, every time step has its own draw.

    Args:
        layer: any layer that takes `[K*B, ...]`.
        **kwargs: every argument of `keras.layers.TimeDistributed`.

    Input shape: `[K*B, T, ...]`, member-major.

    Output shape: `[K*B, T, ...]`.

    Raises:
        ValueError: if `layer` is no Keras layer.

    Example: `TimeDistributedRank1(Conv2DRank1(16, 3, ensemble_size=4))`
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        """Outputs of all time steps."""
        # The stock `call` calls the layer once per time step, in a Python loop where T is known.
        shape = ops.shape(inputs)
        kwargs: dict[str, Any] = {}
        if accepts_in_call(self.layer, "training"):
            kwargs["training"] = training
        if accepts_in_call(self.layer, "mask") and mask is not None:
            kwargs["mask"] = ops.reshape(mask, (-1, *ops.shape(mask)[2:]))
        outputs = self.layer(ops.reshape(inputs, (-1, *shape[2:])), **kwargs)
        return ops.reshape(outputs, (-1, shape[1], *ops.shape(outputs)[1:]))
