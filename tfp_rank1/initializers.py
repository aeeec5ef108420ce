"""Initializers of posteriors: signs for means, and a given scale."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1.checks import positive, whole
from tfp_rank1.serialization import registered

__all__ = [
    "ByFeature",
    "InverseSoftplus",
    "RandomSign",
    "WideSigns",
]


@registered("tfp_rank1")
class RandomSign(keras.initializers.Initializer):
    """+1 with the given probability, else -1: the means at which BatchEnsemble starts.

    With random signs the members differ strongly at the start. Use a prior that allows both signs:
    under N(1, 0.1^2) every -1 costs 200 nats, under `priors.NormalWithTiedMean` none.

    Args:
        probability: probability of +1, in [0, 1]. Defaults to 0.5.
        seed: an integer for a reproducible draw. Defaults to None: a seed of its own, as for the
            initializers of Keras, so that the same object repeats its draw and a clone does not.

    Raises:
        ValueError: for a `probability` outside [0, 1].

    Example:
    ```python
    r1.posteriors.Normal(mean_initializer=r1.initializers.RandomSign(0.75))
    ```

    Source: Wen, Tran & Ba (2020), "BatchEnsemble: An Alternative Approach to Efficient Ensemble and
    Lifelong Learning".
    """

    def __init__(self, probability: float = 0.5, seed: int | None = None) -> None:
        if not 0.0 <= float(probability) <= 1.0:
            raise ValueError(
                f"Argument `probability` must lie in [0, 1]. Received: probability={probability}"
            )
        self.probability = float(probability)
        # Drawn here, as Keras does: the global generator is a variable, which no graph may create.
        self._given_seed = seed
        self.seed = random.randint(1, 10**9) if seed is None else seed

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
        """Signs of the given shape; their dtype defaults to Keras's `floatx`."""
        uniform = keras.random.uniform(shape, dtype="float32", seed=self.seed)
        signs = keras.ops.where(uniform < self.probability, 1.0, -1.0)
        return keras.ops.cast(signs, dtype or keras.config.floatx())

    def get_config(self) -> dict[str, Any]:
        return {"probability": self.probability, "seed": self._given_seed}


@registered("tfp_rank1")
class WideSigns(RandomSign):
    """Random signs for factors of many entries, N(1, 0.1^2) for those of few.

    Members must differ, and signs make them differ most. But where a layer has few inputs or units,
    each of them matters, and one kernel cannot serve members that see it with other signs.

    Args:
        probability: probability of +1, in [0, 1]. Defaults to 0.75.
        width: number of entries from which on a factor gets signs, at least 1. Defaults to 64.
        seed: as for `RandomSign`.

    Raises:
        ValueError: for a `probability` outside [0, 1], or a `width` below 1.
    """

    def __init__(self, probability: float = 0.75, width: int = 64, seed: int | None = None) -> None:
        super().__init__(probability, seed)
        self.width = whole("width", width)

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
        """Means of the given shape, `[members, entries]`."""
        if shape[-1] >= self.width:
            return super().__call__(shape, dtype)
        noise = keras.random.normal(shape, 1.0, 0.1, dtype="float32", seed=self.seed)
        return keras.ops.cast(noise, dtype or keras.config.floatx())

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


@registered("tfp_rank1")
class ByFeature(keras.initializers.Initializer):
    """One value per feature of a table, for all entries that the feature takes: `[K, entries]`.

    A member then sees a feature as a whole with another sign or size, and not every entry of the
    feature's vector.

    Args:
        initializer: a Keras initializer of the values `[K, features]`, or its name.
        sizes: number of entries of every feature, in the order of the entries, at least 1 each.

    Raises:
        ValueError: for a size below 1; when called, for a shape with another number of entries.

    Example: `posteriors.Deterministic(ByFeature(RandomSign(), [16] * 8))`, for 128 entries.

    Source: Gorishniy, Kotelnikov & Babenko (2025), "TabM: Advancing Tabular Deep Learning with
    Parameter-Efficient Ensembling".
    """

    def __init__(self, initializer: Any, sizes: Sequence[int]) -> None:
        self.initializer = keras.initializers.get(initializer)
        self.sizes = [whole("sizes", size) for size in sizes]

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
        """The values, each repeated for its feature."""
        if shape[-1] != sum(self.sizes):
            raise ValueError(
                f"ByFeature is for {sum(self.sizes)} entries, the sum of its sizes. Received: "
                f"shape={tuple(shape)}"
            )
        values = self.initializer((*shape[:-1], len(self.sizes)), dtype)
        return keras.ops.repeat(values, self.sizes, axis=-1)

    def clone(self) -> ByFeature:
        """A copy; of an initializer without a seed one that draws other values."""
        return ByFeature(self.initializer.clone(), self.sizes)

    def get_config(self) -> dict[str, Any]:
        config = keras.initializers.serialize(self.initializer)
        return {"initializer": config, "sizes": self.sizes}


@registered("tfp_rank1")
class InverseSoftplus(keras.initializers.Initializer):
    """The constant rho with `softplus(rho) = value`: a scale `softplus(rho)` starts at `value`.

    Args:
        value: the scale at the start, above 0.

    Raises:
        ValueError: unless `value` is a finite number above 0.
    """

    def __init__(self, value: float) -> None:
        self.value = positive("value", value)

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
        """The constant in the given shape; its dtype defaults to Keras's `floatx`."""
        # softplus(rho) = v  <=>  rho = log(exp(v) - 1) = v + log(1 - exp(-v)). The last form does
        # not overflow for large v.
        rho = self.value + np.log(-np.expm1(-self.value))
        return keras.ops.full(shape, rho, dtype=dtype or keras.config.floatx())

    def get_config(self) -> dict[str, Any]:
        return {"value": self.value}
