"""Sizes of inputs and targets that the priors of a net, and its optimizer, do not expect."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import keras
import numpy as np

from tfp_rank1.keras_internals import input_structure, nodes_in_order
from tfp_rank1.layers import TileMembers

__all__ = ["Sizes", "warn_of_input_size", "warn_of_target_size"]


class Sizes(NamedTuple):
    """Within which sizes a net learns as at size 1, or nearly so; beyond, it stays at the mean of
    the targets or away from it. Measured on tables.

    Attributes:
        inputs: the least and the largest root mean square of the largest column.
        targets: the least and the largest standard deviation.
    """

    inputs: tuple[float, float]
    targets: tuple[float, float]


# Targets far from 0, in standard deviations.
FARTHEST = 20.0
_VALUES = 2**22  # of which sizes are taken
# Layers that hand on values of the same size.
_SAME_SIZE = (
    TileMembers,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Permute,
    keras.layers.RepeatVector,
    keras.layers.Reshape,
)


def warn_of_input_size(model: Any, x: Any) -> None:
    """Warn of inputs of another size than 1 that go into Bayesian kernels as they are.

    The size of an input is the largest root mean square of its columns. Nets that scale by
    themselves, by `Rescaling` or `Normalization`, take inputs of any size.

    Args:
        model: a model; one without a graph passes.
        x: inputs: an array or a structure of arrays; what is no array passes.
    """
    first, arrays = _first_layers(model), keras.tree.flatten(x)
    if len(first) != len(arrays):
        return
    for operations, array in zip(first.values(), arrays, strict=True):
        values = _numbers(array)
        # Of embeddings the inputs are indices, which have no size.
        kernels = [v for v in operations if getattr(v, "input_dim", None) is None]
        if values is None or not any(isinstance(v, model.bayesian_layer) for v in kernels):
            continue
        size = float(np.sqrt(np.max(np.mean(_columns(values) ** 2, axis=0), initial=0.0)))
        least, most = model.sizes.inputs
        if size and not least <= size <= most:
            warnings.warn(
                f"Inputs of size {size:.3g} (root mean square of the largest column) go into a "
                "layer whose prior and initial weights are for size 1: it may learn nothing. Scale "
                "each column, (x - mean) / standard deviation of the training part, or let the net "
                "do it by keras.layers.Normalization or Rescaling",
                stacklevel=4,
            )


def warn_of_target_size(sizes: Sizes, likelihood: Any, y: Any, sample_weight: Any = None) -> None:
    """Warn of numbers as targets that are far from unit size, or from 0.

    Args:
        sizes: of the model.
        likelihood: that of the targets; of classes and counts, and where the unit is a parameter of
            the targets (`least` above minus infinity), nothing is expected.
        y: targets; what is no array passes.
        sample_weight: `[N]` or `[N, targets]`; targets of weight 0 may be anything.
    """
    values = _numbers(y)
    if values is None or likelihood.discrete or likelihood.predicts_probabilities:
        return
    if np.isfinite(likelihood.least):
        return
    weights = _numbers(sample_weight)
    if weights is not None:
        weights = weights.reshape(*weights.shape, *([1] * (values.ndim - weights.ndim)))
        values = np.where(weights[: len(values)] > 0.0, values, np.nan)
    least, most = sizes.targets
    for column in _columns(values).T:
        column = column[np.isfinite(column)]
        size, center = (float(column.std()), float(column.mean())) if len(column) else (0.0, 0.0)
        if size and (not least <= size <= most or abs(center) > FARTHEST * size):
            warnings.warn(
                f"Targets have mean {center:.3g} and standard deviation {size:.3g}, and nets are "
                "made for targets around 0 of unit size: it may learn nothing. Fit to (y - mean) / "
                "standard deviation of the training part and scale answers back, as "
                "`tfp_rank1.sklearn` and `bali_keras.sklearn` do",
                stacklevel=4,
            )
            return


def _numbers(array: Any) -> np.ndarray | None:
    """The first rows as float64, some millions of values; None for what is no array of numbers."""
    if not hasattr(array, "__array__") or not getattr(array, "shape", ()):
        return None
    rows = max(1, _VALUES // max(1, math.prod(array.shape[1:])))
    values = np.asarray(array[:rows])
    return values.astype("float64") if values.size and values.dtype.kind in "iuf" else None


def _columns(values: np.ndarray) -> np.ndarray:
    """Values `[N, ..., D]` or `[N]` as `[rows, D]` or `[rows, 1]`."""
    return values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)


def _first_layers(model: Any) -> dict[int, list[Any]]:
    """The layers that see the values of an input as they are, by the id of its tensor."""
    inputs = keras.tree.flatten(input_structure(model))
    root_of = {id(tensor): id(tensor) for tensor in inputs}
    found: dict[int, list[Any]] = {id(tensor): [] for tensor in inputs}
    for node in nodes_in_order(model):
        roots = {root_of[id(v)] for v in node.input_tensors if id(v) in root_of}
        for root in roots:
            if isinstance(node.operation, _SAME_SIZE):
                root_of |= {id(v): root for v in node.outputs}
            else:
                found[root].append(node.operation)
    return found
