"""BaliModel: a train step without an optimizer."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import keras
import tensorflow as tf

from bali_keras import _settings
from bali_keras._inference import InferenceModel
from bali_keras._settings import Settings
from bali_keras._weights import check_finite_arrays, weight_of
from bali_keras.layers._bali import marginal_scope
from bali_keras.update import factorise
from tfp_rank1._mode import in_posterior_mean
from tfp_rank1._objective import by_examples
from tfp_rank1._registry import registered
from tfp_rank1.losses import NegativeLogLikelihood
from tfp_rank1.mixture import PredictiveMixture
from tfp_rank1.predictive import sample_marginals
from tfp_rank1.random import next_seed

# Points by which metrics see the Gaussians of a closed-form output layer in `evaluate`.
NODES = 16


@registered
class BaliModel(InferenceModel):
    """A Keras model whose BALI layers are inferred, layer by layer, without an optimizer.

    Each step moves the pre-activations of every layer along the back-propagated gradient of the
    log-likelihood, `y_n = M' h_n + V g_n`, and updates the layer's exact posterior given these
    pseudo-targets, `W ~ MN(M, L^-1, V)`; see `bali_keras.posterior`. Layers of other kinds are
    trained by `optimizer` in the same step. With one linear layer and a Normal likelihood of
    known noise this is conjugate Bayesian linear regression, exactly.

    `fit` logs what `BayesianModel` logs (`kl` in nats per example, over the BALI layers) and

        rate        rho of the step
        step_kl     KL between the posteriors after and before the step of the means, nats per
                    training example; the trust region bounds it
        condition   largest condition number of the layers' row precisions (a lower bound)
        refused     fraction of the epoch's batches whose update was refused because a number was
                    not finite; everything is then as before the batch

    Args:
        *args, **kwargs: as for `BayesianModel`: `BaliModel(inputs, outputs, likelihood=...)`, or
            a subclass that ends `call` with `return self.likelihood(outputs)`. Outputs `[B, D]`.
        likelihood: a `tfp_rank1.likelihoods` object or its name. The scale of `Normal()` is
            learned in closed form.
        num_train_examples: N. Defaults to None: every `fit` counts its data by their
            `sample_weight` and `class_weight`. Give it for a stream that comes in several fits.

    `predict` and calls of the model draw one sample of the weights: every call another. Use
    `posterior_predictive`, or `with tfp_rank1.posterior_mean():`. Scale inputs and targets: priors
    are meant for targets of unit size, and in float32, the default of a layer's
    `statistics_dtype`, inputs whose mean is thousands of times their spread lose the spread. A
    `sample_weight` of 2 counts as seeing the example twice; the Fisher information of hidden
    layers is sampled, and so equal on average.

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

    # -- compile --------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = None,
        loss: Any = "average_nll",
        *,
        forgetting: Any = _settings.DEFAULT_FORGETTING,
        damping: Any = None,
        prior_precision: float | None = None,
        prior_row_precision: Any = None,
        temperature: float = 1.0,
        warmup_steps: int = 10,
        trust_region: float | None = _settings.DEFAULT_TRUST_REGION,
        factorise_every: int | None = None,
        noise_prior: float = 0.01,
        evaluation_samples: int = 8,
        **kwargs: Any,
    ) -> None:
        """Configure inference. The defaults are meant for regression and classification alike.

        Args:
            optimizer: for the weights that are not BALI layers'. Defaults to None: there are none.
            loss: `"average_nll"` (default), or any loss of Keras, whose value per example is taken
                for a negative log-likelihood in nats. With a loss of Keras F is the empirical
                Fisher information (from the data's labels), else the true one.
            forgetting: rho in (0, 1], or a `bali_keras.schedules` object. Defaults to
                `Linear(0.07, 0.001)` over each `fit`.
            damping: what is added to the Fisher information, `V^-1 = F + (a + r tr(F) / k) I`:
                `a`, or `(a, r)`. Bounds V. (F is that of the rows of an example together; see
                `bali_keras.posterior`.) Defaults to None: `a = 0.3 N^(-1/4)`, from 0.1 for a
                hundred examples to 0.02 for 60,000, and `r = 0.001`.
            prior_precision: p, above 0. A weight has the precision `p fan_in` a priori, so that
                a pre-activation of inputs with unit mean square has the variance `1 / p`. In the
                layer's units `L0 = p fan_in k / tr(V^-1) I`. Defaults to None: 0.02 for discrete
                targets (classes, counts), 0.06 for continuous ones.
            prior_row_precision: L0 itself, in place of `prior_precision`: a number l for `l I`, a
                matrix `[d, d]` (the bias is the last row), or a dict of either by layer name.
                Defaults to None.
            temperature: T; N is divided by it. Above 1 widens the posterior. Defaults to 1.
            warmup_steps: steps of the model's life that only gather statistics. Defaults to 10.
            trust_region: bound of `step_kl`, nats per training example, by which a step of the
                hidden layers is shortened; None for none. Defaults to 0.05.
            factorise_every: steps between two factorisations of the covariances. Defaults to None:
                1 for small layers, else so that they cost about a fifteenth of the rest, but at
                most a third of the averages' memory of `1 / rho` steps; and always at the end of
                `fit`. The output layer of a Normal likelihood is then factorised in every step,
                as its exactness needs.
            noise_prior: strength of the prior on a learned noise scale, in examples whose
                residual is the likelihood's `initial_scale`. Defaults to 0.01.
            evaluation_samples: samples of the predictive in `evaluate` and validation. Defaults
                to 8; 1 for losses and metrics of Keras.
            **kwargs: as for `BayesianModel.compile` (`metrics`, `run_eagerly`, `jit_compile`, ...).

        Raises:
            ValueError: for a value out of range.
        """
        settings = Settings.check(
            forgetting=forgetting,
            damping=damping,
            prior_precision=prior_precision,
            prior_row_precision=prior_row_precision,
            temperature=temperature,
            warmup_steps=warmup_steps,
            trust_region=trust_region,
            factorise_every=factorise_every,
            noise_prior=noise_prior,
            evaluation_samples=evaluation_samples,
        )
        if isinstance(loss, (list, tuple)) and len(loss) == 1:
            loss = loss[0]  # as Keras allows for one output
        own_to_members = {"member_batches": "tiled", "num_train_samples": 1}
        for name, default in own_to_members.items():
            if kwargs.get(name, default) != default:
                raise ValueError(
                    f"Argument `{name}` is for nets with members; a BaliModel samples once per "
                    f"example and step. Received: {name}={kwargs[name]!r}"
                )
        is_nll = isinstance(self._known_loss(loss), NegativeLogLikelihood)
        if not is_nll and getattr(self.likelihood, "fixed_scale", 0.0) is None:
            raise ValueError(
                "A loss of Keras knows nothing of a noise scale to be learned. Use the default "
                "loss, loss='average_nll', or fix the scale: likelihoods.Normal(scale=0.5). "
                f"Received: loss={loss!r} and a learned scale"
            )
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        self._settings = settings  # last: a model keeps what it was compiled with before

    def get_compile_config(self) -> dict[str, Any] | None:
        """The arguments of `compile`."""
        config = super().get_compile_config()
        return config and {**config, **self._settings.get_config()}

    # -- fit and evaluate -----------------------------------------------------------------------

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Infer; as `keras.Model.fit`, after finding N and looking at array targets.

        A forgetting schedule over the length of the fit counts from epoch 0, so that a fit that
        is resumed with `initial_epoch` goes on where it stopped.

        Raises:
            ValueError: if N is neither given nor found, if the schedule needs the number of
                steps and it cannot be told, or targets lie outside the support.
        """
        bound = inspect.signature(keras.Model.fit).bind(self, x, y, *args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        batch_size = _batch_size(x, arguments["batch_size"])
        if batch_size != self._batch_size:
            self._batch_size = batch_size
            self._forget_functions()
        length = _FitLength(self, arguments["initial_epoch"])
        given = arguments["callbacks"] or []
        if isinstance(given, keras.callbacks.CallbackList):
            raise ValueError(
                "BaliModel.fit adds a callback of its own: pass a list of callbacks. "
                "Received: a CallbackList"
            )
        own_list = list(given) if isinstance(given, (list, tuple)) else [given]
        # The last: others may go back to a checkpoint before, or to the best weights after; and
        # what they see at the end is up to date.
        arguments["callbacks"] = [_Factorisation(self), *own_list, length]
        self._settings.check_names(self.bali_layers)
        check_finite_arrays(x)
        del arguments["self"]
        return super().fit(**arguments)

    def _find_count(self, arguments: dict[str, Any]) -> None:
        super()._find_count(arguments)
        if self._count is None:
            return
        total = weight_of(arguments, int(self._count))
        if total != self._count:
            self._count = total
            self._forget_functions()

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, with a forgetting schedule that needs no length.

        Raises:
            ValueError: for a schedule over the length of a `fit`.
        """
        if self._settings.forgetting.needs_length:
            raise ValueError(
                "The forgetting schedule falls over the length of a fit, which train_on_batch "
                "has not. Compile with a rate, forgetting=0.02, or a schedule with a length, "
                f"schedules.Linear(steps=...). Received: {self._settings.forgetting}"
            )
        return super().train_on_batch(*args, **kwargs)

    def factorise(self) -> bool:
        """Recompute the covariances from the present statistics; `fit` ends with it.

        Returns:
            False if a factorisation failed; all are then as before.
        """
        count = self._required_count()
        layers = [
            (
                v.posterior_state,
                self._settings.prior_of(v, count, self.likelihood),
                self._noise_variance(v),
            )
            for v in self.bali_layers
            if v.trainable
        ]
        return bool(factorise(layers, tf.constant(count / self._settings.temperature, tf.float32)))

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Loss and metrics of one batch, of `evaluation_samples` samples' mixture."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        count, exact = self._settings.evaluation_samples, None
        if self._stock_names or in_posterior_mean() or count == 1:
            outputs = self(x, training=False)
        else:
            seed = next_seed(self.seed_generator)
            samples, variance = sample_marginals(self, x, count, seed)
            if variance is not None:
                exact = PredictiveMixture(self.likelihood, samples, 0, variance)
            outputs = tf.transpose(_equal_samples(samples, variance), [1, 0, 2])
        objective = self.objective(y, outputs, sample_weight, training=False)
        if exact is not None and self._evaluation_loss is not None:
            losses = -exact.log_prob(tf.convert_to_tensor(y))
            reduce = _Reduction("nll", self._evaluation_loss.reduction, dtype="float32")
            nll = reduce(losses, losses, sample_weight)
            nll = by_examples(nll, self._evaluation_loss, outputs, objective.rows)
            objective = objective._replace(nll=nll, loss=objective.loss - objective.nll + nll)
        return self._log(objective, x, y, outputs, sample_weight)

    # -- answers --------------------------------------------------------------------------------

    def marginal_outputs(self, x: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Outputs of one pass; the output layer of a Normal likelihood is integrated out.

        Args:
            x: one batch of inputs.

        Returns:
            Mean and variance of the outputs, `[B, D]`, given the sample of the layers before; or
            sampled outputs and None.
        """
        layer = self._exact_layer
        if layer is None or in_posterior_mean():
            return self(x, training=False), None
        with marginal_scope(layer) as marginal:
            mean = tf.cast(self(x, training=False), tf.float32)
            row_variance = tf.cast(marginal.variance, tf.float32)
        columns = tf.linalg.diag_part(layer.posterior_state.matrix_normal().column_covariance())
        return mean, row_variance[:, tf.newaxis] * tf.cast(columns, tf.float32)


class _Factorisation(keras.callbacks.Callback):
    """Brings the covariances up to date at the end, also of a fit that ended in the warm-up."""

    def __init__(self, model: BaliModel) -> None:
        super().__init__()
        self._bali = model

    def on_train_end(self, logs: Any = None) -> None:
        """Factorise."""
        if int(self._bali._updates.numpy()) > 0:
            self._bali.factorise()


class _FitLength(_Factorisation):
    """Tells the model which steps belong to the present fit, and the user what was refused."""

    def __init__(self, model: BaliModel, initial_epoch: int) -> None:
        super().__init__(model)
        self._initial_epoch = initial_epoch
        self._before = (0, 0)

    def _counts(self) -> tuple[int, int]:
        return int(self._bali._updates.numpy()), self._bali.refused_updates

    def on_train_begin(self, logs: Any = None) -> None:
        """Set the first and last step."""
        model, steps = self._bali, self.params.get("steps")
        self._before = self._counts()
        if steps is None:
            if model._settings.forgetting.needs_length:
                raise ValueError(
                    "The forgetting schedule falls over the length of the fit, which cannot be "
                    "told from this data. Pass steps_per_epoch= to fit, or a schedule with a "
                    "length, schedules.Linear(0.07, 0.001, steps=...), or a constant rate, "
                    "forgetting=0.02. Received: data of unknown length"
                )
            return
        initial_epoch = model._initial_epoch or self._initial_epoch  # of a restored checkpoint
        first = int(model._updates.numpy()) + 1 - initial_epoch * steps
        model._first_step.assign(first)
        model._last_step.assign(first + self.params["epochs"] * steps - 1)

    def on_train_end(self, logs: Any = None) -> None:
        """Factorise, and warn of batches whose update was refused."""
        super().on_train_end(logs)
        batches, refused = (
            now - old for now, old in zip(self._counts(), self._before, strict=True)
        )
        if refused:
            warnings.warn(
                f"{refused} of {batches} batches left the model as it was: a loss, a gradient or "
                "a covariance was not finite. Look for NaN or huge numbers in these inputs and "
                "targets, scale both to unit size, or raise damping= and prior_precision=. See "
                "`refused` in the logs",
                stacklevel=2,
            )


class _Reduction(keras.losses.Loss):
    """Reduces losses per example that are given as `y_pred`, with weights, as Keras does."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """The losses."""
        return y_pred


def _equal_samples(outputs: tf.Tensor, variance: tf.Tensor | None) -> tf.Tensor:
    """Samples `[S, B, D]` of outputs with means and variances, which metrics weigh alike.

    Each Gaussian is `NODES` points at its quantiles, of the same mean and variance: moments are
    right, tails end at two standard deviations. The NLL is computed without them.
    """
    if variance is None:
        return outputs
    points = tf.math.ndtri((tf.range(NODES, dtype=tf.float32) + 0.5) / NODES)
    points /= tf.math.reduce_std(points)
    spread = outputs + tf.sqrt(variance) * points[:, tf.newaxis, tf.newaxis, tf.newaxis]
    return tf.reshape(spread, [NODES * outputs.shape[0], -1, outputs.shape[-1]])


def _batch_size(x: Any, batch_size: int | None) -> int:
    """Examples per step, for the cost of a step; 32 where it cannot be told."""
    if isinstance(x, tf.data.Dataset):
        static = keras.tree.flatten(x.element_spec)[0].shape
        return int(static[0]) if len(static) and static[0] is not None else 32
    return batch_size or 32
