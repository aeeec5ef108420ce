"""Callbacks of `BaliModel.fit`: the length of the fit, and covariances at its end."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from tfp_rank1.keras_internals import initial_epoch

__all__ = ["FactoriseAtEnd", "FitLength"]


class FactoriseAtEnd(keras.callbacks.Callback):
    """Brings the covariances up to date at the end of a fit, also of one within the warm-up."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._bali = model

    def on_train_end(self, logs: Any = None) -> None:
        # Before the first step there are no statistics to factorise.
        if int(self._bali._counters.updates.numpy()) > 0:
            self._bali.factorise()


class FitLength(FactoriseAtEnd):
    """Tells the model the first and last step of the fit, and the user how many were refused."""

    def __init__(self, model: Any, initial_epoch: int) -> None:
        super().__init__(model)
        self._first_epoch = initial_epoch
        self._before = (0, 0)

    def _counts(self) -> tuple[int, int]:
        return int(self._bali._counters.updates.numpy()), self._bali.refused_updates

    def on_train_begin(self, logs: Any = None) -> None:
        model, steps = self._bali, self.params.get("steps")
        self._before = self._counts()
        if steps is None:
            if model._options.forgetting.needs_length:
                raise ValueError(
                    "The forgetting schedule falls over the length of the fit, which cannot be "
                    "told from this data. Pass steps_per_epoch= to fit, or a schedule with a "
                    "length, schedules.Linear(0.07, 0.001, steps=...), or a constant rate, "
                    "forgetting=0.02. Received: data of unknown length"
                )
            return
        # As in Keras, the epoch of a restored checkpoint overrides the argument of `fit`.
        epoch = initial_epoch(model) or self._first_epoch
        # The step at which epoch 0 began: a resumed fit goes on along the same schedule.
        first = int(model._counters.updates.numpy()) + 1 - epoch * steps
        model._counters.first_step.assign(first)
        model._counters.last_step.assign(first + self.params["epochs"] * steps - 1)

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        batches, refused = (
            now - old for now, old in zip(self._counts(), self._before, strict=True)
        )
        if refused:
            warnings.warn(
                f"{refused} of {batches} batches left the model as it was: a loss, a gradient or "
                "a covariance was not finite. Look for NaN or huge numbers in these inputs and "
                "targets, scale both to unit size, or raise damping= and prior_precision=. See "
                "`refused` in the logs",
                stacklevel=2,
            )
