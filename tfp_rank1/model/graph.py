"""How a subclass of keras.Model becomes Functional, and how a likelihood joins its graph."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1 import heads, likelihoods
from tfp_rank1.keras_internals import (
    Functional,
    calls_of,
    input_structure,
    layers_of,
    nodes_of,
    producer_of,
)
from tfp_rank1.layers.members import SplitMembers, TileMembers
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.model.raw_outputs import check_raw_outputs, function_of
from tfp_rank1.outputs import Outputs, as_members, num_members

__all__ = [
    "check_members_agree",
    "check_members_are_given",
    "common_members",
    "end_in_likelihood",
    "functional_variant",
    "has_members",
    "inputs_and_outputs",
    "is_functional_call",
    "members_by_output",
    "members_of",
    "output_shapes",
    "same_likelihood",
    "take_graph",
]


def is_functional_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a model is given as inputs and outputs."""
    return len(args) >= 2 or (len(args) == 1 and "outputs" in kwargs) or "inputs" in kwargs


@functools.cache
def functional_variant(cls: Any) -> Any:
    """`cls` with the methods of a Functional model behind its own.

    Keras would instead change the bases of `cls` in place at its first functional use, which
    breaks every subclass that defines `call`.
    """
    if issubclass(cls, Functional):
        return cls
    variant = type(
        cls.__name__, (cls, Functional), {"__module__": cls.__module__, "__doc__": cls.__doc__}
    )
    registered_name = keras.saving.get_registered_name(cls)
    if ">" in registered_name:
        # The variant is saved under the name of `cls`. A file is loaded as `cls`, and the
        # constructor of `cls` makes the variant again.
        keras.saving.register_keras_serializable(*registered_name.split(">"))(variant)
        keras.saving.get_custom_objects()[registered_name] = cls
    return variant


def inputs_and_outputs(model: keras.Model) -> tuple[Any, Any]:
    """Inputs and outputs of a model, such as a Sequential, that is given in place of the two.

    Raises:
        ValueError: for a subclassed or unbuilt model.
    """
    if not model.built or not getattr(model, "inputs", None):
        raise ValueError(
            "A model in place of inputs and outputs must be Functional, or a Sequential that is "
            "built: begin it with keras.Input. Received: "
            f"{type(model).__name__}, built={model.built}"
        )
    # Nested as they were given: `fit` takes targets by the names of a dict.
    inputs = input_structure(model)
    outputs = model.output if len(model.outputs) > 1 else model.outputs
    return model.inputs if inputs is None else inputs, outputs


def take_graph(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, tuple[Any, ...]]:
    """Inputs, outputs and the remaining positional arguments of a model's constructor.

    Inputs and outputs that are given by name are removed from `kwargs`.

    Raises:
        ValueError: for inputs without outputs.
    """
    if not (len(args) >= 2 or "outputs" in kwargs):
        raise ValueError(
            "A Functional model needs inputs and outputs: BayesianModel(inputs, outputs, "
            "likelihood=...). Received: inputs without outputs"
        )
    values = list(args)
    inputs = values.pop(0) if values else kwargs.pop("inputs")
    outputs = values.pop(0) if values else kwargs.pop("outputs")
    return _single(inputs), _single(outputs), tuple(values)


def _single(tensors: Any) -> Any:
    """The only tensor of a list (`sequential.inputs`), or the structure as it is."""
    is_single = isinstance(tensors, (list, tuple)) and len(tensors) == 1
    return tensors[0] if is_single else tensors


def end_in_likelihood(outputs: Any, likelihood: Any) -> tuple[Any, Any]:
    """Make a likelihood the last operation before every output, unless there is one already.

    Args:
        outputs: the outputs that were given: a tensor, or a list or dict of tensors.
        likelihood: a likelihood, its name, or None; for several outputs one for each.

    Returns:
        The outputs of the new graph, and its likelihoods in the same structure; None without any.

    Raises:
        ValueError: for outputs in structures of structures, likelihoods that do not match the
            outputs, or a second likelihood that differs from the first.
    """
    if not heads.are_several(outputs):
        is_list = isinstance(likelihood, (list, tuple)) and len(likelihood) == 1
        return _ended(outputs, likelihood[0] if is_list else likelihood)
    if likelihood is not None:
        likelihood = _one_for_each(outputs, likelihood)
    ended = heads.map_heads(_ended, outputs, likelihood)
    found = heads.map_heads(lambda pair: pair[1], ended)
    without = [
        n
        for n, v in zip(heads.names_of(found), heads.parts(found, found), strict=True)
        if v is None
    ]
    if len(without) == len(outputs):
        return outputs, None
    if without:
        raise ValueError(
            "Every output of a BayesianModel needs a likelihood of its own: likelihood= a dict or "
            f"list like the outputs. Received: no likelihood for {without}"
        )
    return heads.map_heads(lambda pair: pair[0], ended), found


def _one_for_each(outputs: Any, likelihood: Any) -> Any:
    """Likelihoods by output, refused unless there is one for each."""
    if not heads.are_several(likelihood):
        raise ValueError(
            "A model with several outputs needs a likelihood for each: likelihood= a dict or list "
            f"like the outputs, {heads.names_of(outputs)}. Received: likelihood={likelihood!r}"
        )
    found = heads.matched("likelihood", outputs, likelihood)
    objects = [id(v) for v in heads.parts(outputs, found) if isinstance(v, Likelihood)]
    if len(objects) > len(set(objects)):
        raise ValueError(
            "Every output needs a likelihood object of its own, since each may learn its noise: "
            "likelihood={'a': Normal(), 'b': Normal()}. Received: one object for two outputs"
        )
    return found


def _ended(outputs: Any, likelihood: Any) -> tuple[Any, Likelihood | None]:
    """One output that ends in its likelihood, and the likelihood."""
    if not isinstance(outputs, keras.KerasTensor):
        raise ValueError(
            "The outputs of a BayesianModel are a tensor, [batch, members, outputs], or a list or "
            f"dict of tensors. Received: outputs={outputs}"
        )
    last, _, _ = producer_of(outputs)
    if isinstance(last, Likelihood):  # as in a graph that was loaded or cloned
        if likelihood is not None and not same_likelihood(last, likelihoods.get(likelihood)):
            raise ValueError(
                "The outputs already end in a likelihood, and another one is given. "
                f"Received: {type(last).__name__} and likelihood={likelihood}"
            )
        return outputs, last
    if likelihood is None:
        return outputs, None
    likelihood = likelihoods.get(likelihood)
    check_raw_outputs(outputs, likelihood)
    return likelihood(outputs), likelihood


def check_members_agree(layers: Iterable[keras.layers.Layer], members: int) -> None:
    """Refuse layers that fold another number of members than the outputs have.

    Such a model often runs, and then an example's output depends on its place in the batch. A
    rank-1 layer with one member may stand anywhere; TileMembers and SplitMembers always need K.

    Args:
        layers: all layers of a model.
        members: K of the model's outputs.

    Raises:
        ValueError: with the layers and their numbers of members.
    """
    layers = list(layers)
    folding = [v for v in layers if isinstance(v, (TileMembers, SplitMembers))]
    perturbed = [v for v in layers if getattr(v, "ensemble_size", 1) != 1]
    sizes = {v.name: v.ensemble_size for v in [*folding, *perturbed]}
    kinds = (TileMembers, SplitMembers)
    missing = [kind for kind in kinds if not any(isinstance(v, kind) for v in folding)]
    if any(size != members for size in sizes.values()) or (perturbed and missing):
        raise ValueError(
            "The layers of a BayesianModel must agree on the number of members K, with "
            "TileMembers(K) before the first and SplitMembers(K) after the last. Received: "
            f"ensemble_size by layer {sizes}, and outputs with {members} members"
        )


def has_members(model: Any) -> bool:
    """Whether axis 1 of a Functional model's outputs is one of members, and not of positions.

    `SplitMembers` makes such an axis, and so does `keras.ops.stack` of several nets at the end.
    """
    if max(len(t.shape) for t in model.outputs) < 3:
        return False
    if any(isinstance(v, SplitMembers) for v in layers_of(model)):
        return True
    return any(_ends_in_stack(tensor) for tensor in model.outputs)


def _ends_in_stack(tensor: Any) -> bool:
    last, _, _ = producer_of(tensor)
    if isinstance(last, Likelihood):
        last, _, _ = producer_of(calls_of(last)[-1].input_tensors[0])
    return function_of(last) == "stack"


def output_shapes(model: Any) -> list[tuple[int | None, ...]]:
    """Shapes of a model's raw outputs, in the order of `heads.names_of`; none without a graph."""
    if not nodes_of(model):
        return []
    return [tuple(t.shape) for t in heads.parts(model.likelihood, model.output)]


def common_members(shapes: Iterable[Any], has_members: bool | None) -> int:
    """K, the same for all outputs.

    Args:
        shapes: of the raw outputs.
        has_members: whether axis 1 is that of members.

    Raises:
        ValueError: for outputs that do not have the same number of members.
    """
    shapes = [tuple(shape) for shape in shapes]
    found = {num_members(shape, has_members) if len(shape) > 2 else 1 for shape in shapes}
    if len(found) > 1 or (has_members and any(len(shape) < 3 for shape in shapes)):
        raise ValueError(
            "All outputs of a BayesianModel need the same axis of members, [batch, members, ..., "
            f"outputs]: end each in SplitMembers(K). Received: outputs of shapes {shapes}"
        )
    return found.pop()


def members_of(model: Any, outputs: tf.Tensor, name: str = "") -> Outputs:
    """Raw outputs of a model, or of several copies of its batch, with their axis of members.

    Args:
        model: a `BayesianModel`.
        outputs: one of its outputs, `[B, K, ..., D]`; of a model without members also
            `[B, ..., D]`.
        name: of the output. Defaults to "", that of a single one.
    """
    names, shapes = heads.names_of(model.likelihood), output_shapes(model)
    ranks = {name: len(shape) for name, shape in zip(names, shapes, strict=False)}
    if model.has_members is False and outputs.shape.rank - 1 == ranks.get(name):
        return Outputs(outputs, 1)  # copies of the batch became members
    return as_members(outputs, model.has_members)


def members_by_output(model: Any, outputs: Any) -> Any:
    """`members_of` for every output; what is no tensor, such as a prediction, stays as it is.

    Args:
        model: a `BayesianModel`.
        outputs: raw outputs, a list or dict of several.
    """
    own = model.likelihood
    return heads.map_heads(
        lambda _, values, name: (
            members_of(model, values, name).values if tf.is_tensor(values) else values
        ),
        own, outputs, heads.packed(own, heads.names_of(own)),
    )  # fmt: skip


def check_members_are_given(model: Any) -> None:
    """Refuse rank-1 layers that do not tell members apart.

    Where `ensemble_size` was forgotten all members would be the same net. Layers before
    `TileMembers` may have one member, which all share.

    Args:
        model: a Functional model; a subclassed one tells nothing of its graph.

    Raises:
        ValueError: with the layers.
    """
    tiled: dict[int, bool] = {}

    def is_tiled(tensor: Any) -> bool:
        if id(tensor) not in tiled:
            operation, index, _ = producer_of(tensor)
            inputs = calls_of(operation)[index].input_tensors
            is_split = isinstance(operation, SplitMembers)
            is_start = isinstance(operation, TileMembers) and operation.ensemble_size > 1
            tiled[id(tensor)] = is_start or (not is_split and any(map(is_tiled, inputs)))
        return tiled[id(tensor)]

    forgotten = [
        layer.name
        for node in nodes_of(model)
        if isinstance(node.operation, keras.layers.Layer) and any(map(is_tiled, node.input_tensors))
        for layer in layers_of(node.operation)
        if hasattr(layer, "factor_variables") and getattr(layer, "ensemble_size", None) == 1
    ]
    if forgotten:
        raise ValueError(
            "Rank-1 layers between TileMembers and SplitMembers need the number of members, or "
            "all members would be the same net: pass ensemble_size=K to each, or build the net "
            f"inside `with tfp_rank1.members(K):`. Received: ensemble_size=1 in {forgotten}"
        )


def same_likelihood(a: Likelihood, b: Likelihood) -> bool:
    """Whether two likelihoods have one class and equal arguments; their names may differ."""

    def arguments(likelihood: Likelihood) -> dict[str, Any]:
        return {k: v for k, v in likelihood.get_config().items() if k != "name"}

    return type(a) is type(b) and arguments(a) == arguments(b)
