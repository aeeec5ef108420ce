"""One batch of a BayesianModel: an optimizer step, all of it or nothing, and what is logged."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1._objective import MeanOrNaN, Objective, ObjectiveModel
from tfp_rank1._refusal import Snapshot, finite_everywhere


class SteppingModel(ObjectiveModel):
    """The part of a `BayesianModel` that trains on one batch, or evaluates it."""

    # Logged in training alone.
    _training_logs: tuple[str, ...] = ("refused",)

    _nll_tracker: MeanOrNaN
    _kl_tracker: keras.metrics.Mean
    _kl_weight_tracker: keras.metrics.Mean
    _refused_tracker: keras.metrics.Mean

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One optimizer step on one batch."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._make_variables(x)
        before = Snapshot(self._state_variables())
        with tf.GradientTape() as tape:
            outputs = self.training_outputs(x)
            objective = self.objective(y, outputs, sample_weight, training=True)
            loss = self.optimizer.scale_loss(objective.loss)
        gradients = tape.gradient(loss, [v.value for v in self.trainable_variables])
        accepted = finite_everywhere([objective.loss, *self._checked(gradients)])
        self._apply_if(accepted, gradients)
        before.restore_unless(accepted)
        return self._log(objective, x, y, outputs, sample_weight, accepted)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Loss and metrics of one batch."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        outputs = self(x, training=False)
        objective = self.objective(y, outputs, sample_weight, training=False)
        return self._log(objective, x, y, outputs, sample_weight)

    def _make_variables(self, x: Any) -> None:
        """A refused batch can only put back what was there before it."""
        if not self.built:
            self(x, training=False)
        self._build_optimizer()

    def _state_variables(self) -> list[keras.Variable]:
        """What a forward pass changes, such as moving statistics; not kernels that are frozen."""
        return [v for layer in self._flatten_layers() for v in layer._non_trainable_variables]

    def _checked(self, gradients: list[Any]) -> list[Any]:
        """Gradients that must be finite: not those of scaled losses, from which scales are found.

        An optimizer that scales the loss refuses gradients that are not finite by itself.
        """
        is_scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        return [] if is_scaled else [g for g in gradients if g is not None]

    def _apply_if(self, accepted: tf.Tensor, gradients: list[Any]) -> None:
        """The optimizer's step, if it is accepted."""
        variables = self.trainable_variables
        if not variables:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
            return
        if tf.distribute.has_strategy():  # replicas cannot meet inside a conditional
            before = Snapshot([*variables, *self.optimizer.variables])
            self._apply_gradients(gradients, variables)
            before.restore_unless(accepted)
            return

        def apply() -> tf.Tensor:
            self._apply_gradients(gradients, variables)
            return accepted

        tf.cond(accepted, apply, lambda: accepted)

    def _apply_gradients(self, gradients: list[Any], variables: list[keras.Variable]) -> None:
        """Apply the optimizer; the factors' steps are multiplied afterwards.

        Multiplying the step, not the gradient, is what a learning-rate multiplier means for
        Adam as well, and costs O(in + out).
        """
        is_scaled = self._factor_multiplier != 1.0
        scaled = [v for v in self.factor_variables if v.trainable] if is_scaled else []
        before = [tf.identity(v.value) for v in scaled]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        for variable, old in zip(scaled, before, strict=True):
            step = variable.value - old
            variable.assign(old + self._factor_multiplier * step)

    def _log(
        self,
        objective: Objective,
        x: Any,
        y: Any,
        outputs: tf.Tensor,
        sample_weight: Any,
        accepted: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Update the metrics, but not by a refused batch; `accepted` is None in evaluation."""
        before = None if accepted is None else Snapshot(self._metric_variables(y, outputs))
        rows = objective.rows
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._loss_tracker.update_state(objective.loss * replicas, sample_weight=rows)
        self._nll_tracker.update_state(objective.nll * replicas, sample_weight=rows)
        per_example = objective.kl / float(self.num_train_examples or 1)
        self._kl_tracker.update_state(per_example, sample_weight=rows)
        self._kl_weight_tracker.update_state(objective.kl_weight, sample_weight=rows)
        logs = self.compute_metrics(x, y, outputs, sample_weight=sample_weight)
        if before is None or accepted is None:
            return {name: v for name, v in logs.items() if name not in self._training_logs}
        before.restore_unless(accepted)
        self._refused_tracker.update_state(1.0 - tf.cast(accepted, tf.float32))
        return {**logs, **self.get_metrics_result()}

    def _metric_variables(self, y: Any, outputs: tf.Tensor) -> list[keras.Variable]:
        """Each once, those of metrics within metrics too."""
        compiled = self._compile_metrics
        if compiled is not None and not compiled.built:  # until then it names none of its own
            compiled.build(y, outputs)
        return list({id(v): v for metric in self.metrics for v in metric.variables}.values())
