"""Stock layers: which rank-1 layer each becomes, and copies of those that stay."""

from __future__ import annotations

from typing import Any

import keras

from tfp_rank1 import layers
from tfp_rank1.conversion.transfer import same_weights
from tfp_rank1.keras_internals import build_input_shape

__all__ = ["RANK1", "copy", "live_config"]

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


def copy(layer: Any) -> Any:
    """A new layer with the config of `layer`, without its weights.

    Raises:
        ValueError: if the config does not rebuild the layer.
    """
    try:
        return type(layer).from_config(layer.get_config())
    except Exception as error:
        raise ValueError(
            "A layer that is left as it is has to be copied, and its config does not rebuild it "
            f"({error}). Give the class a get_config with all arguments of its constructor. "
            f"Received: layer {layer.name!r} of class {type(layer).__name__}"
        ) from error
