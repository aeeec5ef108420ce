"""Moments of the raw outputs of a whole model, in one pass."""

from __future__ import annotations

import functools
from typing import Any

import keras

from tfp_rank1.keras_internals import depth_of, nodes_of, run_graph, standardized_inputs
from tfp_rank1.layers import SplitMembers
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.registry import drawn, exact, has_rule, propagate

__all__ = [
    "check_graph",
    "layers_without_rule",
    "operations_with_positions",
    "output_moments",
    "takes_one_pass",
]


def output_moments(model: Any, x: Any, sampled: frozenset[int] = frozenset()) -> Moments:
    """Moments of a model's raw outputs, `[B, K, ..., D]`, or `[B, ..., D]` without members.

    Args:
        model: a Functional or Sequential model.
        x: one batch of inputs.
        sampled: ids of operations that draw, as in a pass of samples, in place of their rule.

    Raises:
        ValueError: for a subclassed model, and for a layer without a rule that a random input
            meets.
    """
    check_graph(model)

    def of(operation: Any) -> Any:
        return functools.partial(drawn if id(operation) in sampled else propagate, operation)

    inputs = [exact(value) for value in standardized_inputs(model, x)]
    (found,) = keras.tree.flatten(run_graph(model, inputs, of))
    return found


def check_graph(model: Any) -> None:
    """Refuse a model without a graph.

    Raises:
        ValueError: for a subclassed model.
    """
    if not nodes_of(model):
        raise ValueError(
            "Moments follow the graph of a Functional or Sequential model, and a subclassed model "
            "has none. Build it as BayesianModel(inputs, outputs, ...), or ask for samples: "
            f"method='samples'. Received: method='moments' and a {type(model).__name__} without a "
            "graph"
        )


def operations_with_positions(model: Any) -> frozenset[int]:
    """Ids of the operations whose noise several positions of an example share.

    These are the operations on inputs or outputs with axes between batch and channels (pixels, time
    steps), and all before them. What comes after the last of these axes is gone has one row per
    example.
    """
    # By tensor: whether an operation with positions comes after it. From the outputs backwards.
    nodes = sorted(nodes_of(model), key=lambda node: depth_of(model, node))
    marked: set[int] = set()
    found: set[int] = set()
    for node in nodes:
        operation, tensors = node.operation, [*node.input_tensors, *node.outputs]
        is_end = isinstance(operation, SplitMembers | Likelihood)
        has_positions = not is_end and any(len(t.shape) > 2 for t in tensors)
        if has_positions or any(id(t) in marked for t in node.outputs):
            marked |= {id(t) for t in node.input_tensors}
            found.add(id(operation))
    return frozenset(found)


def takes_one_pass(model: Any) -> bool:
    """Whether moments give the answers of a model in one pass.

    It takes a graph whose layers all have rules, in which no positions share noise.
    """
    return (
        bool(nodes_of(model))
        and not layers_without_rule(model)
        and not operations_with_positions(model)
    )


def layers_without_rule(model: Any) -> list[str]:
    """Names of the layers and operations of a model's graph, and of models in it, without a rule.

    A layer among them that only exact inputs reach needs none.
    """
    missing = []
    for node in nodes_of(model):
        operation = node.operation
        if isinstance(operation, keras.layers.InputLayer) or not operation:
            continue
        if nodes_of(operation):
            missing += layers_without_rule(operation)
        elif not has_rule(operation):
            missing.append(operation.name)
    return missing
