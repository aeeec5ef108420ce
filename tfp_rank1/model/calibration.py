"""Calibration: two numbers by which a model's answers differ from what it was trained to say.

    w_s = m + sqrt(c) (draw_s - m)          weights of sample s, posterior mean m: variance times c
    p(y | x) = 1/S sum_s p(y | tempered(outputs(x, w_s), tau))

c is the `posterior_scale` and tau the `temperature`. A temperature divides logits, and multiplies
scales of the noise. Training has c = tau = 1. Several outputs have one c and a temperature each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1 import heads, scopes
from tfp_rank1.checks import positive
from tfp_rank1.keras_internals import is_training_call, mask_of, set_mask

__all__ = ["Calibration", "call_calibrated"]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What `BayesianModel.calibrate` finds, and `model.calibration` is.

    Attributes:
        posterior_scale: c, the factor of all posterior variances in answers.
        temperature: tau, by which logits are divided; or the factor of the noise's scale, which a
            learned scale holds already. Of several outputs a list or dict of numbers, or 1 for all.
    """

    posterior_scale: float = 1.0
    temperature: Any = 1.0

    @property
    def is_neutral(self) -> bool:
        """Whether answers are those of the trained posterior."""
        return self.posterior_scale == 1.0 and self.keeps_outputs

    @property
    def keeps_outputs(self) -> bool:
        """Whether all temperatures are 1."""
        return all(tau == 1.0 for tau in heads.parts(self.temperature, self.temperature))

    def temperatures(self, likelihood: Any) -> Any:
        """The temperature of every output.

        Args:
            likelihood: a likelihood, or one for each of several outputs.
        """
        if heads.are_several(self.temperature):
            return self.temperature
        return heads.in_each(likelihood, self.temperature)

    def tempered(self, likelihood: Any, outputs: Any) -> Any:
        """Raw outputs at their temperatures.

        Args:
            likelihood: a likelihood, or one for each of several outputs.
            outputs: raw outputs `[..., D]`, or a list or dict of these.
        """
        if self.keeps_outputs:
            return outputs
        return heads.map_heads(
            _tempered,
            likelihood,
            outputs,
            self.temperatures(likelihood),
        )

    def get_config(self) -> dict[str, Any]:
        """The numbers by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Calibration:
        """The calibration that gave `get_config()`.

        Raises:
            ValueError: for a number that is not above 0.
        """
        found = {}
        for name, value in config.items():
            found[name] = heads.map_heads(lambda v, name=name: positive(name, v), value)
        return cls(**found)


def _tempered(likelihood: Any, outputs: Any, temperature: float) -> Any:
    """The raw outputs of one output at its temperature, with the mask that they have."""
    if temperature == 1.0:
        return outputs
    found = likelihood.tempered(tf.convert_to_tensor(outputs), temperature)
    mask = mask_of(outputs)
    if mask is not None:
        set_mask(found, mask)
    return found


def call_calibrated(
    model: Any, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """`call(*args, **kwargs)`, a pass of the model, calibrated unless it is part of training.

    The calibration of the outermost model holds: a model within another one is a layer of it.

    Args:
        model: a `BayesianModel`.
        call: Keras's own `__call__`.
        args: positional arguments of the call.
        kwargs: other arguments of the call.
    """
    if scopes.posterior_scale.value is not None:  # a model around this one, or `calibrate`
        return call(*args, **kwargs)
    calibration = model.calibration
    if not calibration.is_neutral and is_training_call(kwargs):
        calibration = Calibration()
    # Here and not around `predict` or `evaluate`: every replica calls the model in its own thread.
    with scopes.posterior_scale.set(calibration.posterior_scale):
        outputs = call(*args, **kwargs)
    if any(isinstance(v, keras.KerasTensor) for v in keras.tree.flatten(outputs)):
        return outputs  # a symbolic call makes a graph, which calls the model again when it runs
    return calibration.tempered(model.likelihood, outputs)
