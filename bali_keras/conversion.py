"""A stock Keras model as a BALI model that starts at, or around, its kernels."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from bali_keras.layers import (
    BaliLayer,
    Conv1DBali,
    Conv2DBali,
    Conv3DBali,
    DenseBali,
    EinsumDenseBali,
)
from bali_keras.model import BaliModel
from tfp_rank1 import likelihoods
from tfp_rank1.conversion import (
    applies,
    check_raw,
    is_graph,
    is_only_use,
    last_operation,
    same_weights,
    uncompiled,
)

__all__ = ["convert"]

_CONV = ("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate")
_ARGUMENTS: dict[type, tuple[type[BaliLayer], tuple[str, ...]]] = {
    keras.layers.Dense: (DenseBali, ("units", "use_bias")),
    keras.layers.Conv1D: (Conv1DBali, (*_CONV, "use_bias")),
    keras.layers.Conv2D: (Conv2DBali, (*_CONV, "use_bias")),
    keras.layers.Conv3D: (Conv3DBali, (*_CONV, "use_bias")),
    keras.layers.EinsumDense: (EinsumDenseBali, ("equation", "output_shape", "bias_axes")),
}


def convert(
    model: keras.Model,
    likelihood: Any,
    prior_at_kernels: bool = True,
    num_train_examples: float | None = None,
) -> BaliModel:
    """A `BaliModel` with the layers and weights of a trained stock model.

    Dense, Conv1D, Conv2D, Conv3D and EinsumDense layers become BALI layers whose posterior mean
    starts at the kernels. `fit` then gives a posterior around them, within an epoch of a large set;
    of a small one it takes about a thousand steps, in which a learned noise is found as well.
    All other layers keep their weights and are frozen (batch normalization then uses its moving
    statistics); set `trainable = True` and compile with an optimizer to train them. So are layers
    that have no BALI form, grouped convolutions and einsum kernels with an axis per position; and
    layers that are frozen already, such as a backbone, stay as they are.

    Args:
        model: a built Functional or Sequential model, nested ones included. It is not changed.
        likelihood: a `tfp_rank1.likelihoods` object or its name. It takes raw outputs: of a last
            layer the softmax is dropped for `"categorical"`, the sigmoid for `"bernoulli"`, the
            exponential for `"poisson"`.
        prior_at_kernels: True (default) centres the priors on the kernels, which keeps weights
            that the data say nothing about where they are; False centres them on 0.
        num_train_examples: as for `BaliModel`.

    Raises:
        ValueError: for a subclassed or unbuilt model, one without any trainable layer to convert,
            or one whose last activation is not what the likelihood applies to raw outputs.

    Example:
    ```python
    model = bali_keras.convert(trained, likelihood="categorical")
    model.compile()
    model.fit(x, y, epochs=1)
    ```
    """
    if not is_graph(model):
        raise ValueError(
            "convert takes a built Functional or Sequential model; rewrite a subclassed one with "
            f"BALI layers. Received: {type(model).__name__}, built={model.built}"
        )
    likelihood = likelihoods.get(likelihood)
    pairs: dict[int, tuple[Any, Any]] = {}
    last = last_operation(model)
    can_drop = _bali_layer(last, prior_at_kernels=False) is not None and is_only_use(model, last)
    check_raw(last, likelihood, can_drop)

    def clone(layer: Any) -> Any:
        if id(layer) not in pairs:
            new = _bali_layer(layer, prior_at_kernels)
            if new is None:
                new = type(layer).from_config(layer.get_config())
            elif layer is last and applies(layer, likelihood):
                new.activation = keras.activations.linear
            pairs[id(layer)] = layer, new
        return pairs[id(layer)][1]

    with uncompiled(model):
        net = keras.models.clone_model(model, clone_function=clone, recursive=True)
    converted = 0
    for old, new in pairs.values():
        if isinstance(new, BaliLayer):
            _start_at(new, old)
            converted += 1
        elif isinstance(new, keras.layers.Layer) and not isinstance(new, keras.Model):
            new.trainable = False
            same_weights(old, new)
    if not converted:
        raise ValueError(
            "The model has no trainable layer that can be converted: "
            f"{[c.__name__ for c in _ARGUMENTS]}. "
            f"Received: layers {sorted({type(o).__name__ for o, _ in pairs.values()})}"
        )
    return BaliModel(
        net.inputs, net.outputs, likelihood=likelihood, num_train_examples=num_train_examples
    )


def _bali_layer(layer: Any, prior_at_kernels: bool) -> BaliLayer | None:
    """The BALI counterpart of a layer; None if it has none."""
    found = _ARGUMENTS.get(type(layer))
    if found is None or getattr(layer, "groups", 1) != 1 or not layer.trainable:
        return None
    cls, names = found
    config = layer.get_config()
    arguments = {name: config[name] for name in names}
    try:
        return cls(
            **arguments,
            activation=layer.activation,
            prior_at_mean=prior_at_kernels,
            name=layer.name,
            dtype=layer.dtype_policy,
        )
    except ValueError:  # an einsum kernel that is no matrix
        return None


def _start_at(new: BaliLayer, old: Any) -> None:
    """Set the mean, and a stored prior mean, to the kernel and bias of a stock layer."""
    kernel = tf.convert_to_tensor(old.kernel)
    mean = new.as_matrix(kernel)
    if new.use_bias:
        mean = tf.concat([mean, tf.reshape(tf.convert_to_tensor(old.bias), [1, -1])], axis=0)
    new.posterior_state.mean.assign(mean)
    if new.posterior_state.prior_mean is not None:
        new.posterior_state.prior_mean.assign(mean)
