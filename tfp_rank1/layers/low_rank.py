"""LoRA weights of a layer in its file: `kernel + scale a b` with `scale = lora_alpha / lora_rank`.

They are stored apart from the others, so that a layer with LoRA reads the file of one without, the
other way round, and one of another rank.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfp_rank1.keras_internals import own_variables, stored_weight

_NAMES = ("lora_a", "lora_b", "lora_scale")


def save_weights(layer: keras.layers.Layer, store: Any) -> None:
    """Put all of a layer's own weights into a Keras weight store."""
    low_rank = _low_rank(layer)
    apart = {id(v) for v in low_rank}
    rest = [v for v in own_variables(layer) if id(v) not in apart]
    for i, variable in enumerate(rest):
        store[str(i)] = variable
    if low_rank:
        for name, value in zip(_NAMES, [*low_rank, np.float32(_scale(layer))], strict=True):
            store[name] = value


def load_weights(layer: keras.layers.Layer, arrays: dict[str, Any]) -> None:
    """Load what `save_weights` wrote.

    Without LoRA weights of the layer's rank in the file, those of the layer add nothing at first;
    without any in the layer, or others, those of the file are added to its kernel.

    Raises:
        ValueError: if the file has another number of weights.
    """
    a, b, scale = (arrays.pop(name, None) for name in _NAMES)
    own, low_rank = own_variables(layer), _low_rank(layer)
    fits = a is not None and bool(low_rank) and np.shape(a) == tuple(low_rank[0].shape)
    if a is not None and not fits:
        kernel = stored_weight(layer, _name(layer))  # without the low-rank part
        place = str(next(i for i, v in enumerate(own) if v is kernel))
        arrays[place] = np.asarray(arrays[place]) + np.asarray(scale) * np.matmul(a, b)
    if low_rank and len(arrays) == len(own) - 2:
        first, second = low_rank
        if fits:
            values = {id(first): a, id(second): np.asarray(b) * (scale / _scale(layer))}
        else:
            values = {id(first): np.array(first), id(second): np.zeros(second.shape)}
        rest = iter(sorted(arrays.items(), key=lambda item: int(item[0])))
        filled = [values[id(v)] if id(v) in values else next(rest)[1] for v in own]
        arrays = {str(i): value for i, value in enumerate(filled)}
    keras.layers.Layer.load_own_variables(layer, arrays)


def _low_rank(layer: Any) -> list[keras.Variable]:
    """`a` and `b`, or nothing."""
    if not getattr(layer, "lora_enabled", False):
        return []
    return [getattr(layer, f"lora_{_name(layer)}_{part}") for part in ("a", "b")]


def _name(layer: Any) -> str:
    """As Keras calls what LoRA changes."""
    return "embeddings" if hasattr(layer, "embeddings") else "kernel"


def _scale(layer: Any) -> float:
    return float(layer.lora_alpha / layer.lora_rank)
