"""N, the number of training examples: counted exactly or not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

__all__ = [
    "batch_size_of",
    "count_examples",
    "count_steps",
    "count_training_examples",
    "target_ranks",
]

_BATCH_SIZE = 32  # the default of Keras's `fit`


def count_examples(x: Any, validation_split: float = 0.0) -> int | None:
    """The number of training examples in what is given to `fit`.

    Arrays know their length. A finite `tf.data.Dataset` of batches is counted exactly: by its
    cardinality if its batches have one static size, else in one pass over the dataset.

    Args:
        x: the first argument of `fit`.
        validation_split: the fraction of arrays that `fit` holds out. Defaults to 0.

    Returns:
        N; None for a generator, an endless dataset or a dataset of unknown length.
    """
    if isinstance(x, tf.data.Dataset):
        return _count_dataset(x)
    arrays = [a for a in keras.tree.flatten(x) if hasattr(a, "shape") and len(a.shape) > 0]
    if not arrays:
        return None
    total = int(arrays[0].shape[0])
    # Keras splits in this way: the first floor(N (1 - split)) examples are for training.
    return math.floor(total * (1.0 - validation_split)) if validation_split else total


def _count_dataset(dataset: tf.data.Dataset) -> int | None:
    # TensorFlow says "endless" and "unknown" by negative numbers.
    batches = int(dataset.cardinality())
    if batches < 0:
        return None
    # A static size holds for every batch: where the last may be shorter, TensorFlow gives none.
    static = keras.tree.flatten(dataset.element_spec)[0].shape[0]
    if static is not None:
        return batches * int(static)

    def add_rows(count: tf.Tensor, *batch: Any) -> tf.Tensor:
        return count + tf.shape(keras.tree.flatten(batch)[0], out_type=tf.int64)[0]

    return int(dataset.reduce(tf.zeros((), tf.int64), add_rows))


def count_training_examples(model: Any, arguments: dict[str, Any]) -> int:
    """Number of training examples, whatever their weights; N where the data do not tell.

    Args:
        model: a `BayesianModel`.
        arguments: the arguments of `keras.Model.fit`, by name.
    """
    found = count_examples(arguments.get("x"), arguments.get("validation_split", 0.0))
    return int(model.num_train_examples or 0) if found is None else found


def batch_size_of(arguments: Mapping[str, Any]) -> int:
    """Number of examples per step of a `fit`; 32 where it is unknown.

    Args:
        arguments: the arguments of `keras.Model.fit`, by name.
    """
    x = arguments.get("x")
    if isinstance(x, tf.data.Dataset):
        static = keras.tree.flatten(x.element_spec)[0].shape
        return int(static[0]) if len(static) and static[0] is not None else _BATCH_SIZE
    return arguments.get("batch_size") or _BATCH_SIZE


def count_steps(arguments: dict[str, Any], count: int) -> int:
    """The number of steps of a `fit`; 0 where its arguments do not tell.

    Args:
        arguments: the arguments of `keras.Model.fit`, by name.
        count: number of training examples.
    """
    x = arguments.get("x")
    epochs = arguments.get("epochs", 1) - arguments.get("initial_epoch", 0)
    by_epoch = arguments.get("steps_per_epoch")
    if by_epoch is None and isinstance(x, tf.data.Dataset):
        by_epoch = max(int(x.cardinality()), 0)  # negative where unknown
    elif by_epoch is None and isinstance(x, keras.utils.PyDataset):
        by_epoch = x.num_batches or 0
    elif by_epoch is None:
        by_epoch = math.ceil(count / batch_size_of(arguments))
    return int(by_epoch) * int(epochs)


def target_ranks(x: Any, y: Any, sample_weight: Any = None) -> Any:
    """Ranks of targets and weights, given as arrays or within a dataset; None where not told."""
    if isinstance(x, tf.data.Dataset):
        spec = x.element_spec if isinstance(x.element_spec, tuple) else ()
        y, sample_weight = (*spec[1:3], None, None)[:2]

    def rank(targets: Any) -> int | None:
        shape = getattr(targets, "shape", None)
        if shape is None:
            return None
        # Keras makes a column of a Series of pandas.
        is_series = hasattr(targets, "iloc") and len(shape) == 1
        return len(shape) + int(is_series)

    return keras.tree.map_structure(rank, (y, sample_weight))
