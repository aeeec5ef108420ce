"""What a converted layer takes over from the stock layer it was."""

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
    """Copy kernels, and the bias to every member."""
    for name in _KERNELS:
        if getattr(old, name, None) is not None:
            getattr(new, name).assign(getattr(old, name))
    bias = getattr(old, "bias", None)
    if bias is not None:
        row = np.array(bias).reshape(1, -1)
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
    """A model, and all within, as if never compiled: a clone of a compilation may fail.

    It is made anew from its configuration, which cannot find a loss that is not registered.
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
    """Nothing to copy, or copied by the layers within."""


def same_weights(old: Any, new: Any) -> None:
    """Copy the weights of a layer and of all within, each as it saves and loads them itself.

    So constants made of weights are made anew, and LoRA weights are merged into their kernel.
    """
    for before, after in zip(layers_of(old), layers_of(new), strict=True):
        store: dict[str, Any] = {}
        before.save_own_variables(store)
        if store:
            after.load_own_variables(store)
        if hasattr(before, "save_assets"):  # vocabularies
            with tempfile.TemporaryDirectory() as folder:
                before.save_assets(folder)
                after.load_assets(folder)


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
