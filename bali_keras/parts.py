"""Parts: the layers of a net, and the layers that these are made of."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from bali_keras.counterparts import has_counterpart
from bali_keras.layers.composite import layers_within
from tfp_rank1.conversion import is_graph, trial_inputs, trial_of
from tfp_rank1.keras_internals import input_structure

__all__ = ["Parts"]

# Numbers of rows of two trial runs: a part whose first axis follows them meets examples.
_ROWS = 2, 3


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a layer is in a net.

    Attributes:
        path: names of the layers of the net, and of attributes within them.
        layer: the layer.
        owner: the layer that it is an attribute of, at any depth; None for a layer of a graph.
        attribute: its path within the owner.
        is_part: whether it is, or is within, an attribute of a layer.
    """

    path: str
    layer: Any
    owner: Any = None
    attribute: str = ""
    is_part: bool = False


class Parts:
    """Which layers of a net, at any depth, can become BALI layers.

    A layer within another, such as `encoder.mlp.0`, can if one attribute alone holds it and if
    every row that it meets belongs to one example, which a trial run shows: rows of positions are
    the same for all examples.

    Args:
        model: a model with a graph.

    Attributes:
        candidates: names or paths, and the layers that can become BALI layers.
    """

    def __init__(self, model: keras.Model) -> None:
        self._places = list(_places(model, "", False))
        parts = [v.layer for v in self._places if v.is_part and has_counterpart(v.layer)]
        uses = collections.Counter(map(id, parts))
        by_example = _meet_examples(model, parts) if parts else set()
        self.candidates = [
            (v.path, v.layer)
            for v in self._places
            if has_counterpart(v.layer)
            and (not v.is_part or (uses[id(v.layer)] == 1 and id(v.layer) in by_example))
        ]

    def within(self, layer: Any, chosen: set[int]) -> dict[str, Any]:
        """The parts of a layer that are chosen, or models with a layer that is, by attribute."""
        return {
            v.attribute: v.layer
            for v in self._places
            if v.owner is layer
            and (id(v.layer) in chosen or (is_graph(v.layer) and _holds(v.layer, chosen)))
        }


def _holds(model: Any, chosen: set[int]) -> bool:
    """Whether a model has a chosen layer, or a layer that is made of some."""
    return any(id(v.layer) in chosen for v in _places(model, "", True))


def _places(model: Any, prefix: str, is_part: bool) -> Iterator[_Place]:
    """The layers of a model, of the models in it, and of its layers."""
    for layer in model.layers:
        if is_graph(layer):
            yield from _places(layer, prefix, is_part)
            continue
        path = f"{prefix}{layer.name}"
        yield _Place(path, layer, is_part=is_part)
        for attribute, part in () if _is_closed(layer) else layers_within(layer, _is_closed):
            yield _Place(f"{path}.{attribute}", part, layer, attribute, is_part=True)
            if is_graph(part):
                yield from _places(part, f"{path}.{attribute}.", is_part=True)


def _is_closed(layer: Any) -> bool:
    """Whether the layers within a layer are none of its parts.

    They have a counterpart together, are a model, or are more than called: wrappers of Keras read
    the weights of what they wrap, or loop over it.
    """
    if isinstance(layer, keras.layers.Bidirectional):
        return False
    closed = keras.Model, keras.layers.Wrapper, keras.layers.RNN
    return isinstance(layer, closed) or has_counterpart(layer)


# -- the trial run --------------------------------------------------------------------------------


def _meet_examples(model: Any, layers: list[Any]) -> set[int]:
    """Ids of the layers whose inputs have one entry per example in their first axis.

    A layer is called at least once, and in every call of two runs, of 2 and of 3 examples.
    """
    found: list[set[int]] = []
    for rows in _ROWS:
        calls = _calls(model, layers, rows)
        found.append({key for key, sizes in calls.items() if sizes == {rows}})
    return set.intersection(*found)


def _calls(model: Any, layers: list[Any], rows: int) -> dict[int, set[Any]]:
    """Sizes of the first axes that every layer met in a run on random inputs; empty without one."""
    for inputs in trial_inputs(model, rows):
        seen: dict[int, set[Any]] = {id(layer): set() for layer in layers}
        with contextlib.ExitStack() as stack:
            stack.enter_context(trial_of(model))
            for layer in {id(v): v for v in layers}.values():
                stack.enter_context(_watched(layer, seen[id(layer)].update))
            with contextlib.suppress(Exception):  # of inputs that the model does not take
                model(tf.nest.pack_sequence_as(input_structure(model), inputs))
                return seen
    return {}


@contextlib.contextmanager
def _watched(layer: Any, note: Callable[[list[Any]], None]) -> Iterator[None]:
    """A context in which a layer notes the first axis of the tensors that it is called with."""
    call = layer.call

    def watching(*args: Any, **kwargs: Any) -> Any:
        given = [v for v in keras.tree.flatten((args, _inputs_of(kwargs))) if tf.is_tensor(v)]
        note([v.shape[0] if v.shape.rank else None for v in given])
        return call(*args, **kwargs)

    object.__setattr__(layer, "call", watching)
    try:
        yield
    finally:
        object.__delattr__(layer, "call")


def _inputs_of(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call that are no masks, whose first axis may be 1."""
    return {name: value for name, value in kwargs.items() if not name.endswith("mask")}
