"""The options of `BaliModel.compile`: their defaults, their checks, and their saved form."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bali_keras import schedules
from bali_keras.inference.posterior import Prior
from tfp_rank1.checks import choice, positive, whole
from tfp_rank1.model.options import Options
from tfp_rank1.predictive.sampling import METHODS
from tfp_rank1.serialization import serialize

__all__ = ["Settings"]

# A falling rate, because constant rates of 0.05 and more became unstable in long runs.
_FORGETTING = schedules.PerFit()
RELATIVE_DAMPING = 0.001
# Weights that move by statistics of one small batch are destroyed; ten batches are enough.
WARMUP_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Settings(Options):
    """The checked arguments of `BaliModel.compile`; all their defaults stand here.

    Attributes:
        forgetting: schedule of the moving averages' rate.
        damping: absolute and relative part of the damping of F; None to derive it from N.
        prior_precision: precision of one network weight a priori, in units of fan-in; None to
            derive it from the likelihood.
        prior_row_precision: L0 as a number or a matrix, or a dict of these by layer name; None to
            derive L0 from `prior_precision`.
        covariance_scale: c, by which covariances of posteriors are multiplied; None to find it.
        temperature: T; inference divides N by T.
        warmup_steps: number of first steps that only gather statistics; None for 10, but at most
            a third of the fit.
        trust_region: upper bound of `step_kl`; None for no bound.
        factorise_every: steps between two factorisations; None to derive it from their cost.
        noise_prior: strength of the prior on a learned noise, in examples.
    """

    forgetting: schedules.Schedule = _FORGETTING
    damping: tuple[float, float] | None = None
    prior_precision: float | None = None
    prior_row_precision: Any = None
    covariance_scale: float | None = None
    temperature: float = 1.0
    # Statistics of the first small batch alone would destroy the initial weights of the net.
    warmup_steps: int | None = None
    trust_region: float | None = 0.05
    factorise_every: int | None = None
    noise_prior: float = 0.01
    evaluation_samples: int = 16

    @classmethod
    def of(cls, **arguments: Any) -> Settings:
        """Settings from the arguments of `compile`.

        Raises:
            ValueError: for a value out of range; the message names the argument.
        """
        values = dict(arguments)
        values["forgetting"] = schedules.get(values["forgetting"])
        if values["damping"] is not None:
            values["damping"] = _damping(values["damping"])
        values["prior_row_precision"] = _row_precision(values["prior_row_precision"])
        for name in (
            "prior_precision",
            "temperature",
            "noise_prior",
            "trust_region",
            "covariance_scale",
        ):
            if values[name] is not None or name in ("temperature", "noise_prior"):
                values[name] = positive(name, values[name])
        if values["factorise_every"] is not None:
            values["factorise_every"] = whole("factorise_every", values["factorise_every"])
        values["evaluation_samples"] = whole("evaluation_samples", values["evaluation_samples"])
        if values["evaluation_method"] is not None:
            choice("evaluation_method", values["evaluation_method"], METHODS, or_none=True)
        if values["warmup_steps"] is not None:
            values["warmup_steps"] = whole("warmup_steps", values["warmup_steps"], least=0)
        return cls(**values)

    @property
    def not_given(self) -> tuple[str, ...]:
        """Names of the hyperparameters that `fit` may search for."""
        names = "prior_precision", "damping", "covariance_scale"
        row = self.prior_row_precision
        is_row_given = row is not None and not isinstance(row, Mapping)
        open_ones = [name for name in names if getattr(self, name) is None]
        return tuple(n for n in open_ones if not (n == "prior_precision" and is_row_given))

    def check_names(self, layers: list[keras.layers.Layer]) -> None:
        """Refuse a `prior_row_precision` for a layer that the model does not have.

        Args:
            layers: the BALI layers of the model.

        Raises:
            ValueError: with the names of the model's layers.
        """
        names = [layer.name for layer in layers]
        given = self.prior_row_precision
        unknown = [n for n in given if n not in names] if isinstance(given, Mapping) else []
        if unknown:
            raise ValueError(
                f"Argument `prior_row_precision` names layers of {names} only. Received: {unknown}"
            )

    def warmup(self, progress: schedules.Progress) -> tf.Tensor:
        """Number of first steps that only gather statistics, int64 scalar."""
        if self.warmup_steps is not None:
            return tf.constant(self.warmup_steps, tf.int64)
        # A short fit must leave the warm-up, or no weight would move.
        third = (progress.last - progress.first + 1) // 3
        return tf.where(progress.last > 0, tf.minimum(third, WARMUP_STEPS), WARMUP_STEPS)

    def prior_of(self, layer: keras.layers.Layer, prior: Prior) -> Prior:
        """The prior and damping of one layer: the model's, or with an L0 of the layer's own.

        Args:
            layer: the layer.
            prior: prior and damping of the model.
        """
        row = self.prior_row_precision
        if isinstance(row, Mapping):
            row = row.get(layer.name)
        return prior._replace(row_precision=row)

    def get_config(self) -> dict[str, Any]:
        own = {f.name for f in dataclasses.fields(self)} - {
            f.name for f in dataclasses.fields(Options)
        }
        config = super().get_config() | {name: getattr(self, name) for name in sorted(own)}
        config["forgetting"] = serialize(self.forgetting)
        config["damping"] = None if self.damping is None else list(self.damping)
        config["prior_row_precision"] = _plain(self.prior_row_precision)
        return config


def _damping(damping: Any) -> tuple[float, float]:
    if isinstance(damping, numbers.Real):
        return positive("damping", damping), RELATIVE_DAMPING
    if isinstance(damping, (list, tuple)) and len(damping) == 2:
        absolute, relative = damping
        if isinstance(relative, numbers.Real) and 0.0 <= float(relative) < float("inf"):
            return positive("damping", absolute), float(relative)
    raise ValueError(
        "Argument `damping` must be a number above 0, or two: absolute (above 0) and relative to "
        f"the mean Fisher information (at least 0). Received: damping={damping!r}"
    )


def _row_precision(value: Any) -> Any:
    """A number, a symmetric positive definite matrix, either by layer name, or None."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: _row_precision(v) for name, v in value.items()}
    is_text = isinstance(value, str)  # NumPy would parse a text as a number
    array = np.asarray(np.nan if is_text else value, "float64")
    if array.ndim == 0:
        return positive("prior_row_precision", float(array))
    square = array.ndim == 2 and array.shape[0] == array.shape[1]
    if not square or not np.allclose(array, array.T) or np.linalg.eigvalsh(array)[0] <= 0.0:
        raise ValueError(
            "Argument `prior_row_precision` must be a number above 0, a symmetric positive "
            "definite matrix [d, d] with a row for the bias, or a dict of these by layer name. "
            f"Received: an array of shape {array.shape}"
        )
    return array.astype("float32")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value
