"""How a layer with LoRA is saved: `kernel + scale a b` with `scale = lora_alpha / lora_rank`.

The LoRA weights a and b have names of their own in the file; all other variables have numbers. So a
layer with LoRA reads the file of a layer without, a layer without reads the file of a layer with,
and the ranks of layer and file may differ.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfp_rank1.keras_internals import own_variables, stored_weight

__all__ = [
    "load_weights",
    "save_weights",
]

# The scale is stored too: the layer that reads the file may have another one.
_NAMES = ("lora_a", "lora_b", "lora_scale")


def save_weights(layer: keras.layers.Layer, store: Any) -> None:
    """Put all of a layer's own variables into a Keras weight store."""
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

    Where layer and file have LoRA of the same rank, the layer gets the a and b of the file. Else
    `scale a b` of the file is added to the kernel, and the `a b` of the layer starts at 0.

    Args:
        layer: the layer, built.
        arrays: the store's arrays by name.

    Raises:
        ValueError: if the numbers of variables in layer and file differ.
    """
    a, b, scale = (arrays.pop(name, None) for name in _NAMES)
    own, low_rank = own_variables(layer), _low_rank(layer)
    fits = a is not None and bool(low_rank) and np.shape(a) == tuple(low_rank[0].shape)
    if a is not None and not fits:
        # The stored kernel: `layer.kernel` already has the layer's own `scale a b` in it.
        kernel = stored_weight(layer, _name(layer))
        place = str(next(i for i, v in enumerate(own) if v is kernel))
        arrays[place] = np.asarray(arrays[place]) + np.asarray(scale) * np.matmul(a, b)
    if low_rank and len(arrays) == len(own) - 2:
        first, second = low_rank
        if fits:
            # b takes the ratio of the scales, so that `scale a b` is the same in the layer.
            values = {id(first): a, id(second): np.asarray(b) * (scale / _scale(layer))}
        else:
            # a stays at its random start: with a and b at 0 neither would get a gradient.
            values = {id(first): np.array(first), id(second): np.zeros(second.shape)}
        rest = iter(sorted(arrays.items(), key=lambda item: int(item[0])))
        filled = [values[id(v)] if id(v) in values else next(rest)[1] for v in own]
        arrays = {str(i): value for i, value in enumerate(filled)}
    keras.layers.Layer.load_own_variables(layer, arrays)


def _low_rank(layer: Any) -> list[keras.Variable]:
    """The variables a and b, or nothing without LoRA."""
    if not getattr(layer, "lora_enabled", False):
        return []
    return [getattr(layer, f"lora_{_name(layer)}_{part}") for part in ("a", "b")]


def _name(layer: Any) -> str:
    """Keras's name for the variable that LoRA changes."""
    return "embeddings" if hasattr(layer, "embeddings") else "kernel"


def _scale(layer: Any) -> float:
    return float(layer.lora_alpha / layer.lora_rank)
