"""BayesianModel: its loss is an evidence bound, its answer a distribution."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from typing import Any, ClassVar, overload

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1 import heads, likelihoods, scopes
from tfp_rank1.checks import positive
from tfp_rank1.divergence import KLOwner
from tfp_rank1.keras_internals import (
    Functional,
    compile_state,
    forget_metrics,
    layers_of,
    nodes_of,
    restore_compile_state,
    set_initial_epoch,
    set_loss_tracker,
    unpickle_model,
    update_loss_tracker,
)
from tfp_rank1.layers.rank1 import Rank1Mixin
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.model import answer_state, roles, step
from tfp_rank1.model import objective as bound
from tfp_rank1.model.arrays import (
    check_arrays,
    check_batched,
    check_columns,
    check_inputs,
    check_rank,
    warn_of_missing,
)
from tfp_rank1.model.calibration import Calibration, call_calibrated
from tfp_rank1.model.calibration_search import CalibrationReport, calibrate
from tfp_rank1.model.counting import count_examples, target_ranks
from tfp_rank1.model.graph import (
    check_members_agree,
    check_members_are_given,
    common_members,
    end_in_likelihood,
    functional_variant,
    has_members,
    inputs_and_outputs,
    is_functional_call,
    members_by_output,
    output_shapes,
    take_graph,
)
from tfp_rank1.model.kernel_prior import (
    DEFAULT_KERNEL_PRECISION,
    FoundPrecision,
    precision_of,
)
from tfp_rank1.model.kernel_search import find_kernel_precision
from tfp_rank1.model.monitors import tell_directions
from tfp_rank1.model.noise import add_tempering, without_noise
from tfp_rank1.model.objective import Objective
from tfp_rank1.model.options import (
    Annealing,
    Options,
    check_split_batches,
    known_loss,
    loss_weights_of,
    own_metrics,
)
from tfp_rank1.model.pruning import prune_members
from tfp_rank1.model.replicas import Replicas
from tfp_rank1.model.scales import Sizes, warn_of_input_size, warn_of_target_size
from tfp_rank1.model.trained_rows import TrainedRows
from tfp_rank1.moments import takes_one_pass
from tfp_rank1.predictive import (
    Conformal,
    PosteriorPredictive,
    PredictiveMoments,
    Samplers,
    check_exportable,
    conformalized,
    evaluated,
    export_predictive,
    joined_weights,
    labelled_batches,
    posterior_predictive,
)
from tfp_rank1.random import load_seed_state, save_seed_state
from tfp_rank1.serialization import registered

__all__ = ["BayesianModel"]


class MeanOrNaN(keras.metrics.Mean):
    """A mean that is NaN where it saw nothing, as in an epoch of refused batches."""

    def result(self) -> tf.Tensor:
        # Keras's `Mean` says 0, and a loss of 0 would look like the best epoch of all.
        return self.total / tf.cast(self.count, self.dtype)


@registered("tfp_rank1")
class BayesianModel(Replicas):
    """A Keras model trained by an evidence bound; Functional or subclassed.

        loss(t) = NLL + anneal(t) / N * KL + other penalties

    NLL is the mean negative log-likelihood per example in nats, KL the sum over the model's layers
    (each counted once) and N the number of training examples; `anneal` is 1 unless
    `callbacks.KLAnnealing` changes it. The loss does not depend on the batch size. Training reports
    the compiled loss, evaluation the NLL of the mixture over members. `fit` logs

        nll         nats per example
        kl          KL / N, nats per example
        kl_weight   anneal / N
        refused     fraction of the epoch's batches whose loss or gradients were not finite; such
                    a batch leaves weights, optimizer and metrics as they were
        NAME_loss   the NLL of each of several outputs, of which `nll` is the sum, weighted by
                    `loss_weights`

    Args:
        *args: as for `keras.Model`: `BayesianModel(inputs, outputs, ...)` with outputs
            `[B, K, D]` (`[B, D]` for a net without members), `[B, K, ..., D]` with positions
            (pixels, time steps), or a list or dict of these; or a built Sequential or Functional
            model in place of the two. A subclass that defines `call` passes neither, and ends
            `call` with `return self.likelihood(outputs)`.
        likelihood: a `tfp_rank1.likelihoods` object or its name; for several outputs a list or dict
            like them, with one for each. In a Functional model the likelihood becomes the last
            operation, so that clones and saved models keep it.
        num_train_examples: N. Defaults to None: every `fit` counts the arrays or the finite
            dataset that it is given (a dataset that repeats its examples counts every repetition).

    Raises:
        ValueError: without a likelihood, or with an N that is not above 0.

    Example:
    ```python
    model = r1.BayesianModel(inputs, outputs, likelihood=r1.likelihoods.Categorical())
    model.compile("adam", loss="average_nll", metrics=[r1.metrics.ExpectedCalibrationError()])
    model.fit(x, y, epochs=20, callbacks=[r1.callbacks.KLAnnealing(epochs=10)])
    p = model.posterior_predictive(x_test, num_samples=32)
    p.mean(), p.mutual_information()
    ```

    Source: Dusenberry et al. (2020).
    """

    def __init__(
        self,
        *args: Any,
        likelihood: Any = None,
        num_train_examples: float | None = None,
        **kwargs: Any,
    ) -> None:
        if len(args) == 1 and isinstance(args[0], keras.Model):
            args = inputs_and_outputs(args[0])  # such as a Sequential
        if is_functional_call(args, kwargs):
            # Before Keras's constructor, which would make the class itself Functional, in place.
            cls: Any = type(self)
            self.__class__ = functional_variant(cls)
            inputs, outputs, args = take_graph(args, kwargs)
            is_given = likelihood is not None  # else the graph is that of a clone or a file
            outputs, likelihood = end_in_likelihood(outputs, likelihood)
            super().__init__(inputs, outputs, *args, **kwargs)
            shapes = [tensor.shape for tensor in self.outputs]
            members = common_members(shapes, self.has_members)
            check_members_agree(layers_of(self, include_self=False), members)
            if is_given and likelihood is not None:
                check_members_are_given(self)
        else:
            super().__init__(*args, **kwargs)
        if likelihood is None:
            raise ValueError(
                "A BayesianModel needs a likelihood, which says what its raw outputs mean: pass "
                f"likelihood= one of {sorted(c.__name__ for c in likelihoods.ALL)}, for example "
                "tfp_rank1.likelihoods.Categorical(). Received: likelihood=None"
            )
        # Keras saves attributes in alphabetical order; under this name the likelihood comes before
        # the private containers of a Functional model, which hold the likelihood as well.
        self._likelihood: Any = heads.map_heads(likelihoods.get, likelihood)
        several = heads.are_several(self._likelihood)
        names = heads.names_of(self._likelihood) if several else []
        if isinstance(self, Functional) and several:
            # Keras's own names are those of the last operations, the likelihoods.
            tensors = heads.parts(self._likelihood, self.output)
            by_tensor = {id(t): name for t, name in zip(tensors, names, strict=True)}
            self.output_names = [by_tensor[id(tensor)] for tensor in self.outputs]
        self._count: float | None = _check_count(num_train_examples)
        self._count_is_given = num_train_examples is not None
        self._options = Options()
        self._samplers = Samplers()
        object.__setattr__(self, "_frozen", [])
        object.__setattr__(self, "_tempered", [])
        object.__setattr__(self, "found_kernel_precision", FoundPrecision())
        # A net that has seen data cannot be judged by parts of them that are held out afterwards.
        self.has_seen_data = False
        self._trained_rows = TrainedRows(())
        self._has_moments = True  # until a rule refuses
        self._target_ranks: dict[str, Any] = {}
        if isinstance(self, Functional) and not is_given:
            answer_state.restore_from_graph(self)
        self.seed_generator = keras.random.SeedGenerator()
        self._nll_tracker = MeanOrNaN(name="nll")
        self._kl_tracker = keras.metrics.Mean(name="kl")
        self._kl_weight_tracker = keras.metrics.Mean(name="kl_weight")
        self._refused_tracker = keras.metrics.Mean(name="refused")
        self._head_trackers = [MeanOrNaN(name=f"{name}_loss") for name in names]

    @property
    def likelihood(self) -> Any:
        """What the raw outputs mean: a likelihood, or one for each of several outputs."""
        return self._likelihood

    @property
    def likelihoods(self) -> list[Likelihood]:
        """The likelihoods of all outputs, one of them for a single output."""
        return heads.parts(self._likelihood, self._likelihood)

    @property
    def is_discrete(self) -> bool:
        """Whether the targets of all outputs are classes or counts."""
        return all(likelihood.discrete for likelihood in self.likelihoods)

    @property
    def num_train_examples(self) -> float | None:
        """N; None until it is given or `fit` finds it. `fit` keeps an N that was assigned."""
        return self._count

    @num_train_examples.setter
    def num_train_examples(self, count: float | None) -> None:
        self._count, self._count_is_given = _check_count(count), count is not None
        self.forget_functions()  # their graphs hold 1/N as a constant

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The model's layers; the likelihood, the last operation, is `model.likelihood`."""
        # Before `_likelihood` is set, Keras builds the graph and must track the likelihood too.
        found = self.__dict__.get("_likelihood")
        hidden = [] if found is None else [id(v) for v in heads.parts(found, found)]
        return [layer for layer in super().layers if id(layer) not in hidden]

    # What `freeze_slow_weights` froze. Keras must not track this list: the variables and layers in
    # it would count as the model's own.
    _frozen: list[Any]
    # The noise of the loss, see `model.noise`: no weight, as saved models have none in its place.
    _tempered: list[keras.Variable]
    # What a search of `fit` found, see `model.kernel_search`.
    found_kernel_precision: FoundPrecision
    # How answers differ from what was trained, and what intervals and sets are made of.
    _calibration = Calibration()
    _conformal: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One draw of the raw outputs, as in Keras; outside of training a calibrated one."""
        return call_calibrated(self, super().__call__, args, kwargs)

    # -- compile --------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = "average_nll",
        *,
        metrics: Any = None,
        factor_learning_rate_multiplier: float = Options.factor_learning_rate_multiplier,
        member_batches: str = Options.member_batches,
        num_train_samples: int = Options.num_train_samples,
        evaluation_samples: int = Options.evaluation_samples,
        evaluation_method: str | None = Options.evaluation_method,
        kernel_precision: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Configure training; other arguments are those of `keras.Model.compile`.

        Args:
            optimizer: as in Keras.
            loss: `"average_nll"` (default), `"mixture_nll"`, an object of either class, or, for
                a net without members and with one output, any Keras loss.
            metrics: metrics of `tfp_rank1`, which get the model's likelihood unless they have
                one; `"accuracy"` is `metrics.Accuracy`. Metrics of Keras, their names and functions
                see the predictive mean, see `metrics.OfPredictiveMean`. For several outputs a list
                or dict like them; a dict may leave some out.
            factor_learning_rate_multiplier: number by which every step of a factor is multiplied,
                above 0, for any optimizer without `use_ema`. Defaults to 1.
            member_batches: `"tiled"` (default): every member trains on the whole batch;
                `"split"`: every member trains on a K-th of the batch, in the time of one net. K
                must then divide every batch, and the loss be `"average_nll"`.
            num_train_samples: samples per member and example in training, at least 1.
                `"average_nll"` averages over the samples, `"mixture_nll"` takes them as members
                of the mixture. Defaults to 1.
            evaluation_method: what `evaluate`, validation and `predict` look at. `"moments"`: the
                answers of `posterior_predictive(x, method="moments")`, which takes a graph whose
                layers have rules, see `tfp_rank1.moments`. `"samples"`: `evaluation_samples` draws.
                Defaults to None: moments where one pass gives them, that is for a graph in which
                everything random meets rules only, positions (pixels, time steps) share no noise,
                and no functions of one random tensor meet again, as in `h * sigmoid(h)`; samples
                for other models. `model.evaluation_method` is the method in use.
            evaluation_samples: samples of the predictive distribution in `evaluate`, validation
                and `predict`, rounded up to a multiple of the members; the same draws in every
                call. Without a meaning for moments in one pass. Defaults to 8.
            kernel_precision: p of the prior of the kernels, at least 0: an entry has the precision
                `p fan_in` a priori, and `-log p(W) / N` is part of the loss; tables of embeddings
                have no such prior. 0 for no prior.
                Defaults to None: 0 after `convert` and for a net whose factors have no prior. For
                others the first `fit` to a small table of classes or counts finds it: fits to parts
                of the training examples are compared on the examples that they left out, before the
                fit to all of them begins. That takes the time of up to 12 fits to some hundred
                examples. For continuous targets, more than about 3,100 examples, fits below 100
                steps or with `EarlyStopping`, data that can be read only once, losses of Keras and
                several replicas it is 0.01.
                `model.kernel_precision` is the value in use, which is saved with the model.
            **kwargs: as in Keras. `loss_weights` of several outputs is a list or dict of numbers
                above 0.

        Raises:
            ValueError: for values out of range, arguments that exclude each other, or a loss with
                another likelihood than the model's.
        """
        optimizer, loss = keras.optimizers.get(optimizer), known_loss(loss, self.likelihood)
        options = Options.check(
            optimizer,
            loss,
            layers_of(self),
            factor_learning_rate_multiplier=factor_learning_rate_multiplier,
            member_batches=member_batches,
            num_train_samples=num_train_samples,
            evaluation_samples=evaluation_samples,
            evaluation_method=evaluation_method,
            kernel_precision=kernel_precision,
        )
        self.compile_with(options, optimizer, loss, metrics=metrics, **kwargs)

    def compile_with(
        self,
        options: Options,
        optimizer: Any,
        loss: Any,
        *,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configure training by checked options; if Keras refuses, the model stays as it was.

        Args:
            options: the options of this library.
            optimizer: as in Keras.
            loss: what `known_loss` returned.
            metrics: as in `compile`.
            weighted_metrics: as in Keras.
            **kwargs: as in Keras.
        """
        metrics, weighted = own_metrics(metrics), own_metrics(weighted_metrics)
        loss_weights = None
        if heads.are_several(self.likelihood):  # else they are for Keras
            loss_weights = loss_weights_of(kwargs.pop("loss_weights", None), self.likelihood)
        before = compile_state(self)
        try:
            forget_metrics(self)
            super().compile(
                optimizer=optimizer, loss=loss, metrics=metrics, weighted_metrics=weighted, **kwargs
            )
        except Exception:
            restore_compile_state(self, before)
            raise
        if self.has_seen_data:
            self.keep_precision(options)
        # Last, as all lines above may refuse: a refused `compile` leaves the options in place.
        self._options = options.bound_to(self.likelihood, loss, [metrics, weighted], loss_weights)
        set_loss_tracker(self, MeanOrNaN(name="loss"))
        add_tempering(self)

    def keep_precision(self, options: Options) -> None:
        """Go on with the precision that a trained net was given, where it is given none now.

        Args:
            options: the new options, which are not in place yet.
        """
        given = self._options.kernel_precision
        if options.kernel_precision is None and given is not None:
            self.found_kernel_precision.assign(given)

    def get_compile_config(self) -> dict[str, Any] | None:
        """The arguments of `compile`, and which normalizations `freeze_slow_weights` froze."""
        config = super().get_compile_config()
        if not config:
            return None
        config |= self._options.get_config()
        if self.default_kernel_precision != type(self).default_kernel_precision:
            config["default_kernel_precision"] = self.default_kernel_precision
        if self._frozen:
            config["frozen_normalizations"] = roles.places_of(self, self._frozen)
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Freeze and compile as the saved model was; Keras loads the optimizer's state after."""
        config = dict(config)
        if "default_kernel_precision" in config:
            self.default_kernel_precision = config.pop("default_kernel_precision")
        places = config.pop("frozen_normalizations", None)
        if places is not None:
            # These normalizations were saved as frozen. `freeze_slow_weights` notes only what it
            # freezes itself, so that `freeze_slow_weights(False)` can undo it.
            normalizations = roles.normalizations(self)
            for i in places:
                normalizations[i].trainable = True
            self.freeze_slow_weights()
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.build_optimizer()  # Keras loads values only into slots that exist

    # -- the objective, and one batch -----------------------------------------------------------

    # The p of the kernels' prior where `compile` is not told, and some factor has a prior.
    default_kernel_precision: float = DEFAULT_KERNEL_PRECISION

    @property
    def kernel_precision(self) -> float:
        """The p of the kernels' prior in use; 0 for none."""
        return precision_of(self)

    # Names that training logs and evaluation does not.
    training_logs: ClassVar[tuple[str, ...]] = ("refused",)
    # The layers that have priors, and the sizes of data that these were measured to be for.
    bayesian_layer: ClassVar[type] = Rank1Mixin
    sizes: ClassVar[Sizes] = Sizes(inputs=(0.0, 50.0), targets=(0.03, 1000.0))

    def training_outputs(self, x: Any) -> tf.Tensor:
        """Raw outputs of one training pass, as `compile` asks for them.

        Args:
            x: one batch of inputs, `[B, ...]`.

        Returns:
            `[B, S K, D]` for S samples of tiled batches, `[B, 1, D]` for split batches.
        """
        return bound.training_outputs(self, x)

    def objective(
        self, y: Any, outputs: tf.Tensor, sample_weight: Any = None, training: bool = True
    ) -> Objective:
        """The loss of one batch and its parts.

        Args:
            y: targets `[B]` or `[B, targets]`; for several outputs a list or dict of these.
            outputs: raw outputs `[B, K, D]`, or a list or dict of these.
            sample_weight: optional, `[B]`, or one weight per target, `[B, targets]`; for several
                outputs also a list or dict of these.
            training: False takes the mixture's NLL in place of the training loss, and the KL at
                its full weight 1/N, so that validation losses of different epochs are comparable.

        Returns:
            `Objective`. As in Keras, `loss` and `nll` are divided by the number of replicas; `kl`
            is the whole KL in nats.
        """
        return bound.evidence_bound(self, y, outputs, sample_weight, training)

    def with_penalties(self, nll: tf.Tensor, rows: tf.Tensor, training: bool = True) -> Objective:
        """The NLL of a batch with KL, regularizers and `add_loss` terms.

        Args:
            nll: the NLL of this replica's batch, scalar.
            rows: number of examples per replica, averaged over the replicas.
            training: whether the KL is annealed.
        """
        return bound.with_penalties(self, nll, rows, training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """`NLL + anneal / N * KL + other penalties`, scalar."""
        return self.objective(y, y_pred, sample_weight, training).loss

    @property
    def losses(self) -> list[tf.Tensor]:
        """The weighted KL of every layer, regularizers, and `add_loss` terms.

        Raises:
            ValueError: if N is not known yet and a layer has a KL.
        """
        # An owner is set while the objective reads the losses; a second would take its KL away.
        if scopes.kl_owner.value is not None:
            return super().losses
        with scopes.kl_owner.set(KLOwner(bound.kl_weight(self, training=True))):
            return super().losses

    def kl(self) -> tf.Tensor:
        """KL of all layers in nats, unweighted; each layer counts once.

        A layer's `kl_reduction` says whether its KL is a mean or a sum over the members.
        """
        return bound.kl_of(self)

    def set_annealing(self, annealing: Annealing | None) -> None:
        """Set `anneal(t)`, a function from the step t (int64 scalar) to a number in [0, 1].

        The function becomes part of the compiled training step, so that it also holds within
        `steps_per_execution`. None, the state after `compile`, means the full KL weight.
        `callbacks.KLAnnealing` sets a function for the length of one `fit`.

        Args:
            annealing: the function, or None.

        Raises:
            ValueError: for a model without a KL, whose weight would change nothing.
        """
        if annealing is not None:  # an unbuilt model is asked again in its first step
            bound.check_anneals(self)
        self._options = dataclasses.replace(self._options, annealing=annealing)
        self.forget_functions()

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One optimizer step on one batch."""
        return step.train_batch(self, data)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Loss and metrics of one batch."""
        return step.evaluate_batch(self, data)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """As in Keras, where metrics see raw outputs with their axis of members."""
        if self._options.evaluation_loss is not None:
            y_pred = members_by_output(self, y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def track_objective(self, objective: Objective) -> None:
        """Log the loss of a batch and its parts, weighted by the number of examples."""
        rows = objective.rows
        # Losses are divided by the number of replicas, and a metric averages over replicas.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        update_loss_tracker(self, objective.loss * replicas, rows)
        self._nll_tracker.update_state(objective.nll * replicas, sample_weight=rows)
        for tracker, nll in zip(self._head_trackers, objective.by_output, strict=False):
            tracker.update_state(nll * replicas, sample_weight=rows)
        per_example = objective.kl / float(self.num_train_examples or 1)
        self._kl_tracker.update_state(per_example, sample_weight=rows)
        self._kl_weight_tracker.update_state(objective.kl_weight, sample_weight=rows)

    def track_refusal(self, accepted: tf.Tensor) -> None:
        """Log whether a training batch was refused; `accepted` is a boolean scalar."""
        self._refused_tracker.update_state(1.0 - tf.cast(accepted, tf.float32))

    @property
    def optimizer_variables(self) -> list[keras.Variable]:
        """The variables that the optimizer trains: not a noise that is learned in closed form."""
        return without_noise(self)

    # Whether the loss of a training step has a noise of its own, see `model.noise`.
    tempers_noise: ClassVar[bool] = True

    def build_optimizer(self) -> None:
        """Make the optimizer's slots, and the noise of the loss, if they are still to be made."""
        super().build_optimizer()
        add_tempering(self)

    @property
    def state_beside_weights(self) -> list[keras.Variable]:
        """Variables that are saved with the model and are none of its weights."""
        return self._tempered

    # -- parameters by role ---------------------------------------------------------------------

    @property
    def factor_variables(self) -> list[keras.Variable]:
        """Variables of all factors and of their priors, each once."""
        return roles.factor_variables(self)

    @property
    def slow_weights(self) -> list[keras.Variable]:
        """All other weights of the model: kernels, point biases, weights of stock layers."""
        return roles.slow_weights(self)

    def freeze_slow_weights(self, frozen: bool = True) -> None:
        """Freeze all weights but those of the factors, or make them trainable again.

        A frozen batch normalization uses its moving statistics; a learned noise scale of the
        likelihood is still learned. Compile the model afterwards. A compiled model that is saved
        and loaded is still frozen.

        Args:
            frozen: True (default) freezes; False undoes earlier calls and nothing else.

        Raises:
            ValueError: if there are no factors to train.

        Example:
        ```python
        model = r1.convert(trained, likelihood="categorical")
        model.freeze_slow_weights()
        model.compile("adam")
        model.fit(x, y, epochs=2)
        ```
        """
        if frozen:
            self._frozen.extend(roles.slow_parts(self))
        for part in self._frozen:
            part.trainable = not frozen
        if not frozen:
            self._frozen.clear()
        self.forget_functions()

    # -- fit, evaluate, predict -----------------------------------------------------------------

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `keras.Model.fit` does, after finding N and checking targets in arrays.

        What `calibrate` and `conformalize` found belonged to the posterior before, and is dropped.

        Raises:
            ValueError: if N is neither given nor found in `x`, for lists in place of arrays, arrays
                that are empty or without targets, inputs that are not finite, or targets outside
                the support of the likelihood, and before `compile`. Targets that are NaN are
                missing, with a warning; another warns of inputs and targets far from unit size.
        """
        arguments = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        self.check_compiled()
        check_arrays(x, y)
        check_batched(self, x)
        if heads.are_several(self.likelihood) and arguments.get("class_weight") is not None:
            raise ValueError(
                "Argument `class_weight` is for a model with one output: pass sample_weight= with "
                f"the weights of every output. Received: {arguments['class_weight']}"
            )
        tell_directions(arguments.get("callbacks"))
        if not self._count_is_given:
            self._find_count(arguments)
        self._check_array_targets(y)
        heads.map_heads(_warn_of_missing, self.likelihood, y)
        if not self.has_seen_data and not hasattr(self, "conversion_report"):
            self._warn_of_sizes(x, y, kwargs.get("sample_weight"))
        self._follow_targets("train", x, y, kwargs.get("sample_weight"))
        if self._options.member_batches == "split":
            check_split_batches(arguments, layers_of(self))
        answers, steps = (self._calibration, self._conformal), self.steps_taken
        answer_state.forget_calibration(self)
        annealing = self._options.annealing
        try:
            self.prepare_fit(arguments)
            self.has_seen_data = True
            history = super().fit(x, y, *args, **kwargs)
            self._trained_rows = TrainedRows(x, arguments.get("validation_split", 0.0))
            self.warn_of_refused(history.history.get("refused", []))
            return history
        except BaseException:
            if self.steps_taken == steps:  # nothing was trained, such as for inputs of another size
                answer_state.set_calibration(self, answers[0])
                answer_state.set_conformal(self, answers[1])
            raise
        finally:
            # After an interrupt, too: Keras then tells no callback that training has ended.
            set_initial_epoch(self, None)  # which a restored checkpoint may have set
            if self._options.annealing is not annealing:
                self.set_annealing(annealing)

    def check_compiled(self) -> None:
        """Raise if `compile` was forgotten."""
        if not self.compiled:
            raise ValueError(
                "`fit` needs a compiled model: call model.compile(...) first. Received: "
                f"{type(self).__name__} {self.name!r}, compiled=False"
            )

    def _warn_of_sizes(self, x: Any, y: Any, sample_weight: Any) -> None:
        warn_of_input_size(self, x)
        weights = None if heads.are_several(self.likelihood) else sample_weight
        heads.map_heads(
            lambda likelihood, v: warn_of_target_size(self.sizes, likelihood, v, weights),
            self.likelihood, y,
        )  # fmt: skip

    @property
    def steps_taken(self) -> int:
        """Number of training steps over the life of the model, by which a fit tells whether it
        trained anything.
        """
        return 0 if self.optimizer is None else int(self.optimizer.iterations.numpy())

    def prepare_fit(self, arguments: dict[str, Any]) -> None:
        """Find hyperparameters that `compile` left open, after the arguments passed all checks.

        Args:
            arguments: the arguments that were given, by name.
        """
        find_kernel_precision(self, arguments)

    def train_for(self, batches: tf.data.Dataset, steps: int) -> None:
        """A fit of some steps without callbacks, for a search.

        Args:
            batches: batches of inputs, targets and, if there are any, sample weights.
            steps: number of steps.
        """
        super().fit(batches, epochs=1, steps_per_epoch=steps, verbose=0, shuffle=False)

    @property
    def every_variable(self) -> list[keras.Variable]:
        """All that a fit changes: weights, seeds, metrics, slots, and what is saved beside."""
        slots = [] if self.optimizer is None else self.optimizer.variables
        return [*self.variables, *slots, *self.state_beside_weights]

    def warn_of_refused(self, shares: list[float]) -> None:
        """Warn after a `fit` in which batches were refused.

        Args:
            shares: fraction of refused batches, by epoch.
        """
        if any(shares):
            warnings.warn(
                f"In {sum(s > 0 for s in shares)} of {len(shares)} epochs some batches, up to "
                f"{max(shares):.0%}, left the model as it was: the loss or a gradient was not "
                "finite. Look for NaN or huge numbers in inputs and targets, scale both to unit "
                "size, or lower the learning rate. See `refused` in the logs",
                stacklevel=3,
            )

    def count_examples(self, arguments: dict[str, Any]) -> float | None:
        """N for the arguments of a `fit`; None if the arguments do not tell N."""
        return count_examples(arguments.get("x"), arguments.get("validation_split", 0.0))

    def _find_count(self, arguments: dict[str, Any]) -> None:
        found = self.count_examples(arguments)
        if found == 0:
            raise ValueError("`fit` needs at least one example. Received: N = 0")
        if found != self._count:
            self._count = found
            self.forget_functions()
        bound.kl_weight(self, training=True)  # raises without N, before Keras traces a step

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Loss and metrics as `keras.Model.evaluate` gives them, after checking arrays.

        Raises:
            ValueError: for lists in place of arrays, inputs that are not finite, or targets outside
                the support of the likelihood.
        """
        check_inputs(x, y)
        self._check_array_targets(y)
        self._follow_targets("test", x, y, kwargs.get("sample_weight"))
        return super().evaluate(x, y, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, for targets of any rank; it drops calibration and scores as `fit` does."""
        self._follow_targets("train", x, y, kwargs.get("sample_weight"))
        answer_state.forget_calibration(self)
        self.has_seen_data = True
        return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, for targets of any rank."""
        self._follow_targets("test", x, y, kwargs.get("sample_weight"))
        return super().test_on_batch(x, y, *args, **kwargs)

    def _follow_targets(self, name: str, x: Any, y: Any, sample_weight: Any = None) -> None:
        """Drop a compiled function if targets or weights have another rank than those before.

        TensorFlow would trace it for any rank, and labels `[B]` and `[B, C]` differ in what they
        mean.
        """
        rank = target_ranks(x, y, sample_weight)
        if self._target_ranks.get(name, rank) != rank:
            setattr(self, f"{name}_function", None)
        self._target_ranks[name] = rank

    def _check_array_targets(self, y: Any) -> None:
        own, shapes = self.likelihood, output_shapes(self)
        if y is None or self._options.evaluation_loss is None:
            return
        y = heads.matched("y", own, y)
        if not shapes:
            return
        columns = heads.names_of(own), self.likelihoods, heads.parts(own, y), shapes
        for name, likelihood, targets, shape in zip(*columns, strict=True):
            if targets is None:
                raise ValueError(
                    "Argument `y` must hold targets for every output; of those that are missing, "
                    f"NaN (or the label `ignore_class`). Received: None for output {name!r}"
                )
            if not hasattr(targets, "__array__") or shape[-1] is None:
                continue
            positions = shape[1 + bool(self.has_members) : -1]
            try:
                likelihood.check_targets(targets, shape[-1], positions)
            except ValueError as error:
                raise (ValueError(f"Output {name!r}: {error}") if name else error) from error

    @property
    def has_members(self) -> bool | None:
        """Whether axis 1 of the raw outputs is one of members; None for the rule of a subclass.

        A subclass ends in outputs `[batch, outputs]`, or in `[batch, members, ..., outputs]`, with
        an axis of size 1 for a net without members that has positions.
        """
        return has_members(self) if nodes_of(self) else None

    @property
    def is_random(self) -> bool:
        """Whether `call` may draw by itself, beside the layers; only a subclass defines `call`."""
        return not isinstance(self, Functional)

    @property
    def evaluation_samples(self) -> int:
        """Samples of the predictive distribution in `evaluate`, validation and `predict`."""
        return self._options.evaluation_samples

    @property
    def evaluation_method(self) -> str:
        """`"samples"` or `"moments"`: what `evaluate`, validation and `predict` look at."""
        given = self._options.evaluation_method
        if given is not None:
            return given
        return "moments" if self._has_moments and takes_one_pass(self) else "samples"

    def give_up_moments(self) -> bool:
        """Have evaluation take samples from now on, since a rule of moments refused the net.

        Returns:
            False if `compile` was told to take moments, which then must fail.
        """
        self._has_moments = False
        return self._options.evaluation_method is None

    @property
    def integrates_in_evaluation(self) -> bool:
        """Whether evaluation may integrate out the last layer: a loss of Keras needs samples."""
        return self._options.stock_loss is None

    def predict_step(self, data: Any) -> tf.Tensor:
        """The predictive mean for one batch, `[B, targets]`; of several outputs a list or dict."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        with self.predict_mode():
            return heads.map_heads(lambda _, m: m.mean(), self.likelihood, evaluated(self, x))

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The predictive mean `E[y | x]` in units of the target, as a NumPy array.

        Probabilities of classes `[N, C]` for Categorical, `[N, targets]` for other likelihoods. The
        mean is that of `posterior_predictive(x, method="moments")`, in which nothing is drawn; or,
        where `model.evaluation_method` is `"samples"`, that of `evaluation_samples` samples whose
        draws are the same for every example and call, so that a prediction does not depend on the
        batch.

        Args:
            x: inputs: an array, a structure of arrays, or batches.
            *args: as for `keras.Model.predict`.
            **kwargs: as for `keras.Model.predict`.

        Raises:
            ValueError: for lists in place of arrays, one example without a batch axis, or inputs
                that are not finite.
        """
        check_inputs(x)
        check_rank(self, x)
        return super().predict(x, *args, **kwargs)

    # -- answers --------------------------------------------------------------------------------

    @overload
    def posterior_predictive(
        self,
        x: Any,
        num_samples: int | None = ...,
        batch_size: int | None = ...,
        seed: int | None = ...,
        reduce: None = ...,
        verbose: int = ...,
        method: str = ...,
        num_passes: int | None = ...,
    ) -> PosteriorPredictive: ...

    @overload
    def posterior_predictive(
        self,
        x: Any,
        num_samples: int | None = ...,
        batch_size: int | None = ...,
        seed: int | None = ...,
        *,
        reduce: str,
        verbose: int = ...,
        method: str = ...,
        num_passes: int | None = ...,
    ) -> PredictiveMoments: ...

    def posterior_predictive(
        self,
        x: Any,
        num_samples: int | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        reduce: str | None = None,
        verbose: int = 0,
        method: str = "samples",
        num_passes: int | None = None,
    ) -> PosteriorPredictive | PredictiveMoments:
        """The posterior predictive distribution, by samples or by moments.

        `method="samples"` runs the net `num_samples / K` times. A seed fixes the samples for one
        `batch_size`: another size draws other samples.

        `method="moments"` runs the net once, with a mean and a variance of every activation, and
        takes its outputs at normal points that are the same on every call: pseudo-samples with the
        mean and the covariance of the outputs. Two calls give the same bits. Hidden units count as
        independent, see `tfp_rank1.moments`.

        Args:
            x: inputs: an array, a structure of arrays, or batches (a `tf.data.Dataset`, a
                `keras.utils.PyDataset` or an iterator), whose targets, if any, are ignored.
            num_samples: S, at least 1. Members count as samples; S is rounded up to a multiple
                of K so that every member counts alike. For moments the number of points, of which
                every member has an even number. Defaults to None: 32 samples, or 64 points.
            batch_size: examples per pass, for arrays. Defaults to None: 128 for samples, 1,024 for
                moments, fewer where the outputs of all samples would take more than 64 MiB.
            seed: integer for reproducible samples. Defaults to None: new samples on each call.
                Moments draw nothing and ignore it.
            reduce: None (default) keeps the samples; `"moments"` keeps mean, variances and
                entropies only.
            verbose: 1 shows a progress bar. Defaults to 0.
            method: `"samples"` (default) or `"moments"`.
            num_passes: for moments of a net with positions (pixels, time steps): passes that draw
                what positions share, always the same draws; moments begin behind it. 0 for one pass
                in which positions count as independent. Defaults to None: 8.

        Returns:
            `PosteriorPredictive` with samples `[S, N, D]`, or `PredictiveMoments`; of several
            outputs a list or dict of these.

        Raises:
            ValueError: for inputs that are not finite, that are neither arrays nor batches, that
                are empty or one example without a batch axis, and for stateful layers; for moments
                of a subclassed model, or of a layer without a rule.

        Example:
        ```python
        p = model.posterior_predictive(x_test, method="moments")
        p.mean(), p.mutual_information()
        ```
        """
        check_rank(self, x)
        check_columns("x", x)
        return posterior_predictive(
            self, x, num_samples, batch_size, seed, reduce, verbose, method, num_passes
        )

    def calibrate(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        batch_size: int | None = None,
        num_samples: int = 32,
        verbose: int = 1,
    ) -> CalibrationReport:
        """Find two numbers on held-out data by which all answers become better calibrated.

            w_s = m + sqrt(c) (draw_s - m),     p(y | x) = 1/S sum_s p(y | tempered(f(x, w_s), tau))

        c, the `posterior_scale`, multiplies the variances of all posteriors around their means m
        (of positive families those of the logarithms). It is at most 10: what asks for more is
        noise that the likelihood lacks, as of counts that vary more than a Poisson's. tau, the
        `temperature`, divides the logits of Categorical and Bernoulli likelihoods, and multiplies a
        noise that is learned or predicted; a noise that the user fixed, `Normal(scale=0.5)`, and a
        Poisson have none. Both
        minimise the NLL of the predictive distribution, under a weak prior (standard deviations of
        log 10 and log 2 for log c and log tau), so that few examples do not lead far. A number is
        changed only if that falls by more than three nats, summed over all examples; else the old
        one stays. Examples like the training data may well ask for a small c: then the epistemic
        variance is small for all others, too.

        Then `predict`, `evaluate`, validation, `posterior_predictive`, exported models and
        `model(x)` outside of training are calibrated; `posterior_mean()` is c = 0. Training is
        not, and `fit` begins with c = tau = 1 again. Files, clones and pickles keep both numbers
        (`tf.train.Checkpoint` has variables only). Conformal scores are dropped.

        Args:
            x: inputs that were not trained on: an array, a structure of arrays, or batches, which
                are kept in memory with their raw outputs for all samples.
            y: targets, for arrays; missing ones are left out. Defaults to None, for batches of
                pairs.
            sample_weight: weights of the NLL, as in `evaluate`; they count by their ratio to their
                mean, so that a gain is counted in examples. Defaults to None: 1.
            batch_size: examples per pass, for arrays. Defaults to None: 128.
            num_samples: S, as in `posterior_predictive`; the same random numbers for every c.
                Defaults to 32.
            verbose: 1 (default) prints what was found, 0 is silent.

        Returns:
            `CalibrationReport`: both numbers, and NLL and ECE (or the coverage of 90 % intervals)
            before and after. They were found on the same data, so `after` is a little optimistic.

        Raises:
            ValueError: for inputs without targets, inputs that are not finite, targets outside the
                support, and stateful layers.

        Example:
        ```python
        model.fit(x, y)
        report = model.calibrate(x_val, y_val)
        report.temperature, report.nll_before - report.nll_after
        ```

        Source: Guo et al. (2017), "On Calibration of Modern Neural Networks", for the temperature;
        Wenzel et al. (2020), "How Good is the Bayes Posterior in Deep Neural Networks Really?", for
        posteriors that are scaled.
        """
        check_inputs(x, y)
        self._check_array_targets(y)
        self._trained_rows.warn_if_among(x, "calibrate")
        return calibrate(self, x, y, sample_weight, batch_size, num_samples, verbose)

    @property
    def calibration(self) -> Calibration:
        """The numbers c and tau of answers, both 1 unless `calibrate` found others."""
        return self._calibration

    def conformalize(
        self,
        x: Any,
        y: Any = None,
        method: str | None = None,
        groups: Any = None,
        coverage: float | None = None,
        *,
        penalty: float | None = None,
        free_classes: int | None = None,
        num_samples: int = 32,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> Conformal:
        """Score held-out examples, for sets and intervals whose coverage is guaranteed.

            q = the ceil((n + 1) coverage)-th smallest of n scores s(x_i, y_i),  {y : s(x, y) <= q}

        Afterwards `posterior_predictive(x).prediction_set(coverage)` or `prediction_interval` hold
        the target with a probability of at least `coverage`, whatever the model and the data, if
        new examples are like these: exchangeable, not trained or calibrated on, and asked with the
        same `num_samples`, or more: of fewer a warning tells. Files and clones keep the scores;
        `fit` and `calibrate` drop them.

        Args:
            x: inputs: an array, a structure of arrays, or batches.
            y: targets, for arrays; missing ones are left out. Defaults to None, for batches of
                pairs, whose weights, if there are any, must be 0 or one number: 0 leaves out.
            method: the score. For classes, of probabilities p, where R is the sum of those of class
                y and of all likelier ones and r the rank of y: `"lac"` (default), `1 - p_y`;
                `"aps"`, R; `"raps"`, `R + penalty max(0, r - free_classes)`. For numbers of mean m,
                standard deviation d and quantiles q: `"normalized"` (default), `|y - m| / d`;
                `"cqr"`, `max(q_low - y, y - q_high)`.
            groups: `"class"` for the coverage within every class, or an array `[N]` of labels of
                groups for the coverage within every group, whose labels new examples then need as
                well. Defaults to None: the coverage over all examples.
            coverage: the coverage of `"cqr"`, which has one only, and the one that `"raps"` chooses
                its parameters for. Defaults to None: 0.9 for `"raps"`.
            penalty: lambda of `"raps"`, per class beyond `free_classes`. Defaults to None: both are
                chosen by a fifth of the examples, which then count in no threshold.
            free_classes: k_reg of `"raps"`. Defaults to None.
            num_samples: as in `posterior_predictive`. Defaults to 32.
            batch_size: as in `posterior_predictive`.
            seed: as in `posterior_predictive`.

        Returns:
            The scores, which `model.conformal` is from now on.

        Raises:
            ValueError: for an unknown method or parameters that it does not have, groups of
                another length, or targets that are all missing.

        Example:
        ```python
        model.conformalize(x_val, y_val, groups="class")
        model.posterior_predictive(x_test).prediction_set(coverage=0.95)       # [N, C], boolean
        ```

        Source: Vovk, Gammerman & Shafer (2005), "Algorithmic Learning in a Random World"; for
        groups Vovk (2012), "Conditional Validity of Inductive Conformal Predictors".
        """
        check_inputs(x, y)
        self._check_array_targets(y)
        self._trained_rows.warn_if_among(x, "conformalize")
        own = self.likelihood
        given = [heads.for_each(n, own, v) for n, v in (("method", method), ("groups", groups))]
        batches = labelled_batches(x, y, batch_size=batch_size or 128)
        inputs, targets = iter([batch[0] for batch in batches]), [batch[1] for batch in batches]
        predictive = self.posterior_predictive(inputs, num_samples, seed=seed)
        joined = keras.tree.map_structure(lambda *parts: tf.concat(parts, axis=0), *targets)
        weights = heads.for_each("sample_weight", own, joined_weights([b[2] for b in batches]))
        found = heads.map_heads(
            lambda _, p, y, name, labels, w: conformalized(
                p, y, name, labels, coverage, penalty, free_classes, w
            ),
            own, predictive, heads.matched("y", own, joined), *given, weights,
        )  # fmt: skip
        answer_state.set_conformal(self, found)
        return found

    def prune_members(
        self,
        num_members: int,
        x: Any = None,
        y: Any = None,
        sample_weight: Any = None,
        batch_size: int | None = None,
    ) -> Any:
        """A new model of fewer members, whose answers take as much less time.

        Training with many members and answering with few is often as good. Members are chosen one
        by one, each the one that raises the likelihood of the mixture on held-out examples most.

        Args:
            num_members: number of members of the new model, from 1 to K.
            x: held-out inputs, or batches of pairs. Defaults to None: the first members, which
                are as good as any others that were not looked at.
            y: targets, for arrays.
            sample_weight: one number per example. Defaults to None: 1.
            batch_size: examples per pass, for arrays. Defaults to None: 128.

        Returns:
            A model with copies of the weights, compiled like this one, with a new optimizer. It is
            neither calibrated nor conformalized: its answers are others.

        Raises:
            ValueError: for more members than K, a subclassed model, or a net without members.

        Example:
        ```python
        small = model.prune_members(4, x_val, y_val)
        small.calibrate(x_val, y_val)
        ```
        """
        return prune_members(self, num_members, x, y, sample_weight, batch_size)

    @property
    def conformal(self) -> Any:
        """The scores of `conformalize`; None before it, and after `fit` or `calibrate`."""
        return self._conformal

    def check_answerable(self) -> None:
        """Raise if the model has nothing to answer with yet; a subclass may have a reason."""

    def marginal_outputs(self, x: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Raw outputs of one pass; a subclass may integrate out the last layer in closed form.

        Args:
            x: one batch of inputs.

        Returns:
            Sampled outputs and None; or, where the last layer is integrated out, means and
            variances of the outputs given one sample of all layers before the last.
        """
        return self(x, training=False), None

    def export_predictive(
        self,
        path: str,
        num_samples: int | None = None,
        input_signature: Any = None,
        coverage: float | None = None,
        method: str = "samples",
        format: str = "tf_saved_model",
        num_passes: int | None = None,
    ) -> None:
        """Write a model that answers with its predictive distribution, for a server without Keras.

        The endpoints take inputs `[B, ...]` with any B. A single input is named `x`; several inputs
        have the names of their `keras.Input`, in lower case and with `_` in place of all but
        letters and digits; equal names get a number: `A` and `a` become `a` and `a_1`.

        - `serve`, `serving_default`: `x` -> a dict of float32 tensors. Categorical and Bernoulli:
          `probs` `[B, targets]`, `entropy` `[B]`, `mutual_information` `[B]` (nats). Others:
          `mean`, `variance`, `aleatoric_variance`, `epistemic_variance`, all `[B, targets]`. Every
          call draws new samples; with `method="moments"` none, and equal inputs have answers that
          are equal to the bit. After `conformalize` also `prediction_set` `[B, C]`, boolean, or
          `prediction_interval_low` and `prediction_interval_high` `[B, targets]`. With several
          outputs every name begins with that of its output, such as `price_mean` or, in a list,
          `output_0_mean`.
        - `samples`: `(x, num_samples)` or `(x, num_samples, seed)` -> raw outputs `[S, B, D]`, S
          rounded up to a multiple of the members; a dict by output of several. `num_samples` is an
          int32 scalar, `seed` an int32 `[2]`: the same seed repeats the same samples; without a
          seed every call draws new samples.

        No endpoint reads or writes random state, so calls may run concurrently. ONNX and LiteRT
        files have what `serve` has, in float32, and no samples.

        Args:
            path: folder to write to; a file for ONNX and LiteRT.
            num_samples: samples of `serve`, at least 1; for moments as in `posterior_predictive`.
                Defaults to None: 32, or 64 points.
            input_signature: structure of `tf.TensorSpec` of the inputs. Defaults to None: the
                inputs of a Functional model; a subclassed model needs a signature.
            coverage: of the prediction sets or intervals, which are left out, with a warning, where
                they depend on the groups of examples. Defaults to None: as in
                `prediction_interval`.
            method: `"samples"` (default) or `"moments"`, see `posterior_predictive`.
            format: `"tf_saved_model"` (default), `"onnx"` or `"litert"`; the last two take
                `method="moments"`, as samples would become constants, and need the packages of the
                extra `export`: `pip install rank1-bali[export]`. They have no entropies of several
                Bernoulli targets, which take draws.
            num_passes: as in `posterior_predictive`, for moments.

        Raises:
            ValueError: for a subclassed model without a signature, a `num_samples` below 1,
                stateful layers, a `coverage` that the model cannot have, samples in another format
                than a SavedModel, moments of a layer without a rule, or a net with an operation
                that the format does not have.
            ImportError: without the packages of the extra.

        Example:
        ```python
        model.export_predictive("served", num_samples=16)
        served = tf.saved_model.load("served")           # needs tensorflow only
        served.serve(x)["probs"]
        served.samples(x, 8, seed=tf.constant([1, 2]))

        model.export_predictive("served.onnx", method="moments", format="onnx")
        onnxruntime.InferenceSession("served.onnx").run(["probs", "entropy"], {"x": x})
        ```
        """
        export_predictive(
            self, path, num_samples, input_signature, coverage, method, format, num_passes
        )

    def export(self, filepath: str, format: str = "tf_saved_model", **kwargs: Any) -> Any:
        """Export as `keras.Model.export` does; ONNX and LiteRT only inside `posterior_mean()`.

        Raises:
            ValueError: for a format that would freeze the noise of the samples.
        """
        check_exportable(format)
        return super().export(filepath, format=format, **kwargs)

    # -- persistence ----------------------------------------------------------------------------

    def __reduce__(self) -> Any:
        """Pickle the bytes of a `.keras` file, under the class that users import."""
        # Keras names a method of `type(self)`. For a Functional model that is the variant that
        # `functional_variant` made, which pickle cannot import.
        _, state = super().__reduce__()
        return unpickle_model(BayesianModel), state

    def get_config(self) -> dict[str, Any]:
        """The graph of a Functional model, N if it was given, and what answers are made of."""
        given = self.num_train_examples if self._count_is_given else None
        config = {**super().get_config(), "num_train_examples": given}
        return answer_state.with_answers(self, config)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The model that gave `get_config()`, with new weights."""
        config, answers = answer_state.pop_from_config(config)
        model = super().from_config(config, custom_objects=custom_objects)
        answer_state.restore_from_config(model, answers)
        return model

    def set_weights(self, weights: Any) -> None:
        """As in Keras. The weights may have seen data, so the next `fit` searches for nothing."""
        super().set_weights(weights)
        self.has_seen_data = True

    def save_own_variables(self, store: Any) -> None:
        """Save the state of the model's random generator, N, and what answers are made of."""
        super().save_own_variables(store)
        save_seed_state(self.seed_generator, store)
        for variable in self.state_beside_weights:
            store[variable.name] = variable
        if self.found_kernel_precision.value is not None:
            store["found_kernel_precision"] = np.float64(self.found_kernel_precision.value)
        if self.default_kernel_precision != type(self).default_kernel_precision:
            store["default_kernel_precision"] = np.float64(self.default_kernel_precision)
        if not self.has_seen_data:
            store["is_untrained"] = np.float64(1.0)
        store["num_train_examples"] = np.float64(self.num_train_examples or 0)
        answer_state.save(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` wrote."""
        arrays = load_seed_state(self.seed_generator, store)
        add_tempering(self)
        for variable in self.state_beside_weights:
            if variable.name in arrays:  # files of 0.1.0 have none
                variable.assign(arrays.pop(variable.name))
        if "found_kernel_precision" in arrays:
            self.found_kernel_precision.assign(float(arrays.pop("found_kernel_precision")))
        if "default_kernel_precision" in arrays:
            self.default_kernel_precision = float(arrays.pop("default_kernel_precision"))
        self.has_seen_data = arrays.pop("is_untrained", None) is None
        answer_state.load(self, arrays)
        count = float(np.asarray(arrays.pop("num_train_examples", 0)))
        if count and self._count is None:  # an N that was given or just counted wins
            self._count = _check_count(count)
            self.forget_functions()
        super().load_own_variables(arrays)


def _warn_of_missing(likelihood: Likelihood, y: Any) -> None:
    if likelihood.has_missing_targets and not likelihood.is_categorical:
        warn_of_missing(y)


def _check_count(count: float | None) -> float | None:
    """N, as an int if it is whole; a sum of sample weights may be fractional."""
    if count is None:
        return None
    number = positive("num_train_examples", count)
    return int(number) if number.is_integer() else number
