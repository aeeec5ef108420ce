"""One batch of a BayesianModel: an optimizer step, all of it or nothing."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1 import heads, scopes
from tfp_rank1.keras_internals import compiled_metrics, input_structure, layers_of, own_state
from tfp_rank1.model.all_or_nothing import Snapshot, finite_everywhere
from tfp_rank1.model.graph import members_by_output
from tfp_rank1.model.noise import (
    learn_noise,
    learned_variables,
    start_scales,
)
from tfp_rank1.model.objective import Objective, evaluation_bound
from tfp_rank1.predictive import evaluated

__all__ = [
    "apply_gradients",
    "checked_gradients",
    "evaluate_batch",
    "make_variables",
    "state_variables",
    "track",
    "train_batch",
    "with_static_shapes",
]


def train_batch(model: Any, data: Any) -> dict[str, tf.Tensor]:
    """One optimizer step on one batch; a loss or gradient that is not finite undoes all of it.

    Args:
        model: a `BayesianModel`.
        data: inputs, targets and, if there are any, sample weights.

    Returns:
        The logs by name.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    x = with_static_shapes(model, x)
    make_variables(model, x)  # first: a snapshot holds only variables that exist
    learned = learned_variables(model)
    before = Snapshot([*state_variables(model), *learned, *model.state_beside_weights])
    tempered = None
    with tf.GradientTape() as tape:
        outputs = model.training_outputs(x)
        if y is not None and all(v.built for v in model.likelihoods):  # before the loss
            tempered = learn_noise(model, y, outputs, sample_weight)
            inner: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
            start_scales(model, tf.equal(inner.iterations, 0), y, outputs, sample_weight)
        with scopes.tempered_variance.set(tempered):
            objective = model.objective(y, outputs, sample_weight, training=True)
        loss = model.optimizer.scale_loss(objective.loss)
    gradients = tape.gradient(loss, [v.value for v in model.optimizer_variables])
    accepted = finite_everywhere([objective.loss, *checked_gradients(model, gradients)])
    _apply_if(accepted, model, gradients)
    before.restore_unless(accepted)
    return track(model, objective, (x, y, outputs, sample_weight), accepted)


def evaluate_batch(model: Any, data: Any) -> dict[str, tf.Tensor]:
    """Loss and metrics of one batch, by the predictive distribution that `predict` averages."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    x = with_static_shapes(model, x)
    mixture = evaluated(model, x)
    objective = evaluation_bound(model, y, mixture, sample_weight)
    return track(model, objective, (x, y, mixture, sample_weight))


def with_static_shapes(model: Any, x: Any) -> Any:
    """Inputs with the static sizes of the model's own inputs, where a dataset leaves sizes open.

    Args:
        model: a `BayesianModel`; the inputs of a subclassed one are not known.
        x: one batch of inputs.
    """
    structure = input_structure(model)
    own, given = keras.tree.flatten(structure), keras.tree.flatten(x)
    if structure is None or len(own) != len(given):
        return x

    def shaped(tensor: Any, symbolic: Any) -> Any:
        if not isinstance(tensor, tf.Tensor) or tensor.shape.rank != len(symbolic.shape):
            return tensor
        if tensor.shape[1:].is_fully_defined():  # the operation would change nothing
            return tensor
        return tf.ensure_shape(tensor, [None, *symbolic.shape[1:]])

    return keras.tree.pack_sequence_as(x, [shaped(*v) for v in zip(given, own, strict=True)])


def make_variables(model: Any, x: Any) -> None:
    """Build the model and its optimizer, unless they are built."""
    if not model.built:
        model(x, training=False)
    model.build_optimizer()


def state_variables(model: Any) -> list[keras.Variable]:
    """Variables that a forward pass changes, such as moving statistics; no frozen kernels."""
    return [v for layer in layers_of(model) for v in own_state(layer)]


def checked_gradients(model: Any, gradients: list[Any]) -> list[Any]:
    """The gradients that must be finite; none for an optimizer that scales the loss.

    Such an optimizer skips steps with gradients that are not finite by itself, and chooses its
    scale by them.
    """
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    return [] if is_scaled else [g for g in gradients if g is not None]


def _apply_if(accepted: tf.Tensor, model: Any, gradients: list[Any]) -> None:
    """Take the optimizer's step if it is accepted."""
    variables = model.optimizer_variables
    if not variables:
        warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        return
    # Replicas cannot meet inside a conditional, so their step is taken and undone. Elsewhere a
    # conditional spares the copies of all weights and slots.
    if tf.distribute.has_strategy():
        before = Snapshot([*variables, *model.optimizer.variables])
        apply_gradients(model, gradients, variables)
        before.restore_unless(accepted)
        return

    def apply() -> tf.Tensor:
        apply_gradients(model, gradients, variables)
        return accepted

    tf.cond(accepted, apply, lambda: accepted)


def apply_gradients(model: Any, gradients: list[Any], variables: list[keras.Variable]) -> None:
    """Apply the optimizer, then multiply the steps of the factors."""
    # Not the gradients: Adam normalizes them, so that a multiple would give the same step. The
    # copies cost O(in + out) per layer.
    multiplier = model._options.factor_learning_rate_multiplier
    scaled = [] if multiplier == 1.0 else [v for v in model.factor_variables if v.trainable]
    before = [tf.identity(v.value) for v in scaled]
    _apply_once(model.optimizer, gradients, variables)
    for variable, old in zip(scaled, before, strict=True):
        variable.assign(old + multiplier * (variable.value - old))


def _apply_once(
    optimizer: keras.optimizers.Optimizer, gradients: list[Any], variables: list[keras.Variable]
) -> None:
    """`optimizer.apply_gradients`, which adds up gradients only where there are replicas.

    The sum over a single replica would change nothing, but TensorFlow registers a gradient of the
    sum under a name of its own, for ever, and the graph of the step with it.
    """
    replica = tf.distribute.get_replica_context()
    # One that scales the loss refuses to be applied outside of a replica.
    is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if replica is None or replica.num_replicas_in_sync > 1 or is_scaled:
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return

    def apply(strategy: tf.distribute.Strategy) -> None:
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    replica.merge_call(apply)


def track(
    model: Any, objective: Objective, batch: tuple[Any, ...], accepted: tf.Tensor | None = None
) -> dict[str, tf.Tensor]:
    """Update the metrics by a batch, unless it was refused.

    Args:
        model: a `BayesianModel`.
        objective: loss of the batch and its parts.
        batch: inputs, targets, outputs and sample weights.
        accepted: whether the step was accepted, boolean scalar. Defaults to None, for evaluation.

    Returns:
        The logs by name.
    """
    x, y, outputs, sample_weight = batch
    own = model.likelihood
    if model._options.evaluation_loss is not None:
        outputs = members_by_output(model, outputs)
    if heads.are_several(own):
        sample_weight = heads.for_each("sample_weight", own, sample_weight)
        if all(v is None for v in heads.parts(own, sample_weight)):
            sample_weight = None
    before = None if accepted is None else Snapshot(_metric_variables(model, y, outputs))
    model.track_objective(objective)
    logs = model.compute_metrics(x, y, outputs, sample_weight=sample_weight)
    if before is None or accepted is None:
        hidden = {*model.training_logs, *(() if model.num_train_examples else ("kl", "kl_weight"))}
        return {name: v for name, v in logs.items() if name not in hidden}
    before.restore_unless(accepted)
    model.track_refusal(accepted)  # after the metrics were put back, as it counts refused batches
    return {**logs, **model.get_metrics_result()}


def _metric_variables(model: Any, y: Any, outputs: tf.Tensor) -> list[keras.Variable]:
    """Variables of all metrics, also of metrics within metrics, each once."""
    compiled = compiled_metrics(model)
    if compiled is not None and not compiled.built:  # it lists its metrics only once it is built
        compiled.build(y, outputs)
    return list({id(v): v for metric in model.metrics for v in metric.variables}.values())
