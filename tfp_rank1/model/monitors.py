"""Which way is better, for callbacks that watch what `fit` logs by itself."""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["tell_directions"]

# Logs that come from no metric of `compile`, where Keras looks for the direction.
_LESS_IS_BETTER = "nll", "kl"


def tell_directions(callbacks: Any) -> None:
    """Set `mode` of callbacks such as `EarlyStopping("val_nll")` that were given none.

    Keras refuses to guess for a log that belongs to no compiled metric.

    Args:
        callbacks: the argument of `fit`: a callback, a list of them, a `CallbackList`, or None.
    """
    for callback in keras.tree.flatten(getattr(callbacks, "callbacks", callbacks)):
        name = str(getattr(callback, "monitor", "")).removeprefix("val_")
        if name in _LESS_IS_BETTER and getattr(callback, "mode", None) not in ("min", "max"):
            callback.mode = "min"
