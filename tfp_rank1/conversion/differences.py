"""Where a converted net begins to differ from the original: layer by layer, on the same inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1 import heads
from tfp_rank1.conversion.trial import as_array, differ, reset_states, tolerance_of
from tfp_rank1.keras_internals import accepts_in_call, layers_of, run_graph
from tfp_rank1.layers import TileMembers
from tfp_rank1.model.raw_outputs import End, is_graph

__all__ = ["Converted", "Difference", "applied", "first_difference"]


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted net, and what became of the parts of the original.

    Attributes:
        model: the converted net, with raw outputs `[B, K, D]` or `[B, D]`.
        likelihood: of the converted net; for several outputs one for each.
        pairs: layers of the original with their counterparts, by the ids of the layers.
        dropped: the ends whose function the likelihood applies.
        members: K, the number of members.
        way_out: what the user does about a layer that is converted wrong, `way_out(layer)`.
    """

    model: Any
    likelihood: Any
    pairs: dict[int, tuple[Any, Any]]
    dropped: Sequence[End]
    members: int
    way_out: Callable[[Any], str]

    def by_output(self) -> list[Converted]:
        """What concerns each of several outputs, in the order of `heads.names_of`."""
        return [
            dataclasses.replace(
                self, likelihood=own, dropped=[e for e in self.dropped if e.output == place]
            )
            for place, own in enumerate(heads.parts(self.likelihood, self.likelihood))
        ]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A layer whose counterpart gives other results; as a text, the refusal of the conversion.

    Attributes:
        old: the layer.
        new: its counterpart.
        expected: what the layer gives.
        found: what the counterpart gives.
        way_out: what to do about it, if the counterpart is no copy.
    """

    old: Any
    new: Any
    expected: np.ndarray
    found: np.ndarray
    way_out: str

    def __str__(self) -> str:
        before, after = type(self.old).__name__, type(self.new).__name__
        way_out = self.way_out
        if before == after:
            way_out = (
                "The layer is left as it is, and copied: give its class a get_config with all "
                "arguments of its constructor, and write what is no weight in save_own_variables."
            )
        return (
            "The converted net would compute another function than the original. The difference "
            f"begins in layer {self.old.name!r}, {before} -> {after}. {way_out} Received: "
            f"{self._received()}, on random inputs"
        )

    def _received(self) -> str:
        if self.expected.shape != self.found.shape:
            return f"results of shape {self.found.shape} in place of {self.expected.shape}"
        if self.expected.dtype.kind not in "fiu":  # such as texts
            return "other results"
        with np.errstate(invalid="ignore"):
            error = np.max(np.abs(np.float64(self.found) - self.expected))
        return f"a difference of {error:.3g} in results up to {np.max(np.abs(self.expected)):.3g}"


def first_difference(original: Any, converted: Converted, inputs: list[Any]) -> Difference | None:
    """The first layer whose counterpart gives other results on the layer's own inputs.

    Args:
        original: the stock model.
        converted: the converted net.
        inputs: a flat list of inputs of the original.

    Returns:
        The difference; None if no layer differs by itself.
    """
    found: list[Difference] = []
    ends = {id(end.operation): end for end in converted.dropped}

    def tiled(value: Any) -> Any:
        """A batch with all its rows once per member; whatever is no tensor stays."""
        is_batch = converted.members > 1 and tf.is_tensor(value)
        return TileMembers(converted.members)(value) if is_batch else value

    def compare(old: Any, new: Any, args: Any, kwargs: Any, results: Any) -> None:
        given, named = keras.tree.map_structure(tiled, (args, kwargs))
        others = keras.tree.flatten(_call(new, given, named))
        again = keras.tree.flatten(_call(old, args, kwargs))
        tolerance = tolerance_of(old)
        parts = zip(keras.tree.flatten(results), again, others, strict=False)
        for result, repeated, other in parts:
            expected = as_array(tiled(result))
            got = applied(ends[id(old)], other) if id(old) in ends else as_array(other)
            # What differs from call to call says nothing.
            is_random = differ(as_array(result), as_array(repeated), tolerance)
            if not is_random and differ(expected, got, tolerance):
                found.append(Difference(old, new, expected, got, converted.way_out(old)))

    def watched(operation: Any) -> Callable[..., Any]:
        if _is_entered(operation, converted):
            return lambda x, *_, **__: run_graph(operation, keras.tree.flatten(x), watched)

        def call(*args: Any, **kwargs: Any) -> Any:
            results = _call(operation, args, kwargs)
            old, new = converted.pairs.get(id(operation), (operation, operation))
            if new is not old and not found:
                compare(old, new, args, kwargs, results)
            return results

        return call

    try:
        run_graph(original, inputs, watched)
    except Exception:  # such as of a layer that cannot be called by itself: it is not named then
        return None
    return found[0] if found else None


def applied(end: End, values: Any) -> np.ndarray:
    """The function of an end that was dropped, applied to the results of its counterpart."""
    function = getattr(end.operation, "activation", None) or end.operation
    return as_array(function(tf.convert_to_tensor(values)))


def _is_entered(operation: Any, converted: Converted) -> bool:
    """Whether an operation is a nested model whose layers were converted one by one."""
    if not isinstance(operation, keras.Model) or not is_graph(operation):
        return False
    return any(id(v) in converted.pairs for v in layers_of(operation, include_self=False))


def _call(operation: Any, args: Any, kwargs: Any) -> Any:
    """The results of an operation, as when a model predicts."""
    if isinstance(operation, keras.layers.Layer):
        reset_states(operation)
        if accepts_in_call(operation, "training"):
            kwargs = {**kwargs, "training": False}
    return operation(*args, **kwargs)
