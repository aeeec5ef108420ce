"""Whether an operation of a graph keeps the rows of a batch apart."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np

from tfp_rank1.conversion.trial import (
    TOLERANCE,
    as_array,
    differ,
    tolerance_of,
    trial_of,
)
from tfp_rank1.keras_internals import accepts_in_call, calls_of, layers_of

__all__ = ["check_batch_axis", "check_training"]

# Layers of Keras that in training make a row of several rows, or of statistics of the whole batch.
_MIXING = keras.layers.MixUp, keras.layers.CutMix, keras.layers.Equalization


def check_training(layer: Any) -> None:
    """Refuse a layer, or one in it, that mixes the rows of a batch in training.

    `RandAugment` and `AugMix` equalize, too.

    Raises:
        ValueError: with the layer.
    """
    for part in layers_of(layer):
        if isinstance(part, _MIXING):
            raise ValueError(
                "In training this layer mixes the rows of a batch, and the targets stay as they "
                "are. Leave it out of the model, and apply it to images and labels of the data "
                f"set: dataset.map. Received: {type(part).__name__} {part.name!r}, in layer "
                f"{layer.name!r}"
            )


def check_batch_axis(operation: Any) -> None:
    """Refuse an operation along the batch axis, which holds the rows of all members.

    An operation is refused for an `axis` that is the batch axis or changes places with it, and for
    turning a batch of any size into an axis of fixed size, as a mean over all axes does. An
    operation of `keras.ops`, or a layer that is not Keras's own, is also tried out: no row of its
    results may depend on other rows or on their order.

    Args:
        operation: a layer or an operation of `keras.ops`, used in a graph.

    Raises:
        ValueError: with the operation, its axis and its shapes.
    """
    axes = _axes(operation)
    for node in calls_of(operation):
        inputs, outputs = node.input_tensors, node.output_tensors
        # A negative axis counts from the rank of the input in a reduction, and from the rank of
        # the output in `expand_dims`.
        rank = max(len(t.shape) for t in [*inputs, *outputs])
        is_first = _works_on_graph(node) and any(a in (0, -rank) for a in axes)
        # Where a batch of any size comes in, a batch of any size must go out.
        is_lost = any(_is_free(t) for t in inputs) and not all(_is_free(t) for t in outputs)
        if is_first or is_lost or _mixes_rows(operation, node):
            raise ValueError(
                "An operation along the batch axis would mix the members, whose rows are in one "
                "batch here. Leave it out of the model that is converted. Received: "
                f"{type(operation).__name__} {operation.name!r}, axis={list(axes) or None}, from "
                f"{[t.shape for t in inputs]} to {[t.shape for t in outputs]}"
            )


def _works_on_graph(node: Any) -> bool:
    """Whether an operation's first argument, to which its `axis` refers, is a batch.

    A constant table is no batch. A function that comes first, as in `associative_scan`, is skipped.
    """
    arguments = [*node.arguments.args, *node.arguments.kwargs.values()]
    values = [v for v in arguments if not callable(v)]
    return any(isinstance(v, keras.KerasTensor) for v in keras.tree.flatten(values[:1]))


_NAMES = "axis", "axis1", "axis2", "source", "destination"


def _axes(operation: Any) -> tuple[int, ...]:
    found = keras.tree.flatten([getattr(operation, name, None) for name in _NAMES])
    return tuple(a for a in found if isinstance(a, int))


# Sizes on which operations are tried out: rows of a batch, and axes without a static size.
_ROWS, _SIZE = 3, 4


def _mixes_rows(operation: Any, node: Any) -> bool:
    """Whether a row of an operation's results depends on other rows or on their order.

    The operation runs on rows (a, b, c) and on rows (c, a, d): its results for a must be equal, and
    its results for c.
    """
    is_layer = isinstance(operation, keras.layers.Layer)
    if is_layer and type(operation).__module__.split(".")[0] == "keras":
        return False  # Keras's own layers mix rows along an `axis` only
    try:
        with trial_of(operation) if is_layer else contextlib.nullcontext():
            first, second = _two_batches(node)
            before, again, after = (_run(operation, node, v) for v in (first, first, second))
    except Exception:  # the operation cannot take these sizes: axes and shapes have to decide
        return False
    tolerance = tolerance_of(operation) if is_layer else TOLERANCE
    results = zip(before, again, after, node.output_tensors, strict=True)
    return any(
        # What differs from call to call, such as noise, says nothing.
        _is_free(symbolic) and not differ(b, c, tolerance) and not _same_rows(b, a, tolerance)
        for b, c, a, symbolic in results
    )


def _two_batches(node: Any) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Values for a node's tensors by the tensors' ids: rows (a, b, c), and rows (c, a, d)."""
    rng = np.random.default_rng(0)
    first, second = {}, {}
    for tensor in node.input_tensors:
        rows = _example(tensor, rng, _ROWS + 1)
        is_batch = _is_free(tensor)
        first[id(tensor)] = rows[:_ROWS] if is_batch else rows[0]
        second[id(tensor)] = rows[[2, 0, 3]] if is_batch else rows[0]
    return first, second


def _example(tensor: Any, rng: np.random.Generator, rows: int) -> np.ndarray:
    """Values for `rows` rows of a batch, or for `rows` tensors without a batch axis."""
    shape = tensor.shape[1:] if _is_free(tensor) else tensor.shape
    shape = [rows, *(_SIZE if size is None else size for size in shape)]
    if keras.backend.is_float_dtype(tensor.dtype):
        return rng.uniform(0.1, 1.0, shape).astype("float32")
    return rng.integers(0, 2, shape).astype(tensor.dtype)


def _run(operation: Any, node: Any, values: dict[int, np.ndarray]) -> list[np.ndarray]:
    """All results of an operation, run on values in place of its symbolic tensors."""
    args, kwargs = keras.tree.map_structure(
        lambda v: keras.ops.convert_to_tensor(values[id(v)]) if id(v) in values else v,
        (list(node.arguments.args), dict(node.arguments.kwargs)),
    )
    if isinstance(operation, keras.layers.Layer) and accepts_in_call(operation, "training"):
        kwargs["training"] = False
    return [as_array(v) for v in keras.tree.flatten(operation(*args, **kwargs))]


def _same_rows(before: np.ndarray, after: np.ndarray, tolerance: float) -> bool:
    """Whether the results for a and for c are equal; each may consist of several rows."""
    if not len(before) or len(before) % _ROWS or before.shape != after.shape:
        return False
    (a, _, c), (c_after, a_after, _) = (v.reshape(_ROWS, -1) for v in (before, after))
    # Of some operations, such as `arccosh`, our trial values have no result: NaN in both places.
    return not differ(np.stack([a, c]), np.stack([a_after, c_after]), tolerance)


def _is_free(tensor: Any) -> bool:
    """Whether a tensor's first axis is a batch of any size."""
    return len(tensor.shape) > 0 and tensor.shape[0] is None
