"""Training examples that a search holds in memory: all of them, or as many as it may."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1.model.example_weights import largest, weights_by_class

__all__ = ["Examples", "in_memory"]

# A search on more examples than these finds the same, and takes longer.
_MOST_EXAMPLES, _MOST_BYTES = 4096, 2**28


class Examples(NamedTuple):
    """Training examples as arrays with the same first axis.

    Attributes:
        x: inputs, an array or a structure of arrays.
        y: targets, an array or, of several outputs, a structure of arrays.
        weights: sample weights, `[n]` or `[n, T]`, or a structure of these; None for 1.
    """

    x: Any
    y: Any
    weights: Any

    def __len__(self) -> int:
        return len(keras.tree.flatten(self.y)[0])

    def take(self, rows: np.ndarray) -> Examples:
        """The examples of the given rows, in their order."""
        return Examples(*(_mapped(lambda a: a[rows], part) for part in self))

    def first(self, count: int) -> Examples:
        """The first examples."""
        return self.take(np.arange(count))

    @property
    def total_weight(self) -> float:
        """N of these examples: the sum of their weights, each by the largest of its targets."""
        if self.weights is None:
            return float(len(self))
        return float(largest(self.weights).sum())

    def endless_batches(self, batch_size: int) -> tf.data.Dataset:
        """Batches in an order that is new in every round, the same in every run."""
        return self.dataset().shuffle(len(self), seed=0).repeat().batch(batch_size)

    def dataset(self) -> tf.data.Dataset:
        """`(x, y)` or `(x, y, weights)`, example by example."""
        parts = (self.x, self.y) if self.weights is None else tuple(self)
        return tf.data.Dataset.from_tensor_slices(parts)


def in_memory(arguments: dict[str, Any], count: int) -> Examples | None:
    """The examples of a `fit`, in an order of chance; None where they cannot be read twice.

    Args:
        arguments: the arguments of `keras.Model.fit`, by name.
        count: number of training examples, of which a validation split comes last in arrays.
    """
    x, y = arguments.get("x"), arguments.get("y")
    if isinstance(x, tf.data.Dataset | keras.utils.PyDataset):
        return _from_batches(x, count, arguments.get("class_weight"))
    leaves = keras.tree.flatten((x, y))
    if any(not isinstance(leaf, np.ndarray | tf.Tensor) for leaf in leaves):
        return None
    rows = np.random.default_rng(0).permutation(count)[: _limit(leaves)]
    weights = _weights(arguments, count)

    def chosen(array: Any) -> np.ndarray:
        return array[rows] if isinstance(array, np.ndarray) else tf.gather(array, rows).numpy()

    weights = _mapped(lambda a: a[rows], weights)
    return _with_repeated_together(Examples(_mapped(chosen, x), _mapped(chosen, y), weights))


def _with_repeated_together(examples: Examples) -> Examples:
    """The examples with equal inputs next to each other, so that they come into one fold.

    A row that is held out and trained on as well, such as one of a class that was oversampled,
    would praise whatever learns it by heart.
    """
    flat = [np.asarray(v).reshape(len(examples), -1) for v in keras.tree.flatten(examples.x)]
    keys = [b"".join(v[i].tobytes() for v in flat) for i in range(len(examples))]
    first: dict[bytes, int] = {}
    places = np.array([first.setdefault(key, i) for i, key in enumerate(keys)])
    return examples if len(first) == len(keys) else examples.take(np.argsort(places, kind="stable"))


def _mapped(function: Callable[..., Any], *structures: Any) -> Any:
    """`function` of every array in structures that are alike; None stays None."""
    if structures[0] is None:
        return None
    return keras.tree.map_structure(function, *structures)


def _limit(leaves: list[Any]) -> int:
    """Number of examples that a search may hold."""
    bytes_each = sum(4 * math.prod(int(n) for n in leaf.shape[1:]) for leaf in leaves)
    return max(1, min(_MOST_EXAMPLES, _MOST_BYTES // max(bytes_each, 1)))


def _weights(arguments: dict[str, Any], count: int) -> Any:
    """Sample weights times class weights, as Keras multiplies them, `[count]` or `[count, T]`."""
    given, by_class = arguments.get("sample_weight"), arguments.get("class_weight")
    if given is None and by_class is None:
        return None
    if keras.tree.is_nested(given):  # Keras takes class weights of a single output only
        return keras.tree.map_structure(lambda a: np.asarray(a, "float32")[:count], given)
    weights = np.ones(count, "float32") if given is None else np.asarray(given, "float32")[:count]
    if by_class is not None:
        found = weights_by_class(arguments["y"], by_class)[:count]
        weights = weights * found.astype("float32")
    return weights


def _from_batches(batches: Any, count: int, class_weight: Any) -> Examples | None:
    """The first examples of a dataset that can be read again, at most `count`.

    An endless dataset repeats its examples: beyond the first N, one would be held out and trained
    on at once. Class weights are multiplied in, as Keras does.
    """
    if isinstance(batches, tf.data.Dataset):
        iterator = iter(batches)
    else:
        iterator = (batches[i] for i in range(batches.num_batches or 0))
    parts: list[Examples] = []
    found, limit = 0, count
    for batch in iterator:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        leaves = keras.tree.flatten((x, y))
        if y is None or any(not isinstance(v, np.ndarray | tf.Tensor) for v in leaves):
            return None  # sparse or ragged
        if class_weight is not None:
            by_class = weights_by_class(y, class_weight).astype("float32")
            weights = by_class if weights is None else np.asarray(weights) * by_class
        limit = min(count, _limit(leaves))
        parts.append(Examples(*(_mapped(np.asarray, part) for part in (x, y, weights))))
        found += len(parts[-1])
        if found >= limit:
            break
    if not parts:
        return None
    joined = Examples(
        *(
            _mapped(lambda *arrays: np.concatenate(arrays), *part)
            for part in zip(*parts, strict=True)
        )
    )
    shuffled = joined.take(np.random.default_rng(0).permutation(found)[:limit])
    return _with_repeated_together(shuffled)
