"""Moments of the raw outputs of a whole model, in one pass."""

from __future__ import annotations

import functools
from typing import Any

import keras

from tfp_rank1.keras_internals import nodes_of, run_graph, standardized_inputs
from tfp_rank1.moments.carrier import Moments
from tfp_rank1.moments.registry import exact, has_rule, propagate

__all__ = ["layers_without_rule", "output_moments"]


def output_moments(model: Any, x: Any) -> Moments:
    """Moments of a model's raw outputs, `[B, K, ..., D]`, or `[B, ..., D]` without members.

    Args:
        model: a Functional or Sequential model.
        x: one batch of inputs.

    Raises:
        ValueError: for a subclassed model, and for a layer without a rule that a random input
            meets.
    """
    if not nodes_of(model):
        raise ValueError(
            "Moments follow the graph of a Functional or Sequential model, and a subclassed model "
            "has none. Build it as BayesianModel(inputs, outputs, ...), or ask for samples: "
            f"method='samples'. Received: method='moments' and a {type(model).__name__} without a "
            "graph"
        )
    inputs = [exact(value) for value in standardized_inputs(model, x)]
    outputs = run_graph(model, inputs, lambda op: functools.partial(propagate, op))
    (found,) = keras.tree.flatten(outputs)
    return found


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
