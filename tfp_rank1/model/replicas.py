"""The functions that `fit`, `evaluate` and `predict` run, for any number of replicas."""

from __future__ import annotations

import contextlib
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
    tracked_by_tensorflow,
)

__all__ = ["Replicas"]

Step = Callable[[Any], Any]


@hook_into_trainer
@tracked_by_tensorflow
class Replicas(keras.Model):
    """A Keras model that trains on any number of replicas and workers.

    This is a base class and no collaborator, because Keras's trainer calls methods of the model.

    Keras alone fails in four cases:

    - several replicas and `steps_per_execution` above 1: Keras's loop over steps holds a
      conditional, in which replicas cannot meet. Here the steps of one execution are unrolled;
    - replicas with batches of unequal size: Keras averages these batches to learn their shape. Here
      the batch of one replica gives the shape;
    - several workers: Keras averages logs along an axis that scalars lack. Here logs get an axis;
    - a step that logs fewer names than there are metrics: Keras averages the replicas' values. Here
      the metrics answer, which add up what all replicas have seen.
    """

    steps_per_execution: int
    train_function: Callable[[Any], Any] | None
    _train_in_mean = _test_in_mean = _predict_in_mean = False

    def make_train_function(self, force: bool = False) -> Any:
        """Make the train function if needed; it follows `posterior_mean()`.

        Args:
            force: True makes the function anew. Defaults to False.
        """
        if self._mode_changes("_train_in_mean") or force or self.train_function is None:
            self.train_function = self._after_slots(self.make_step_function(self.train_step))
        return self.train_function

    def make_test_function(self, force: bool = False) -> Any:
        """Make the test function if needed; it follows `posterior_mean()`."""
        return super().make_test_function(self._mode_changes("_test_in_mean") or force)

    def make_predict_function(self, force: bool = False) -> Any:
        """Make the predict function if needed; it follows `posterior_mean()`."""
        return super().make_predict_function(self._mode_changes("_predict_in_mean") or force)

    def predict_mode(self) -> contextlib.AbstractContextManager[Any]:
        """The mode that the predict function was made for, also in the threads of replicas."""
        return _mode(self._predict_in_mean)

    @property
    def optimizer_variables(self) -> list[keras.Variable]:
        """The variables that the optimizer trains."""
        return self.trainable_variables

    def build_optimizer(self) -> None:
        """Make the optimizer's slots, unless it has slots already or nothing to train yet."""
        if self.optimizer is None or self.optimizer.built or not self.optimizer_variables:
            return
        self.optimizer.build(self.optimizer_variables)

    def _after_slots(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A train function that makes the optimizer's slots before it runs."""

        def with_slots(iterator: Any) -> Any:
            # Outside the trace: TensorFlow traces a function twice if it makes variables. And not
            # before the first batch: until then a callback may choose what is trained.
            self._build_optimizer_of_built()
            return function(iterator)

        return with_slots

    def _build_optimizer_of_built(self) -> None:
        if self.optimizer is None or self.optimizer.built:
            return
        # A layer that is not built has weights to come: then the first step makes the slots.
        if all(layer.built for layer in layers_of(self)):
            with self.distribute_strategy.scope():
                self.build_optimizer()

    def _mode_changes(self, attribute: str) -> bool:
        """Whether the mode differs from the one that a function was made for; note the new mode.

        Args:
            attribute: name of the attribute that holds the function's mode.
        """
        # A function reads the mode while it is traced. Each has a mode of its own, because a
        # callback may predict in the other mode while `fit` is running.
        mode = scopes.mean_mode.value
        changes = getattr(self, attribute) != mode
        setattr(self, attribute, mode)
        return changes

    def forget_functions(self) -> None:
        """Drop the compiled functions, because N, annealing or mode, their constants, changed."""
        self.train_function = self.test_function = self.predict_function = None

    def make_step_function(self, step_function: Step) -> Callable[[Iterator[Any]], Any]:
        """The function that Keras's trainer calls for the steps of one execution.

        Args:
            step_function: one step, from a batch to its logs.

        Returns:
            A function from an iterator of batches to the logs of the last step.
        """
        strategy = self.distribute_strategy
        step_function = _in_mode(step_function, scopes.mean_mode.value)
        if is_in_multi_worker_mode(strategy):
            step_function = _with_axis(step_function)
        count: int = self.steps_per_execution
        if strategy.num_replicas_in_sync == 1 or count == 1:
            return parent_hook(super(), "make_step_function")(step_function)
        self.steps_per_execution = 1  # Keras's function for one step has no loop
        try:
            one_step = parent_hook(super(), "make_step_function")(step_function)
        finally:
            self.steps_per_execution = count

        def several(batches: tuple[Any, ...]) -> Any:
            # Tracing unrolls this loop. A plain iterator leads Keras to its bare step.
            for batch in batches:
                outputs = one_step(iter([batch]))
            return outputs

        if not self.run_eagerly:
            several = tf.function(several, reduce_retracing=True, autograph=False)

        def function(iterator: Iterator[Any]) -> Any:
            batches = tuple(itertools.islice(iterator, count))
            if not batches:
                raise StopIteration  # as Keras's own function does at the end of an epoch
            return several(batches)

        return function

    def result_or_logs(self, logs: Any) -> Any:
        """What `fit` and `evaluate` report: the metrics' results for the names in `logs`."""
        found = self.get_metrics_result()
        if not isinstance(logs, dict) or not logs.keys() <= found.keys():
            return logs
        return {name: found[name] for name in logs}

    def symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Build what is not built yet, from one replica's part of the first batch.

        Args:
            iterator: Keras's iterator over an epoch. Defaults to None.
            data_batch: a batch, in place of the iterator. Defaults to None.
        """
        strategy = self.distribute_strategy
        if iterator is not None and strategy.num_replicas_in_sync > 1:
            for _, _, batches in iterator:
                data_batch = keras.tree.map_structure(
                    lambda v: strategy.experimental_local_results(v)[0], next(batches)
                )
                break
            iterator = None
        if has_strategy_of_its_own(self):
            # Keras would make slots for all trainable variables, also for those that are not in
            # `optimizer_variables`.
            self._build_optimizer_of_built()
        parent_hook(super(), "symbolic_build")(iterator=iterator, data_batch=data_batch)


def _in_mode(step: Step, mean: bool) -> Step:
    """A step that runs in the mode its function was made for."""

    def wrapped(data: Any) -> Any:
        with _mode(mean):
            return step(data)

    return wrapped


def _mode(mean: bool) -> contextlib.AbstractContextManager[Any]:
    # A replica is a thread of its own, in which the caller's `posterior_mean()` does not hold.
    replica = tf.distribute.get_replica_context()
    is_thread = replica is not None and replica.num_replicas_in_sync > 1
    return scopes.mean_mode.set(mean if is_thread else scopes.mean_mode.value)


def _with_axis(step: Step) -> Step:
    """A step whose scalar logs become vectors `[1]`: workers average logs along the first axis."""

    def wrapped(data: Any) -> Any:
        return keras.tree.map_structure(
            lambda v: tf.reshape(v, [1]) if v.shape.rank == 0 else v, step(data)
        )

    return wrapped
