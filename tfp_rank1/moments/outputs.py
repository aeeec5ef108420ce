"""Moments of the raw outputs of a whole model, in one pass."""

from __future__ import annotations

import functools
from typing import Any

import keras

from tfp_rank1.keras_internals import (
    nodes_in_order,
    run_graph,
    runs_its_graph,
    standardized_inputs,
)
from tfp_rank1.layers import SplitMembers
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.moments.registry import WAY_OUT, drawn, exact, has_rule, is_noisy, propagate

__all__ = [
    "check_graph",
    "layers_without_rule",
    "operations_with_positions",
    "output_moments",
    "takes_one_pass",
]


def output_moments(model: Any, x: Any, sampled: frozenset[int] = frozenset()) -> Any:
    """Moments of a model's raw outputs, `[B, K, ..., D]`, or `[B, ..., D]` without members.

    Of several outputs a list or dict of `Moments`.

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
    found = run_graph(model, inputs, of)
    return found[0] if isinstance(found, (list, tuple)) and len(found) == 1 else found


def check_graph(model: Any) -> None:
    """Refuse a model without a graph, or with a `call` of its own.

    Raises:
        ValueError: for a subclassed model.
    """
    if not runs_its_graph(model):
        raise ValueError(
            "Moments follow the graph of a Functional or Sequential model. A subclassed model has "
            "none, and one with a `call` of its own does something else. Build it as "
            f"BayesianModel(inputs, outputs, ...), or {WAY_OUT}. "
            f"Received: a {type(model).__name__}"
        )


def operations_with_positions(model: Any) -> frozenset[int]:
    """Ids of the operations whose noise several positions of an example share.

    These are the operations that draw, or that something random reaches, on inputs or outputs with
    axes between batch and channels (pixels, time steps), and all before them. What comes after the
    last of these axes is gone has one row per example.
    """
    return _with_positions(model, False)


def _with_positions(model: Any, is_reached: bool) -> frozenset[int]:
    """As `operations_with_positions`; `is_reached` says whether the model's inputs are random."""
    noisy = {id(node): reached for node, reached in _noisy_nodes(model, is_reached)}
    # By tensor: whether an operation with positions comes after it. From the outputs backwards.
    marked: set[int] = set()
    found: set[int] = set()
    for node in reversed(nodes_in_order(model)):
        operation, tensors = node.operation, [*node.input_tensors, *node.outputs]
        is_end = isinstance(operation, SplitMembers | Likelihood)
        has_positions = any(len(t.shape) > 2 for t in tensors)
        if runs_its_graph(operation):
            within = _with_positions(operation, noisy.get(id(node), False))
            has_positions = has_positions or bool(within)
        is_shared = id(node) in noisy and has_positions and not is_end
        if is_shared or any(id(t) in marked for t in node.outputs):
            marked |= {id(t) for t in node.input_tensors}
            found.add(id(operation))
    return frozenset(found)


def _noisy_nodes(model: Any, is_reached: bool = False) -> list[tuple[Any, bool]]:
    """The calls in a graph that draw, or that something random reaches, from inputs to outputs.

    Args:
        model: a model with a graph.
        is_reached: whether the model's own inputs are random.

    Returns:
        The calls, each with whether one of its inputs is random.
    """
    tensors: set[int] = set()
    found = []
    for node in nodes_in_order(model):
        if node.operation is None or isinstance(node.operation, keras.layers.InputLayer):
            tensors |= {id(t) for t in node.outputs} if is_reached else set()
            continue
        reached = any(id(t) in tensors for t in node.input_tensors)
        if reached or is_noisy(node.operation):
            tensors |= {id(t) for t in node.outputs}
            found.append((node, reached))
    return found


def takes_one_pass(model: Any) -> bool:
    """Whether moments give the answers of a model in one pass, as good as samples.

    It takes a graph in which everything random meets rules only, positions share no noise, no two
    parts of a merge are functions of one random tensor, and no hidden layer ends in a softmax,
    whose moments are those of first order.
    """
    return (
        runs_its_graph(model)
        and not layers_without_rule(model)
        and not operations_with_positions(model)
        and not _merges_relatives(model)
        and not _has_softmax(model)
    )


def layers_without_rule(model: Any, is_reached: bool = False) -> list[str]:
    """Names of the layers and operations of a graph without a rule that something random reaches.

    Models in the model are searched as well.

    Args:
        model: a model with a graph.
        is_reached: whether the model's own inputs are random. Defaults to False.
    """
    missing = []
    for node, reached in _noisy_nodes(model, is_reached):
        operation = node.operation
        if runs_its_graph(operation):
            missing += layers_without_rule(operation, reached)
        elif not has_rule(operation):
            missing.append(operation.name)
    return missing


def _merges_relatives(model: Any, is_reached: bool = False) -> bool:
    """Whether entries that are functions of one and the same random entry meet again.

    Such as `h * sigmoid(h)`: the parts would count as independent. The sum of a block's inputs and
    its outputs, with a layer that multiplies by a kernel between, is no such merge.
    """
    roots: dict[int, int] = {id(t): id(t) for t in model.inputs} if is_reached else {}
    for node, reached in _noisy_nodes(model, is_reached):
        given = [t for t in node.input_tensors if id(t) in roots]
        parents = [roots[id(t)] for t in given]
        if len(parents) > len(set(parents)) and len({id(t) for t in given}) > 1:
            return True
        if runs_its_graph(node.operation) and _merges_relatives(node.operation, reached):
            return True
        keeps = len(given) == 1 and _acts_entry_by_entry(node)
        for tensor in node.outputs:
            roots[id(tensor)] = parents[0] if keeps else id(tensor)
    return False


def _has_softmax(model: Any, is_reached: bool = False) -> bool:
    """Whether something random goes through a softmax."""
    return any(
        _has_softmax(node.operation, reached)
        if runs_its_graph(node.operation)
        else _is_softmax(node.operation)
        for node, reached in _noisy_nodes(model, is_reached)
    )


def _is_softmax(operation: Any) -> bool:
    function = getattr(operation, "activation", None) or type(operation)
    return "softmax" in getattr(function, "__name__", "").lower()


def _acts_entry_by_entry(node: Any) -> bool:
    """Whether an output's entry is a function of one entry of the input, as far as shapes tell."""
    shapes = {tuple(t.shape) for t in (*node.input_tensors[:1], *node.outputs)}
    weights = getattr(node.operation, "weights", [])
    return len(shapes) == 1 and all(len(w.shape) < 2 for w in weights)
