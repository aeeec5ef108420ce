"""The output layer of a Normal likelihood, which is integrated out in closed form."""

from __future__ import annotations

from typing import Any

import keras

from bali_keras.layers._bali import BaliLayer
from tfp_rank1.likelihoods import Normal


def exact_output_layer(model: Any) -> BaliLayer | None:
    """The linear BALI layer whose outputs are the means of the model's Normal likelihood.

    Its pseudo-targets are the labels, and its V is the observation noise.

    Args:
        model: a Functional model, which ends in its likelihood; others give None.
    """
    if not isinstance(model.likelihood, Normal) or not hasattr(model, "_inputs_struct"):
        return None
    outputs: Any = model.likelihood._inbound_nodes[-1].input_tensors[0]
    shape, container = outputs.shape, model
    operation = outputs._keras_history.operation
    while isinstance(operation, keras.Model):  # a nested net, such as a Sequential
        if not _is_called_once(operation, container):
            return None
        container, operation = operation, operation.outputs[0]._keras_history.operation
    is_linear = getattr(operation, "activation", None) is keras.activations.linear
    is_exact = isinstance(operation, BaliLayer) and is_linear and len(shape) == 2
    return operation if is_exact and _is_called_once(operation, container) else None


def _is_called_once(operation: Any, container: Any) -> bool:
    """Whether a model's graph holds one call of a layer: a shared one is not only the output."""
    container = getattr(container, "_functional", container)  # of a Sequential
    nodes = (node for depth in container._nodes_by_depth.values() for node in depth)
    return sum(node.operation is operation for node in nodes) == 1
