"""The functions that `fit`, `evaluate` and `predict` compile, on any number of replicas."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1 import scopes
from tfp_rank1.keras_internals import (
    has_strategy_of_its_own,
    hook_into_trainer,
    is_in_multi_worker_mode,
    layers_of,
    parent_hook,
)

__all__ = ["Replicas"]

Step = Callable[[Any], Any]


@hook_into_trainer
class Replicas(keras.Model):
    """What `fit`, `evaluate` and `predict` compile, on any number of replicas and workers.

    A base class and no collaborator, because Keras's trainer calls its own methods.

    Keras alone fails in some cases. With several replicas and `steps_per_execution` above 1 its
    loop over steps holds a conditional, in which replicas cannot meet: here the steps of one
    execution are unrolled. It averages batches of unequal replicas to learn their shape, and with
    several workers logs along an axis that scalars have not: here it looks at one replica's
    batch, and logs get an axis. And if a step logs fewer names than there are metrics, it takes
    the mean of the replicas' values: here it asks the metrics, which add up what all have seen.
    """

    steps_per_execution: int
    train_function: Callable[[Any], Any] | None
    _train_in_mean = _test_in_mean = _predict_in_mean = False

    def make_train_function(self, force: bool = False) -> Any:
        """As in Keras, following `posterior_mean()`; with slots before its first batch."""
        if self._mode_changes("train") or force or self.train_function is None:
            self.train_function = self._after_slots(self.make_step_function(self.train_step))
        return self.train_function

    def make_test_function(self, force: bool = False) -> Any:
        """As in Keras, following `posterior_mean()`."""
        return super().make_test_function(self._mode_changes("test") or force)

    def make_predict_function(self, force: bool = False) -> Any:
        """As in Keras, following `posterior_mean()`."""
        return super().make_predict_function(self._mode_changes("predict") or force)

    def predict_step(self, data: Any) -> Any:
        """One batch of outputs."""
        return _in_mode(super().predict_step, self._predict_in_mean)(data)

    @property
    def optimizer_variables(self) -> list[keras.Variable]:
        """What the optimizer trains."""
        return self.trainable_variables

    def build_optimizer(self) -> None:
        """Make its slots, unless there are some, or nothing to train yet."""
        if self.optimizer is None or self.optimizer.built or not self.optimizer_variables:
            return
        self.optimizer.build(self.optimizer_variables)

    def _after_slots(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A train function that finds slots in place: TF traces twice what makes variables.

        They are made before the first batch and no earlier: until then a callback may choose
        what is trained.
        """

        def with_slots(iterator: Any) -> Any:
            self._build_optimizer_of_built()
            return function(iterator)

        return with_slots

    def _build_optimizer_of_built(self) -> None:
        if self.optimizer is None or self.optimizer.built:
            return
        if all(layer.built for layer in layers_of(self)):
            with self.distribute_strategy.scope():
                self.build_optimizer()

    def _mode_changes(self, name: str) -> bool:
        """The context is read when a function is traced: a change of it needs a new trace.

        Of that function alone: a callback may predict in the other mode while `fit` is running.
        """
        attribute, mode = f"_{name}_in_mean", scopes.mean_mode.value
        changes = getattr(self, attribute) != mode
        setattr(self, attribute, mode)
        return changes

    def forget_functions(self) -> None:
        """What they hold as constants (N, annealing, mode) has changed: compile anew."""
        self.train_function = self.test_function = self.predict_function = None

    def make_step_function(self, step_function: Step) -> Callable[[Iterator[Any]], Any]:
        """A function that takes the steps of one execution from an iterator of batches."""
        strategy = self.distribute_strategy
        step_function = _in_mode(step_function, scopes.mean_mode.value)
        if is_in_multi_worker_mode(strategy):
            step_function = _with_axis(step_function)
        count: int = self.steps_per_execution
        if strategy.num_replicas_in_sync == 1 or count == 1:
            return parent_hook(super(), "make_step_function")(step_function)
        self.steps_per_execution = 1
        try:
            one_step = parent_hook(super(), "make_step_function")(step_function)
        finally:
            self.steps_per_execution = count

        def several(batches: tuple[Any, ...]) -> Any:
            for batch in batches:
                outputs = one_step(iter([batch]))
            return outputs

        if not self.run_eagerly:
            several = tf.function(several, reduce_retracing=True, autograph=False)

        def function(iterator: Iterator[Any]) -> Any:
            batches = tuple(itertools.islice(iterator, count))
            if not batches:
                raise StopIteration
            return several(batches)

        return function

    def result_or_logs(self, logs: Any) -> Any:
        """What `fit` and `evaluate` report of the metrics that a step logged."""
        found = self.get_metrics_result()
        if not isinstance(logs, dict) or not logs.keys() <= found.keys():
            return logs
        return {name: found[name] for name in logs}

    def symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Build what is not built yet, from the first batch of one replica."""
        strategy = self.distribute_strategy
        if iterator is not None and strategy.num_replicas_in_sync > 1:
            for _, _, batches in iterator:
                data_batch = keras.tree.map_structure(
                    lambda v: strategy.experimental_local_results(v)[0], next(batches)
                )
                break
            iterator = None
        if has_strategy_of_its_own(self):
            self._build_optimizer_of_built()  # Keras would make slots for what BALI infers, too
        parent_hook(super(), "symbolic_build")(iterator=iterator, data_batch=data_batch)


def _in_mode(step: Step, mean: bool) -> Step:
    """A step in the mode its function was made for: replicas are threads, without the context."""

    def wrapped(data: Any) -> Any:
        replica = tf.distribute.get_replica_context()
        is_thread = replica is not None and replica.num_replicas_in_sync > 1
        with scopes.mean_mode.set(mean if is_thread else scopes.mean_mode.value):
            return step(data)

    return wrapped


def _with_axis(step: Step) -> Step:
    """A step whose scalar logs are vectors of one: workers average them along the first axis."""

    def wrapped(data: Any) -> Any:
        return keras.tree.map_structure(
            lambda v: tf.reshape(v, [1]) if v.shape.rank == 0 else v, step(data)
        )

    return wrapped
