"""TileMembers and SplitMembers: where a model's members begin and end."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1 import scopes
from tfp_rank1.checks import whole
from tfp_rank1.layers.folding import check_rows, check_split, unfold
from tfp_rank1.serialization import registered

Shape = tuple[int | None, ...]


class _Members(keras.layers.Layer):
    """Shared constructor: K members, no weights."""

    def __init__(self, ensemble_size: int, **kwargs: Any) -> None:
        # Token ids and outputs in float32 keep their dtype: bfloat16 has no room for them.
        super().__init__(autocast=False, **kwargs)
        self.ensemble_size = whole("ensemble_size", ensemble_size)
        self.supports_masking = True

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The mask, folded or unfolded like the inputs."""
        return None if previous_mask is None else self.call(previous_mask)

    def get_config(self) -> dict[str, Any]:
        """The constructor arguments."""
        return {**super().get_config(), "ensemble_size": self.ensemble_size}


@registered("tfp_rank1")
class TileMembers(_Members):
    """Repeats the batch once per member: `[B, ...]` -> `[K*B, ...]`, row i of member i // B.

    Args:
        ensemble_size: number of members K, at least 1.

    Input shape: `[B, ...]`, any rank and dtype.

    Output shape: `[K*B, ...]`.

    Example:
    ```python
    x = inputs = keras.Input((64,))
    x = TileMembers(4)(x)
    x = DenseRank1(10, ensemble_size=4)(x)
    outputs = SplitMembers(4)(x)                   # [B, 4, 10]
    ```
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Tile the batch axis; where members split the batch, leave it as it is."""
        if scopes.split_members.value:
            return check_split(inputs, self.ensemble_size)
        return ops.concatenate([inputs] * self.ensemble_size, axis=0)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """`[B, ...]` -> `[K*B, ...]`."""
        rows = input_shape[0]
        return (None if rows is None else self.ensemble_size * rows, *input_shape[1:])


@registered("tfp_rank1")
class SplitMembers(_Members):
    """Gives every example its members' outputs: `[K*B, ...]` -> `[B, K, ...]`.

    Args:
        ensemble_size: number of members K, at least 1.

    Input shape: `[K*B, ...]`, member-major as `TileMembers` makes it.

    Output shape: `[B, K, ...]`.

    Raises:
        ValueError: if K does not divide the batch.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Unfold the batch axis and put the examples first."""
        if scopes.split_members.value:
            return inputs[:, tf.newaxis]
        inputs = check_rows(inputs, self.ensemble_size, self.name)
        return ops.swapaxes(unfold(inputs, self.ensemble_size), 0, 1)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """`[K*B, ...]` -> `[B, K, ...]`."""
        rows = input_shape[0]
        per_member = None if rows is None else rows // self.ensemble_size
        return (per_member, self.ensemble_size, *input_shape[1:])
