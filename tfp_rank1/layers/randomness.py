"""Which layers draw when a model answers."""

from __future__ import annotations

from typing import Any

from tfp_rank1.keras_internals import seed_generators_of

__all__ = ["is_random"]


def is_random(layers: list[Any]) -> bool:
    """Whether some layer draws in inference: all that own a random generator, unless they say no.

    Layers of Keras draw in training only. A layer of this library says so by `is_random`.
    """

    def draws(layer: Any) -> bool:
        if type(layer).__module__.startswith("keras.") or not seed_generators_of(layer):
            return False
        return bool(getattr(layer, "is_random", True))

    return any(draws(layer) for layer in layers)
