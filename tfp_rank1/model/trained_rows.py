"""Which rows a model was trained on: held-out data must have none of them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np

__all__ = ["TrainedRows"]

# More rows, and more values of a row, are not looked at, which bounds time and memory.
_MOST_ROWS, _MOST_VALUES = 100_000, 256


class TrainedRows:
    """Hashes of the rows of arrays that were given to `fit`.

    Args:
        x: inputs of `fit`: an array or a structure of arrays; of others nothing is known.
        validation_split: the fraction of the last rows that `fit` held out. Defaults to 0.
    """

    def __init__(self, x: Any, validation_split: float = 0.0) -> None:
        found = _hashes(x)
        found = found[: math.floor(len(found) * (1.0 - validation_split))]
        rows = np.unique(found)
        # Rows of few columns with few values each may well be equal by chance.
        self._rows = rows if len(rows) > 0.9 * len(found) else rows[:0]

    def warn_if_among(self, x: Any, name: str) -> None:
        """Warn if more than half of the rows were trained on.

        Args:
            x: inputs that should be held out: arrays; others pass.
            name: of the method, for the message.
        """
        if not len(self._rows):
            return
        found = _hashes(x)
        count = int(np.isin(found, self._rows).sum())
        if 2 * count > len(found):
            warnings.warn(
                f"{count} of {len(found)} examples given to `{name}` are rows that `fit` trained "
                "on, where the model looks better than it is: give it examples that were held out",
                stacklevel=3,
            )


def _hashes(x: Any) -> np.ndarray:
    """A number for every row, `[N]`, of float32 values; none for what is no array."""
    leaves = keras.tree.flatten(x)
    if not leaves or not all(isinstance(v, np.ndarray) and v.ndim > 0 for v in leaves):
        return np.zeros(0, np.int64)
    count = min(_MOST_ROWS, *(len(v) for v in leaves))
    texts = [_bytes(v[:count]) for v in leaves]
    return np.array([hash(row) for row in zip(*texts, strict=True)], np.int64)


def _bytes(array: np.ndarray) -> list[bytes]:
    """Every row as bytes; numbers of one value have the same, whatever their precision was."""
    rows = array.reshape(len(array), math.prod(array.shape[1:]))
    rows = rows[:, :: max(1, rows.shape[1] // _MOST_VALUES)]
    if rows.dtype.kind in "biuf":
        rows = rows.astype("float32")
    return [row.tobytes() for row in rows]
