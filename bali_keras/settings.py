"""What `BaliModel.compile` configures."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from bali_keras import schedules
from bali_keras.inference.posterior import Prior
from tfp_rank1.checks import positive, whole
from tfp_rank1.likelihoods import Likelihood
from tfp_rank1.model.options import Options
from tfp_rank1.serialization import serialize

__all__ = ["Settings"]

_FORGETTING = schedules.Linear(0.07, 0.001)
# The fewer the examples, the less their Fisher information can be trusted: 0.1 for a hundred
# examples, 0.02 for 60,000.
DAMPING_SCALE, DAMPING_POWER, RELATIVE_DAMPING = 0.3, -0.25, 0.001
# Classes and counts, and continuous targets; one number each for every set tried.
PRIOR_PRECISION_DISCRETE, PRIOR_PRECISION_CONTINUOUS = 0.02, 0.06


@dataclasses.dataclass(frozen=True)
class Settings(Options):
    """Arguments of `BaliModel.compile`, checked, with their defaults: the only place that has them.

    Attributes:
        forgetting: rate of the moving averages.
        damping: absolute and relative part of what is added to the Fisher information; None to
            find it from N.
        prior_precision: of one weight, in units of fan-in; None to find it from the likelihood.
        prior_row_precision: L0, a number or a matrix, or a dict of these by layer; None to find
            it from `prior_precision`.
        temperature: N is divided by it.
        warmup_steps: steps that only gather statistics.
        trust_region: bound of `step_kl`; None for none.
        factorise_every: steps between two factorisations; None to find it from the costs.
        noise_prior: examples that the prior on a learned noise counts for.
        evaluation_samples: samples of the predictive in evaluation.
    """

    forgetting: schedules.Schedule = _FORGETTING
    damping: tuple[float, float] | None = None
    prior_precision: float | None = None
    prior_row_precision: Any = None
    temperature: float = 1.0
    warmup_steps: int = 10
    trust_region: float | None = 0.05
    factorise_every: int | None = None
    noise_prior: float = 0.01
    evaluation_samples: int = 8

    @classmethod
    def of(cls, **arguments: Any) -> Settings:
        """Settings from the arguments of `compile`.

        Raises:
            ValueError: naming the argument, what it must be, and what it is.
        """
        values = dict(arguments)
        values["forgetting"] = schedules.get(values["forgetting"])
        if values["damping"] is not None:
            values["damping"] = _damping(values["damping"])
        values["prior_row_precision"] = _row_precision(values["prior_row_precision"])
        for name in ("prior_precision", "temperature", "noise_prior", "trust_region"):
            if values[name] is not None or name in ("temperature", "noise_prior"):
                values[name] = positive(name, values[name])
        if values["factorise_every"] is not None:
            values["factorise_every"] = whole("factorise_every", values["factorise_every"])
        values["evaluation_samples"] = whole("evaluation_samples", values["evaluation_samples"])
        values["warmup_steps"] = whole("warmup_steps", values["warmup_steps"], least=0)
        return cls(**values)

    def check_names(self, layers: list[keras.layers.Layer]) -> None:
        """Refuse a `prior_row_precision` for a layer that is not there.

        Raises:
            ValueError: with the names that are.
        """
        names = [layer.name for layer in layers]
        given = self.prior_row_precision
        unknown = [n for n in given if n not in names] if isinstance(given, Mapping) else []
        if unknown:
            raise ValueError(
                f"Argument `prior_row_precision` names layers of {names} only. Received: {unknown}"
            )

    def prior_of(
        self, layer: keras.layers.Layer, num_examples: float, likelihood: Likelihood
    ) -> Prior:
        """The prior and damping of one layer, for N examples."""
        row = self.prior_row_precision
        if isinstance(row, Mapping):
            row = row.get(layer.name)
        damping, precision = self.damping, self.prior_precision
        if damping is None:
            damping = DAMPING_SCALE * num_examples**DAMPING_POWER, RELATIVE_DAMPING
        if precision is None:
            discrete = likelihood.discrete
            precision = PRIOR_PRECISION_DISCRETE if discrete else PRIOR_PRECISION_CONTINUOUS
        return Prior(precision, row, damping)

    def get_config(self) -> dict[str, Any]:
        """The arguments of `compile`, serializable."""
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
    is_text = isinstance(value, str)  # which NumPy would parse
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
