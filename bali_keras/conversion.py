"""Conversion of a trained stock model into a `BaliModel` that starts at its kernels."""

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
from tfp_rank1.keras_internals import input_structure

__all__ = ["convert"]

# Constructor arguments that a BALI layer takes over from the stock layer. Initializers are not
# among them: `_start_at` overwrites the mean.
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

    Dense, Conv1D, Conv2D, Conv3D and EinsumDense layers become BALI layers whose posterior means
    start at the kernels. `fit` then infers the posteriors around these means. A large data set
    takes an epoch; a small one takes about a thousand steps, which also find a learned noise.

    All other layers keep their weights and are frozen: batch normalization then uses its moving
    statistics, and dropout is off. Grouped convolutions, and einsum kernels with an axis per
    position, have no BALI form and are frozen too. To train a frozen layer, set `trainable = True`
    and compile with an optimizer. Layers that are frozen in the stock model, such as a backbone,
    are not converted.

    Args:
        model: a built Functional or Sequential model; nested models are converted too. The model
            itself is not changed.
        likelihood: a `tfp_rank1.likelihoods` object or its name. A likelihood takes raw outputs,
            so the last layer loses the softmax for `"categorical"`, the sigmoid for
            `"bernoulli"`, and the exponential for likelihoods of counts and `"log_normal"`.
        prior_at_kernels: True (default) centres the priors on the kernels: weights that the data
            do not inform stay where they are. False centres the priors on 0.
        num_train_examples: as for `BaliModel`.

    Returns:
        The new model, not compiled.

    Raises:
        ValueError: for a subclassed or unbuilt model, a model without a trainable layer to
            convert, or a last activation other than the one that the likelihood applies.

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
                new = type(layer).from_config(_without_noise(layer.get_config(), type(layer)))
            elif layer is last and applies(layer, likelihood):
                new.activation = keras.activations.linear
            pairs[id(layer)] = layer, new
        return pairs[id(layer)][1]

    # Keras compiles the clone of a compiled model, which fails for a loss that is not registered.
    with uncompiled(model):
        net = keras.models.clone_model(model, clone_function=clone, recursive=True)
    converted = 0
    for old, new in pairs.values():
        if isinstance(new, BaliLayer):
            _start_at(new, old)
            converted += 1
        elif isinstance(new, keras.layers.Layer) and not is_graph(new):
            new.trainable = False
            same_weights(old, new)
    if not converted:
        raise ValueError(
            "The model has no trainable layer that can be converted: "
            f"{[c.__name__ for c in _ARGUMENTS]}. "
            f"Received: layers {sorted({type(o).__name__ for o, _ in pairs.values()})}"
        )
    inputs = input_structure(net)  # as they were given: a dict stays a dict
    return BaliModel(
        inputs, net.outputs, likelihood=likelihood, num_train_examples=num_train_examples
    )


_NOISY = "Dropout", "Noise"
_RATES = "dropout", "recurrent_dropout"


def _without_noise(config: dict[str, Any], cls: type) -> dict[str, Any]:
    """The configuration of a layer that stays as it is, with the dropout of stock layers off.

    Frozen parts are not trained, and their noise would count as noise of the observations.
    """
    found = dict(config)
    if not cls.__module__.startswith("keras"):
        return found  # a layer of one's own: its arguments are unknown
    off = ("rate", "stddev") if any(name in cls.__name__ for name in _NOISY) else _RATES
    found |= {name: 0.0 for name in off if name in found}
    for name in ("layer", "backward_layer", "cell"):  # within a wrapper or a recurrent layer
        inner = found.get(name)
        if isinstance(inner, dict) and isinstance(inner.get("config"), dict):
            kind = getattr(keras.layers, inner.get("class_name", ""), None)
            if kind is not None:
                found[name] = {**inner, "config": _without_noise(inner["config"], kind)}
    return found


def _bali_layer(layer: Any, prior_at_kernels: bool) -> BaliLayer | None:
    """The BALI counterpart of a stock layer; None for a layer that is not converted."""
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
    """Set the posterior mean, and a stored prior mean, to the stock layer's kernel and bias."""
    kernel = tf.convert_to_tensor(old.kernel)
    mean = new.as_matrix(kernel)
    if new.use_bias:
        mean = tf.concat([mean, tf.reshape(tf.convert_to_tensor(old.bias), [1, -1])], axis=0)
    new.posterior_state.mean.assign(mean)
    if new.posterior_state.prior_mean is not None:
        new.posterior_state.prior_mean.assign(mean)
