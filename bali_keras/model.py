"""`BaliModel`: a Keras model whose train step needs no optimizer."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from bali_keras.fit_length import FactoriseAtEnd, FitLength, HyperparameterLogs, OtherData
from bali_keras.hyperparameters import Hyperparameters, as_floats
from bali_keras.inference.output import exact_layer_of
from bali_keras.inference.posterior import Prior
from bali_keras.inference.statistics import Accumulation
from bali_keras.inference.step import (
    required_count,
    role_of,
    train_batch,
    trained_layers,
)
from bali_keras.inference.update import Health, factorise
from bali_keras.layers import BaliLayer
from bali_keras.layers.base import Marginal
from bali_keras.recording import Recorder
from bali_keras.schedules import default_for
from bali_keras.search import search_for_hyperparameters
from bali_keras.settings import Settings
from tfp_rank1.checks import positive
from tfp_rank1.heads import are_several, map_heads, names_of, packed
from tfp_rank1.keras_internals import freeze, layers_of, nodes_of
from tfp_rank1.losses import NegativeLogLikelihood
from tfp_rank1.model import BayesianModel
from tfp_rank1.model.counting import batch_size_of
from tfp_rank1.model.example_weights import weight_of
from tfp_rank1.model.objective import Objective
from tfp_rank1.model.options import Annealing, check_multiplier, known_loss
from tfp_rank1.model.raw_outputs import is_graph
from tfp_rank1.model.scales import Sizes
from tfp_rank1.scopes import mean_mode
from tfp_rank1.serialization import registered

__all__ = ["BaliModel"]

# Names under which `fit` logs the health of inference, in the order of `track_health`.
_HEALTH = ("rate", "step_kl", "condition")


class Counters:
    """Counters of steps, int64 variables that are saved with the model.

    Attributes:
        updates: number of steps over the life of the model, refused ones included.
        refused: number of steps whose update was refused.
        first_step: number of the first step of the present `fit`.
        last_step: number of the last step of the present `fit`; 0 while the length is unknown.
    """

    def __init__(self, model: keras.Model) -> None:
        # Keras saves variables in the order of their creation: keep it, or old files do not load.
        names = "updates", "refused", "first_step", "last_step"
        self.variables = [
            model.add_weight(
                shape=(), name=name, dtype="int64", trainable=False, initializer="zeros",
                autocast=False,
            )
            for name in names
        ]  # fmt: skip
        self.updates, self.refused, self.first_step, self.last_step = self.variables


@registered("bali_keras")
class BaliModel(BayesianModel):
    """A Keras model whose BALI layers are inferred, layer by layer, without an optimizer.

    Each step moves the pre-activations of every layer along the back-propagated gradient of the
    log-likelihood, `y_n = M' h_n + V g_n`, and updates the layer's exact posterior given these
    pseudo-targets, `W ~ MN(M, L^-1, V)`; see `bali_keras.matrix_normal`. The same step trains
    layers of other kinds by `optimizer`. With one linear layer and a Normal likelihood of known
    noise, inference is conjugate Bayesian linear regression, exactly.

    `fit` logs what `BayesianModel` logs (`kl` in nats per example, over the BALI layers) and

        rate        rho of the step
        step_kl     KL of the posteriors after the step of the means from those before, in nats per
                    training example; the trust region bounds it
        condition   largest condition number of the layers' row precisions, as a lower bound
        refused     fraction of the epoch's batches whose update was refused because a number was
                    not finite; a refused batch leaves the model as it was
        prior_precision, damping, covariance_scale
                    the hyperparameters in use, see `compile`
        effective_parameters
                    how many weights the data determine, rather than the prior

    Args:
        *args: as for `BayesianModel`: `BaliModel(inputs, outputs, likelihood=...)`, or a
            subclass that ends `call` with `return self.likelihood(outputs)`. Outputs
            `[B, D]`, `[B, ..., D]` with positions (pixels, time steps), or a list or dict of these.
        likelihood: a `tfp_rank1.likelihoods` object or its name; for several outputs one for each.
            The scale of `Normal()` is learned in closed form.
        num_train_examples: N. Defaults to None: every `fit` counts its own examples, each by its
            `sample_weight` and `class_weight`. Give N for a stream that comes in several fits.

    `predict` gives the predictive mean, as in every `BayesianModel`. A call of the model draws one
    new sample of its raw outputs.

    Scale inputs and targets. The priors are meant for targets of unit size. In float32, the default
    of a layer's `statistics_dtype`, inputs whose mean is thousands of times their spread lose the
    spread. A `sample_weight` of 2 counts as seeing the example twice: exactly in an exact output
    layer, and on average in hidden layers, whose Fisher information is sampled.

    Example:
    ```python
    h = inputs = keras.Input((8,))
    h = bk.layers.DenseBali(50, activation="relu")(h)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(1)(h), likelihood=r1.likelihoods.Normal())
    model.compile()
    model.fit(x, y, batch_size=64, epochs=100)
    model.posterior_predictive(x_test).stddev()
    ```

    Source: Kurle, Klushyn & Herbrich (2024).
    """

    _options: Settings
    training_logs = (*_HEALTH, "refused")
    default_kernel_precision = 0.0  # layers have priors of their own
    bayesian_layer = BaliLayer
    sizes = Sizes(inputs=(0.1, math.inf), targets=(0.03, 50.0))
    hyperparameters: Hyperparameters
    # Of several outputs; files hold these layers under other names.
    _exact_layers: list[BaliLayer | None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._options = Settings()
        self._batch_size: int | None = None  # of the present `fit`
        self.nll_of_last_fit: float | None = None  # of its last epoch
        # Keras saves layers under the names of attributes, in alphabetical order: in files the
        # output layer stands under this name.
        self._exact_layer: BaliLayer | None = None
        if are_several(self.likelihood):
            found = [exact_layer_of(self, BaliLayer, v) for v in self.likelihoods]
            object.__setattr__(self, "_exact_layers", found)
        else:
            self._exact_layer = exact_layer_of(self, BaliLayer)
        self._counters = Counters(self)
        self._noise_weights = [
            Accumulation(self, f"noise_{name}" if name else "noise")
            for name in names_of(self.likelihood)
        ]
        # Keras must not track these variables: they are no weights of the model.
        object.__setattr__(self, "hyperparameters", Hyperparameters())
        self._health = {name: keras.metrics.Mean(name=name) for name in _HEALTH}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """As in Keras, where frozen layers stay frozen with all layers within."""
        model = super().from_config(config, custom_objects=custom_objects)
        _freeze_again(model)
        return model

    @property
    def bali_layers(self) -> list[BaliLayer]:
        """The BALI layers, each once, in the order of the model."""
        return [v for v in layers_of(self, include_self=False) if isinstance(v, BaliLayer)]

    @property
    def has_members(self) -> bool:
        """Whether axis 1 of the raw outputs is one of members: no axis that a subclass returns."""
        return bool(super().has_members)

    @property
    def exact_layer(self) -> BaliLayer | None:
        """The linear output layer of a Gaussian likelihood, with labels as targets; or None."""
        return self._exact_layer

    @property
    def exact_layers(self) -> list[BaliLayer | None]:
        """`exact_layer` of every output, in the order of `likelihoods`."""
        several = are_several(self.likelihood)
        return self._exact_layers if several else [self._exact_layer]

    @property
    def refused_updates(self) -> int:
        """Number of batches whose update was refused, over the life of the model."""
        return int(self._counters.refused.numpy())

    # -- compile --------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = None,
        loss: Any = "average_nll",
        *,
        forgetting: Any = None,
        damping: Any = Settings.damping,
        prior_precision: float | None = Settings.prior_precision,
        prior_row_precision: Any = Settings.prior_row_precision,
        covariance_scale: float | None = Settings.covariance_scale,
        temperature: float = Settings.temperature,
        warmup_steps: int | None = Settings.warmup_steps,
        trust_region: float | None = Settings.trust_region,
        factorise_every: int | None = Settings.factorise_every,
        noise_prior: float = Settings.noise_prior,
        evaluation_samples: int = Settings.evaluation_samples,
        evaluation_method: str | None = Settings.evaluation_method,
        **kwargs: Any,
    ) -> None:
        """Configure inference. The defaults are meant for regression and classification alike.

        Args:
            optimizer: trains the weights outside of BALI layers. Defaults to None, for a model
                without such weights.
            loss: `"average_nll"` (default), or any loss of Keras. The value of a Keras loss for an
                example is taken for a negative log-likelihood in nats, and F is the empirical
                Fisher information, from the data's labels; with `"average_nll"` F is the true one.
            forgetting: rho in (0, 1], or a `bali_keras.schedules` object. Defaults to
                None: `PerFit()` for classes and counts and for the nets of `bali_keras.convert`,
                else `PerFit(290, 4.2)`; both fall over each `fit` in units of its length.
            damping: a, or the pair (a, r), in `V^-1 = F + (a + r tr(F) / k) I`. Damping bounds V.
                F is the Fisher information of all rows of an example together. Defaults to None:
                found from the data for continuous targets, see below, else `a = 0.3 N^(-1/4)`, from
                0.1 for a hundred examples to 0.02 for 60,000; for continuous targets times
                `600 / N` from 600 examples on, down to 0.003; and `r = 0.001`.
            prior_precision: p, above 0. A network weight has the precision `p fan_in` a priori, so
                a pre-activation of inputs with unit mean square has the variance `1 / p`. In the
                layer's units `L0 = p fan_in k / tr(V^-1) I`. Defaults to None: found from the data,
                see below.
            prior_row_precision: L0 itself, in place of `prior_precision`: a number l for `l I`, a
                matrix `[d, d]` whose last row is that of the bias, or a dict of either by layer
                name. Defaults to None.
            covariance_scale: c, above 0, which multiplies the covariances of all posteriors, in
                training and in answers, and leaves the means where they are. Several layers, each
                with a posterior of its own, count one uncertainty several times; a c below 1 makes
                up for that. Defaults to None: found from the data for nets of three layers or
                more, see below, else 1.
            temperature: T, above 0; inference divides N by T. A T above 1 widens the posterior, and
                makes the prior count for more. Defaults to 1.
            warmup_steps: number of first steps in the model's life that only gather statistics.
                Defaults to None: 10, but at most a third of the present `fit`.
            trust_region: upper bound of `step_kl`, in nats per training example; longer steps of
                the hidden layers are shortened to it. None for no bound. Defaults to 0.05.
            factorise_every: steps between two factorisations of the covariances. Defaults to None:
                1 for small layers; else as many as make factorisations cost a fifteenth of all
                other work, but at most a third of the averages' memory of `1 / rho` steps. With
                None an exact output layer is factorised in every step, as its exactness needs.
                `fit` ends with a factorisation in any case.
            noise_prior: strength of the prior on a learned noise scale, in examples whose
                residual is the likelihood's `initial_scale`. Defaults to 0.01.
            evaluation_samples: samples of the predictive distribution in `evaluate`, validation
                and `predict`; the same draws in every call. Defaults to 16.
            evaluation_method: `"moments"`, `"samples"` or None (default), as for
                `BayesianModel.compile`.
            **kwargs: as for `BayesianModel.compile` (`metrics`, `run_eagerly`, `jit_compile`, ...).

        What is None of `prior_precision`, `damping` and `covariance_scale` is found by the first
        `fit`: short fits to parts of the training examples are compared on the examples that they
        left out, before the fit to all of them begins. The search takes a few times as long as a
        fit to some hundred examples; for regressions of less than three layers, which are searched
        by longer fits unless the fit has some thousand steps, up to 12 times as long. It is left
        out where it would take longer than it is worth: for fits below 100 steps, and for many
        examples and few epochs. It is left out as well for data that can be read only once (a
        generator), losses of Keras, and converted nets, whose weights know the examples already.
        The defaults are then p = 0.02 for discrete targets (classes, counts) and 0.06 for
        continuous ones, and c = 1.
        `model.prior_precision`, `model.damping` and `model.covariance_scale` are the values in use,
        which are saved with the model.

        Raises:
            ValueError: for a value out of range.
        """
        if forgetting is None:
            is_converted = any(layer.prior_at_mean for layer in self.bali_layers)
            forgetting = default_for(is_converted or self.is_discrete)
        settings = Settings.of(
            forgetting=forgetting,
            damping=damping,
            prior_precision=prior_precision,
            prior_row_precision=prior_row_precision,
            covariance_scale=covariance_scale,
            temperature=temperature,
            warmup_steps=warmup_steps,
            trust_region=trust_region,
            factorise_every=factorise_every,
            noise_prior=noise_prior,
            evaluation_samples=evaluation_samples,
            evaluation_method=evaluation_method,
        )
        if isinstance(loss, (list, tuple)) and len(loss) == 1:
            loss = loss[0]  # Keras allows a list for one output
        multiplier = _take_multiplier(kwargs, optimizer)
        loss = known_loss(loss, self.likelihood)
        is_learned = any(v.closed_form_noise is not None for v in self.likelihoods)
        if not isinstance(loss, NegativeLogLikelihood) and is_learned:
            raise ValueError(
                "A loss of Keras knows nothing of a noise scale to be learned. Use the default "
                "loss, loss='average_nll', or fix the scale: likelihoods.Normal(scale=0.5). "
                f"Received: loss={loss!r} and a learned scale"
            )
        settings = dataclasses.replace(settings, factor_learning_rate_multiplier=multiplier)
        self.compile_with(settings, optimizer, loss, **kwargs)

    # -- fit and evaluate -----------------------------------------------------------------------

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Infer the posteriors; as `keras.Model.fit`, after finding N and checking arrays.

        A forgetting schedule over the length of the fit counts from epoch 0, so a fit that is
        resumed with `initial_epoch` goes on where it stopped. A second fit starts the schedule
        anew: on the same data it goes on learning, other data make it forget the first, with a
        warning.

        Raises:
            ValueError: if N is neither given nor found, if the schedule needs a number of steps
                that is unknown, if inputs are not finite, or if targets lie outside the support.
        """
        self.check_compiled()
        bound = inspect.signature(keras.Model.fit).bind(self, x, y, *args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        batch_size = batch_size_of(arguments)
        # The compiled step holds the period of factorisations, which depends on the batch size.
        if batch_size != self._batch_size:
            self._batch_size = batch_size
            self.forget_functions()
        length = FitLength(self, arguments["initial_epoch"])
        given = arguments["callbacks"] or []
        if isinstance(given, keras.callbacks.CallbackList):
            raise ValueError(
                "BaliModel.fit adds a callback of its own: pass a list of callbacks. "
                "Received: a CallbackList"
            )
        own_list = list(given) if isinstance(given, (list, tuple)) else [given]
        # `FitLength` comes last: when training begins, `Resume` may restore a checkpoint before it,
        # and when training ends, `EarlyStopping` the best weights. `FactoriseAtEnd` comes first, so
        # that all other callbacks see covariances that are up to date.
        others = OtherData(self, self.num_train_examples)
        arguments["callbacks"] = [
            FactoriseAtEnd(self),
            HyperparameterLogs(self),
            others,
            *own_list,
            length,
        ]
        self._options.check_names(self.bali_layers)
        _check_callbacks(own_list, self.optimizer)
        del arguments["self"]
        return super().fit(**arguments)

    @property
    def steps_taken(self) -> int:
        """Number of training steps over the life of the model."""
        return int(self._counters.updates.numpy())

    def keep_precision(self, options: Any) -> None:
        """Go on with the numbers that a trained net was given, where it is given none now."""
        before = {"damping": (self._options.damping or (None,))[0]}
        before |= {n: getattr(self._options, n) for n in ("prior_precision", "covariance_scale")}
        given = {name: value for name, value in before.items() if value is not None}
        self.hyperparameters.assign(
            **{name: value for name, value in given.items() if getattr(options, name) is None}
        )

    def prepare_fit(self, arguments: dict[str, Any]) -> None:
        """Search for the hyperparameters that `compile` left open."""
        search_for_hyperparameters(self, arguments)

    def train_for(self, batches: tf.data.Dataset, steps: int) -> None:
        """A fit of some steps from step 1 on, without callbacks, for a search."""
        self._counters.first_step.assign(1)
        self._counters.last_step.assign(steps)
        super().train_for(batches, steps)
        self.factorise()

    def count_examples(self, arguments: dict[str, Any]) -> float | None:
        """N: the total sample weight of the training examples of `fit`; None if unknown."""
        count = super().count_examples(arguments)
        return count and weight_of(arguments, int(count))

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, for a forgetting schedule that needs no length.

        Raises:
            ValueError: for a schedule over the length of a `fit`, such as the default.
        """
        if self._options.forgetting.needs_length:
            raise ValueError(
                "The forgetting schedule falls over the length of a fit, which train_on_batch "
                "has not. Compile with a rate, forgetting=0.02, or a schedule with a length, "
                f"schedules.Linear(steps=...). Received: {self._options.forgetting}"
            )
        return super().train_on_batch(*args, **kwargs)

    def factorise(self) -> bool:
        """Recompute all covariances from the present statistics, as the end of `fit` does.

        Returns:
            True; or False if a factorisation failed, which leaves all covariances as they were.

        Raises:
            ValueError: if N is not known.
        """
        count = self.hyperparameters.num_examples(required_count(self))
        prior = self.prior()
        layers = [
            (v.posterior_state, self._options.prior_of(v, prior), role_of(self, v))
            for v in trained_layers(self)
        ]
        return bool(factorise(layers, count / self._options.temperature))

    def posterior_to_prior(self, strength: float = 1.0) -> None:
        """Make the posterior of all layers their prior, for a `fit` to other data.

            M0 <- M        L0 <- L0 + strength N S        S <- 0

        What the model has learned then counts as what it knows beforehand, and the next `fit` adds
        its own data: exactly for one linear layer with a known noise, for which two such fits are
        one to all data together. Answers stay as they are until then. The priors of `compile` no
        longer matter, frozen layers keep theirs, and files and clones keep the new ones.

        Args:
            strength: by which the data until now count, above 0. Hidden layers know more of them
                than is so, because V is damped: a net that learns little of its new task takes a
                strength below 1, see `examples.learning.continual`. Defaults to 1.

        Raises:
            ValueError: before the first `fit`, for a strength that is not above 0, and if N is not
                known.

        Example:
        ```python
        model.fit(x_first, y_first, epochs=20)
        model.posterior_to_prior()
        model.fit(x_second, y_second, epochs=20)      # and both are known
        ```

        Source: Kirkpatrick et al. (2017), "Overcoming Catastrophic Forgetting in Neural Networks";
        Ritter et al. (2018), "Online Structured Laplace Approximations".
        """
        strength = positive("strength", strength)
        layers = trained_layers(self)
        if not layers or self.is_new_task or not self._have_statistics(layers):
            raise ValueError(
                "There is no posterior of data that could become the prior: call fit(x, y) first. "
                f"Received: {self.steps_taken} steps"
            )
        count = self.hyperparameters.num_examples(required_count(self)) / self._options.temperature
        prior = self.prior()
        for layer in layers:
            layer.become_prior(count, self._options.prior_of(layer, prior), strength)
        self.nll_of_last_fit = None
        self.forget_functions()

    @staticmethod
    def _have_statistics(layers: list[BaliLayer]) -> bool:
        return all(v.built and bool(v.posterior_state.has_statistics()) for v in layers)

    @property
    def is_new_task(self) -> bool:
        """Whether `posterior_to_prior` was called, and nothing fitted since."""
        layers = [v for v in trained_layers(self) if v.built and v.stored_prior]
        return any(float(v.posterior_state.rows.average.weight) == 0.0 for v in layers)

    def prior(self) -> Prior:
        """Prior, damping and scale of the covariances of the layers: given, found, or default."""
        return self.hyperparameters.prior(self._options, self.num_train_examples, self.is_discrete)

    def hyperparameter_values(self) -> dict[str, float]:
        """Prior precision, damping and covariance scale in use, by name."""
        return as_floats(self.prior())

    def hyperparameter_logs(self) -> dict[str, float]:
        """`hyperparameter_values`, and the number of parameters that the data determine."""
        prior, layers = self.prior(), [v for v in trained_layers(self) if v.built]
        determined = sum(
            float(v.posterior_state.effective_parameters(self._options.prior_of(v, prior)))
            for v in layers
            if bool(v.posterior_state.has_statistics())
        )
        return {**as_floats(prior), "effective_parameters": determined}

    @property
    def prior_precision(self) -> float:
        """The p in use: given, found by `fit`, or the default; in units of fan-in."""
        return as_floats(self.prior())["prior_precision"]

    @property
    def damping(self) -> float:
        """The absolute damping a of the Fisher information in use."""
        return as_floats(self.prior())["damping"]

    @property
    def covariance_scale(self) -> float:
        """The scale c of the posteriors' covariances in use."""
        return as_floats(self.prior())["covariance_scale"]

    def set_annealing(self, annealing: Annealing | None) -> None:
        """Refuse an annealing: the posteriors of BALI layers come from no loss with a KL weight.

        Raises:
            ValueError: for any annealing.
        """
        if annealing is not None:
            raise ValueError(
                "A BaliModel has no KL whose weight could be annealed: its posteriors are exact "
                "given their targets, and the KL is only logged. Leave the annealing out; "
                "`temperature=` widens or narrows the posterior. Received: an annealing of the KL"
            )

    def warn_of_refused(self, shares: list[float]) -> None:
        """Do nothing: `FitLength` counts the refused batches and warns."""

    # -- persistence ----------------------------------------------------------------------------

    @property
    def state_beside_weights(self) -> list[keras.Variable]:
        """Variables that are saved with the model and are none of its weights."""
        return self.hyperparameters.variables

    def save_own_variables(self, store: Any) -> None:
        """Save what `BayesianModel` does, and the NLL by which the next `fit` knows other data."""
        super().save_own_variables(store)
        if self.nll_of_last_fit is not None:
            store["nll_of_last_fit"] = np.float64(self.nll_of_last_fit)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` wrote."""
        arrays = {key: store[key] for key in store.keys()}  # noqa: SIM118  not a dict
        found = arrays.pop("nll_of_last_fit", None)
        if found is not None:
            self.nll_of_last_fit = float(np.asarray(found))
        super().load_own_variables(arrays)

    # -- one batch ------------------------------------------------------------------------------

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Update all layers by one batch."""
        return train_batch(self, data)

    def with_penalties(self, nll: tf.Tensor, rows: tf.Tensor, training: bool = True) -> Objective:
        """As `BayesianModel.with_penalties`, with the KL of the BALI layers."""
        plain = super().with_penalties(nll, rows, training)
        # NLL and metrics need no N; only the KL is weighted by 1 / N.
        if self.num_train_examples is None:
            return plain
        kl = tf.add_n([tf.zeros(()), *(v.kl() for v in self.bali_layers if v.built)])
        weight = 1.0 / tf.constant(float(self.num_train_examples), tf.float32)
        # Every replica adds the KL of the whole net, and Keras adds up the replicas' losses.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        loss = tf.cast(plain.loss, tf.float32) + weight * kl / replicas
        return plain._replace(loss=loss, kl=plain.kl + kl, kl_weight=weight)

    tempers_noise: ClassVar[bool] = False

    @property
    def optimizer_variables(self) -> list[keras.Variable]:
        """The variables that the optimizer trains: no BALI posterior, no noise in closed form."""
        noises = [v.closed_form_noise for v in self.likelihoods]
        learned = {id(v) for noise in noises if noise is not None for v in noise.variables}
        return [v for v in self.trainable_variables if id(v) not in learned]

    def find_exact_layers(self, recorder: Recorder, outputs: list[tf.Tensor]) -> None:
        """Find the exact output layers of a subclassed model, which has no graph to search.

        Args:
            recorder: holds the layers' calls of a forward pass.
            outputs: raw outputs of the same forward pass, in the order of `likelihoods`.
        """
        if nodes_of(self):
            return
        for place, (likelihood, values) in enumerate(zip(self.likelihoods, outputs, strict=True)):
            if self.exact_layers[place] is not None or not likelihood.has_closed_form_marginal:
                continue
            for layer, records in recorder.records.items():
                if len(records) == 1 and records[0].outputs is values:
                    self._set_exact_layer(place, layer)
                    self._samplers.clear()  # graphs traced before still sample this layer

    def _set_exact_layer(self, place: int, layer: BaliLayer) -> None:
        if are_several(self.likelihood):
            self._exact_layers[place] = layer
        else:
            self._exact_layer = layer

    def track_health(self, rate: tf.Tensor, health: Health) -> None:
        """Log the rate of a step and the health of its update."""
        for name, value in zip(_HEALTH, (rate, health.step_kl, health.condition), strict=True):
            self._health[name].update_state(value)

    # -- answers --------------------------------------------------------------------------------

    def check_answerable(self) -> None:
        """Refuse to answer while all BALI layers are points: the answers would look certain.

        Raises:
            ValueError: before the first `fit`, but for the posterior mean.
        """
        layers = [v for v in self.bali_layers if v.built]
        if not layers or mean_mode.value or not tf.executing_eagerly():
            return
        # A callback may ask during the warm-up, and layers may come from another model.
        has_posterior = any(bool(v.posterior_state.has_statistics()) for v in layers)
        if not has_posterior and int(self._counters.updates.numpy()) == 0:
            raise ValueError(
                "The model was never fitted: its BALI layers are points, and the answers would "
                "look certain. Call compile() and fit(x, y) first; for the outputs at the initial "
                "weights use `with tfp_rank1.posterior_mean():`. Received: no statistics"
            )

    def marginal_outputs(self, x: Any) -> tuple[Any, Any]:
        """Outputs of one pass, with exact output layers integrated out.

        Args:
            x: one batch of inputs.

        Returns:
            Mean and variance of the outputs, `[B, D]` each, given one sample of all other layers.
            Without an exact output layer, sampled outputs and None. Of several outputs two lists or
            dicts.
        """
        own, layers = self.likelihood, [v for v in self.exact_layers if v is not None]
        if not layers or mean_mode.value:
            return self(x, training=False), None
        with Marginal(*layers) as marginal:
            outputs = self(x, training=False)
        variances = {id(layer): value for layer, value in marginal.variances.items()}
        found = map_heads(
            lambda _, values, layer: (tf.cast(values, tf.float32), _variance(layer, variances)),
            own, outputs, packed(own, self.exact_layers),
        )  # fmt: skip
        mean = map_heads(lambda _, pair: pair[0], own, found)
        return mean, map_heads(lambda _, pair: pair[1], own, found)


def _variance(layer: BaliLayer | None, row_variances: dict[int, tf.Tensor]) -> tf.Tensor | None:
    """The variance of the outputs of an exact layer that was integrated out, `[B, D]`."""
    if layer is None:
        return None
    rows = tf.cast(row_variances[id(layer)], tf.float32)
    columns = tf.linalg.diag_part(tf.convert_to_tensor(layer.posterior_state.column_covariance))
    return rows[..., tf.newaxis] * tf.cast(columns, tf.float32)


def _check_callbacks(given: list[Any], optimizer: Any) -> None:
    """Refuse callbacks of Keras that look for an optimizer, where there is none.

    Raises:
        ValueError: with the callback and the way out.
    """
    if optimizer is not None:
        return
    rates = keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau
    for callback in given:
        name = type(callback).__name__
        if isinstance(callback, rates):
            raise ValueError(
                f"{name} changes a learning rate, and a BaliModel without an optimizer has none. "
                "Leave it out; compile(forgetting=) is the rate at which posteriors follow the "
                f"data. Received: callbacks with a {name}"
            )
        path = str(getattr(callback, "filepath", ""))
        is_whole = not getattr(callback, "save_weights_only", False)
        if path.endswith((".h5", ".hdf5")) and is_whole:
            raise ValueError(
                f"{name} would write a model in Keras's old format, which needs an optimizer. Use "
                f"a path that ends in .keras, or save_weights_only=True. Received: {path!r}"
            )


def _take_multiplier(arguments: dict[str, Any], optimizer: Any) -> float:
    """Remove arguments that only `BayesianModel.compile` names, and return the multiplier of rates.

    The config of a saved `BaliModel` holds all of these arguments, with their defaults.

    Raises:
        ValueError: for an argument that only nets with members can use.
    """
    defaults = {"member_batches": "tiled", "num_train_samples": 1, "kernel_precision": 0.0}
    for name, default in defaults.items():
        found = arguments.pop(name, default)
        if found not in (default, None):
            raise ValueError(
                f"Argument `{name}` is for nets with members; a BaliModel samples once per "
                f"example and step. Received: {name}={found!r}"
            )
    multiplier = arguments.pop("factor_learning_rate_multiplier", 1.0)
    return check_multiplier(multiplier, optimizer)


def _freeze_again(model: Any) -> None:
    """Freeze what is in frozen layers: configs say so of the layers alone."""
    for layer in model.layers:
        if is_graph(layer):
            _freeze_again(layer)
        elif not layer.trainable:
            freeze(layer)
