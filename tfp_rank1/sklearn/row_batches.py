"""Batches of the rows of arrays, in an order that follows from one seed."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfp_rank1.model.search_data import Examples

__all__ = ["RowBatches"]


class RowBatches(keras.utils.PyDataset):
    """Batches of inputs, targets and, if there are any, weights.

    Every epoch has an order of its own, which follows from the seed and the number of the epoch
    alone: those of `tf.data` depend on the global seed of TensorFlow too.

    Args:
        examples: inputs, targets, and weights or None.
        size: rows of a batch.
        seed: of the orders; None for the order of the rows. Defaults to None.
    """

    def __init__(self, examples: Examples, size: int, seed: int | None = None) -> None:
        super().__init__()
        self._examples, self._size, self._seed = examples, size, seed
        self._epoch = 0
        self._order = self._new_order()

    def _new_order(self) -> np.ndarray:
        if self._seed is None:
            return np.arange(len(self._examples))
        return np.random.default_rng((self._seed, self._epoch)).permutation(len(self._examples))

    def __len__(self) -> int:
        return -(-len(self._examples) // self._size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        rows = self._order[index * self._size : (index + 1) * self._size]
        return tuple(part for part in self._examples.take(rows) if part is not None)

    def on_epoch_end(self) -> None:
        """Go on to the order of the next epoch."""
        self._epoch += 1
        self._order = self._new_order()
