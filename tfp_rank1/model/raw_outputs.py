"""The last operations of a net, which may be ones that a likelihood applies itself."""

from __future__ import annotations

import math
from typing import Any

import keras

from tfp_rank1.keras_internals import calls_of, nodes_of, producer_of
from tfp_rank1.layers import SplitMembers
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.serialization import snake_case

__all__ = [
    "applies",
    "check_raw",
    "check_raw_outputs",
    "function_of",
    "is_graph",
    "is_only_use",
    "last_operation",
]

# Layers that only arrange numbers, or do nothing when a model predicts.
_PASSING = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Permute,
    keras.layers.Reshape,
    SplitMembers,
)
# Functions whose results are no raw outputs.
_SQUASHING = {"softmax", "log_softmax", "sigmoid", "log_sigmoid", "exponential", "exp", "softplus"}


def is_graph(model: Any) -> bool:
    """Whether a model is Functional or Sequential, and built."""
    has_inputs = hasattr(model, "inputs") and bool(getattr(model, "inputs", None))
    return has_inputs and bool(model.built)


def last_operation(model: keras.Model) -> Any:
    """The operation that makes the model's output: a layer, or one such as `keras.ops.softmax`.

    Layers after it that only arrange its numbers are passed over, and nested models are entered.

    Args:
        model: a Functional or Sequential model with one output.
    """
    return _last_of(model.outputs[0])[0]


def _last_of(tensor: Any) -> tuple[Any, int]:
    """The operation that makes the numbers of a symbolic tensor, and the index of its call."""
    while True:
        operation, node, index = producer_of(tensor)
        if isinstance(operation, keras.Model) and operation.outputs:
            tensor = operation.outputs[index]
        elif isinstance(operation, _PASSING) or _is_linear(operation):
            tensor = calls_of(operation)[node].input_tensors[0]
        else:
            return operation, node


def _ends_of(tensor: Any) -> list[Any]:
    """The operations that make the parts of a symbolic tensor which may be concatenated."""
    operation, node = _last_of(tensor)
    if not isinstance(operation, keras.layers.Concatenate | keras.layers.Average):
        return [operation]
    parts = calls_of(operation)[node].input_tensors
    return [end for part in parts for end in _ends_of(part)]


def check_raw_outputs(tensor: Any, likelihood: Likelihood) -> None:
    """Refuse outputs, or a part of them, that end in a function which the likelihood applies.

    The function would be applied twice: probabilities between .27 and .73, or a scale above .69.

    Args:
        tensor: symbolic outputs before the likelihood.
        likelihood: of the model.

    Raises:
        ValueError: with the name of the function and the layer.
    """
    own, ends = likelihood.link_names, _ends_of(tensor)
    # Logarithms of probabilities are raw outputs: softmax leaves them as they are.
    squashing = _SQUASHING - {f"log_{name}" for name in own} if own else set()
    refused = [last for last in ends if function_of(last) in squashing]
    # A scale is the last part: a mean before it may well be positive.
    refused += [last for last in ends[-1:] if function_of(last) in likelihood.scale_link_names]
    if refused:
        last, applied = refused[0], (*own, *likelihood.scale_link_names)[0]
        raise ValueError(
            f"The likelihood {type(likelihood).__name__} takes raw outputs and applies {applied} "
            "itself. Give the last layer no activation (activation=None), and read probabilities "
            "or scales from `posterior_predictive`. Received: outputs that end in "
            f"{function_of(last)}, in {type(last).__name__} {last.name!r}"
        )


def is_only_use(model: keras.Model, operation: Any) -> bool:
    """Whether an operation makes the outputs and nothing else, one vector per example.

    Only then can its activation be dropped: a layer that is used twice, by itself or in a nested
    model that is used twice, would lose the activation at both places.
    """
    uses = 0
    models: list[Any] = [model]
    while models:
        found = [n.operation for n in nodes_of(models.pop()) if not n.is_input]
        uses += sum(f is operation for f in found)
        models += [f for f in found if isinstance(f, keras.Model)]  # once for every use
    # A softmax at each of several positions is not the likelihood's softmax over all outputs.
    shape = calls_of(operation)[0].outputs[0].shape[1:]
    return uses == 1 and math.prod(d or 0 for d in shape) == shape[-1]


def applies(operation: Any, likelihood: Likelihood) -> bool:
    """Whether an operation ends in the function that the likelihood applies to raw outputs."""
    return function_of(operation) in likelihood.link_names


def check_raw(last: Any, likelihood: Likelihood, can_drop: bool) -> None:
    """Refuse a net whose outputs are no raw outputs, as the likelihood would squash them again.

    Args:
        last: what `last_operation` returned.
        likelihood: the likelihood of the converted model.
        can_drop: whether the activation of `last` will be dropped if the likelihood applies it.

    Raises:
        ValueError: with the name of the function.
    """
    own = likelihood.link_names
    found = function_of(last)
    if own and found in _SQUASHING and not (found in own and can_drop):
        raise ValueError(
            f"The likelihood {type(likelihood).__name__} takes raw outputs and applies {own[0]} "
            f"itself. Convert keras.Model(model.inputs, the outputs before {found}). Received: "
            f"a model that ends in {found}, in {type(last).__name__} {last.name!r}"
        )


def _is_linear(operation: Any) -> bool:
    """Whether an operation is `Activation("linear")`, which often ends a net in mixed precision."""
    return isinstance(operation, keras.layers.Activation) and function_of(operation) == "linear"


def function_of(operation: Any) -> str:
    """Name of a layer's activation; without an activation, of the layer or operation itself."""
    if isinstance(operation, keras.layers.Wrapper):
        return function_of(operation.layer)
    activation = getattr(operation, "activation", None)
    if isinstance(activation, keras.layers.Layer):
        return function_of(activation)
    found = operation if activation is None else activation
    return snake_case(getattr(found, "__name__", type(found).__name__)).removesuffix("_v2")
