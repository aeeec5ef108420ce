"""What a converted layer takes over from the stock layer it was."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfp_rank1.layers.attention import PROJECTIONS

_KERNELS = "kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel", "embeddings"


def transfer_kernels(old: Any, new: Any) -> None:
    """Copy kernels, and the bias to every member."""
    for name in _KERNELS:
        if getattr(old, name, None) is not None:
            getattr(new, name).assign(getattr(old, name))
    bias = getattr(old, "bias", None)
    if bias is not None:
        row = np.array(bias).reshape(1, -1)
        mine = new.bias if new.bias_factor is None else new.bias_factor.posterior_variables["loc"]
        row = row.reshape(*row.shape, *[1] * (len(mine.shape) - 2))  # components come last
        mine.assign(np.broadcast_to(row, mine.shape))


def cells_of(layer: Any) -> list[Any]:
    cell = layer.cell
    return list(cell.cells) if isinstance(cell, keras.layers.StackedRNNCells) else [cell]


@contextlib.contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """A model, and all within, as if never compiled: a clone of a compilation may fail.

    It is made anew from its configuration, which cannot find a loss that is not registered.
    """
    found = [v for v in model._flatten_layers() if getattr(v, "compiled", False)]
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
    for before, after in zip(old._flatten_layers(), new._flatten_layers(), strict=True):
        store: dict[str, Any] = {}
        before.save_own_variables(store)
        if store:
            after.load_own_variables(store)
        if hasattr(before, "save_assets"):  # vocabularies
            with tempfile.TemporaryDirectory() as folder:
                before.save_assets(folder)
                after.load_assets(folder)


def weights_of_members(old: Any, new: Any) -> None:
    for before, after in zip(old.weights, new.weights, strict=True):
        after.assign(np.broadcast_to(np.array(before), after.shape))


def cell_weights(old: Any, new: Any) -> None:
    for before, after in zip(cells_of(old), cells_of(new), strict=True):
        transfer_kernels(before, after)


def attention_weights(old: Any, new: Any) -> None:
    for name in PROJECTIONS:
        if getattr(old, name, None) is not None:
            transfer_kernels(getattr(old, name), getattr(new, name))
