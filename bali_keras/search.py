"""Prior, damping and scale of a `BaliModel`, found by short fits to parts of the training data.

Every candidate is judged by cross-validation inside of the training data,

    loss_n = -log p(y_n | x_n, fit without the fold of n)

by fits that all start at the same weights and see the same batches, so that candidates differ by
nothing but their hyperparameters. Noise in the losses must not decide: a candidate is compared with
the best one by the paired difference of their losses and its standard error. Of two precisions that
are equally good by this measure the larger is taken, because a prior that is too weak costs far
more than one that is too strong. The model starts anew after the search, on all of the data.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bali_keras.inference.step import is_nll, trained_layers
from bali_keras.search_data import Examples, in_memory
from tfp_rank1.model.all_or_nothing import Snapshot
from tfp_rank1.model.counting import count_examples
from tfp_rank1.model.step import make_variables
from tfp_rank1.predictive import evaluated

__all__ = ["Plan", "Search", "plan_for", "search_for_hyperparameters"]

# Steps of one short fit, in which BALI comes close to where a long fit ends.
_MOST_STEPS, _LEAST_STEPS = 200, 100
# Fits with fewer steps keep the default: they end before any hyperparameter matters much.
_SHORTEST_FIT = 100
# Cost of a step beside that of its rows, in rows of a small net.
_ROWS_PER_STEP = 64
# A search may cost this many fits for up to `_FEW` examples, and a twentieth of one for 60,000.
_MOST_COST, _FEW = 12.0, 1500.0
# Candidates of a search, for the estimate of its cost.
_CANDIDATES = 8
_FOLDS = 5
# Rows per pass of the held-out loss.
_ROWS = 1024
# Precisions are tried in steps of this factor, and within these bounds.
_RATIO, _LEAST, _LARGEST = 10.0**0.5, 1e-3, 3.0
# Damping and scale are tried at the default and below it, divided by this number up to so often.
# Below a ninth of the scale the held-out losses of short fits are no guide to those of long ones.
_DIVISOR, _MOST_LOWER = 3.0, 2
# Nets of fewer layers keep the scale 1, and for continuous targets all defaults: what short fits of
# one hidden layer ask for makes long ones worse.
_FEWEST_LAYERS = 3
# Differences between candidates, in standard errors: up to `_TOLERANCE` they are equally good,
# from `_CLEARLY` on one is better, from `_STOP` on nothing better lies behind the worse one, and
# from `_BEATEN` on the remaining folds will not change that.
_TOLERANCE, _CLEARLY, _STOP, _BEATEN = 0.5, 2.0, 2.0, 4.0


class Plan(NamedTuple):
    """How much a search does.

    Attributes:
        folds: number of parts that are held out in turn; 1 holds out a fifth once.
        steps: steps of every short fit.
        batch_size: examples per step.
    """

    folds: int
    steps: int
    batch_size: int


def plan_for(num_found: int, count: int, steps: int, batch_size: int) -> Plan | None:
    """The plan for a fit; None if there is too little data or time.

    Args:
        num_found: examples that the search holds in memory.
        count: number of training examples.
        steps: number of steps of the fit.
        batch_size: examples per step of the fit.
    """
    if num_found < 40 or steps < _SHORTEST_FIT:
        return None
    rows = int(np.clip(num_found // 8, 16, 128))
    share = _MOST_COST * min(1.0, _FEW / max(count, 1.0)) ** 1.5
    budget = share * steps * (batch_size + _ROWS_PER_STEP) / (rows + _ROWS_PER_STEP) / _CANDIDATES
    for folds in (_FOLDS, 1):
        if budget / folds >= _LEAST_STEPS:
            return Plan(folds, int(min(_MOST_STEPS, budget / folds)), rows)
    return None


def search_for_hyperparameters(model: Any, arguments: dict[str, Any]) -> None:
    """Find the hyperparameters that `compile` left open, before the first fit of a model.

    Args:
        model: a `BaliModel`.
        arguments: the arguments of `fit`, by name.
    """
    wanted, count = _wanted(model), _count(model, arguments)
    steps, batch_size = _steps(arguments, count), model._batch_size or 32
    # Before the data are read: a fit that is too short needs no look at them.
    if not wanted or plan_for(count, count, steps, batch_size) is None:
        return
    examples = in_memory(arguments, count)
    plan = plan_for(len(examples), count, steps, batch_size) if examples is not None else None
    if examples is None or plan is None:
        return
    two = keras.tree.map_structure(tf.convert_to_tensor, examples.take(np.arange(2)).x)
    make_variables(model, two)
    # A net that was trained before has seen what would be held out.
    if any(layer.prior_at_mean for layer in model.bali_layers):
        return
    model.build_optimizer()
    found = Search(model, examples, plan).run(wanted)
    model.hyperparameters.assign(**found)
    if arguments.get("verbose", "auto") not in (0, "0"):
        text = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
        print(f"Found on held-out parts of the training data: {text}")


def _wanted(model: Any) -> tuple[str, ...]:
    """Names of the hyperparameters to search for."""
    is_fresh = int(model._counters.updates.numpy()) == 0 and not model.hyperparameters.are_found
    if not is_fresh or not is_nll(model):
        return ()
    is_shallow = len(trained_layers(model)) < _FEWEST_LAYERS
    if not model.likelihood.discrete:
        return () if is_shallow else model._options.not_given
    # For classes and counts less damping was never better.
    left_out = {"damping", "covariance_scale"} if is_shallow else {"damping"}
    return tuple(name for name in model._options.not_given if name not in left_out)


def _count(model: Any, arguments: dict[str, Any]) -> int:
    """Number of training examples, whatever their weights; N where the data do not tell."""
    found = count_examples(arguments.get("x"), arguments.get("validation_split", 0.0))
    return int(model.num_train_examples or 0) if found is None else found


def _steps(arguments: dict[str, Any], count: int) -> int:
    """Number of steps of a fit; 0 where its arguments do not tell."""
    x, epochs = arguments.get("x"), arguments.get("epochs", 1) - arguments.get("initial_epoch", 0)
    by_epoch = arguments.get("steps_per_epoch")
    if by_epoch is None and isinstance(x, tf.data.Dataset):
        by_epoch = max(int(x.cardinality()), 0)  # negative where unknown
    elif by_epoch is None and isinstance(x, keras.utils.PyDataset):
        by_epoch = x.num_batches or 0
    elif by_epoch is None:
        by_epoch = math.ceil(count / (arguments.get("batch_size") or 32))
    return int(by_epoch) * int(epochs)


class Search:
    """A search for hyperparameters, on a model that is built, compiled and untrained.

    Args:
        model: a `BaliModel`.
        examples: training examples in an order of chance.
        plan: folds and lengths of the short fits.
    """

    def __init__(self, model: Any, examples: Examples, plan: Plan) -> None:
        self._model, self._examples, self._plan = model, examples, plan
        self._start = Snapshot(model.every_variable)
        self._loss = tf.function(self._row_losses, autograph=False, reduce_retracing=True)
        # Folds of one size: N is a number in the graph of the held-out loss.
        size = len(examples) // _FOLDS
        self._folds = [np.arange(i * size, (i + 1) * size) for i in range(plan.folds)]
        self._tried: dict[tuple[Any, ...], np.ndarray] = {}
        self._default: dict[str, float] = model.hyperparameter_values()

    def run(self, wanted: tuple[str, ...]) -> dict[str, float]:
        """Search for the wanted hyperparameters, and leave the model as it was at the start.

        Args:
            wanted: names out of `"prior_precision"`, `"damping"` and `"covariance_scale"`.

        Returns:
            What was found, by name.
        """
        at = dict(self._default)
        try:
            # The scale before and after the precision: in a posterior that is far too wide only a
            # precision that is far too large keeps the noise down.
            for name in ("covariance_scale", "prior_precision", "damping", "covariance_scale"):
                if name in wanted:
                    at |= self._climb(at) if name == "prior_precision" else self._lower(at, name)
        finally:
            self._start.restore()
            self._model.hyperparameters.assign(**dict.fromkeys((*at, "num_examples"), 0.0))
        return {name: at[name] for name in wanted}

    def _climb(self, at: dict[str, float]) -> dict[str, float]:
        """The largest precision that is as good as the best one."""
        best = at["prior_precision"]
        tried = {best: self._losses_at(at)}
        for ratio in (_RATIO, 1.0 / _RATIO):
            value = at["prior_precision"]
            while _LEAST <= value * ratio <= _LARGEST:
                value *= ratio
                tried[value] = self._losses_at({**at, "prior_precision": value}, tried[best])
                if _excess(tried[value], tried[best]) > _STOP:
                    break
                if _excess(tried[value], tried[best]) < 0.0:
                    best = value
        good = [p for p in tried if _excess(tried[p], tried[best]) <= _TOLERANCE]
        return {"prior_precision": max(good)}

    def _lower(self, at: dict[str, float], name: str) -> dict[str, float]:
        """The value below the present one that is clearly better; the present one without any."""
        value, losses = at[name], self._losses_at(at)
        least = self._default[name] / _DIVISOR**_MOST_LOWER
        while value / _DIVISOR > 0.9 * least:
            lower = self._losses_at({**at, name: value / _DIVISOR}, losses)
            if _excess(lower, losses) > -_CLEARLY:
                break
            value, losses = value / _DIVISOR, lower
        return {name: value}

    # -- one candidate --------------------------------------------------------------------------

    def _losses_at(self, values: dict[str, float], rival: np.ndarray | None = None) -> np.ndarray:
        """The losses of held-out examples under some hyperparameters, in nats, `[n]`.

        Args:
            values: the hyperparameters, by name.
            rival: losses of another candidate. Folds are left out once the candidate is beaten;
                the losses are then those of the first folds.
        """
        key = tuple(sorted(values.items()))
        if key not in self._tried:
            found = np.zeros(0)
            for fold in self._folds:
                # A fit that broke down has no loss: it must lose against every other.
                losses = np.nan_to_num(self._held_out(fold, values), nan=1e6, posinf=1e6)
                found = np.concatenate([found, losses])
                if rival is not None and _excess(found, rival) > _BEATEN:
                    break
            self._tried[key] = found
        return self._tried[key]

    def _held_out(self, fold: np.ndarray, values: dict[str, float]) -> np.ndarray:
        rest = np.setdiff1d(np.arange(len(self._examples)), fold)
        self._start.restore()
        examples = self._examples.take(rest)
        self._model.hyperparameters.assign(**values, num_examples=examples.total_weight)
        train = examples.dataset().shuffle(len(rest), seed=0)
        self._model.train_for(train.repeat().batch(self._plan.batch_size), self._plan.steps)
        held_out = self._examples.take(fold).dataset().batch(_ROWS)
        return np.concatenate([self._loss(*batch).numpy() for batch in held_out])

    def _row_losses(self, x: Any, y: Any, weights: Any = None) -> tf.Tensor:
        losses = -evaluated(self._model, x).log_prob(y)
        if weights is None:
            return losses
        return losses * tf.reduce_max(tf.reshape(weights, [tf.shape(losses)[0], -1]), axis=-1)


def _excess(losses: np.ndarray, others: np.ndarray) -> float:
    """By how many standard errors losses exceed others, row by row over the rows of both."""
    rows = min(len(losses), len(others))
    difference = losses[:rows] - others[:rows]
    error = float(difference.std()) / np.sqrt(rows)
    return float(difference.mean()) / max(error, 1e-12)
