"""Forgetting schedules: how fast the moving averages of a BALI layer forget.

A schedule gives the rate rho of every step:

    S <- (1 - rho) S + rho S_batch

An average then remembers about `1 / rho` batches.
"""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_rank1.checks import positive, whole
from tfp_rank1.serialization import Configurable, registered

__all__ = [
    "Averaging",
    "Constant",
    "Linear",
    "PerFit",
    "Progress",
    "Schedule",
    "check_rate",
    "default_for",
    "get",
]


class Progress(NamedTuple):
    """Where training stands, as int64 scalars.

    Attributes:
        step: number of the present step, counted from 1 over the life of the model.
        first: number of the first step of the present `fit`.
        last: number of the last step of the present `fit`; 0 while the length is unknown.
    """

    step: tf.Tensor
    first: tf.Tensor
    last: tf.Tensor


class Schedule(Configurable):
    """Base class of the schedules; a subclass maps `Progress` to a rate in (0, 1].

    The rate is not checked. Above 1 the statistics become negative, and batches are refused. A
    subclass needs `keras.saving.register_keras_serializable`, or saved models do not load.

    Attributes:
        needs_length: whether the schedule must know how many steps `fit` makes.

    Example:
    ```python
    @keras.saving.register_keras_serializable("my_project")
    class Halving(bk.schedules.Schedule):
        def __call__(self, progress):
            return 0.1 * 0.5 ** (tf.cast(progress.step, tf.float32) / 1000.0)
    ```
    """

    needs_length: bool = False

    def __call__(self, progress: Progress) -> tf.Tensor:
        """The rate rho of the present step, float32 scalar."""
        raise NotImplementedError


@registered("bali_keras.schedules")
class Constant(Schedule):
    """`rho = rate` in every step, for a stream whose source drifts.

    Args:
        rate: in (0, 1]. At 1 every step forgets all earlier batches.

    Raises:
        ValueError: for a rate outside of (0, 1].
    """

    def __init__(self, rate: float) -> None:
        self.rate = check_rate("rate", rate)

    def __call__(self, progress: Progress) -> tf.Tensor:
        return tf.constant(self.rate, tf.float32)

    def get_config(self) -> dict[str, Any]:
        return {"rate": self.rate}


@registered("bali_keras.schedules")
class Linear(Schedule):
    """`rho` falls on a line from `start` to `end`, and stays at `end`.

    Args:
        start: rate of the first step, in (0, 1]. Defaults to 0.07.
        end: rate of the last step, in (0, start]. Defaults to 0.001.
        steps: length of the line in steps, from the first step of the model's life. Defaults to
            None: the line is as long as the present `fit`, and every `fit` begins a new line.

    Raises:
        ValueError: for rates outside of (0, 1], or an `end` above `start`.

    Example:
    ```python
    model.compile(forgetting=bk.schedules.Linear(0.05, 0.002))
    ```
    """

    def __init__(self, start: float = 0.07, end: float = 0.001, steps: int | None = None) -> None:
        self.start, self.end = check_rate("start", start), check_rate("end", end)
        _check_falls(start, end)
        self.steps = None if steps is None else whole("steps", steps)
        self.needs_length = steps is None

    def __call__(self, progress: Progress) -> tf.Tensor:
        if self.steps is None:
            done, length = progress.step - progress.first, progress.last - progress.first
        else:
            done, length = progress.step - 1, tf.constant(self.steps, progress.step.dtype)
        return _on_line(self.start, self.end, done, length)

    def get_config(self) -> dict[str, Any]:
        return {"start": self.start, "end": self.end, "steps": self.steps}


@registered("bali_keras.schedules")
class PerFit(Schedule):
    """`rho` falls on a line in units of the fit.

    In a fit of T steps, step t (from 0 on) has the rate

        rho_t = start_T + (end_T - start_T) t / (T - 1),    start_T = min(start / T, largest)
                                                            end_T = min(end / T, largest)

    The averages remember the last `1 / start` of the fit at its beginning, and `1 / end` at its
    end. A result depends little on the batch size and on the number of epochs, because neither
    changes what part of the data an average holds. Every `fit` begins a new line.

    Args:
        start: rate of the first step times the number of steps, above 0. Defaults to 170.
        end: rate of the last step times the number of steps, in (0, start]. Defaults to 2.4.
        largest: upper bound of the rates, in (0, 1]. Defaults to 0.25.

    Raises:
        ValueError: for rates that are not above 0, an `end` above `start`, or a `largest` outside
            of (0, 1].

    Example:
    ```python
    model.compile(forgetting=bk.schedules.PerFit(200.0, 3.0))
    ```
    """

    needs_length = True

    def __init__(self, start: float = 170.0, end: float = 2.4, largest: float = 0.25) -> None:
        self.start, self.end = positive("start", start), positive("end", end)
        self.largest = check_rate("largest", largest)
        _check_falls(start, end)

    def __call__(self, progress: Progress) -> tf.Tensor:
        length = tf.cast(tf.maximum(progress.last - progress.first + 1, 1), tf.float32)
        start, end = (tf.minimum(v / length, self.largest) for v in (self.start, self.end))
        return _on_line(start, end, progress.step - progress.first, progress.last - progress.first)

    def get_config(self) -> dict[str, Any]:
        return {"start": self.start, "end": self.end, "largest": self.largest}


@registered("bali_keras.schedules")
class Averaging(Schedule):
    """`rho = 1 / t` at step t: all examples seen so far count alike, and none is forgotten.

    N scales the averages to a posterior. Every `fit` sets N to the number of its own examples. For
    a stream over several calls of `fit` pass `num_train_examples=` to the model, or assign it as
    the stream grows.

    With one linear layer of known noise and `warmup_steps=0`, one pass over the data gives the
    posterior of all data at once, however the data are split into batches. A `factorise_every`
    above 1 makes the result inexact, because the covariances of some steps are then old.
    """

    def __call__(self, progress: Progress) -> tf.Tensor:
        return 1.0 / tf.cast(tf.maximum(progress.step, 1), tf.float32)


def _check_falls(start: float, end: float) -> None:
    if end > start:
        raise ValueError(
            f"Argument `end` must not exceed `start`. Received: start={start}, end={end}"
        )


def _on_line(start: Any, end: Any, done: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """The rate after `done` of `length` steps from `start` to `end`, and `end` beyond."""
    fraction = tf.cast(done, tf.float32) / tf.cast(tf.maximum(length, 1), tf.float32)
    return start + (end - start) * tf.clip_by_value(fraction, 0.0, 1.0)


def default_for(is_slow: bool) -> PerFit:
    """The schedule of a model that is given none.

    Args:
        is_slow: whether targets are classes or counts, or the net was trained before. Fresh nets of
            continuous targets ask for higher rates: they end at larger errors without them.
    """
    return PerFit() if is_slow else PerFit(290.0, 4.2)


def get(forgetting: Any) -> Schedule:
    """A schedule from a number (`Constant`), a schedule, or its serialized config.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(forgetting, dict):
        forgetting = keras.saving.deserialize_keras_object(forgetting)
    if isinstance(forgetting, Schedule):
        return forgetting
    if isinstance(forgetting, numbers.Real) and forgetting is not True:  # True counts as a Real
        return Constant(check_rate("forgetting", float(forgetting)))
    raise ValueError(
        "Argument `forgetting` must be a rate in (0, 1] or a bali_keras.schedules object, for "
        f"example schedules.PerFit(). Received: forgetting={forgetting!r}"
    )


def check_rate(name: str, value: float) -> float:
    """`value` as a float; refused unless it is in (0, 1]."""
    if not 0.0 < float(value) <= 1.0:
        raise ValueError(f"Argument `{name}` must be in (0, 1]. Received: {name}={value}")
    return float(value)
