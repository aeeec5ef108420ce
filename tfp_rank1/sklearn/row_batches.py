"""Batches of the rows of arrays, in an order that follows from one seed."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

__all__ = ["RowBatches"]


class RowBatches(keras.utils.PyDataset):
    """Batches of inputs, targets and, if there are any, weights.

    Every epoch has an order of its own, which follows from the seed and the number of the epoch
    alone: those of `tf.data` depend on the global seed of TensorFlow too.

    Args:
        data: inputs (an array or a dict of arrays), targets, and weights or None.
        size: rows of a batch.
        seed: of the orders; None for the order of the rows. Defaults to None.
    """

    def __init__(self, data: tuple[Any, ...], size: int, seed: int | None = None) -> None:
        super().__init__()
        self._data = tuple(part for part in data if part is not None)
        self._count, self._size, self._seed = len(data[1]), size, seed
        self._epoch = 0
        self._order = self._new_order()

    def _new_order(self) -> np.ndarray:
        if self._seed is None:
            return np.arange(self._count)
        return np.random.default_rng((self._seed, self._epoch)).permutation(self._count)

    def __len__(self) -> int:
        return -(-self._count // self._size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        rows = self._order[index * self._size : (index + 1) * self._size]
        return tuple(keras.tree.map_structure(lambda a: a[rows], part) for part in self._data)

    def on_epoch_end(self) -> None:
        """Go on to the order of the next epoch."""
        self._epoch += 1
        self._order = self._new_order()
