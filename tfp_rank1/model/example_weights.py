"""The number N of training examples by their sample weights."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

__all__ = ["largest", "weight_of", "weights_by_class"]


def weight_of(arguments: dict[str, Any], count: int) -> float:
    """N for a weighted `fit`: the total sample weight of the training examples.

    An example with a weight per target, or per output, counts by the largest of them.

    Args:
        arguments: the arguments of `keras.Model.fit`, by name.
        count: number of training examples, without those for validation.

    Returns:
        The sum of the sample weights, times the class weights; `count` if there are none.

    Raises:
        ValueError: for sample weights that are negative, not finite, or all 0.
    """
    x, class_weight = arguments.get("x"), arguments.get("class_weight")
    weights = np.ones(count)
    if isinstance(x, tf.data.Dataset):
        if class_weight is not None:
            raise ValueError(
                "With a dataset and `class_weight`, N cannot be counted. Put weights into the "
                "dataset, (x, y, sample_weight), or pass num_train_examples= to the model. "
                f"Received: class_weight={class_weight}"
            )
        weights = _dataset_weights(x, weights)
    if arguments.get("sample_weight") is not None:
        # Keras validates on the last examples, so the first `count` are those it trains on.
        weights = largest(arguments["sample_weight"])[:count]
    if class_weight is not None:
        weights = weights * weights_by_class(arguments["y"], class_weight)[:count]
    if not np.isfinite(weights).all() or (weights < 0.0).any() or weights.sum() == 0.0:
        raise ValueError(
            "Weights of examples must be finite and at least 0, and not all 0. Received: "
            f"min={np.min(weights)}, max={np.max(weights)}"
        )
    total = float(weights.sum())
    return int(total) if total.is_integer() else total


def _dataset_weights(dataset: tf.data.Dataset, weights: np.ndarray) -> np.ndarray:
    """The sample weights of a dataset, from one pass over it; `weights` if it has none."""
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) < 3 or spec[2] is None:
        return weights
    return np.concatenate([largest(batch[2]) for batch in dataset])


def weights_by_class(y: Any, class_weight: dict[int, float]) -> np.ndarray:
    """The weight of every example by its class, `[N]`, as Keras gives it.

    One-hot labels count by their largest entry, and a class that is not named has the weight 1.
    """
    labels = np.asarray(y)
    one_hot = labels.ndim == 2 and labels.shape[1] > 1
    labels = labels.argmax(axis=1) if one_hot else labels.reshape(-1)
    return np.array([class_weight.get(int(label), 1.0) for label in labels])


def largest(weights: Any) -> np.ndarray:
    """The weight by which an example counts, `[N]`: the largest of those of its targets.

    Args:
        weights: `[N]` or `[N, ...]`, or a structure of these by output.
    """
    arrays = [np.asarray(array, "float64") for array in keras.tree.flatten(weights)]
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(
            "Argument `sample_weight` must have an entry for every example, for each output. "
            f"Received: arrays of shapes {[array.shape for array in arrays]}"
        )
    return np.max([array.reshape(len(array), -1).max(axis=1) for array in arrays], axis=0)
