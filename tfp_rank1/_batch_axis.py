"""Whether an operation of a graph keeps the rows of a batch apart."""

from __future__ import annotations

from typing import Any

import keras


def check_batch_axis(operation: Any) -> None:
    """Refuse what works along the batch axis: its rows are those of all members here.

    Seen are an `axis` that is the first one, axes that change places with it, a flip or roll of
    all axes, and a batch of any size that becomes one of a fixed size, as by a mean over all axes.

    Args:
        operation: a layer or an operation of `keras.ops`, used in a graph.

    Raises:
        ValueError: naming the operation and its axis.
    """
    axes = _axes(operation)
    for node in operation._inbound_nodes:
        inputs, outputs = node.input_tensors, node.output_tensors
        # A reduction counts the axes of its input, `expand_dims` those of its output.
        rank = max(len(t.shape) for t in [*inputs, *outputs])
        is_first = _works_on_graph(node) and any(a in (0, -rank) for a in axes)
        # Of an input without a size of its own the output has none either.
        is_lost = any(_is_free(t) for t in inputs) and not all(_is_free(t) for t in outputs)
        if is_first or is_lost or _moves_rows(operation, rank):
            raise ValueError(
                "An operation along the batch axis would mix the members, whose rows are in one "
                "batch here. Leave it out of the model that is converted. Received: "
                f"{type(operation).__name__} {operation.name!r}, axis={list(axes) or None}, from "
                f"{[t.shape for t in inputs]} to {[t.shape for t in outputs]}"
            )


def _works_on_graph(node: Any) -> bool:
    """Whether the first argument, whose `axis` it is, has a batch: a constant table has none."""
    arguments = [*node.arguments.args, *node.arguments.kwargs.values()]
    return any(isinstance(v, keras.KerasTensor) for v in keras.tree.flatten(arguments[:1]))


_NAMES = "axis", "axis1", "axis2", "source", "destination"


def _axes(operation: Any) -> tuple[int, ...]:
    found = keras.tree.flatten([getattr(operation, name, None) for name in _NAMES])
    return tuple(a for a in found if isinstance(a, int))


def _moves_rows(operation: Any, rank: int) -> bool:
    """Whether rows change places: by a transposition, or a flip or roll of all axes."""
    kind = type(operation).__name__
    if kind == "Transpose":
        axes = operation.axes or range(rank)[::-1]
        return bool(axes[0] % rank)
    return kind in ("Flip", "Roll") and operation.axis is None


def _is_free(tensor: Any) -> bool:
    return len(tensor.shape) > 0 and tensor.shape[0] is None
