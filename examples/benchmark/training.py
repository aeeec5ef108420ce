"""One training loop for all Keras methods."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.linear_model import BayesianRidge

import bali_keras as bk
import tfp_rank1 as r1
from examples.benchmark.methods import Method
from examples.benchmark.tasks import Budget, Data, Task
from examples.datasets.small import Split
from tfp_rank1.predictive.mixture import PredictiveMixture

# Points of a curve, and training examples it is taken on.
CURVE_POINTS, CURVE_EXAMPLES, CURVE_SAMPLES = 20, 1000, 16
# Several steps in a call are faster but traced twice: nothing for a run this short.
STEPS_PER_CALL, SHORT = 10, 200
# Steps of a posterior around a trained net, at least: chosen on held-out parts of UCI training sets
# among 200, 500 and 1,000. An epoch of a small set is over in the warm-up.
CONVERSION_STEPS = 1000


@dataclasses.dataclass
class Fitted:
    """What a trained method can be asked.

    Attributes:
        predict: the predictive distribution at inputs.
        parameters: numbers that were learned; None where nobody counts them.
        seconds: of training, evaluation for curves not counted.
        steps: of training; None where nobody counts them.
        curve: points of `Curve`, or none.
        model: what was trained, if it is a Keras model.
        members: the outputs of every member at inputs, by the kind of member: `"member"` at the
            posterior mean, `"drawn"` with a draw of its factors; None without members.
    """

    predict: Callable[[np.ndarray], PredictiveMixture]
    parameters: int | None
    seconds: float
    steps: int | None
    curve: list[dict[str, float]]
    model: r1.BayesianModel | None = None
    members: Callable[[np.ndarray], dict[str, PredictiveMixture]] | None = None


class Curve(keras.callbacks.Callback):
    """NLL of the predictive distribution on training and test examples, over the epochs."""

    def __init__(self, data: Data, samples: int, epochs: int, steps_per_epoch: int) -> None:
        super().__init__()
        split = data.split
        rows = np.random.default_rng(0).permutation(len(split.x_train))[:CURVE_EXAMPLES]
        self._parts = {
            "train_nll": (split.x_train[rows], split.y_train[rows]),
            "test_nll": (split.x_test, split.y_test),
        }
        self._samples, self._offset = min(samples, CURVE_SAMPLES), np.log(data.scale)
        self._epochs = {round(e) for e in np.geomspace(1, epochs, CURVE_POINTS)}
        self._steps_per_epoch = steps_per_epoch
        self.points: list[dict[str, float]] = []
        self.pause = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add a point at some epochs."""
        if epoch + 1 not in self._epochs:
            return
        begin = time.perf_counter()
        point = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * self._steps_per_epoch,
            "seconds": begin - self._start - self.pause,
        }
        for name, (x, y) in self._parts.items():
            p = self.model.posterior_predictive(x, self._samples, seed=0, batch_size=2000)
            point[name] = float(self._offset - np.mean(p.log_prob(y)))
        self.points.append(point)
        self.pause += time.perf_counter() - begin


def fit(
    method: Method,
    task: Task,
    data: Data,
    budget: Budget,
    seed: int,
    curve: bool,
) -> Fitted:
    """Build, compile and fit one model.

    Args:
        method: what to train.
        task: on what net.
        data: one split.
        budget: for how long.
        seed: of weights, shuffling and samples.
        curve: whether to record NLL over iterations.
    """
    if method.closed_form and task.likelihood == "normal":
        return fit_linear(data)
    keras.utils.set_random_seed(seed)
    likelihood = r1.likelihoods.get(task.likelihood)
    model = method.build(task.net, likelihood)
    count = len(data.split.x_train)
    per_epoch, epochs = budget.steps_per_epoch(count), budget.epochs_for(count)
    # The curve of a net that is converted afterwards would be that of another net.
    curve = curve and not method.converted
    passes = 1 if curve else budget.passes_for(count)
    callbacks: list[keras.callbacks.Callback] = []
    if method.annealing:
        steps = max(1, round(method.annealing * epochs * per_epoch))
        callbacks.append(r1.callbacks.KLAnnealing(steps=steps))
    recorder = Curve(data, method.samples, epochs, per_epoch) if curve else None
    if recorder is not None:
        callbacks.append(recorder)
    start = time.perf_counter()
    steps_per_call = min(STEPS_PER_CALL, per_epoch) if epochs * per_epoch > SHORT else 1
    arguments: dict[str, Any] = {"steps_per_execution": steps_per_call}
    if method.rate is None:
        model.compile(**arguments)
    else:
        model.compile(keras.optimizers.Adam(method.rate, clipnorm=method.clipnorm), **arguments)
    model.num_train_examples = count  # a repeated dataset would count every pass
    batches = shuffled(data.split, budget.batch_size, passes)
    model.fit(batches, epochs=epochs // passes, shuffle=False, verbose=0, callbacks=callbacks)
    if method.converted:
        more = max(1, -(-min(CONVERSION_STEPS, epochs * per_epoch) // per_epoch))
        model, epochs = _convert(model, task, data, budget, more), epochs + more
    seconds = time.perf_counter() - start - (recorder.pause if recorder else 0.0)

    def predict(x: np.ndarray) -> PredictiveMixture:
        return model.posterior_predictive(
            x, method.samples, seed=seed, batch_size=2000, reduce=None
        )

    points = recorder.points if recorder else []
    return Fitted(predict, parameters(model), seconds, epochs * per_epoch, points, model)


def fit_linear(data: Data) -> Fitted:
    """Bayesian linear regression in closed form, prior and noise by the evidence."""
    start = time.perf_counter()
    split = data.split
    model = BayesianRidge().fit(split.x_train, split.y_train.ravel())
    seconds = time.perf_counter() - start
    noise = 1.0 / model.alpha_
    likelihood = r1.likelihoods.Normal(scale=float(np.sqrt(noise)))

    def predict(x: np.ndarray) -> PredictiveMixture:
        mean, stddev = model.predict(x, return_std=True)
        mean, variance = (
            v.astype("float32")[None, :, None] for v in (mean, np.maximum(stddev**2 - noise, 0.0))
        )
        return PredictiveMixture(likelihood, mean, output_variance=tf.constant(variance))

    size = split.x_train.shape[1]
    # Mean and covariance of the coefficients, the intercept, and two precisions.
    return Fitted(predict, size + size * (size + 1) // 2 + 3, seconds, 1, [])


def shuffled(split: Split, batch_size: int, passes: int) -> tf.data.Dataset:
    """So many passes over the training examples, each in another order."""
    x, y = map(tf.constant, (split.x_train, split.y_train))
    rows = tf.data.Dataset.range(len(split.x_train)).shuffle(len(split.x_train))
    batches = rows.batch(batch_size).map(lambda i: (tf.gather(x, i), tf.gather(y, i)))
    return batches.repeat(passes).prefetch(tf.data.AUTOTUNE)


def _convert(
    model: r1.BayesianModel, task: Task, data: Data, budget: Budget, epochs: int
) -> bk.BaliModel:
    """A BALI posterior around a trained net, after some more epochs."""
    stock = keras.Model(model.inputs, model.layers[-1].output)
    converted = bk.convert(stock, likelihood=r1.likelihoods.get(task.likelihood))
    converted.compile()
    converted.num_train_examples = len(data.split.x_train)
    batches = shuffled(data.split, budget.batch_size, epochs)
    converted.fit(batches, shuffle=False, verbose=0)
    return converted


def parameters(model: r1.BayesianModel) -> int:
    """Numbers that describe what was learned: weights, and means and factors of a posterior.

    Statistics that training alone needs do not count.
    """
    count = sum(v.value.shape.num_elements() for v in model.trainable_variables)
    for layer in getattr(model, "bali_layers", ()):
        count += layer.posterior_state.num_parameters
    return int(count)
