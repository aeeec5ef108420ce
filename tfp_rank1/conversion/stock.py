"""Stock layers: which rank-1 layer each becomes, and copies of those that stay."""

from __future__ import annotations

from typing import Any

import keras

from tfp_rank1 import heads, layers, likelihoods
from tfp_rank1.conversion.transfer import same_weights
from tfp_rank1.keras_internals import build_input_shape, calls_of, input_structure, producer_of
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.model import BayesianModel
from tfp_rank1.model.raw_outputs import is_graph
from tfp_rank1.serialization import registered

__all__ = [
    "RANK1",
    "LeftToLikelihood",
    "copy",
    "likelihoods_for",
    "live_config",
    "without_function",
    "without_likelihood",
]

# Found by name, so that a new layer `NameRank1` needs no entry here.
RANK1: dict[type, type] = {
    getattr(keras.layers, name.removesuffix("Rank1")): getattr(layers, name)
    for name in layers.__all__
    if name.endswith("Rank1")
}


def live_config(layer: Any) -> dict[str, Any]:
    """A layer's config, with live objects in place of their descriptions.

    An object that is not registered with Keras cannot be made from its description.
    """
    config = layer.get_config()
    suffixes = "_initializer", "_regularizer", "_constraint"
    config |= {k: getattr(layer, k, v) for k, v in config.items() if k.endswith(suffixes)}
    for name in ("activation", "recurrent_activation"):
        if name in config:
            config[name] = _copy_activation(getattr(layer, name))
    if getattr(layer, "lora_enabled", False):  # `layer.kernel` includes the low-rank part
        config |= {"lora_rank": None, "lora_alpha": None}
    return config | {"dtype": layer.dtype_policy}


def _copy_activation(activation: Any) -> Any:
    """The activation itself if it is a function, or a copy of a layer, with its weights."""
    if not isinstance(activation, keras.layers.Layer):
        return activation
    new = copy(activation)
    # Now: the transfer of a layer's kernels knows no weights of an activation.
    if activation.weights:
        new.build(build_input_shape(activation))
        same_weights(activation, new)
    return new


def copy(layer: Any, config: dict[str, Any] | None = None) -> Any:
    """A new layer with the config of `layer`, without its weights.

    Args:
        layer: any layer.
        config: the config of the new layer. Defaults to None: that of `layer`.

    Raises:
        ValueError: if the config does not rebuild the layer.
    """
    try:
        return type(layer).from_config(layer.get_config() if config is None else config)
    except Exception as error:
        raise ValueError(
            "A layer that is left as it is has to be copied, and its config does not rebuild it "
            f"({error}). Give the class a get_config with all arguments of its constructor. "
            f"Received: layer {layer.name!r} of class {type(layer).__name__}"
        ) from error


@registered("tfp_rank1")
class LeftToLikelihood(keras.layers.Layer):
    """Stands where a net ended in a function that its likelihood applies; passes its inputs on."""

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """The inputs; the graph of a softmax layer passes a mask, which is None."""
        return inputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the inputs."""
        return input_shape


def without_function(operation: Any, new: Any) -> Any:
    """What stands in the place of an end of a net whose function the likelihood applies.

    Args:
        operation: the end: a layer with an activation, a softmax layer, or an operation.
        new: its counterpart, with the function still in place.

    Returns:
        The counterpart without its activation; `LeftToLikelihood` for a function by itself.
    """
    if callable(getattr(operation, "activation", None)):
        new.activation = keras.activations.linear
        return new
    # Of the dtype of the outputs: another one, such as the global bfloat16, would round them.
    dtype = calls_of(operation)[0].outputs[0].dtype
    return LeftToLikelihood(name=operation.name, dtype=dtype)


def without_likelihood(model: Any) -> Any:
    """The graph before the likelihood of a `BayesianModel`; any other model as it is."""
    if not isinstance(model, BayesianModel) or not is_graph(model):
        return model

    def before(tensor: Any) -> Any:
        operation, node, _ = producer_of(tensor)
        is_end = isinstance(operation, Likelihood)
        return calls_of(operation)[node].input_tensors[0] if is_end else tensor

    return keras.Model(input_structure(model), keras.tree.map_structure(before, model.output))


def likelihoods_for(model: Any, likelihood: Any) -> Any:
    """The likelihood of a converted net; for several outputs one for each.

    Args:
        model: the stock model.
        likelihood: what `convert` was given.

    Raises:
        ValueError: for likelihoods that do not match the outputs.
    """
    if len(model.outputs) == 1:
        return likelihoods.get(likelihood)
    if not heads.are_several(likelihood):
        names = heads.names_of(model.output)
        raise ValueError(
            "A model with several outputs needs a likelihood for each, a dict or list like its "
            f"outputs, {names}; or convert keras.Model(model.inputs, one of the outputs). "
            f"Received: likelihood={likelihood!r}"
        )
    return heads.map_heads(likelihoods.get, heads.matched("likelihood", model.output, likelihood))
