"""`convert`: a rank-1 model with the kernels of a stock Keras model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras

from tfp_rank1 import heads, layers
from tfp_rank1.checks import choice
from tfp_rank1.conversion.comparison import Converted, check_same_function
from tfp_rank1.conversion.refusals import (
    check_arguments,
    check_inputs,
    check_kernel,
    check_model,
    check_outputs,
    check_stock,
    check_unmixed,
    check_unmixed_within,
)
from tfp_rank1.conversion.report import ConversionReport, Rows, warn_of_points
from tfp_rank1.conversion.starts import around_center, at_center
from tfp_rank1.conversion.stock import (
    RANK1,
    copy,
    likelihoods_for,
    live_config,
    without_function,
    without_likelihood,
)
from tfp_rank1.conversion.transfer import (
    attention_weights,
    cell_weights,
    cells_of,
    nothing,
    same_weights,
    transfer_kernels,
    uncompiled,
    weights_of_members,
)
from tfp_rank1.keras_internals import input_structure, layers_of, run_graph
from tfp_rank1.layers.rank1 import SEED_STEP
from tfp_rank1.model import BayesianModel
from tfp_rank1.model.raw_outputs import ends_to_drop

__all__ = ["ConversionReport", "convert", "register_converter"]

Arguments = dict[str, Any]
Converter = Callable[[Any, Arguments], keras.layers.Layer]
Transfer = Callable[[Any, Any], None]

_EXCLUDED = "excluded"


def convert(
    model: keras.Model,
    ensemble_size: int = 4,
    *,
    likelihood: Any,
    batch_normalization: str = "member",
    exclude: Iterable[str] = (),
    num_train_examples: float | None = None,
    **arguments: Any,
) -> BayesianModel:
    """Build a rank-1 `BayesianModel` with the layers and weights of a stock model.

        y = activation( s_k o (W^T (x o r_k)) + b ),   r_k, s_k ~ q with mean 1

    Kernels are kept, biases are copied to every member, and factors start around 1: with factors
    of exactly 1 every member computes the original function. The result tiles its inputs and
    splits its outputs over the members: it maps `[B, ...]` to `[B, K, outputs]`.

    `convert` takes Functional and Sequential models, nested models, shared layers,
    `TimeDistributed`, `Bidirectional`, operations of `keras.ops` and mixed dtype policies, and adds
    LoRA weights to their kernel. Layers without a rank-1 form stay as they are and are shared by
    the members; `model.conversion_report` lists them. A warning says so if these hold more than
    half of the parameters, not counting layers in `exclude`.

    Before it returns, `convert` runs the original and the result on random inputs, with factors of
    exactly 1, and refuses a difference: of a converter of your own, for example, or of a layer that
    its config does not rebuild. A posterior that starts elsewhere on purpose is put back after.

    Frozen layers stay frozen, and their factors with them. To train factors in a frozen backbone,
    unfreeze its layers before, and call `freeze_slow_weights` afterwards to keep the kernels.

    Regularizers are kept. Penalties on biases and on batch normalization by member add up over the
    members, to K times the original.

    Args:
        model: a built Functional or Sequential model. It is not changed.
        ensemble_size: number of members K, at least 1. Defaults to 4.
        likelihood: a `tfp_rank1.likelihoods` object or its name; for several outputs a list or dict
            like them, with one for each. A likelihood takes raw outputs, so a last function that it
            applies itself is dropped, an activation as well as a layer or an operation by itself:
            the softmax for `"categorical"`, the sigmoid for `"bernoulli"`, the exponential for
            likelihoods of counts and `"log_normal"`, the softplus of the scales for
            `"heteroscedastic_normal"` (which adds its `min_scale`). Heads that are concatenated
            lose it one by one.
        batch_normalization: `"member"` (default): every member has its own statistics, scale and
            offset, copied from the original; `"shared"`: the stock layers stay.
        exclude: names of layers to leave as they are. Defaults to none.
        num_train_examples: as for `BayesianModel`.
        **arguments: arguments of `tfp_rank1.layers.Rank1Mixin` for all layers, such as `posterior`,
            `prior` or `sampling`. From a `seed` every layer gets its own. Posteriors without a
            `mean_initializer`, such as the default, `"normal"`, start at means of exactly 1 (0 if
            additive); `HalfCauchy`, `MixtureOfDeltas` and `Deterministic()` start at their own.

    Returns:
        The model. Its attribute `conversion_report` is not saved.

    Raises:
        ValueError: for a subclassed or unbuilt model or one with a `call` of its own; for a sparse,
            ragged or optional input; for a Lambda layer, a quantized layer, or an operation along
            the batch axis, such as `MixUp` in training; for outputs without a known number D; for a
            model without layers to convert; for an unknown name; for a last function that the
            likelihood does not apply or that cannot be dropped; or for a result that computes
            another function, with the layer in which the difference begins.

    Warns:
        UserWarning: if less than half of the parameters became Bayesian; or if the original runs
            on no inputs that `convert` can make, or draws, so that it could not be compared.

    Example:
    ```python
    model = r1.convert(keras.applications.ResNet50(), likelihood="categorical")
    model.freeze_slow_weights()                       # train the factors only
    model.compile("adam")
    print(model.conversion_report)
    ```

    Source: Dusenberry et al. (2020).
    """
    arguments = {"ensemble_size": ensemble_size, **arguments}
    conversion = _Conversion(model, likelihood, batch_normalization, exclude, arguments)
    inputs, outputs = conversion.graph()
    built = BayesianModel(
        inputs, outputs, likelihood=conversion.likelihood, num_train_examples=num_train_examples
    )
    with at_center(built):
        check_same_function(conversion.model, conversion.result(built))
    built.conversion_report = conversion.rows.report()
    # A prior around 0 would pull trained kernels away from what they know.
    built.default_kernel_precision = 0.0
    warn_of_points(
        built.conversion_report,
        "Teach `convert` these layers by tfp_rank1.register_converter; if they are to stay as "
        "they are, name them in `exclude`.",
    )
    return built


_registered: dict[type, tuple[Converter, Transfer]] = {}


def register_converter(stock: type, make: Converter, transfer: Transfer | None = None) -> None:
    """Teach `convert` a layer class; a later call for the same class replaces an earlier one.

    Args:
        stock: the class of layers to convert; subclasses of it are not converted.
        make: called as `make(layer, arguments)` with the layer and the keyword arguments of
            `tfp_rank1.layers.Rank1Mixin` (`ensemble_size`, `posterior`, ...); returns a new layer.
        transfer: called as `transfer(layer, new)` once the new layer is built, to copy weights.
            Defaults to None: kernels are copied by their names, and the bias to every member.

    Example:
    ```python
    r1.register_converter(MyDense, lambda layer, arguments: MyDenseRank1(layer.units, **arguments))
    ```
    """
    _registered[stock] = make, transfer or transfer_kernels


class _Conversion:
    """One conversion: the counterpart of every layer, and how weights get there."""

    def __init__(
        self,
        model: keras.Model,
        likelihood: Any,
        batch_normalization: str,
        exclude: Iterable[str],
        arguments: Arguments,
    ) -> None:
        model = without_likelihood(model)
        check_model(model)
        check_stock(model)
        check_outputs(model)
        check_arguments(arguments)
        if isinstance(exclude, str):
            raise ValueError(
                "Argument `exclude` must be a collection of names of layers. Received: "
                f"exclude={exclude!r}"
            )
        self.model, self.exclude = model, frozenset(exclude)
        self.likelihood = likelihoods_for(model, likelihood)
        kinds = ("member", "shared")
        self.by_member = choice("batch_normalization", batch_normalization, kinds) == "member"
        self.arguments = around_center(arguments)
        # By the layer's id: the layer, its counterpart, and the transfer of weights.
        self.pairs: dict[int, tuple[Any, Any, Transfer]] = {}
        self.cells: set[int] = set()  # ids of cells whose weights their RNN transfers
        self.rows = Rows()
        self.names: set[str] = set()
        self.dropped = ends_to_drop(model, self.likelihood)

    def graph(self) -> tuple[Any, Any]:
        """Inputs and outputs of the new model, after all weights were copied."""
        members = self.arguments["ensemble_size"]
        structure = input_structure(self.model)
        check_inputs(structure)
        inputs = keras.tree.map_structure(
            lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name),
            structure,
        )
        # Not `clone_model`, which gives a new model: the graph has to go on from tiled inputs.
        tiled = [layers.TileMembers(members)(t) for t in keras.tree.flatten(inputs)]
        outputs = run_graph(self.model, tiled, self.convert)
        unknown = self.exclude - self.names
        if unknown:
            raise ValueError(
                f"Argument `exclude` must hold names of layers. Received: {sorted(unknown)}"
            )
        kept = [end for end in self.dropped if id(end.operation) not in self.pairs]
        if kept:
            own = heads.parts(self.likelihood, self.likelihood)[kept[0].output]
            raise ValueError(
                f"The likelihood {type(own).__name__} applies {kept[0].function} "
                "itself, and a model in `exclude` ends in it. Exclude the layers of that model by "
                f"their names. Received: exclude={sorted(self.exclude)}, and "
                f"{kept[0].function} in {kept[0].operation.name!r}"
            )
        # After the graph has run, because a new layer has weights only once it was called.
        for old, new, transfer in self.pairs.values():
            if id(old) not in self.cells:
                transfer(old, new)
        report = self.rows.report()
        if not report.converted:
            raise ValueError(
                "The model has no layer that can be converted: "
                f"{sorted(c.__name__ for c in RANK1)}. Received: "
                f"layers {sorted({row.before for row in report.left})}"
            )
        split = [layers.SplitMembers(members)(t) for t in keras.tree.flatten(outputs)]
        return inputs, keras.tree.pack_sequence_as(outputs, split)

    def result(self, model: BayesianModel) -> Converted:
        """The converted model, and what became of the parts of the original."""
        pairs = {key: (old, new) for key, (old, new, _) in self.pairs.items()}
        members = self.arguments["ensemble_size"]
        return Converted(model, self.likelihood, pairs, self.dropped, members, _way_out)

    def convert(self, layer: Any) -> Any:
        """The counterpart of a layer, the same one for every use of it."""
        if id(layer) not in self.pairs:
            new, transfer, note = self._counterpart(layer)
            self.pairs[id(layer)] = layer, new, transfer
            # A model whose layers were converted one by one has no row of its own.
            is_entered = isinstance(layer, keras.Model) and transfer is nothing
            if isinstance(layer, keras.layers.Layer) and not is_entered:
                is_frozen = not note and not layer.trainable
                self.rows.add(layer, new, note, is_frozen, is_chosen=note == _EXCLUDED)
        return self.pairs[id(layer)][1]

    def _counterpart(self, layer: Any) -> tuple[Any, Transfer, str]:
        """A new layer, its transfer of weights, and a note if the layer was left as it is."""
        new, transfer, note = self._new(layer)
        if any(layer is end.operation for end in self.dropped):
            left = without_function(layer, new)
            if left is not new:
                return left, nothing, "left to the likelihood"
        return new, transfer, note

    def _new(self, layer: Any) -> tuple[Any, Transfer, str]:
        """As `_counterpart`, but with every activation still in place."""
        kind = type(layer)
        self.names.add(layer.name)
        if kind in _registered and layer.name not in self.exclude:
            make, transfer = _registered[kind]
            return make(layer, self._own({})), transfer, ""
        if not isinstance(layer, keras.layers.Layer):
            check_unmixed(layer)
            return layer, nothing, ""  # an operation of keras.ops has no weights
        if layer.name in self.exclude:
            check_unmixed_within(layer)
            return copy(layer), same_weights, _EXCLUDED
        if isinstance(layer, keras.Model):
            check_model(layer)
            return self._nested(layer), nothing, ""
        check_unmixed(layer)
        if kind in (keras.layers.TimeDistributed, keras.layers.Bidirectional):
            return self._wrapper(layer)
        known = RANK1.keys() | _registered.keys()
        if kind is keras.layers.RNN and all(type(c) in known for c in cells_of(layer)):
            return *self._generic_rnn(layer), ""
        check_kernel(layer)
        if kind is keras.layers.MultiHeadAttention:
            return self._rank1(layer), attention_weights, ""
        if kind in RANK1:
            transfer = cell_weights if hasattr(layer, "cell") else transfer_kernels
            return self._rank1(layer), transfer, ""
        if (
            kind is keras.layers.BatchNormalization
            and self.by_member
            and not getattr(layer, "renorm", False)
        ):
            return self._batch_normalization(layer), weights_of_members, ""
        note = "no weights" if not layer.weights else "shared by the members"
        return copy(layer), same_weights, note

    def _nested(self, model: Any) -> Any:
        """A nested model, converted layer by layer; models within it come to `convert` too."""
        with uncompiled(model):
            return keras.models.clone_model(model, clone_function=self.convert)

    def _rank1(self, layer: Any) -> Any:
        config = live_config(layer)
        return RANK1[type(layer)](**{**config, **self._own(config)})

    def _own(self, config: Arguments) -> Arguments:
        """The mixin's arguments for one layer; without a `seed` the stock layer's seed stays.

        Args:
            config: the config of the stock layer.
        """
        # One seed for all layers would give them all the same noise.
        seed = self.arguments.get("seed")
        if seed is None:
            return {**self.arguments, "seed": config.get("seed")}
        self.arguments["seed"] = seed + SEED_STEP
        return {**self.arguments, "seed": seed}

    def _generic_rnn(self, layer: Any) -> tuple[Any, Transfer]:
        """`keras.layers.RNN` around converted cells, which another RNN may share."""
        cells = [self.convert(cell) for cell in cells_of(layer)]
        transfers = [self.pairs[id(cell)][2] for cell in cells_of(layer)]
        self.cells.update(id(cell) for cell in cells_of(layer))
        is_stacked = isinstance(layer.cell, keras.layers.StackedRNNCells)
        config = {**layer.get_config(), "dtype": layer.dtype_policy}
        config["cell"] = keras.layers.StackedRNNCells(cells) if is_stacked else cells[0]

        def transfer(old: Any, new: Any) -> None:
            # Not to `cells`: within Bidirectional, `new` has copies of them.
            for to_cell, before, after in zip(transfers, cells_of(old), cells_of(new), strict=True):
                to_cell(before, after)

        return keras.layers.RNN(**config), transfer

    def _batch_normalization(self, layer: Any) -> Any:
        members = self.arguments["ensemble_size"]
        return layers.EnsembleBatchNormalization(members, **live_config(layer))

    def _wrapper(self, layer: Any) -> tuple[Any, Transfer, str]:
        """`TimeDistributed` or `Bidirectional` around converted layers."""
        config = {**layer.get_config(), "dtype": layer.dtype_policy}
        if isinstance(layer, keras.layers.TimeDistributed):
            config["layer"] = inner = self.convert(layer.layer)
            return layers.TimeDistributedRank1(**config), nothing, _note_of(inner)
        # The wrapper copies its forward layer, so weights must go to the copy, by the wrapper.
        forward, to_forward, _ = self._counterpart(layer.forward_layer)
        backward, to_backward, _ = self._counterpart(layer.backward_layer)

        def transfer(old: Any, new: Any) -> None:
            to_forward(old.forward_layer, new.forward_layer)
            to_backward(old.backward_layer, new.backward_layer)

        config |= {"layer": forward, "backward_layer": backward}
        return keras.layers.Bidirectional(**config), transfer, _note_of(forward)


def _note_of(inner: Any) -> str:
    """The note on a wrapper: empty if a layer in it has members."""
    has_members = any(getattr(v, "ensemble_size", None) for v in layers_of(inner))
    return "" if has_members else "around a layer that was left"


def _way_out(layer: Any) -> str:
    """What the user does about a layer whose counterpart computes something else."""
    return (
        "Mend the converter of its class and the transfer of its weights (register_converter), or "
        f"leave the layer as it is: exclude=[{layer.name!r}]."
    )
