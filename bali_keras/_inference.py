"""The train step of a BaliModel: record, differentiate, update every layer."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from bali_keras import fisher
from bali_keras._output import exact_output_layer
from bali_keras._settings import Settings
from bali_keras.layers._bali import BaliLayer
from bali_keras.noise import LearnedNoise
from bali_keras.pseudo_targets import cross_sum, moments, no_moments
from bali_keras.recording import Recorder
from bali_keras.schedules import Progress
from bali_keras.statistics import Accumulation, BatchSums, Moments
from bali_keras.update import (
    Health,
    LayerUpdate,
    interval,
    is_collecting,
    is_factorising,
    period,
    stride,
    update,
)
from tfp_rank1._objective import Objective
from tfp_rank1._refusal import Snapshot, all_finite, finite_everywhere, sum_over_replicas
from tfp_rank1.likelihoods import Normal
from tfp_rank1.losses import NegativeLogLikelihood
from tfp_rank1.model import BayesianModel
from tfp_rank1.predictive import _Samplers
from tfp_rank1.random import fold_in, normal_rows, shared_seed

HEALTH = ("rate", "step_kl", "condition")


class InferenceModel(BayesianModel):
    """The part of a `BaliModel` that makes one step."""

    _settings: Settings
    _batch_size: int | None
    _training_logs = (*HEALTH, "refused")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = Settings()
        self._batch_size = None
        self._exact_layer: BaliLayer | None = exact_output_layer(self)
        self._updates = self._counter("updates")
        self._refused = self._counter("refused")
        self._first_step = self._counter("first_step")
        self._last_step = self._counter("last_step")
        self._noise_weight = Accumulation(self, "noise")
        self._health = {name: keras.metrics.Mean(name=name) for name in HEALTH}

    def _counter(self, name: str) -> keras.Variable:
        return self.add_weight(
            shape=(), name=name, dtype="int64", trainable=False, initializer="zeros", autocast=False
        )

    @property
    def bali_layers(self) -> list[BaliLayer]:
        """The BALI layers, each once, in the order of the model."""
        return [v for v in self._flatten_layers(include_self=False) if isinstance(v, BaliLayer)]

    @property
    def refused_updates(self) -> int:
        """Batches, over the life of the model, whose update was refused."""
        return int(self._refused.numpy())

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One update of all layers from one batch."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weights = _example_weights(sample_weight)
        self._make_variables(x)  # Keras builds by a trial run, which must not be recorded
        before = Snapshot(self._other_variables())
        first_row = _first_row(tf.shape(keras.tree.flatten(x)[0])[0])
        seed = shared_seed(self.seed_generator)
        with tf.GradientTape(persistent=True) as tape:
            with Recorder(tape, fold_in(seed, 0), first_row) as recorder:
                outputs = self(x, training=True)
            _check_outputs_rank(outputs)
            self._trained_layers(recorder)  # says which take no part, before their KL is asked for
            objective = self.objective(y, outputs, sample_weight, training=True)
            log_prob = -self._sum_of_losses(y, outputs, weights)
            score = self._score(outputs, weights, fold_in(seed, 1), first_row)
            scaled = objective.loss
            if self.optimizer is not None:
                scaled = self.optimizer.scale_loss(scaled)
        self._learn_output_layer(recorder, outputs)
        step, rate = self._next_step()
        sums = self._sums(recorder, tape, (log_prob, score), weights, step, rate, fold_in(seed, 2))
        gradients = self._optimizer_gradients(tape, scaled)
        finite = finite_everywhere([objective.loss, *self._checked(gradients)])
        residuals = self._residuals(recorder, y, outputs, weights)
        health = self._infer(sums, step, rate, residuals, finite)
        if gradients:
            self._apply_gradients(gradients, self.optimizer_variables)
        before.restore_unless(health.accepted)
        self._updates.assign(step)
        self._refused.assign_add(tf.cast(~health.accepted, tf.int64))
        self._track_health(rate, health)
        return self._log(objective, x, y, outputs, sample_weight, health.accepted)

    # -- differentiate --------------------------------------------------------------------------

    def _sum_of_losses(self, y: Any, outputs: tf.Tensor, weights: Any) -> tf.Tensor:
        """`sum_n w_n loss_n`: not divided by the batch, or the prior would weigh B times more."""
        loss = self._compile_loss._user_loss
        if isinstance(loss, str):
            loss = keras.losses.get(loss)
        if not isinstance(loss, NegativeLogLikelihood):
            y = tf.convert_to_tensor(y)
            y = y[:, tf.newaxis] if y.shape.rank == 1 and outputs.shape[-1] == 1 else y
        losses = loss.call(y, outputs) if isinstance(loss, keras.losses.Loss) else loss(y, outputs)
        if losses.shape.rank == 0:
            raise ValueError(
                "BALI needs the loss of every example, [batch], to weigh it: let the function "
                "average over the last axis only. Received: a loss that returns a scalar"
            )
        losses = tf.cast(tf.reshape(losses, [tf.shape(outputs)[0], -1]), tf.float32)
        per_example = tf.reduce_sum(losses, axis=-1)
        return tf.reduce_sum(per_example if weights is None else weights * per_example)

    def _score(
        self, outputs: tf.Tensor, weights: Any, seed: tf.Tensor, first_row: tf.Tensor
    ) -> tf.Tensor | None:
        """A scalar whose gradients at the layers' outputs are scores; None: use the labels'."""
        if not isinstance(self._compile_loss._user_loss, NegativeLogLikelihood):
            return None
        root = 1.0 if weights is None else tf.sqrt(weights)
        noise = normal_rows(first_row, (tf.shape(outputs)[0], outputs.shape[-1]), seed)
        scores = fisher.score(self.likelihood, outputs, noise)
        if scores is None:
            return tf.reduce_sum(root * fisher.sampled_log_prob(self.likelihood, outputs, seed))
        return tf.reduce_sum(root * tf.reduce_sum(outputs * tf.stop_gradient(scores), axis=-1))

    def _sums(
        self,
        recorder: Recorder,
        tape: tf.GradientTape,
        targets: Any,
        weights: Any,
        step: tf.Tensor,
        rate: tf.Tensor,
        seed: tf.Tensor,
    ) -> list[Any]:
        """Sums over the batch and all replicas, one per trained layer."""
        layers = self._trained_layers(recorder)
        records = [recorder.records[layer] for layer in layers]
        outputs = [[r.outputs for r in calls] for calls in records]
        log_prob, score = targets
        gradients = tape.gradient(log_prob, outputs)
        for layer, found in zip(layers, gradients, strict=True):
            if any(g is None for g in found):
                raise ValueError(
                    f"The loss does not depend on the outputs of layer {layer.name!r}, so it "
                    "cannot be inferred. Connect it, or freeze it: layer.trainable = False. "
                    "Received: no gradient"
                )

        states = [(v.posterior_state.size, v.posterior_state.dtype) for v in layers]
        stale = [i for i, layer in enumerate(layers) if not self._is_fresh(layer)]

        def collect() -> dict[int, Moments]:
            if score is not None:
                found = tape.gradient(score, [outputs[i] for i in stale])
            else:
                labels = [gradients[i] for i in stale]
                found = tf.nest.map_structure(lambda g: _unweigh(g, weights), labels)
            return {
                i: moments(records[i], s, weights, seed, states[i][1])
                for i, s in zip(stale, found, strict=True)
            }

        every = self._factorise_every(layers)
        if every <= 3 or not stale:  # then every step collects
            collected = collect()
        else:
            collected = tf.cond(
                is_collecting(step, self._settings.warmup_steps, self._interval(every, rate)),
                collect,
                lambda: {i: no_moments(*states[i]) for i in stale},
            )
        sums = []
        for i, (layer, calls) in enumerate(zip(layers, records, strict=True)):
            dtype = states[i][1]
            cross = cross_sum(calls, gradients[i], weights, self._noise_variance(layer), dtype)
            found = collected[i] if i in stale else moments(calls, None, weights, seed, dtype)
            sums.append(BatchSums(*cross, found))
        return sum_over_replicas(sums)

    def _factorise_every(self, layers: list[BaliLayer]) -> int:
        sizes = [v.posterior_state.size for v in layers]
        return self._settings.factorise_every or period(sizes, self._batch_size or 32)

    def _interval(self, every: int, rate: tf.Tensor) -> tf.Tensor:
        """Steps between factorisations now, int64 scalar."""
        if self._settings.factorise_every is not None:
            return tf.constant(every, tf.int64)
        return interval(rate, every)

    def _trained_layers(self, recorder: Recorder) -> list[BaliLayer]:
        layers = [layer for layer in self.bali_layers if layer.trainable]
        unused = [layer.name for layer in layers if layer not in recorder.records]
        if unused:
            raise ValueError(
                "Every BALI layer must take part in the forward pass. Freeze those that do not: "
                f"layer.trainable = False. Received: unused layers {unused}"
            )
        return layers

    # -- infer ----------------------------------------------------------------------------------

    def _next_step(self) -> tuple[tf.Tensor, tf.Tensor]:
        step = tf.convert_to_tensor(self._updates) + 1
        first, last = map(tf.convert_to_tensor, (self._first_step, self._last_step))
        return step, self._settings.forgetting(Progress(step, first, last))

    def _infer(
        self, sums: list[Any], step: tf.Tensor, rate: tf.Tensor, residuals: Any, finite: tf.Tensor
    ) -> Health:
        """Update the noise, then all layers."""
        settings, layers = self._settings, [v for v in self.bali_layers if v.trainable]
        count = tf.constant(float(self._required_count()), tf.float32)
        if residuals is not None:
            noise = LearnedNoise(self.likelihood, settings.noise_prior, self._noise_weight)
            squares, examples = residuals
            noise.update(squares, examples, count, rate)
        if not layers:
            zero = tf.zeros(())
            return Health(zero, zero, finite & all_finite(residuals or [zero]))
        between = self._interval(self._factorise_every(layers), rate)
        updates = [
            LayerUpdate(
                v.posterior_state,
                settings.prior_of(v, self._required_count(), self.likelihood),
                s,
                self._noise_variance(v),
                self._is_fresh(v),
            )
            for v, s in zip(layers, sums, strict=True)
        ]
        return update(
            updates,
            count / settings.temperature,
            rate,
            self._collecting_rate(step, rate, between),
            step > settings.warmup_steps,
            is_factorising(step, settings.warmup_steps, between),
            settings.trust_region,
            finite,
        )

    def _collecting_rate(self, step: tf.Tensor, rate: tf.Tensor, between: tf.Tensor) -> tf.Tensor:
        """`1 - (1 - rho)^m` where only each m-th step collects: the memory in steps is the same."""
        strided = 1.0 - tf.pow(1.0 - rate, tf.cast(stride(between), tf.float32))
        is_first = step <= self._settings.warmup_steps + between
        return tf.where(is_first | tf.equal(stride(between), 1), rate, strided)

    def _required_count(self) -> float:
        if self.num_train_examples is None:
            raise ValueError(
                "BALI scales its statistics to the number N of training examples, which is not "
                "known. Give `fit` arrays or a finite dataset, or pass num_train_examples= to the "
                "model. Received: num_train_examples=None"
            )
        return self.num_train_examples

    # -- the output layer of a Normal likelihood ------------------------------------------------

    def _learn_output_layer(self, recorder: Recorder, outputs: tf.Tensor) -> None:
        """Find the layer whose outputs are the model's own, in a subclassed model."""
        if self._exact_layer is None and isinstance(self.likelihood, Normal):
            for layer, records in recorder.records.items():
                if len(records) == 1 and records[0].outputs is outputs:
                    self._exact_layer = layer
                    self._samplers = _Samplers()  # those of before draw the layer's outputs

    def _noise_variance(self, layer: BaliLayer) -> tf.Tensor | None:
        """`[k]` for the output layer of a Normal likelihood, else None."""
        if layer is not self._exact_layer or not self._is_nll():
            return None
        variance = tf.square(self.likelihood.scale)
        return tf.broadcast_to(variance, [layer.posterior_state.size[1]])

    def _is_fresh(self, layer: BaliLayer) -> bool:
        """Whether a layer's covariance is computed in every step, as exactness needs."""
        is_exact = layer is self._exact_layer and self._is_nll()
        return is_exact and self._settings.factorise_every in (None, 1)

    def _is_nll(self) -> bool:
        return self._compile_loss is not None and isinstance(
            self._compile_loss._user_loss, NegativeLogLikelihood
        )

    def _residuals(
        self, recorder: Recorder, y: Any, outputs: tf.Tensor, weights: Any
    ) -> tuple[tf.Tensor, tf.Tensor] | None:
        """`sum w E[(y - z)^2]` and `sum w`, over all replicas; None without a learned noise."""
        if getattr(self.likelihood, "rho", None) is None or not self._is_nll():
            return None
        targets = self.likelihood.prepare_targets(y, outputs.shape[-1])
        layer = self._exact_layer
        records = recorder.records.get(layer) if layer is not None else None
        if records:
            mean, row_variance = records[0].mean, records[0].variance
            spread = tf.cast(row_variance, tf.float32)[:, tf.newaxis] * tf.square(
                self.likelihood.scale
            )
        else:
            mean, spread = outputs, 0.0
        squares = tf.square(targets - tf.cast(mean, tf.float32)) + spread
        if weights is None:
            weights = tf.ones(tf.shape(squares)[:1])
        sums = tf.reduce_sum(weights[:, tf.newaxis] * squares, axis=0), tf.reduce_sum(weights)
        return sum_over_replicas(sums)

    # -- the rest of the net --------------------------------------------------------------------

    @property
    def optimizer_variables(self) -> list[keras.Variable]:
        """Trainable weights that are not inferred: those the optimizer trains."""
        rho = getattr(self._likelihood, "rho", None)  # learned in closed form
        return [v for v in self.trainable_variables if v is not rho]

    def _other_variables(self) -> list[keras.Variable]:
        """What a step changes beside the BALI layers: weights, moving statistics, slots, noise."""
        inferred = {id(v) for layer in self.bali_layers for v in layer.weights}
        # Frozen kernels, such as a backbone's, never change: copying them would cost every step.
        layers = self._flatten_layers(include_self=False)
        frozen = {id(v) for w in layers if not w.trainable for v in w._trainable_variables}
        counters = (self._updates, self._refused, self._first_step, self._last_step)
        left_out = inferred | frozen | {id(v) for v in counters}
        slots = [] if self.optimizer is None else self.optimizer.variables
        return [v for v in [*self.weights, *slots] if id(v) not in left_out]

    def _optimizer_gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[Any]:
        variables = self.optimizer_variables
        if not variables:
            return []
        if self.optimizer is None:
            raise ValueError(
                "Some weights belong to no BALI layer and need an optimizer. Pass one, "
                "compile(optimizer='adam'), use BALI layers, or freeze them. Received: "
                f"optimizer=None and {[v.path for v in variables]}"
            )
        return tape.gradient(loss, [v.value for v in variables])

    # -- what is logged -------------------------------------------------------------------------

    def objective(
        self, y: Any, outputs: tf.Tensor, sample_weight: Any = None, training: bool = True
    ) -> Objective:
        """As `BayesianModel.objective`; the KL counts the BALI layers."""
        plain = super().objective(y, outputs, sample_weight, training)
        if self.num_train_examples is None:
            return plain
        kl = tf.add_n([tf.zeros(()), *(v.kl() for v in self.bali_layers if v.built)])
        weight = 1.0 / tf.constant(float(self.num_train_examples), tf.float32)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        loss = tf.cast(plain.loss, tf.float32) + weight * kl / replicas
        return plain._replace(loss=loss, kl=plain.kl + kl, kl_weight=weight)

    def _warn_of_refused(self, shares: list[float]) -> None:
        """`fit` has counted them, and says so."""

    def _track_health(self, rate: tf.Tensor, health: Health) -> None:
        for name, value in zip(HEALTH, (rate, health.step_kl, health.condition), strict=True):
            self._health[name].update_state(value)


def _example_weights(sample_weight: Any) -> tf.Tensor | None:
    """Weights `[B]`, float32."""
    if sample_weight is None:
        return None
    weights = tf.cast(tf.convert_to_tensor(sample_weight), tf.float32)
    if weights.shape.rank == 2 and weights.shape[-1] == 1:
        weights = weights[:, 0]
    if weights.shape.rank != 1:
        raise ValueError(
            "A BaliModel takes one `sample_weight` per example, shape [batch]. "
            f"Received: shape {weights.shape}"
        )
    return weights


def _unweigh(gradient: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """`sqrt(w_n) g_n` from `w_n g_n`."""
    if weights is None:
        return gradient
    ones = [1] * (gradient.shape.rank - 1)
    root = tf.reshape(tf.sqrt(weights), [-1, *ones])
    return tf.math.divide_no_nan(gradient, tf.cast(root, gradient.dtype))


def _first_row(rows: tf.Tensor) -> tf.Tensor:
    """Index in the global batch of this replica's first example.

    `tf.distribute` gives every replica but the last `ceil(B / replicas)` examples.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return tf.zeros((), tf.int32)
    count = replica.num_replicas_in_sync
    total = replica.all_reduce(tf.distribute.ReduceOp.SUM, rows)
    return replica.replica_id_in_sync_group * ((total + count - 1) // count)


def _check_outputs_rank(outputs: tf.Tensor) -> None:
    if not tf.is_tensor(outputs) or outputs.shape.rank != 2:
        raise ValueError(
            "A BaliModel has one output [batch, outputs]; its samples take the place of members. "
            f"Received: outputs of shape {getattr(outputs, 'shape', None)}"
        )
