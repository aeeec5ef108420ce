"""How a converted layer takes over the weights of its stock layer."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfp_rank1.keras_internals import ATTENTION_PROJECTIONS, layers_of

__all__ = [
    "attention_weights",
    "cell_weights",
    "cells_of",
    "nothing",
    "same_weights",
    "transfer_kernels",
    "uncompiled",
    "weights_of_members",
]

_KERNELS = "kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel", "embeddings"


def transfer_kernels(old: Any, new: Any) -> None:
    """Copy kernels by their names, and the bias to every member."""
    for name in _KERNELS:
        if getattr(old, name, None) is not None:
            getattr(new, name).assign(getattr(old, name))
    bias = getattr(old, "bias", None)
    if bias is not None:
        row = np.array(bias).reshape(1, -1)  # flat, as the bias of an einsum may have more axes
        if new.bias_factor is None:
            new.bias.assign(np.broadcast_to(row, new.bias.shape))
        else:
            new.bias_factor.assign_mean(row)


def cells_of(layer: Any) -> list[Any]:
    """The cells of a recurrent layer, stacked or single."""
    cell = layer.cell
    return list(cell.cells) if isinstance(cell, keras.layers.StackedRNNCells) else [cell]


@contextlib.contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Inside the context a model and all models in it are as if they were never compiled.

    `clone_model` compiles the clone of a compiled model from a config, which fails for a loss that
    is not registered with Keras.
    """
    found = [v for v in layers_of(model) if getattr(v, "compiled", False)]
    for part in found:
        part.compiled = False
    try:
        yield
    finally:
        for part in found:
            part.compiled = True


def nothing(old: Any, new: Any) -> None:
    """Copy nothing: there are no weights, or the layers within copy them."""


def same_weights(old: Any, new: Any) -> None:
    """Copy the weights of a layer and of all layers in it."""
    for before, after in zip(layers_of(old), layers_of(new), strict=True):
        same_own_weights(before, after)


def same_own_weights(old: Any, new: Any) -> None:
    """Copy the weights of a layer alone, and what else it saves."""
    # As it saves and loads itself: loading computes constants that depend on weights, and saving
    # merges LoRA weights into their kernel.
    store: dict[str, Any] = {}
    old.save_own_variables(store)
    if store:
        new.load_own_variables(store)
    if hasattr(old, "save_assets"):  # such as vocabularies, which are no weights
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def weights_of_members(old: Any, new: Any) -> None:
    """Copy every weight to all members."""
    for before, after in zip(old.weights, new.weights, strict=True):
        after.assign(np.broadcast_to(np.array(before), after.shape))


def cell_weights(old: Any, new: Any) -> None:
    """Copy the kernels of recurrent layers, cell by cell."""
    for before, after in zip(cells_of(old), cells_of(new), strict=True):
        transfer_kernels(before, after)


def attention_weights(old: Any, new: Any) -> None:
    """Copy the kernels of attention, projection by projection."""
    for name in ATTENTION_PROJECTIONS:
        if getattr(old, name, None) is not None:
            transfer_kernels(getattr(old, name), getattr(new, name))
