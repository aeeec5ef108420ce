"""One training step of a `BaliModel`: record, differentiate, update every layer.

The forward pass records the inputs and the pre-activations of every BALI layer. One tape gives the
gradients of the log-likelihood at these pre-activations, the scores for the Fisher information, and
the gradients for the optimizer of all other layers. Sums over the batch, added up over replicas,
then update the posteriors.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from bali_keras.inference import cadence
from bali_keras.inference.output import (
    ExactOutput,
    HiddenLayer,
    LayerRole,
    NoiseAverage,
    outputs_behind,
    squared_residuals,
)
from bali_keras.inference.pseudo_targets import cross_sum, moments, no_moments
from bali_keras.inference.statistics import BatchRows, BatchSums, Moments
from bali_keras.inference.update import Health, LayerUpdate, update
from bali_keras.inference.weights import (
    BatchWeights,
    of_all_outputs,
    of_examples,
    of_targets,
    scaled,
)
from bali_keras.recording import Record, Recorder
from bali_keras.schedules import Progress
from tfp_rank1.heads import for_each, matched, names_of, parts
from tfp_rank1.keras_internals import layers_of, own_trainable_variables
from tfp_rank1.losses import NegativeLogLikelihood
from tfp_rank1.model.all_or_nothing import (
    Snapshot,
    all_finite,
    finite_everywhere,
    sum_over_replicas,
)
from tfp_rank1.model.graph import members_of
from tfp_rank1.model.noise import start_scales
from tfp_rank1.model.step import (
    apply_gradients,
    checked_gradients,
    make_variables,
    track,
    with_static_shapes,
)
from tfp_rank1.outputs import position_mask, position_sizes
from tfp_rank1.predictive import PredictiveMixture
from tfp_rank1.random import fold_in, normal_rows, shared_seed

__all__ = ["is_nll", "required_count", "role_of", "train_batch", "trained_layers"]


class Batch(NamedTuple):
    """One batch of a replica.

    Attributes:
        x: inputs.
        y: targets of every output, in the order of `heads.names_of`.
        weights: the weights of the targets of every output.
        shared: the weights of what several outputs share.
        first_row: index in the global batch of this replica's first example.
        examples: sum of the sample weights over all replicas, scalar.
        step: number of this step, counted from 1 over the life of the model.
        rate: rho of this step.
        warmup: number of first steps that only gather statistics.
    """

    x: Any
    y: list[Any]
    weights: list[BatchWeights]
    shared: BatchWeights
    first_row: tf.Tensor
    examples: tf.Tensor
    step: tf.Tensor
    rate: tf.Tensor
    warmup: tf.Tensor


def train_batch(model: Any, data: Any) -> dict[str, tf.Tensor]:
    """Update all layers by one batch; a number that is not finite undoes the whole update.

    Args:
        model: a compiled `BaliModel`.
        data: a batch as Keras passes it to `train_step`.

    Returns:
        The logs.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    x = with_static_shapes(model, x)
    make_variables(model, x)  # Keras builds by a trial call, which must not be recorded
    before = Snapshot(_other_variables(model))
    rows = tf.shape(keras.tree.flatten(x)[0])[0]
    first_row = _first_row(rows)
    seed = shared_seed(model.seed_generator)
    # Persistent: one forward pass gives gradients, scores and the optimizer's gradients.
    with tf.GradientTape(persistent=True) as tape:
        with Recorder(tape, fold_in(seed, 0), first_row) as recorder:
            outputs = model(x, training=True)
        own = model.likelihood
        of_outputs = parts(own, outputs)
        for values in of_outputs:
            _check_outputs_rank(values)
        # First: a layer that took no part may not be built, and then it has no posterior to read.
        _check_used(model, recorder)
        is_first = tf.equal(model._counters.updates, 0)
        start_scales(model, is_first, y, outputs, sample_weight)  # before the loss
        objective = model.objective(y, outputs, sample_weight, training=True)
        targets = parts(own, matched("y", own, y))
        weights = _weights(model, targets, of_outputs, sample_weight)
        shared = of_all_outputs(weights)
        counts = tf.cast(rows, tf.float32) if shared.counts is None else shared.counts
        examples = sum_over_replicas(tf.reduce_sum(counts))
        batch = Batch(x, targets, weights, shared, first_row, examples, *_next_step(model))
        log_prob = -_sum_of_losses(model, batch, of_outputs)
        score = _score(model, batch, of_outputs, fold_in(seed, 1))
        scaled = objective.loss
        if model.optimizer is not None:
            scaled = model.optimizer.scale_loss(scaled)
    model.find_exact_layers(
        recorder, of_outputs
    )  # before `_sums`, which asks for the layers' roles
    sums, rows = _sums(model, recorder, tape, (log_prob, score), batch, fold_in(seed, 2))
    gradients = _optimizer_gradients(model, tape, scaled)
    finite = finite_everywhere([objective.loss, *checked_gradients(model, gradients)])
    residuals = _residuals(model, recorder, batch, of_outputs)
    health = _infer(model, sums, rows, batch, residuals, finite)
    # Applied in any case and undone if refused: replicas cannot meet inside a conditional.
    if gradients:
        apply_gradients(model, gradients, model.optimizer_variables)
    before.restore_unless(health.accepted)
    # A refused batch counts as a step, so that schedules keep to the length of the fit.
    model._counters.updates.assign(batch.step)
    model._counters.refused.assign_add(tf.cast(~health.accepted, tf.int64))
    model.track_health(batch.rate, health)
    return track(model, objective, (x, y, outputs, sample_weight), health.accepted)


# -- what the layers are --------------------------------------------------------------------------


def trained_layers(model: Any) -> list[keras.layers.Layer]:
    """The BALI layers that are not frozen, in the order of the model."""
    return [layer for layer in model.bali_layers if layer.trainable]


def _check_used(model: Any, recorder: Recorder) -> None:
    """Refuse a forward pass without one of the trained layers."""
    layers = trained_layers(model)
    unused = [layer.name for layer in layers if layer not in recorder.records]
    if unused:
        raise ValueError(
            "Every BALI layer must take part in the forward pass. Freeze those that do not: "
            f"layer.trainable = False. Received: unused layers {unused}"
        )


def is_nll(model: Any) -> bool:
    """Whether the loss is a likelihood of this library, and not one of Keras."""
    return isinstance(model.loss, NegativeLogLikelihood)


def role_of(model: Any, layer: keras.layers.Layer) -> LayerRole:
    """The role of a layer in the net, under the compiled loss."""
    place = _place_of(model, layer)
    # Under a loss of Keras the labels are no observations with Gaussian noise.
    if place is None or not is_nll(model):
        return HiddenLayer()
    noise = model.likelihoods[place].noise_variance()
    variance = tf.broadcast_to(noise, [layer.posterior_state.size[1]])
    return ExactOutput(variance, is_fresh=model._options.factorise_every in (None, 1))


def _place_of(model: Any, layer: keras.layers.Layer) -> int | None:
    """The place of the output that a layer makes exactly; None for a hidden layer."""
    return next((i for i, v in enumerate(model.exact_layers) if v is layer), None)


def required_count(model: Any) -> float:
    """N.

    Raises:
        ValueError: if it is not known.
    """
    if model.num_train_examples is None:
        raise ValueError(
            "BALI scales its statistics to the number N of training examples, which is not "
            "known. Give `fit` arrays or a finite dataset, or pass num_train_examples= to the "
            "model. Received: num_train_examples=None"
        )
    return model.num_train_examples


def _weights(
    model: Any, y: list[Any], outputs: list[tf.Tensor], sample_weight: Any
) -> list[BatchWeights]:
    """The weights of the targets of every output, times the output's loss weight."""
    own = model.likelihood
    given = parts(own, for_each("sample_weight", own, sample_weight))
    if not is_nll(model):
        return [of_examples(given[0])]
    factors = model._options.loss_weights_by_output(own)
    found = []
    for likelihood, *of_output, factor in zip(
        model.likelihoods, y, outputs, given, factors, strict=True
    ):
        targets, values, weight = of_output
        mask = position_mask(values, model.has_members)
        weights = of_targets(weight, targets, likelihood, values.shape, mask)
        one_each = values[..., : likelihood.num_targets(int(values.shape[-1]))]
        found.append(scaled(weights, factor, tf.shape(one_each)))
    return found


# -- differentiate --------------------------------------------------------------------------------


def _sum_of_losses(model: Any, batch: Batch, outputs: list[tf.Tensor]) -> tf.Tensor:
    """`sum_n w_n loss_n` of all outputs, not divided by B, so that priors keep their strength."""
    if not is_nll(model):
        (weights,) = batch.weights
        losses = _losses_of_keras(model.loss, batch.y[0], outputs[0])
        return tf.reduce_sum(losses if weights.rows is None else weights.rows * losses)
    columns = names_of(model.likelihood), model.likelihoods, batch.y, outputs, batch.weights
    return tf.add_n([_sum_of_nlls(model, *column) for column in zip(*columns, strict=True)])


def _sum_of_nlls(
    model: Any, name: str, likelihood: Any, y: Any, outputs: tf.Tensor, weights: BatchWeights
) -> tf.Tensor:
    members = members_of(model, outputs, name).values
    mask = position_mask(members, has_members=True)
    mixture = PredictiveMixture(likelihood, members, axis=1, mask=mask)
    losses = model.loss.losses(y, mixture, weights.targets)
    # With weights of targets the log-density of every target is weighted.
    by_example = weights.targets is None and weights.rows is not None
    return tf.reduce_sum(weights.rows * losses if by_example else losses)


def _losses_of_keras(loss: Any, y: Any, outputs: tf.Tensor) -> tf.Tensor:
    """A loss of Keras, or a function, per example, `[B]`."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    y = tf.convert_to_tensor(y)
    # A function would broadcast labels `[B]` and outputs `[B, 1]` to `[B, B]`.
    if y.shape.rank + 1 == outputs.shape.rank and outputs.shape[-1] == 1:
        y = y[..., tf.newaxis]
    # `call`, because calling a Keras loss averages over the batch.
    losses = loss.call(y, outputs) if isinstance(loss, keras.losses.Loss) else loss(y, outputs)
    if losses.shape.rank == 0:
        raise ValueError(
            "BALI needs the loss of every example, [batch], to weigh it: let the function "
            "average over the last axis only. Received: a loss that returns a scalar"
        )
    losses = tf.cast(tf.reshape(losses, [tf.shape(outputs)[0], -1]), tf.float32)
    return tf.reduce_sum(losses, axis=-1)


def _score(model: Any, batch: Batch, outputs: list[tf.Tensor], seed: tf.Tensor) -> tf.Tensor | None:
    """A scalar whose gradients at the pre-activations are `sqrt(w_n) s_n`, or `sqrt(w_nt) s_nt`.

    The scores of several outputs are independent, and those of what they share add up. None for a
    loss of Keras: the gradients of the data's own labels are then the scores.
    """
    if not is_nll(model):
        return None
    columns = zip(model.likelihoods, outputs, batch.weights, strict=True)
    return tf.add_n(
        [
            _score_of(likelihood, values, weights, batch.first_row, fold_in(seed, i) if i else seed)
            for i, (likelihood, values, weights) in enumerate(columns)
        ]
    )


def _score_of(
    likelihood: Any,
    outputs: tf.Tensor,
    weights: BatchWeights,
    first_row: tf.Tensor,
    seed: tf.Tensor,
) -> tf.Tensor:
    # The root, because F sums the squares of scores: `w_n s_n s_n'`.
    size = int(outputs.shape[-1])
    if weights.targets is not None:
        root = tf.sqrt(weights.targets)
    else:
        ones = tf.ones(tf.shape(outputs)[:1]) if weights.rows is None else weights.rows
        by_example = tf.reshape(tf.sqrt(ones), [-1] + [1] * (int(outputs.shape.rank) - 1))
        one_each = tf.ones_like(outputs[..., : likelihood.num_targets(size)], tf.float32)
        root = by_example * one_each
    scores = likelihood.scores(outputs, _noise_of(outputs, first_row, seed))
    if scores is None:
        own = fold_in(seed, first_row)  # replicas draw labels of their own
        return tf.reduce_sum(likelihood.sampled_log_prob(outputs, own, root))
    # A target may have several outputs, such as its mean and its scale.
    root = tf.concat([root] * (size // root.shape[-1]), axis=-1)
    return tf.reduce_sum(root * outputs * tf.stop_gradient(scores))


def _noise_of(outputs: tf.Tensor, first_row: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Standard normal numbers with the shape of the outputs, the same on any number of replicas."""
    shape = tf.shape(outputs)
    positions = tf.reduce_prod(shape[1:-1])
    rows = (shape[0] * positions, int(outputs.shape[-1]))
    return tf.reshape(normal_rows(first_row * positions, rows, seed), shape)


def _sums(
    model: Any,
    recorder: Recorder,
    tape: tf.GradientTape,
    targets: tuple[tf.Tensor, tf.Tensor | None],
    batch: Batch,
    seed: tf.Tensor,
) -> tuple[list[BatchSums], list[BatchRows | None]]:
    """Sums over the batch and all replicas, one `BatchSums` per trained layer; and its rows.

    The rows are those of this replica, and None where their sum is cheaper to go on with.

    Args:
        model: a `BaliModel`.
        recorder: holds the layers' calls of the forward pass.
        tape: recorded the forward pass.
        targets: two scalars whose gradients at the pre-activations are the log-likelihood's
            gradients, and the scores; see `_sum_of_losses` and `_score`.
        batch: the batch of this replica.
        seed: int32 `[2]`, the same on all replicas.
    """
    layers, prior = trained_layers(model), model.prior()
    records = [recorder.records[layer] for layer in layers]
    outputs = [[r.watched for r in calls] for calls in records]
    states, roles = [v.posterior_state for v in layers], [role_of(model, v) for v in layers]
    log_prob, score = targets
    gradients = tape.gradient(log_prob, outputs)
    _check_connected(layers, gradients)
    stale = [i for i, role in enumerate(roles) if not role.is_fresh]

    behind = outputs_behind(model) if len(batch.weights) > 1 else {}
    weights = [_weights_of(model, batch, layer, behind.get(id(layer), set())) for layer in layers]

    def moments_of(i: int, scores: Any) -> Moments:
        return moments(records[i], scores, weights[i], seed, states[i].rows, states[i].dtype)

    def collect() -> dict[int, Moments]:
        scored = [i for i in stale if roles[i].collects_scores]
        if score is not None:
            found = tape.gradient(score, [outputs[i] for i in scored])
        else:
            labels = [gradients[i] for i in scored]
            found = tf.nest.map_structure(lambda g: _unweigh(g, batch.shared.rows), labels)
        scores = dict(zip(scored, found, strict=True))
        return {i: moments_of(i, scores.get(i)) for i in stale}

    every = _factorise_every(model, layers)
    # The stride of an interval up to 3 is 1: every step collects, without a conditional.
    if every <= 3 or not stale:
        collected = collect()
    else:
        interval = _interval(model, every, batch.rate)
        collected = tf.cond(
            cadence.is_collecting(batch.step, batch.warmup, interval),
            collect,
            lambda: {
                i: no_moments(states[i].rows, states[i].size[1], states[i].dtype) for i in stale
            },
        )
    # One row's part in the sums over the data that the covariances stand for.
    count = model.hyperparameters.num_examples(required_count(model)) / model._options.temperature
    # The variance of a row holds the scale of the covariance, which no step depends on.
    per_example = tf.math.divide_no_nan(count, batch.examples * prior.covariance_scale)
    shares = [state.targets.share(batch.examples, batch.rate) for state in states]
    sums, rows = [], []
    for i, (state, role) in enumerate(zip(states, roles, strict=True)):
        leverage = None if role.is_fresh else shares[i] * per_example
        form = state.rows, state.dtype
        of_layer = records[i], gradients[i], weights[i]
        cross, examples, own = cross_sum(*of_layer, role, leverage, *form)
        own_moments = collected[i] if i in stale else moments_of(i, None)
        sums.append(BatchSums(cross, examples, own_moments))
        count = _num_rows(model, records[i])
        is_cheaper = i in stale and count is not None and state.prefers_rows(count)
        rows.append(own if is_cheaper else None)
    # Outside of the conditional, in which replicas could not meet.
    return sum_over_replicas(sums), rows


def _num_rows(model: Any, records: list[Record]) -> int | None:
    """Number of rows of a layer in one batch, roughly; None if its positions are not known."""
    positions = [tuple(r.mean.shape[1:-1]) for r in records]
    if any(n is None for sizes in positions for n in sizes):
        return None
    return (model._batch_size or 32) * sum(math.prod(sizes) for sizes in positions)


def _weights_of(
    model: Any, batch: Batch, layer: keras.layers.Layer, behind: set[int]
) -> BatchWeights:
    """The weights of the rows of a layer: of the output that it makes or leads to, or of all.

    Args:
        model: a `BaliModel`.
        batch: the batch of this replica.
        layer: one of its layers.
        behind: places of the outputs that depend on the layer, see `outputs_behind`.
    """
    place = _place_of(model, layer)
    if place is not None and is_nll(model):
        return batch.weights[place]
    return batch.weights[next(iter(behind))] if len(behind) == 1 else batch.shared


def _check_connected(layers: list[keras.layers.Layer], gradients: list[list[Any]]) -> None:
    for layer, found in zip(layers, gradients, strict=True):
        if any(g is None for g in found):
            raise ValueError(
                f"The loss does not depend on the outputs of layer {layer.name!r}, so it "
                "cannot be inferred. Connect it, or freeze it: layer.trainable = False. "
                "Received: no gradient"
            )


def _factorise_every(model: Any, layers: list[keras.layers.Layer]) -> int:
    costs = [v.posterior_state.cost for v in layers]
    return model._options.factorise_every or cadence.period(costs, model._batch_size or 32)


def _interval(model: Any, every: int, rate: tf.Tensor) -> tf.Tensor:
    """Steps between factorisations now, int64 scalar."""
    if model._options.factorise_every is not None:
        return tf.constant(every, tf.int64)
    return cadence.interval(rate, every)


# -- infer ----------------------------------------------------------------------------------------


def _next_step(model: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The number of this step, rho of this step, and the length of the warm-up."""
    counters = model._counters
    step = tf.convert_to_tensor(counters.updates) + 1
    first, last = map(tf.convert_to_tensor, (counters.first_step, counters.last_step))
    progress = Progress(step, first, last)
    warmup = model._options.warmup(progress)
    if any(layer.stored_prior for layer in trained_layers(model)):
        warmup += first - 1  # the statistics of a new task begin with nothing
    return step, model._options.forgetting(progress), warmup


def _infer(
    model: Any,
    sums: list[BatchSums],
    rows: list[BatchRows | None],
    batch: Batch,
    residuals: list[tuple[tf.Tensor, tf.Tensor] | None],
    finite: tf.Tensor,
) -> Health:
    """Update a learned noise, then all layers.

    Args:
        model: a `BaliModel`.
        sums: as `_sums` returns them.
        rows: as `_sums` returns them.
        batch: the batch of this replica.
        residuals: as `_residuals` returns them.
        finite: boolean scalar; False refuses the batch.
    """
    options, layers = model._options, trained_layers(model)
    count = model.hyperparameters.num_examples(required_count(model))
    # The noise comes first: `role_of` below reads it as the V of an exact output layer.
    averages = zip(model.likelihoods, model._noise_weights, residuals, strict=True)
    for likelihood, weight, found in averages:
        if found is not None:
            average = NoiseAverage(likelihood.closed_form_noise, options.noise_prior, weight)
            average.update(*found, count, batch.rate)
    if not layers:  # all are frozen, and the optimizer trains what remains
        zero = tf.zeros(())
        learned = [v for v in residuals if v is not None]
        return Health(zero, zero, finite & all_finite(learned or [zero]))
    step, rate = batch.step, batch.rate
    every = _factorise_every(model, layers)
    between = _interval(model, every, rate)
    # As for moments: with a stride of 1 in any case there is no need for a conditional.
    steps = None if every <= 3 else cadence.prior_steps(step, rate, between, batch.warmup)
    prior, updates = model.prior(), []
    for layer, of_batch, own in zip(layers, sums, rows, strict=True):
        role = role_of(model, layer)
        parts = layer.posterior_state, options.prior_of(layer, prior), of_batch, role
        updates.append(LayerUpdate(*parts, own, None if role.is_fresh else steps))
    return update(
        updates,
        count / options.temperature,
        rate,
        cadence.collecting_rate(step, rate, between, batch.warmup),
        step > batch.warmup,
        cadence.is_factorising(step, batch.warmup, between),
        options.trust_region,
        finite,
        None if every <= 3 else cadence.is_collecting(step, batch.warmup, between),
    )


def _residuals(
    model: Any, recorder: Recorder, batch: Batch, outputs: list[tf.Tensor]
) -> list[tuple[tf.Tensor, tf.Tensor] | None]:
    """`sum_n w_nt E[(y_nt - z_nt)^2]` and `sum_n w_nt`, `[D]` each, on all replicas together.

    By output; None for a likelihood whose noise is not learned in closed form.
    """
    columns = zip(
        model.likelihoods, model.exact_layers, batch.y, outputs, batch.weights, strict=True
    )
    return [
        _residuals_of(likelihood, recorder.records.get(layer), *of_output)
        if likelihood.closed_form_noise is not None and is_nll(model)
        else None
        for likelihood, layer, *of_output in columns
    ]


def _residuals_of(
    likelihood: Any, records: Any, y: Any, outputs: tf.Tensor, weights: BatchWeights
) -> tuple[tf.Tensor, tf.Tensor]:
    positions = position_sizes(outputs, 1)
    prepared = likelihood.prepare_targets(y, int(outputs.shape[-1]), positions)
    targets, _ = likelihood.filled(prepared)
    record = records[0] if records else None
    squares = squared_residuals(likelihood.closed_form_noise, record, targets, outputs)
    by_target = tf.ones(tf.shape(squares)) if weights.targets is None else weights.targets
    axes = list(range(len(positions) + 1))
    return sum_over_replicas(
        (tf.reduce_sum(by_target * squares, axis=axes), tf.reduce_sum(by_target, axis=axes))
    )


# -- the rest of the net --------------------------------------------------------------------------


def _other_variables(model: Any) -> list[keras.Variable]:
    """What a step changes outside of BALI layers: weights, moving statistics, slots, noise."""
    inferred = {id(v) for layer in model.bali_layers for v in layer.weights}
    # Frozen kernels, such as those of a backbone, never change: copying them would cost every step.
    layers = layers_of(model, include_self=False)
    frozen = {id(v) for w in layers if not w.trainable for v in own_trainable_variables(w)}
    left_out = inferred | frozen | {id(v) for v in model._counters.variables}
    slots = [] if model.optimizer is None else model.optimizer.variables
    return [v for v in [*model.weights, *slots] if id(v) not in left_out]


def _optimizer_gradients(model: Any, tape: tf.GradientTape, loss: tf.Tensor) -> list[Any]:
    variables = model.optimizer_variables
    if not variables:
        return []
    if model.optimizer is None:
        raise ValueError(
            "Some weights belong to no BALI layer and need an optimizer. Pass one, "
            "compile(optimizer='adam'), use BALI layers, or freeze them. Received: "
            f"optimizer=None and {[v.path for v in variables]}"
        )
    return tape.gradient(loss, [v.value for v in variables])


# -- one batch ------------------------------------------------------------------------------------


def _unweigh(gradient: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """`sqrt(w_n) g_n` from `w_n g_n`; 0 where the sample weight is 0."""
    if weights is None:
        return gradient
    ones = [1] * (gradient.shape.rank - 1)
    root = tf.reshape(tf.sqrt(weights), [-1, *ones])
    return tf.math.divide_no_nan(gradient, tf.cast(root, gradient.dtype))


def _first_row(rows: tf.Tensor) -> tf.Tensor:
    """Index in the global batch of this replica's first example.

    `tf.distribute` gives `ceil(B / replicas)` examples to every replica but the last.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return tf.zeros((), tf.int32)
    count = replica.num_replicas_in_sync
    total = replica.all_reduce(tf.distribute.ReduceOp.SUM, rows)
    return replica.replica_id_in_sync_group * ((total + count - 1) // count)


def _check_outputs_rank(outputs: tf.Tensor) -> None:
    if not tf.is_tensor(outputs) or outputs.shape.rank is None or outputs.shape.rank < 2:
        raise ValueError(
            "The outputs of a BaliModel are [batch, ..., outputs]; its samples take the place of "
            "members. "
            f"Received: outputs of shape {getattr(outputs, 'shape', None)}"
        )
