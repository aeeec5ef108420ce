"""Records what goes into and comes out of every BALI layer in one forward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_rank1.random import fold_in, normal_rows
from tfp_rank1.scopes import recorder as recorder_scope

__all__ = ["Record", "Recorder", "current_recorder"]


class Record(NamedTuple):
    """One call of one layer on a batch; rows may be laid out over several axes.

    Attributes:
        inputs: H with its trailing 1, `[B, ..., d]`.
        mean: `H M`, `[B, ..., k]`.
        outputs: the pre-activations that went on, mean plus noise, `[B, ..., k]`.
        variance: `h' L^-1 h`, `[B, ...]`.
        mask: `[B, ...]`, 0 for rows that are padding and no data; None where all are data.
    """

    inputs: tf.Tensor
    mean: tf.Tensor
    outputs: tf.Tensor
    variance: tf.Tensor
    mask: tf.Tensor | None = None


class Recorder:
    """A context in which BALI layers record their calls and draw their noise by row.

    Args:
        tape: the active `tf.GradientTape`; every recorded pre-activation is watched.
        seed: int32 `[2]` of the step, the same on all replicas.
        first_row: index in the global batch of the first example of this replica.

    Example:
    ```python
    with tf.GradientTape() as tape, Recorder(tape, seed) as recorder:
        loss = loss_of(model(x, training=True))
    recorder.records[layer]                       # list of `Record`, one per call
    ```
    """

    def __init__(
        self, tape: tf.GradientTape, seed: tf.Tensor, first_row: int | tf.Tensor = 0
    ) -> None:
        self.records: dict[keras.layers.Layer, list[Record]] = {}
        self._tape, self._seed, self._first_row = tape, seed, first_row
        self._draws = 0

    def __enter__(self) -> Recorder:
        self._scope = recorder_scope.set(self)
        return self._scope.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._scope.__exit__(*exception)

    def noise(self, shape: tuple[Any, ...]) -> tf.Tensor:
        """Standard normal numbers `[B, ...]`; an example's depend on its place in the batch."""
        self._draws += 1
        return normal_rows(self._first_row, shape, fold_in(self._seed, self._draws))

    def watch(self, outputs: tf.Tensor) -> None:
        """Make gradients with respect to pre-activations available."""
        self._tape.watch(outputs)

    def record(self, layer: keras.layers.Layer, record: Record) -> None:
        """Add one call."""
        self.records.setdefault(layer, []).append(record)


def current_recorder() -> Recorder | None:
    """The recorder of the innermost active context of this thread."""
    return recorder_scope.value
