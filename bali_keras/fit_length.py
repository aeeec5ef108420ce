"""Callbacks of `BaliModel.fit`: its length, covariances at its end, and whether it goes on."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from tfp_rank1.keras_internals import initial_epoch

__all__ = ["FactoriseAtEnd", "FitLength", "HyperparameterLogs", "OtherData"]

# Rise of the NLL from the last epoch of a fit to the first batch of the next, in nats, that the
# same data hardly show.
_JUMP = 1.0


class FactoriseAtEnd(keras.callbacks.Callback):
    """Brings the covariances up to date at the end of a fit, also of one within the warm-up."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._bali = model

    def on_train_end(self, logs: Any = None) -> None:
        # Before the first step there are no statistics to factorise.
        if int(self._bali._counters.updates.numpy()) > 0:
            self._bali.factorise()


class HyperparameterLogs(keras.callbacks.Callback):
    """Logs the hyperparameters in use at the end of every epoch, before other callbacks look."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._bali = model

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None:
            logs.update(self._bali.hyperparameter_logs())


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


class OtherData(keras.callbacks.Callback):
    """Warns when a model that was fitted before is fitted to other data, which it would forget.

    A falling forgetting schedule starts anew in every fit, at a rate by which the averages hold the
    new data alone after some tens of steps. Data are other data if N differs, or if the NLL of the
    first batch lies far above that of the last epoch.

    Args:
        model: a `BaliModel`.
        count: N of the fit before; None if there was none.
    """

    def __init__(self, model: Any, count: float | None) -> None:
        super().__init__()
        self._bali, self._count = model, count
        self._expected: float | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        model = self._bali
        is_first = int(model._counters.updates.numpy()) == 0 or bool(initial_epoch(model))
        is_first = is_first or model.is_new_task
        # A constant rate follows a drift on purpose, and an N that was given says the same.
        if is_first or not model._options.forgetting.needs_length or model._count_is_given:
            return
        if self._count is not None and self._count != model.num_train_examples:
            self._warn(f"{model.num_train_examples} examples, after a fit to {self._count}")
        else:
            self._expected = model.nll_of_last_fit

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        found, expected, self._expected = float((logs or {}).get("nll", 0.0)), self._expected, None
        if expected is not None and found > expected + _JUMP:
            self._warn(f"an NLL of {found:.2f} in the first batch, and {expected:.2f} before")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._bali.nll_of_last_fit = (logs or {}).get("nll")

    def _warn(self, received: str) -> None:
        warnings.warn(
            "The model was fitted before, and this fit is to other data: it will forget what it "
            "learned, as the forgetting rate starts anew and N counts these data alone. To keep "
            "both, call model.posterior_to_prior() before the fit to the new data, or fit to all "
            "data together; to follow a drift, compile with a constant rate, forgetting=0.02; to "
            f"start anew, build a new model. Received: {received}",
            stacklevel=2,
        )
