"""What a stock net ends in, and what a likelihood applies itself."""

from __future__ import annotations

import math
from typing import Any

import keras

from tfp_rank1 import likelihoods
from tfp_rank1._registry import snake_case
from tfp_rank1.likelihoods import Likelihood

_PASSING = keras.layers.Reshape, keras.layers.Flatten, keras.layers.Dropout
# What a likelihood applies to raw outputs, under the names it goes by.
_APPLIED: dict[type[Likelihood], tuple[str, ...]] = {
    likelihoods.Categorical: ("softmax",),
    likelihoods.Bernoulli: ("sigmoid",),
    likelihoods.Poisson: ("exponential", "exp"),
}
_SQUASHING = {"softmax", "log_softmax", "sigmoid", "log_sigmoid", "exponential", "exp", "softplus"}


def is_graph(model: Any) -> bool:
    """Whether a model is a built Functional or Sequential one."""
    has_inputs = hasattr(model, "inputs") and bool(getattr(model, "inputs", None))
    return has_inputs and bool(model.built)


def last_operation(model: keras.Model) -> Any:
    """What makes the model's only output: a layer, or an operation such as `keras.ops.softmax`.

    Behind layers that only arrange its numbers.
    """
    tensor = model.outputs[0]
    while True:
        operation, node, index = tensor._keras_history
        if isinstance(operation, keras.Model):
            tensor = operation.outputs[index]
        elif isinstance(operation, _PASSING) or _is_linear(operation):
            tensor = operation._inbound_nodes[node].input_tensors[0]
        else:
            return operation


def is_only_use(model: keras.Model, operation: Any) -> bool:
    """Whether an operation makes the outputs and nothing else, one vector per example.

    A layer that is used twice, itself or the nested model that holds it, cannot lose its activation
    at one of the places.
    """
    uses, models = 0, [model]
    while models:
        graph: Any = models.pop()
        graph = getattr(graph, "_functional", None) or graph
        if not hasattr(graph, "_nodes_by_depth"):
            continue  # a subclassed model
        found = [n.operation for ns in graph._nodes_by_depth.values() for n in ns if not n.is_input]
        uses += sum(f is operation for f in found)
        models += [f for f in found if isinstance(f, keras.Model)]  # once for every use
    shape = operation._inbound_nodes[0].outputs[0].shape[1:]
    return uses == 1 and math.prod(d or 0 for d in shape) == shape[-1]


def applies(operation: Any, likelihood: Likelihood) -> bool:
    """Whether an operation ends in the function that the likelihood applies to raw outputs."""
    return function_of(operation) in _APPLIED.get(type(likelihood), ())


def check_raw(last: Any, likelihood: Likelihood, can_drop: bool) -> None:
    """Refuse outputs that are no raw outputs: the likelihood would apply its function to them.

    Args:
        last: as `last_operation` finds it.
        likelihood: what is put behind it.
        can_drop: whether its activation, if it is that very function, will be dropped.

    Raises:
        ValueError: naming the function.
    """
    own = _APPLIED.get(type(likelihood), ())
    found = function_of(last)
    if own and found in _SQUASHING and not (found in own and can_drop):
        raise ValueError(
            f"The likelihood {type(likelihood).__name__} takes raw outputs and applies {own[0]} "
            f"itself. Convert keras.Model(model.inputs, the outputs before {found}). Received: "
            f"a model that ends in {found}, in {type(last).__name__} {last.name!r}"
        )


def _is_linear(operation: Any) -> bool:
    """Whether it is an `Activation("linear")`, as mixed precision often ends in."""
    return isinstance(operation, keras.layers.Activation) and function_of(operation) == "linear"


def function_of(operation: Any) -> str:
    """Name of the activation that a layer ends in; else of the layer or operation itself."""
    if isinstance(operation, keras.layers.Wrapper):
        return function_of(operation.layer)
    activation = getattr(operation, "activation", None)
    if isinstance(activation, keras.layers.Layer):
        return function_of(activation)
    found = operation if activation is None else activation
    return snake_case(getattr(found, "__name__", type(found).__name__)).removesuffix("_v2")
