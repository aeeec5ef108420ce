"""Where the members of a model begin and end: `TileMembers` and `SplitMembers`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfp_rank1 import scopes
from tfp_rank1.layers.folding import check_rows, check_split, resolve_members, unfold
from tfp_rank1.serialization import registered

__all__ = [
    "Shape",
    "SplitMembers",
    "TileMembers",
]

Shape = tuple[int | None, ...]


class _Members(keras.layers.Layer):
    """A layer without weights that only moves rows: constructor, mask and config."""

    def __init__(self, ensemble_size: int | None = None, **kwargs: Any) -> None:
        # Autocast would round float32 token ids and outputs to half precision.
        super().__init__(autocast=False, **kwargs)
        self.ensemble_size = resolve_members(ensemble_size, None, type(self).__name__)
        self.supports_masking = True

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The mask, with its rows moved like those of the inputs."""
        return None if previous_mask is None else self.call(previous_mask)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ensemble_size": self.ensemble_size}


@registered("tfp_rank1")
class TileMembers(_Members):
    """Repeats the batch once per member: `[B, ...]` -> `[K*B, ...]`, row i for member i // B.

    Args:
        ensemble_size: number of members K, at least 1. Defaults to None: that of the enclosing
            `with tfp_rank1.members(K):`, which must then be there.

    Input shape: `[B, ...]`, any rank and dtype.

    Output shape: `[K*B, ...]`.

    Raises:
        ValueError: unless K is a whole number of at least 1.

    Example:
    ```python
    x = inputs = keras.Input((64,))
    x = r1.layers.TileMembers(4)(x)
    x = r1.layers.DenseRank1(10, ensemble_size=4)(x)
    outputs = r1.layers.SplitMembers(4)(x)                   # [B, 4, 10]
    ```
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The tiled batch; the batch as it is where members share it (`member_batches="split"`)."""
        # Read member-major, `[B, ...]` is K shares of B / K rows: no row has to move.
        if scopes.split_members.value:
            return check_split(inputs, self.ensemble_size)
        return ops.concatenate([inputs] * self.ensemble_size, axis=0)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """`[B, ...]` -> `[K*B, ...]`."""
        rows = input_shape[0]
        return (None if rows is None else self.ensemble_size * rows, *input_shape[1:])


@registered("tfp_rank1")
class SplitMembers(_Members):
    """Gives every example the outputs of all its members: `[K*B, ...]` -> `[B, K, ...]`.

    Args:
        ensemble_size: number of members K, at least 1. Defaults to None: that of the enclosing
            `with tfp_rank1.members(K):`, which must then be there.

    Input shape: `[K*B, ...]`, member-major as `TileMembers` makes it.

    Output shape: `[B, K, ...]`.

    Raises:
        ValueError: unless K is a whole number of at least 1, and divides the number of rows.

    Example: `outputs = SplitMembers(4)(DenseRank1(10, ensemble_size=4)(h))`, `[B, 4, 10]`.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Outputs by example; one output per example where members share the batch."""
        # A row of a shared batch went through one member only.
        if scopes.split_members.value:
            return inputs[:, tf.newaxis]
        inputs = check_rows(inputs, self.ensemble_size, self.name)
        return ops.swapaxes(unfold(inputs, self.ensemble_size), 0, 1)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """`[K*B, ...]` -> `[B, K, ...]`."""
        rows = input_shape[0]
        per_member = None if rows is None else rows // self.ensemble_size
        return (per_member, self.ensemble_size, *input_shape[1:])
