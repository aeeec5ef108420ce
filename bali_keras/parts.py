"""Parts: the layers of a net, and the layers that these are made of."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras

from bali_keras.counterparts import has_counterpart
from bali_keras.layers.composite import layers_within
from bali_keras.trials import met_by_example, out_of_reach
from tfp_rank1.conversion import is_graph
from tfp_rank1.keras_internals import calls_of

__all__ = ["Parts"]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a layer is in a net.

    Attributes:
        names: the path, of names of layers and of attributes within them; then those of layers
            and models around it.
        layer: the layer.
        owner: the layer that it is an attribute of, at any depth; None for a layer of a graph.
        attribute: its path within the owner.
        is_part: whether it is, or is within, an attribute of a layer.
    """

    names: tuple[str, ...]
    layer: Any
    owner: Any = None
    attribute: str = ""
    is_part: bool = False


class Parts:
    """Which layers of a net, at any depth, can become BALI layers.

    A layer can if a training step can follow its outputs, and if nothing but its own call reads its
    weights. One within another layer, such as `encoder.mlp.0`, must also be held by one attribute
    alone, and every row that it meets must belong to one example: rows of positions are the same
    for all examples. Trial runs show that.

    Args:
        model: a model with a graph.

    Attributes:
        candidates: the layers that can become BALI layers, by names that stand for them: their
            paths, those of layers around them, and of models.
    """

    def __init__(self, model: keras.Model) -> None:
        self._places = list(_places(model, "", ()))
        possible = [v for v in self._places if has_counterpart(v.layer) and not _has_state(v.layer)]
        layers = list({id(v.layer): v.layer for v in possible}.values())
        parts = [v.layer for v in possible if v.is_part]
        uses = collections.Counter(map(id, parts))
        by_example = met_by_example(model, parts) if parts else set()
        lost, order = out_of_reach(model, layers)
        found = [
            v
            for v in possible
            if id(v.layer) not in lost
            and (not v.is_part or (uses[id(v.layer)] == 1 and id(v.layer) in by_example))
        ]
        ranks = {key: rank for rank, key in enumerate(order)}
        found.sort(key=lambda v: ranks.get(id(v.layer), len(ranks)))
        self.candidates = [(v.names, v.layer) for v in found]

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
    return any(id(v.layer) in chosen for v in _places(model, "", ()))


def _places(model: Any, prefix: str, around: tuple[str, ...]) -> Iterator[_Place]:
    """The layers of a model, of the models in it, and of its layers.

    Args:
        model: the model.
        prefix: of the paths of its layers.
        around: names that stand for all of them.
    """
    for layer in model.layers:
        path = f"{prefix}{layer.name}"
        if is_graph(layer):
            yield from _places(layer, prefix, (*around, path))
            continue
        is_part = bool(prefix)
        yield _Place((path, *around), layer, is_part=is_part)
        for attribute, part in () if _is_closed(layer) else layers_within(layer, _is_closed):
            own = f"{path}.{attribute}"
            # "encoder.mlp.0" is also "encoder.mlp" and "encoder".
            steps = own.split(".")
            names = *(".".join(steps[:end]) for end in range(len(steps), 0, -1)), *around
            yield _Place(names, part, layer, attribute, is_part=True)
            if is_graph(part):
                yield from _places(part, f"{own}.", names)


def _has_state(layer: Any) -> bool:
    """Whether a recurrent layer is called with a state to begin with."""
    if not isinstance(layer, keras.layers.RNN):
        return False
    calls = [call.arguments for call in calls_of(layer)]
    return any(len(v.args) > 1 or v.kwargs.get("initial_state") is not None for v in calls)


def _is_closed(layer: Any) -> bool:
    """Whether the layers within a layer are none of its parts.

    They have a counterpart together, are a model, or are more than called: wrappers of Keras read
    the weights of what they wrap, or loop over it.
    """
    if isinstance(layer, keras.layers.Bidirectional):
        return False
    closed = keras.Model, keras.layers.Wrapper, keras.layers.RNN
    return isinstance(layer, closed) or has_counterpart(layer)
