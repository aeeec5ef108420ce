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
from tfp_rank1.conversion import (
    Converted,
    Rows,
    check_kernel,
    check_model,
    check_same_function,
    check_stock,
    check_training,
    copy,
    ends_to_drop,
    is_graph,
    likelihoods_for,
    same_weights,
    uncompiled,
    warn_of_points,
    without_function,
    without_likelihood,
)
from tfp_rank1.heads import are_several
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

    `model.conversion_report` lists what became of every layer. A warning says so if less than half
    of the parameters that are trainable in the stock model became Bayesian. Before it returns,
    `convert` runs the original and the result on random inputs, at the kernels, and refuses a
    difference.

    Args:
        model: a built Functional or Sequential model; nested models are converted too. The model
            itself is not changed.
        likelihood: a `tfp_rank1.likelihoods` object or its name; for several outputs a list or dict
            like them, with one for each. A likelihood takes raw outputs, so a last function that it
            applies itself is dropped, an activation as well as a layer or an operation by itself:
            the softmax for `"categorical"`, the sigmoid for `"bernoulli"`, the exponential for
            likelihoods of counts and `"log_normal"`, the softplus of the scales for
            `"heteroscedastic_normal"` (which adds its `min_scale`). Heads that are concatenated
            lose it one by one.
        prior_at_kernels: True (default) centres the priors on the kernels: weights that the data
            do not inform stay where they are. False centres the priors on 0.
        num_train_examples: as for `BaliModel`.

    Returns:
        The new model, not compiled. Its attribute `conversion_report` is not saved.

    Raises:
        ValueError: for a subclassed or unbuilt model or one with a `call` of its own; for a
            quantized layer, or one that mixes rows in training, such as `MixUp`; for a model
            without a trainable layer to convert; for a last function that the likelihood does not
            apply or that cannot be dropped; or for a result that computes another function, with
            the layer in which the difference begins.

    Warns:
        UserWarning: if less than half of the parameters became Bayesian; or if the original runs
            on no inputs that `convert` can make, or draws, so that it could not be compared.

    Example:
    ```python
    model = bali_keras.convert(trained, likelihood="categorical")
    print(model.conversion_report)
    model.compile()
    model.fit(x, y, epochs=1)
    ```
    """
    model = without_likelihood(model)
    check_model(model, "BALI")
    check_stock(model)
    likelihood = likelihoods_for(model, likelihood)
    conversion = _Conversion(ends_to_drop(model, likelihood), prior_at_kernels)
    # Keras compiles the clone of a compiled model, which fails for a loss that is not registered.
    with uncompiled(model):
        net = keras.models.clone_model(model, clone_function=conversion.clone, recursive=True)
    conversion.copy_weights()
    report = conversion.rows.report()
    if not report.converted:
        raise ValueError(
            "The model has no trainable layer that can be converted: "
            f"{[c.__name__ for c in _ARGUMENTS]}. "
            f"Received: layers {sorted({row.before for row in report.left})}"
        )
    built = BaliModel(
        input_structure(net),  # as they were given: a dict stays a dict
        net.output if are_several(likelihood) else net.outputs,
        likelihood=likelihood,
        num_train_examples=num_train_examples,
    )
    pairs, dropped = conversion.pairs, conversion.dropped
    check_same_function(model, Converted(built, likelihood, pairs, dropped, 1, _way_out))
    built.conversion_report = report
    warn_of_points(
        report,
        "tfp_rank1.convert also takes embeddings, recurrent layers and attention; freeze layers "
        "that are to stay as they are in the stock model, layer.trainable = False.",
    )
    return built


class _Conversion:
    """One conversion: the counterpart of every layer."""

    def __init__(self, dropped: list[Any], prior_at_kernels: bool) -> None:
        self.dropped, self._prior_at_kernels = dropped, prior_at_kernels
        # By the layer's id: the layer and its counterpart.
        self.pairs: dict[int, tuple[Any, Any]] = {}
        self.rows = Rows()

    def clone(self, layer: Any) -> Any:
        """The counterpart of a layer, the same one for every use of it."""
        if id(layer) not in self.pairs:
            new = self._counterpart(layer)
            self.pairs[id(layer)] = layer, new
            if isinstance(layer, keras.layers.Layer) and not is_graph(layer):
                note = _note_of(layer, new)
                self.rows.add(layer, new, note, is_chosen=not layer.trainable)
        return self.pairs[id(layer)][1]

    def _counterpart(self, layer: Any) -> Any:
        new = layer  # an operation of keras.ops has no weights
        if isinstance(layer, keras.layers.Layer):
            check_training(layer)
            new = _bali_layer(layer, self._prior_at_kernels)
            if new is None:
                new = copy(layer, _without_noise(layer.get_config(), type(layer)))
        is_dropped = any(layer is end.operation for end in self.dropped)
        return without_function(layer, new) if is_dropped else new

    def copy_weights(self) -> None:
        """Give every counterpart the weights of its layer; what has no posterior is frozen."""
        for old, new in self.pairs.values():
            if isinstance(new, BaliLayer):
                _start_at(new, old)
            elif isinstance(new, keras.layers.Layer) and not is_graph(new):
                new.trainable = False
                if type(new) is type(old):
                    same_weights(old, new)


def _note_of(layer: Any, new: Any) -> str:
    """Why a layer has no posterior; empty for one that has."""
    if isinstance(new, BaliLayer):
        return ""
    if type(new) is not type(layer):
        return "left to the likelihood"
    if not layer.weights:
        return "no weights"
    return "frozen" if layer.trainable else "frozen as before"


def _way_out(layer: Any) -> str:
    """What the user does about a layer whose counterpart computes something else."""
    return (
        "Leave the layer as it is: freeze it in the stock model, "
        f"model.get_layer({layer.name!r}).trainable = False."
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
    check_kernel(layer)
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
    mean = new.as_matrix(kernel, tf.convert_to_tensor(old.bias) if new.use_bias else None)
    new.posterior_state.mean.assign(mean)
    if new.posterior_state.prior_mean is not None:
        new.posterior_state.prior_mean.assign(mean)
