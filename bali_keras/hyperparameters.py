"""The hyperparameters of a `BaliModel`: given by the user, found from the data, or default.

    p   precision of a network weight a priori, in units of fan-in
    a   absolute damping of the Fisher information, V^-1 = F + (a + r tr(F) / k) I
    c   scale of the covariances of all posteriors

A search writes what it found into variables, which the graph of the train step reads: a search
traces no graph of its own for every value that it tries.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from bali_keras.inference.posterior import Prior
from bali_keras.settings import RELATIVE_DAMPING, Settings

__all__ = ["Hyperparameters"]

# As a net fits, F vanishes in some directions, and V grows without bound there unless V^-1 has an
# absolute lower bound. The bound falls with N, because the Fisher information of few examples is
# less certain: it is 0.1 for a hundred examples, 0.02 for 60,000.
DAMPING_SCALE, DAMPING_POWER = 0.3, -0.25
# For continuous targets the bound falls with 1 / N from so many examples on, to this number: with
# little noise a net learns more from weak directions than they cost.
FEW_FOR_DAMPING, LEAST_DAMPING = 600.0, 0.003
# For classes and counts, and for continuous targets, where no search has found a better one.
PRIOR_PRECISION_DISCRETE, PRIOR_PRECISION_CONTINUOUS = 0.02, 0.06

_NAMES = "prior_precision", "damping", "covariance_scale", "num_examples"


class Hyperparameters:
    """What a search has found, in variables; 0 stands for "not found".

    The variables are saved with the model, and are none of its weights: files of models that were
    saved without them still load.
    """

    def __init__(self) -> None:
        self._found = {
            name: keras.Variable(
                "zeros", shape=(), dtype="float32", trainable=False, name=f"found_{name}"
            )
            for name in _NAMES
        }

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that are saved; the number of examples of a search is not."""
        return [self._found[name] for name in _NAMES[:-1]]

    def assign(self, **values: float) -> None:
        """Set what a search tries or has found, by name; 0 forgets it."""
        for name, value in values.items():
            self._found[name].assign(value)

    @property
    def are_found(self) -> bool:
        """Whether a search has found any of them."""
        return any(float(v.numpy()) > 0.0 for v in self.variables)

    def num_examples(self, count: float) -> tf.Tensor:
        """N in the present step, scalar: that of a search while one is running, else `count`."""
        return self._or("num_examples", count)

    def prior(self, settings: Settings, count: float | None, is_discrete: bool) -> Prior:
        """The prior and the damping for all layers, with scalar tensors.

        Args:
            settings: what `compile` was told; a number there wins.
            count: N; None if it is not known, and the damping is then that of 1,000 examples.
            is_discrete: whether all targets are classes or counts.
        """
        absolute, relative = settings.damping or (None, RELATIVE_DAMPING)
        defaults = defaults_for(count, is_discrete)
        return Prior(
            self._chosen("prior_precision", settings.prior_precision, defaults),
            None,
            (self._chosen("damping", absolute, defaults), relative),
            self._chosen("covariance_scale", settings.covariance_scale, defaults),
        )

    def _chosen(self, name: str, given: float | None, defaults: dict[str, float]) -> tf.Tensor:
        if given is not None:
            return tf.constant(given, tf.float32)
        return self._or(name, defaults[name])

    def _or(self, name: str, default: float) -> tf.Tensor:
        found = tf.convert_to_tensor(self._found[name])
        return tf.where(found > 0.0, found, tf.constant(float(default), tf.float32))


def defaults_for(count: float | None, is_discrete: bool) -> dict[str, float]:
    """The hyperparameters where none is given and none was found, by name."""
    return {
        "prior_precision": (
            PRIOR_PRECISION_DISCRETE if is_discrete else PRIOR_PRECISION_CONTINUOUS
        ),
        "damping": _default_damping(count or 1000.0, is_discrete),
        "covariance_scale": 1.0,
    }


def _default_damping(count: float, is_discrete: bool) -> float:
    damping = DAMPING_SCALE * count**DAMPING_POWER
    if is_discrete:
        return damping
    return max(damping * min(1.0, FEW_FOR_DAMPING / count), LEAST_DAMPING)


def as_floats(prior: Prior) -> dict[str, Any]:
    """The hyperparameters of a prior as numbers, by name."""
    return {
        "prior_precision": float(prior.weight_precision),
        "damping": float(prior.damping[0]),
        "covariance_scale": float(prior.covariance_scale),
    }
