"""Trials: what a stock net does with some of its layers, seen in runs on random inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1.conversion import trial_inputs, trial_of
from tfp_rank1.keras_internals import input_structure

__all__ = ["met_by_example", "out_of_reach", "read_elsewhere", "without_gradient"]

# Numbers of rows of two runs: a layer whose first axis follows them meets examples.
_ROWS = 2, 3

Watch = Callable[[Any, tuple[Any, ...], dict[str, Any], Callable[..., Any]], Any]


def met_by_example(model: Any, layers: Sequence[Any]) -> set[int]:
    """Ids of the layers whose inputs have one entry per example in their first axis.

    They are called at least once, and in every call of two runs, of 2 and of 3 examples.
    """
    found: list[set[int]] = []
    for rows in _ROWS:
        seen: dict[int, set[Any]] = {}

        def note(layer: Any, args: Any, kwargs: Any, call: Any, seen: Any = seen) -> Any:
            given = [v for v in keras.tree.flatten((args, _inputs_of(kwargs))) if tf.is_tensor(v)]
            sizes = {v.shape[0] if v.shape.rank else None for v in given}
            seen[id(layer)] = seen.get(id(layer), set()) | sizes
            return call(*args, **kwargs)

        def run(inputs: list[Any], note: Watch = note) -> None:
            _run(model, inputs, layers, note)

        _first(model, rows, run)
        found.append({key for key, sizes in seen.items() if sizes == {rows}})
    return set.intersection(*found)


def without_gradient(model: Any, layers: Sequence[Any]) -> tuple[set[int], list[int]]:
    """Ids of layers whose outputs a training step cannot follow, and all ids in order of calls.

    They are not called in training, are called within a loop or a branch of the graph, or the
    model's outputs do not depend on theirs, or through an operation that stops gradients.
    """
    calls: list[tuple[Any, Any]] = []

    def trace(inputs: list[Any]) -> None:
        calls.clear()

        def run() -> None:
            outer = tf.compat.v1.get_default_graph()

            def note(layer: Any, args: Any, kwargs: Any, call: Any) -> Any:
                outputs = call(*args, **kwargs)
                flat = [v for v in keras.tree.flatten(outputs) if _is_float(v)]
                is_here = tf.compat.v1.get_default_graph() is outer and bool(flat)
                if is_here:
                    tape.watch(flat[0])
                calls.append((layer, flat[0] if is_here else None))
                return outputs

            with tf.GradientTape() as tape:
                found = _run(model, inputs, layers, note, training=True)
                sums = [
                    tf.reduce_sum(tf.cast(v, tf.float32))
                    for v in keras.tree.flatten(found)
                    if _is_float(v)
                ]
                total = tf.add_n(sums)
            watched = [v for _, v in calls if v is not None]
            gradients = iter(tape.gradient(total, watched))
            for place, (layer, output) in enumerate(calls):
                reached = output is not None and next(gradients) is not None
                calls[place] = layer, reached

        tf.function(run, autograph=False).get_concrete_function()

    if not _first(model, _ROWS[0], trace):
        return set(), [id(v) for v in layers]
    order = list(dict.fromkeys(id(layer) for layer, _ in calls))
    reached = {id(layer) for layer, _ in calls} - {id(layer) for layer, ok in calls if not ok}
    return {id(v) for v in layers} - reached, order


def read_elsewhere(model: Any, layers: Sequence[Any]) -> set[int]:
    """Ids of the layers whose weights are read by other code than their own call.

    Their weights are NaN but during their calls: where outputs become NaN, somebody else read them.
    """
    if not _changes(model, layers):
        return set()
    return {id(layer) for layer in layers if _changes(model, [layer])}


def _changes(model: Any, layers: Sequence[Any]) -> bool:
    """Whether outputs become NaN if the weights of layers are, but during their calls."""
    weights = {
        id(layer): [(v, tf.identity(v.value)) for v in layer.weights if _is_float(v)]
        for layer in layers
    }

    def spoil(layer: Any) -> None:
        for variable, value in weights[id(layer)]:
            variable.assign(tf.fill(tf.shape(value), tf.constant(np.nan, value.dtype)))

    def restore(layer: Any) -> None:
        for variable, value in weights[id(layer)]:
            variable.assign(value)

    def note(layer: Any, args: Any, kwargs: Any, call: Any) -> Any:
        restore(layer)
        outputs = call(*args, **kwargs)
        spoil(layer)
        return outputs

    changed = False

    def compare(inputs: list[Any]) -> None:
        nonlocal changed
        expected = _nans(_run(model, inputs, (), note))
        try:
            for layer in layers:
                spoil(layer)
            found = _nans(_run(model, inputs, layers, note))
        finally:
            for layer in layers:
                restore(layer)
        changed = any(np.any(b & ~a) for a, b in zip(expected, found, strict=True))

    _first(model, _ROWS[0], compare)
    return changed


def out_of_reach(model: Any, layers: Sequence[Any]) -> tuple[set[int], list[int]]:
    """Ids of the layers that cannot become BALI layers, and all ids in order of their calls."""
    lost, order = without_gradient(model, layers)
    return lost | read_elsewhere(model, [v for v in layers if id(v) not in lost]), order


def _first(model: Any, rows: int, function: Callable[[list[Any]], Any]) -> bool:
    """Call a function with the first random inputs that the model takes; whether there were any."""
    for inputs in trial_inputs(model, rows):
        with contextlib.suppress(Exception), trial_of(model):
            function(inputs)
            return True
    return False


def _run(
    model: Any, inputs: list[Any], layers: Sequence[Any], watch: Watch, training: bool = False
) -> Any:
    """The outputs of a model some of whose layers are called through `watch`."""
    with contextlib.ExitStack() as stack:
        for layer in {id(v): v for v in layers}.values():
            stack.enter_context(_watched(layer, watch))
        given = tf.nest.pack_sequence_as(input_structure(model), inputs)
        return model(given, training=training)


@contextlib.contextmanager
def _watched(layer: Any, watch: Watch) -> Iterator[None]:
    """A context in which calls of a layer go through `watch(layer, args, kwargs, call)`."""
    call = layer.call
    object.__setattr__(layer, "call", lambda *args, **kw: watch(layer, args, kw, call))
    try:
        yield
    finally:
        object.__delattr__(layer, "call")


def _inputs_of(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call that are no masks, whose first axis may be 1."""
    return {name: value for name, value in kwargs.items() if not name.endswith("mask")}


def _is_float(value: Any) -> bool:
    return hasattr(value, "dtype") and keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(value.dtype)
    )


def _nans(outputs: Any) -> list[np.ndarray]:
    """Where outputs are NaN."""
    flat = [v for v in keras.tree.flatten(outputs) if _is_float(v)]
    return [tf.math.is_nan(v).numpy() for v in flat]
