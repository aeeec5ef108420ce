"""Batches of inputs from arrays, datasets, PyDatasets and iterators."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1.checks import rows_not_finite

__all__ = ["batches_of", "check_finite", "labelled_batches"]

Labelled = tuple[Any, Any, Any]


def batches_of(x: Any, batch_size: int) -> tuple[Iterator[Any], int | None]:
    """Batches of inputs, and their number if it is known.

    Args:
        x: an array, a structure of arrays, or batches, with or without targets. Sparse arrays (of
            SciPy or TensorFlow) and ragged ones are made dense, those of SciPy batch by batch.
        batch_size: examples per batch, for arrays.

    Returns:
        An iterator over batches without their targets, and the number of batches or None.

    Raises:
        ValueError: for endless batches, symbolic tensors, or anything else than arrays or batches.
    """
    if isinstance(x, tf.data.Dataset):
        count = int(x.cardinality())
        if count == tf.data.INFINITE_CARDINALITY:
            raise ValueError("Argument `x` must be finite. Received: a dataset without an end")
        return map(_inputs_of, x), count if count >= 0 else None
    if isinstance(x, keras.utils.PyDataset):
        if x.num_batches is None:
            raise ValueError("Argument `x` must be finite. Received: a PyDataset without a length")
        return (_inputs_of(x[i]) for i in range(x.num_batches)), x.num_batches
    if isinstance(x, Iterator):
        return map(_inputs_of, x), None
    leaves = keras.tree.flatten(x)
    if not leaves or not all(len(getattr(leaf, "shape", ())) for leaf in leaves):
        raise ValueError(
            "Argument `x` must be an array with a batch axis, a structure of such arrays, or "
            f"batches (tf.data.Dataset, keras.utils.PyDataset, iterator). Received: {type(x)}"
        )
    if any(tf.is_symbolic_tensor(leaf) for leaf in leaves if tf.is_tensor(leaf)):
        raise ValueError(
            "posterior_predictive returns numbers and cannot be part of a tf.function. Call it "
            "outside, or load what export_predictive writes, which can. Received: symbolic tensors"
        )
    x = keras.tree.map_structure(_sliceable, x)
    rows = keras.tree.flatten(x)[0].shape[0]

    def slices() -> Iterator[Any]:
        for start in range(0, rows, batch_size):
            part = slice(start, start + batch_size)
            yield keras.tree.map_structure(lambda a, part=part: _dense(a[part]), x)

    return slices(), math.ceil(rows / batch_size)


def labelled_batches(
    x: Any, y: Any, sample_weight: Any = None, batch_size: int = 128
) -> list[Labelled]:
    """Batches of inputs, targets and sample weights (or None), all of them.

    Args:
        x: as for `batches_of`; batches hold their targets, and weights if there are any.
        y: targets, for arrays; None with batches.
        sample_weight: weights, for arrays. Defaults to None: those of the batches, or none.
        batch_size: examples per batch, for arrays.

    Raises:
        ValueError: for inputs without targets, lengths that differ, no examples, or inputs that
            are not finite.
    """
    inputs = list(_labelled(x, y, sample_weight, batch_size))
    first_row = 0
    for batch, _, _ in inputs:
        first_row = check_finite(batch, first_row)
    if not first_row:
        raise ValueError("Argument `x` holds no examples. Received: an empty input")
    return inputs


def _labelled(x: Any, y: Any, sample_weight: Any, batch_size: int) -> Iterator[Labelled]:
    batches: Any = x
    if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset, Iterator)):
        if y is not None or sample_weight is not None:
            raise ValueError(
                "Batches hold their targets and weights: leave out `y` and `sample_weight`. "
                f"Received: x={x} with y or sample_weight"
            )
        _, count = batches_of(x, batch_size)  # refuses what has no end
        if isinstance(x, keras.utils.PyDataset):
            batches = (x[i] for i in range(count or 0))
        for batch in batches:
            inputs, targets, weights = keras.utils.unpack_x_y_sample_weight(batch)
            _require_targets(targets)
            yield keras.tree.map_structure(_dense, inputs), targets, weights
        return
    _require_targets(y)
    start = 0
    for inputs in batches_of(x, batch_size)[0]:
        stop = start + keras.tree.flatten(inputs)[0].shape[0]
        # Several outputs have a structure of targets.
        rows = [_rows_of(value, slice(start, stop)) for value in (y, sample_weight)]
        yield inputs, rows[0], rows[1]
        start = stop
    for name, given in (("y", y), ("sample_weight", sample_weight)):
        for value in keras.tree.flatten(given):
            if value is not None and len(value) != start:
                raise ValueError(
                    f"Arguments `x` and `{name}` must have as many rows. "
                    f"Received: {start} rows of x and {len(value)} of {name}"
                )


def _rows_of(arrays: Any, rows: slice) -> Any:
    """Some rows of every array in a structure; None stays None."""
    return keras.tree.map_structure(lambda a: None if a is None else a[rows], arrays)


def _require_targets(y: Any) -> None:
    if y is None:
        raise ValueError(
            "Targets are needed: give arrays x and y, or batches of pairs (x, y). Received: y=None"
        )


def _inputs_of(batch: Any) -> Any:
    """The inputs of a batch, which may come with targets and sample weights."""
    inputs = keras.utils.unpack_x_y_sample_weight(batch)[0]
    return keras.tree.map_structure(_dense, inputs)


def _is_scipy_sparse(array: Any) -> bool:
    """Whether an array is a matrix of scipy.sparse, which need not be installed."""
    return type(array).__module__.startswith("scipy.sparse")


def _sliceable(array: Any) -> Any:
    """An array whose rows can be sliced; SciPy's formats differ in that."""
    if _is_scipy_sparse(array):
        return array.tocsr()
    return array if isinstance(array, np.ndarray) or not tf.is_tensor(array) else _dense(array)


def _dense(array: Any) -> tf.Tensor:
    """An array as a dense tensor: a batch of a sparse table is small."""
    if _is_scipy_sparse(array):
        return tf.convert_to_tensor(array.toarray())
    if isinstance(array, tf.SparseTensor):
        return tf.sparse.to_dense(array)
    return array.to_tensor() if isinstance(array, tf.RaggedTensor) else tf.convert_to_tensor(array)


def check_finite(batch: Any, first_row: int) -> int:
    """Refuse a batch that holds NaN or infinity.

    Args:
        batch: a structure of tensors `[B, ...]`.
        first_row: index of the batch's first row among all rows of the input.

    Returns:
        The index of the row after the batch.

    Raises:
        ValueError: with the index of the first row that is not finite.
    """
    rows = 0
    for leaf in keras.tree.flatten(batch):
        values = np.asarray(leaf)
        rows = values.shape[0]
        bad = rows_not_finite(values)
        if not bad.any():
            continue
        raise ValueError(
            "The inputs of posterior_predictive must be finite; remove or impute these rows. "
            f"Received: NaN or infinity in {int(bad.sum())} rows of a batch, the first of them "
            f"row {first_row + int(np.argmax(bad))}"
        )
    return first_row + rows
