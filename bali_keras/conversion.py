"""Conversion of a trained stock model into a `BaliModel` that starts at its kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras

from bali_keras.counterparts import (
    CONVERTED,
    Counterparts,
    is_bayesian,
    start_at,
)
from bali_keras.layers.composite import NOISY, CompositeBali, composed
from bali_keras.model import BaliModel
from bali_keras.parts import Parts
from tfp_rank1.conversion import (
    Converted,
    Rows,
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
from tfp_rank1.keras_internals import calls_of, freeze, input_structure, layers_of

__all__ = ["convert"]

# Which layers become BALI layers: all, the last one, those of some names, or those for which a
# function of the stock layer is true.
Choice = str | Sequence[str] | Callable[[keras.layers.Layer], bool]


def convert(
    model: keras.Model,
    likelihood: Any,
    prior_at_kernels: bool = True,
    num_train_examples: float | None = None,
    layers: Choice = "all",
) -> BaliModel:
    """A `BaliModel` with the layers and weights of a trained stock model.

    Dense and EinsumDense layers, embeddings, convolutions (plain, depthwise, separable,
    transposed), LSTM, GRU and multi-head attention become BALI layers whose posterior means start
    at the kernels. `fit` then infers the posteriors around these means. A large data set takes an
    epoch; a small one takes about a thousand steps, which also find a learned noise. Where the row
    covariances of all layers would take more than 256 MiB, those of the widest layers are stored in
    blocks, see `row_covariance` of `BaliLayer`.

    So do these layers where they are parts of a layer, such as the encoder of a transformer, or
    `Bidirectional`: its code then meets BALI layers. Parts stay as they are if their rows are not
    those of examples, such as positions, and so do parts of other wrappers of Keras. Any layer
    stays whose weights other code reads, such as a tied embedding, or whose outputs a training step
    cannot follow: it is called in a loop or a branch of the graph, or no gradient comes back from
    the model's outputs. Runs on random inputs find that out. Padding counts as data where a mask is
    an argument or an input, and not a mask of Keras.

    All other layers keep their weights and are frozen: batch normalization then uses its moving
    statistics, and dropout is off. Convolutions of groups of several channels, recurrent layers
    with states, and einsum kernels with an axis per position have no BALI form and are frozen too.
    To train a frozen layer, set `trainable = True` and compile with an optimizer. Layers that are
    frozen in the stock model, such as a backbone, are not converted, unless `layers` names them.

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
        layers: which layers become BALI layers: `"all"` (default) that have a counterpart and are
            trainable; `"last"`, the last one of these, for a Bayesian head on features that stay as
            they are; a list of names; or a function of the stock layer that returns whether. All
            others are frozen. Parts of layers have paths for names, `"encoder.blocks.0.mlp"`; the
            name of a layer stands for all of its parts.

    Returns:
        The new model, not compiled. Its attribute `conversion_report` is not saved.

    Raises:
        ValueError: for names of layers that the model does not have, or that cannot be converted;
            for a subclassed or unbuilt model or one with a `call` of its own; for a
            quantized layer, or one that mixes rows in training, such as `MixUp`; for a model
            without a trainable layer to convert; for a last function that the likelihood does not
            apply or that cannot be dropped; or for a result that computes another function, with
            the layer in which the difference begins.

    Warns:
        UserWarning: if less than half of the parameters became Bayesian; or if the original runs
            on no inputs that `convert` can make, or draws, so that it could not be compared.

    Example:
    ```python
    model = bk.convert(trained, likelihood="categorical")
    print(model.conversion_report)
    model.compile()
    model.fit(x, y, epochs=1)
    ```
    """
    model = without_likelihood(model)
    check_model(model, "BALI")
    check_stock(model)
    likelihood = likelihoods_for(model, likelihood)
    parts = Parts(model)
    chosen = _chosen(parts.candidates, layers)
    if not chosen and parts.candidates and layers != "all":
        raise ValueError(
            "Argument `layers` must choose at least one layer, of "
            f"{[names[0] for names, _ in parts.candidates]}. Received: layers={layers!r}"
        )
    counterparts = Counterparts([v for _, v in parts.candidates], chosen, prior_at_kernels)
    conversion = _Conversion(ends_to_drop(model, likelihood), counterparts, parts, chosen)
    # Keras compiles the clone of a compiled model, which fails for a loss that is not registered.
    with uncompiled(model):
        net = keras.models.clone_model(model, clone_function=conversion.clone, recursive=True)
    conversion.copy_weights()
    report = conversion.rows.report()
    if not report.converted:
        raise ValueError(
            "The model has no trainable layer that can be converted: "
            f"{CONVERTED}. "
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
    if layers == "all":  # else the user has chosen
        warn_of_points(
            report,
            "Freeze layers that are to stay as they are in the stock model, layer.trainable = "
            "False, or choose with layers=.",
        )
    return built


def _chosen(candidates: list[tuple[tuple[str, ...], Any]], choice: Choice) -> set[int]:
    """Ids of the layers that are to become BALI layers.

    Args:
        candidates: names that stand for a layer, and the layer, for all that can.
        choice: as for `convert`.

    Raises:
        ValueError: for a choice of another kind, and for names that cannot be converted.
    """
    trainable = [id(v) for _, v in candidates if v.trainable]
    if choice == "all":
        return set(trainable)
    if choice == "last":
        return set(trainable[-1:])
    if callable(choice):
        return {id(v) for _, v in candidates if choice(v)}
    if isinstance(choice, str) or not all(isinstance(name, str) for name in choice):
        raise ValueError(
            "Argument `layers` must be 'all', 'last', a list of names of layers, or a function of "
            f"a layer that returns whether to convert it. Received: layers={choice!r}"
        )
    named = {name: [v for names, v in candidates if name in names] for name in choice}
    wrong = [name for name, layers in named.items() if not layers]
    if wrong:
        raise ValueError(
            "Argument `layers` must name layers that can be converted: "
            f"{[names[0] for names, _ in candidates]}. "
            f"Received: {wrong}"
        )
    return {id(v) for layers in named.values() for v in layers}


class _Conversion:
    """One conversion: the counterpart of every layer."""

    def __init__(
        self, dropped: list[Any], counterparts: Counterparts, parts: Parts, chosen: set[int]
    ) -> None:
        self.dropped, self._counterparts = dropped, counterparts
        self._parts, self._chosen = parts, chosen
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

    def _part(self, part: Any, path: str) -> Any:
        """The counterpart of a layer, or of a model, that is an attribute of a layer."""
        if is_graph(part):
            return keras.models.clone_model(part, clone_function=self.clone, recursive=True)
        new = self._counterparts.of(part)
        self.pairs[id(part)] = part, new
        self.rows.add(part, new, name=path)
        return new

    def _composite(self, layer: Any) -> CompositeBali | None:
        """A layer with BALI layers within; None without any, and if its code does not run so."""
        parts = self._parts.within(layer, self._chosen)
        if not parts:
            return None
        pairs, rows = dict(self.pairs), self.rows.copy()
        try:
            new = composed(layer, {k: self._part(v, f"{layer.name}.{k}") for k, v in parts.items()})
            call = calls_of(layer)[0].arguments
            new.compute_output_spec(*call.args, **call.kwargs)
            return new
        except Exception:  # code of a user may do anything, such as to read a kernel
            self.pairs, self.rows = pairs, rows
            return None

    def _counterpart(self, layer: Any) -> Any:
        new = layer  # an operation of keras.ops has no weights
        if isinstance(layer, keras.layers.Layer):
            check_training(layer)
            new = self._counterparts.of(layer)
            new = self._composite(layer) if new is None else new
            if new is None:
                new = _left(layer)
        is_dropped = any(layer is end.operation for end in self.dropped)
        return without_function(layer, new) if is_dropped else new

    def copy_weights(self) -> None:
        """Give every counterpart the weights of its layer; what has no posterior is frozen."""
        for old, new in self.pairs.values():
            if is_graph(new):
                continue
            if is_bayesian(new):
                start_at(new, old)
            elif isinstance(new, keras.layers.Layer) and not isinstance(new, CompositeBali):
                freeze(new)
                if type(new) is type(old):
                    same_weights(old, new)


def _note_of(layer: Any, new: Any) -> str:
    """Why a layer has no posterior; empty for one that has."""
    if is_bayesian(new):
        return ""
    if isinstance(new, CompositeBali) and new.parts:
        return "frozen but for the layers within that are named" if layer.weights else "no weights"
    if type(new) not in (type(layer), CompositeBali):
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


def _left(layer: Any) -> Any:
    """A copy of a layer that stays as it is, without noise."""
    has_parts = any(v.weights or v.built for v in layers_of(layer, include_self=False))
    is_own = not type(layer).__module__.startswith("keras.")
    if is_own and has_parts:  # that may draw, or be built by calls alone
        with contextlib.suppress(ValueError):
            return composed(layer, {})
    try:
        return copy(layer, _without_noise(layer.get_config(), type(layer)))
    except ValueError:  # its config does not rebuild it, but may with the arguments alone
        if not layer.built:
            raise
        return composed(layer, {})


_RATES = "dropout", "recurrent_dropout"


def _without_noise(config: dict[str, Any], cls: type) -> dict[str, Any]:
    """The configuration of a layer that stays as it is, with the dropout of stock layers off.

    Frozen parts are not trained, and their noise would count as noise of the observations.
    """
    found = dict(config)
    if not cls.__module__.startswith("keras"):
        return found  # a layer of one's own: its arguments are unknown
    amounts = [amount for kind, amount in NOISY.items() if issubclass(cls, kind)]
    found |= {name: 0.0 for name in (*amounts, *_RATES) if name in found}
    for name in ("layer", "backward_layer", "cell"):  # within a wrapper or a recurrent layer
        inner = found.get(name)
        if isinstance(inner, dict) and isinstance(inner.get("config"), dict):
            kind = getattr(keras.layers, inner.get("class_name", ""), None)
            if kind is not None:
                found[name] = {**inner, "config": _without_noise(inner["config"], kind)}
    return found
