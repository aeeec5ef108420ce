"""What `convert` refuses: models, inputs, outputs, layers and arguments."""

from __future__ import annotations

from typing import Any

import keras

from tfp_rank1 import layers, posteriors
from tfp_rank1.conversion.batch_axis import check_batch_axis, check_training
from tfp_rank1.keras_internals import Functional, layers_of, nodes_of, producer_of
from tfp_rank1.layers.rank1 import ARGUMENTS
from tfp_rank1.model.raw_outputs import is_graph

__all__ = [
    "check_arguments",
    "check_inputs",
    "check_kernel",
    "check_model",
    "check_outputs",
    "check_stock",
    "check_unmixed",
    "check_unmixed_within",
]


def check_model(model: Any, kind: str = "rank-1") -> None:
    """Refuse a model without a graph, and a graph that is not all that the model does.

    Args:
        model: the model.
        kind: of the layers to which a subclassed model is to be rewritten.

    Raises:
        ValueError: for a subclassed or unbuilt model, or one with a `call` of its own.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "convert takes a model; of a file load it before, keras.models.load_model(path). "
            f"Received: {model!r}"
        )
    if not isinstance(model, (Functional, keras.Sequential)) or not is_graph(model):
        raise ValueError(
            "convert takes a built Functional or Sequential model (a Sequential begins with "
            f"keras.Input); rewrite a subclassed one with {kind} layers. Received: "
            f"{type(model).__name__} {getattr(model, 'name', '')!r}, "
            f"built={getattr(model, 'built', False)}"
        )
    if type(model).call not in (Functional.call, keras.Sequential.call):
        raise ValueError(
            "A model with a `call` of its own does more than its graph says. Convert "
            "keras.Model(model.inputs, model.outputs), if that is all of it. Received: "
            f"{type(model).__name__} {model.name!r}"
        )


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse arguments that rank-1 layers do not have, that the model owns, or that cannot fit.

    Raises:
        ValueError: for unknown names, `kl_weight`, or a positive `bias_posterior`.
    """
    known = ARGUMENTS - {"kl_weight"}
    unknown = arguments.keys() - known
    if unknown:
        raise ValueError(
            f"convert takes the arguments of rank-1 layers, {sorted(known)}; the model owns the "
            f"weight of the KL. Received: {sorted(unknown)}"
        )
    bias = arguments.get("bias_posterior")
    if bias is not None and posteriors.get(bias).positive:
        raise ValueError(
            "The biases of the model may be negative: choose a `bias_posterior` of all numbers, "
            f"such as 'normal'. Received: bias_posterior={bias}"
        )


def check_inputs(inputs: Any) -> None:
    """Refuse sparse, ragged and optional inputs, which cannot be tiled over the members."""
    for tensor in keras.tree.flatten(inputs):
        is_optional = getattr(producer_of(tensor)[0], "optional", False)
        is_ragged = getattr(tensor, "ragged", False)
        if tensor.sparse or is_ragged or is_optional:
            raise ValueError(
                "Inputs of a rank-1 model are dense and always given: build the model on a "
                "keras.Input without `sparse`, `ragged` and `optional`. Received: input "
                f"{tensor.name!r}, sparse={tensor.sparse}, ragged={is_ragged}, "
                f"optional={is_optional}"
            )


def check_unmixed(operation: Any) -> None:
    """Refuse a layer or operation that mixes the rows of a batch, or may do so."""
    if isinstance(operation, keras.layers.Layer):
        check_training(operation)
    check_batch_axis(operation)
    if type(operation) is keras.layers.Lambda:
        raise ValueError(
            "A Lambda layer may mix the rows of a batch, which are members here, and cannot be "
            "looked into. Write it with keras.ops, or as a registered layer. Received: layer "
            f"{operation.name!r}"
        )


def check_unmixed_within(layer: Any) -> None:
    """Refuse whatever mixes rows in a layer or model that is left as it is, at any depth."""
    if isinstance(layer, keras.Model):
        check_model(layer)
        parts = list({id(node.operation): node.operation for node in nodes_of(layer)}.values())
    else:
        check_unmixed(layer)
        parts = [layer.layer] if isinstance(layer, keras.layers.Wrapper) else []
    for part in parts:
        check_unmixed_within(part)


def check_kernel(layer: Any) -> None:
    """Refuse a quantized layer, which has integers in place of a kernel."""
    mode = getattr(layer, "quantization_mode", None)
    if mode is not None:
        raise ValueError(
            "A quantized layer has no kernel to perturb: convert the model before it is "
            f"quantized. Received: layer {layer.name!r}, quantization_mode={mode!r}"
        )


def check_stock(model: keras.Model) -> None:
    """Refuse a model that has members already."""
    ours = layers.Rank1Mixin, layers.TileMembers, layers.SplitMembers
    found = [v.name for v in layers_of(model) if isinstance(v, ours)]
    if found:
        raise ValueError(
            "The model has rank-1 layers already. Convert the net of stock layers. "
            f"Received: {found}"
        )


def check_outputs(model: keras.Model) -> None:
    """Refuse outputs without a known number D, `[B, ..., D]`."""
    for shape in (tensor.shape for tensor in model.outputs):
        if len(shape) < 2 or shape[-1] is None:
            raise ValueError(
                "A BayesianModel has outputs [B, D], or [B, ..., D] with positions such as pixels "
                f"or time steps, and a D that is known. Received: outputs of shape {shape}"
            )
