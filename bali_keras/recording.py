"""Records the inputs and pre-activations of every BALI layer in one forward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_rank1.random import fold_in, normal_rows
from tfp_rank1.scopes import recorder as recorder_scope

__all__ = ["Record", "Recorder", "current_recorder"]


class Record(NamedTuple):
    """One call of one layer on a batch, whose rows may have several axes.

    Attributes:
        inputs: H with its trailing 1, `[B, ..., d]`, or as the layer's `RowCovariance` stores rows.
        mean: `H M`, `[B, ..., k]`.
        outputs: the sampled pre-activations, mean plus noise, `[B, ..., k]`.
        variance: `h' L^-1 h`, `[B, ...]`.
        mask: `[B, ...]`, 1 for rows that are data and 0 for padding; None if all rows are data.
        source: zeros that were added to the pre-activations, `[B, ...,  k]`, where a loop hides
            these from the tape; None where the tape watches `outputs`.
    """

    inputs: tf.Tensor
    mean: tf.Tensor
    outputs: tf.Tensor
    variance: tf.Tensor
    mask: tf.Tensor | None = None
    source: tf.Tensor | None = None

    @property
    def watched(self) -> tf.Tensor:
        """What the gradient at the pre-activations is taken with respect to."""
        return self.outputs if self.source is None else self.source


class Recorder:
    """A context in which BALI layers record their calls and draw their noise by row.

    Args:
        tape: the active `tf.GradientTape`, which watches every recorded pre-activation.
        seed: seed of the step, int32 `[2]`, the same on all replicas.
        first_row: index in the global batch of this replica's first example. Defaults to 0.

    Attributes:
        records: the calls of every layer, in their order.

    Example:
    ```python
    with tf.GradientTape() as tape, bk.recording.Recorder(tape, seed) as recorder:
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
        """Standard normal numbers for one call of a layer.

        The numbers of an example depend on the seed and on the example's row in the global batch,
        so any number of replicas draws the same.

        Args:
            shape: `(B, ...)`.
        """
        # Another seed for every call: two layers of one width must not share their noise.
        self._draws += 1
        return normal_rows(self._first_row, shape, fold_in(self._seed, self._draws))

    def watch(self, outputs: tf.Tensor) -> None:
        """Have the tape watch pre-activations, for gradients with respect to them."""
        self._tape.watch(outputs)

    def record(self, layer: keras.layers.Layer, record: Record) -> None:
        """Add one call of a layer."""
        self.records.setdefault(layer, []).append(record)


def current_recorder() -> Recorder | None:
    """The recorder of the innermost active context in this thread; None outside of any."""
    return recorder_scope.value
