"""Categories of several columns as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1.checks import whole
from tfp_rank1.layers.per_feature import check_width
from tfp_rank1.serialization import registered

__all__ = ["CategoryEmbedding"]


@registered("tfp_rank1")
class CategoryEmbedding(keras.layers.Layer):
    """The codes of C columns as vectors side by side: `[B, C]` -> `[B, sum of sizes]`.

    A column with up to `dim` categories is one-hot, a column with more of them has a trained vector
    of `dim` entries for each; one-hot columns come first. A code outside of `0..cardinality-1`,
    such as -1, is an unknown category: a vector of zeros.

    Attributes:
        sizes: number of entries of every column, in the order of the outputs.

    Args:
        cardinalities: number of categories of every column, at least 1 each.
        dim: size of a trained vector. Defaults to 8. None for one-hot columns only.
        seed: integer for reproducible weights. Defaults to None.

    Input shape: `[B, C]`, whole numbers.

    Output shape: `[B, sum(sizes)]`.

    Raises:
        ValueError: for values out of range, or inputs of another width.

    Example:
    ```python
    inputs = keras.Input((3,), dtype="int32")
    h = r1.layers.CategoryEmbedding([2, 7, 100], dim=8)(inputs)          # [B, 2 + 7 + 8]
    ```
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int | None = 8,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.cardinalities = [whole("cardinalities", c) for c in cardinalities]
        if not self.cardinalities:
            raise ValueError(
                "Argument `cardinalities` must name at least one column. Received: cardinalities=[]"
            )
        self.dim, self.seed = None if dim is None else whole("dim", dim), seed
        counts = np.asarray(self.cardinalities)
        is_wide = np.zeros(len(counts), bool) if self.dim is None else counts > self.dim
        self._one_hot, self._trained = np.flatnonzero(~is_wide), np.flatnonzero(is_wide)
        self.sizes = [*map(int, counts[self._one_hot]), *[self.dim or 0] * len(self._trained)]

    def build(self, input_shape: Any) -> None:
        """Create the table of all columns with trained vectors, if there are any."""
        check_width(self, input_shape, len(self.cardinalities))
        self.table = None
        if len(self._trained):
            start = keras.initializers.RandomNormal(stddev=1.0, seed=self.seed)
            shape = (self._rows(self._trained)[-1], self.dim)
            self.table = self.add_weight(name="table", shape=shape, initializer=start)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The vectors, in the dtype that the layer computes in."""
        check_width(self, inputs.shape, len(self.cardinalities))
        codes = tf.cast(inputs, tf.int32)
        parts = []
        if len(self._one_hot):
            places, _ = self._places(codes, self._one_hot)
            width = self._rows(self._one_hot)[-1]
            # One-hot rows of all columns, each at its own entries; of -1 all are zero.
            parts.append(tf.reduce_sum(tf.one_hot(places, width, dtype=self.compute_dtype), 1))
        if len(self._trained):
            places, is_known = self._places(codes, self._trained)
            rows = tf.cast(tf.gather(self.table, tf.maximum(places, 0)), self.compute_dtype)
            rows *= tf.expand_dims(tf.cast(is_known, self.compute_dtype), -1)
            parts.append(tf.reshape(rows, [-1, rows.shape[1] * rows.shape[2]]))
        return tf.concat(parts, axis=-1)

    def _rows(self, columns: np.ndarray) -> np.ndarray:
        """Where the categories of these columns begin in a list of all, and its length."""
        return np.cumsum([0, *np.asarray(self.cardinalities)[columns]])

    def _places(self, codes: tf.Tensor, columns: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        """The place of every code in a list of all categories, -1 if unknown; and if it is known.

        Without the check a code beyond its column's would be a category of the next column.
        """
        code = tf.gather(codes, columns, axis=1)
        counts = np.asarray(self.cardinalities, "int32")[columns]
        is_known = (code >= 0) & (code < counts)
        places = code + self._rows(columns)[:-1].astype("int32")
        return tf.where(is_known, places, -1), is_known

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, C]` -> `[B, sum of sizes]`."""
        return (input_shape[0], int(np.sum(self.sizes)))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "cardinalities": self.cardinalities,
            "dim": self.dim,
            "seed": self.seed,
        }
