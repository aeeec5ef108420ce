"""Candidates for hyperparameters, compared by cross-validation inside of the training data.

    loss_n = -log p(y_n | x_n, fit without the fold of n)        (nats)

All fits start at the same weights, so that candidates differ by nothing but their hyperparameters.
Noise in the losses must not decide: two candidates are compared by the paired difference of their
losses, in units of its standard error. Of two precisions that are equally good by this measure the
larger is taken, because a prior that is too weak costs far more than one that is too strong.
Where the default is known to be good, only a value that is clearly better takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1 import heads
from tfp_rank1.model.all_or_nothing import Snapshot
from tfp_rank1.model.search_data import Examples
from tfp_rank1.model.step import make_variables
from tfp_rank1.predictive import evaluated

__all__ = ["NUM_FOLDS", "CrossValidation", "affordable_fits", "build_on", "excess", "told"]

NUM_FOLDS = 5
# Fits with fewer steps end before any hyperparameter matters much, and fewer examples say nothing.
_SHORTEST_FIT, _FEWEST_EXAMPLES = 100, 40
# A search may cost this many fits for up to `_FEW` examples, and a twentieth of one for 60,000.
_MOST_COST, _FEW = 12.0, 1500.0
# Differences between candidates, in standard errors: up to `_TOLERANCE` they are equally good, and
# from `_STOP` on nothing better lies behind the worse one.
_TOLERANCE, _STOP = 0.5, 2.0
# Rows per pass of the held-out loss.
_ROWS = 1024
# A candidate that exceeds another by so many standard errors is beaten: the remaining folds will
# not change that.
_BEATEN = 4.0


def affordable_fits(num_found: int, count: int, steps: int) -> float:
    """How many fits of the user's length a search may cost; 0 where it is not worth its time.

    Args:
        num_found: examples that the search holds in memory.
        count: number of training examples.
        steps: number of steps of the fit.
    """
    if num_found < _FEWEST_EXAMPLES or steps < _SHORTEST_FIT:
        return 0.0
    return _MOST_COST * min(1.0, _FEW / max(count, 1.0)) ** 1.5


def build_on(model: Any, examples: Examples) -> None:
    """Build a model and its optimizer on inputs like those of the examples."""
    make_variables(model, keras.tree.map_structure(tf.convert_to_tensor, examples.first(2).x))


def told(
    arguments: dict[str, Any],
    names: tuple[str, ...],
    find: Callable[[Callable[[], None]], dict[str, float]],
) -> dict[str, float]:
    """Search, and tell what is looked for and found, unless the `fit` is silent.

    Args:
        arguments: the arguments of `fit`, by name.
        names: what is looked for.
        find: the search; it calls its argument after every fit, and returns the values by name.
    """
    if arguments.get("verbose", "auto") in (0, "0"):
        return find(lambda: None)
    wanted = ", ".join(f"`{name}`" for name in names)
    given = ", ".join(f"{name}=..." for name in names)
    print(
        f"Looking for {wanted} by fits to parts of the training data, once; "
        f"compile({given}) skips this."
    )
    progress = keras.utils.Progbar(None, unit_name="fit")
    found = find(lambda: progress.add(1))
    print("\nFound: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()))
    return found


class CrossValidation:
    """Held-out losses of a model under some hyperparameters.

    Args:
        model: a `BayesianModel` that is built, compiled and untrained.
        examples: training examples in an order of chance.
        num_folds: how many of the five folds are held out in turn.
        train: trains the model, `train(examples, values)`, under the hyperparameters `values`,
            by name.
        after_fit: called after every fit.
    """

    def __init__(
        self,
        model: Any,
        examples: Examples,
        num_folds: int,
        train: Callable[[Examples, dict[str, float]], None],
        after_fit: Callable[[], None],
    ) -> None:
        self._model, self._examples, self._train = model, examples, train
        self._after_fit = after_fit
        self._start = Snapshot(model.every_variable)
        self._loss = tf.function(self._row_losses, autograph=False, reduce_retracing=True)
        # Folds of one size: N is a number in the graph of the held-out loss.
        size = len(examples) // NUM_FOLDS
        self._folds = [np.arange(i * size, (i + 1) * size) for i in range(num_folds)]
        self._tried: dict[tuple[Any, ...], np.ndarray] = {}

    def losses(
        self,
        values: dict[str, float],
        rival: np.ndarray | None = None,
        beaten: float = _BEATEN,
    ) -> np.ndarray:
        """The losses of held-out examples under some hyperparameters, in nats, `[n]`.

        Args:
            values: the hyperparameters, by name.
            rival: losses of another candidate. Folds are left out once the candidate is beaten;
                the losses are then those of the first folds.
            beaten: by how many standard errors it must exceed its rival for that.
        """
        key = tuple(sorted(values.items()))
        if key not in self._tried:
            found = np.zeros(0)
            for fold in self._folds:
                # A fit that broke down has no loss: it must lose against every other.
                losses = np.nan_to_num(self._held_out(fold, values), nan=1e6, posinf=1e6)
                found = np.concatenate([found, losses])
                if rival is not None and excess(found, rival) > beaten:
                    break
            self._tried[key] = found
        return self._tried[key]

    def largest_good(
        self, values: dict[str, float], name: str, ratio: float, bounds: tuple[float, float]
    ) -> float:
        """The largest precision that is as good as the best one.

        Args:
            values: the hyperparameters to start from, by name.
            name: the precision to choose; it is tried above and below its value in `values`.
            ratio: of two precisions that are tried in turn, above 1.
            bounds: least and largest precision to try.
        """
        least, largest = bounds
        best = values[name]
        tried = {best: self.losses(values)}
        for step in (ratio, 1.0 / ratio):
            value = values[name]
            while least <= value * step <= largest:
                value *= step
                tried[value] = self.losses({**values, name: value}, tried[best])
                if excess(tried[value], tried[best]) > _STOP:
                    break
                if excess(tried[value], tried[best]) < 0.0:
                    best = value
        return max(p for p in tried if excess(tried[p], tried[best]) <= _TOLERANCE)

    def clearly_better(
        self,
        values: dict[str, float],
        name: str,
        ratio: float,
        bounds: tuple[float, float],
        margin: float,
    ) -> float:
        """The value to which steps lead that are clearly better each; the present one without any.

        Args:
            values: the hyperparameters to start from, by name.
            name: the one to choose; upwards first, and downwards if that does not help.
            ratio: of two values that are tried in turn, above 1.
            bounds: least and largest value to try.
            margin: by how many standard errors a step must be better.
        """
        least, largest = bounds
        for step in (ratio, 1.0 / ratio):
            value, losses = values[name], self.losses(values)
            while least <= value * step <= largest:
                # What is no better on the first folds will not be clearly better on all.
                other = self.losses({**values, name: value * step}, losses, beaten=0.0)
                if excess(other, losses) > -margin:
                    break
                value, losses = value * step, other
            if value != values[name]:
                return value
        return values[name]

    def restore(self) -> None:
        """Leave the model as it was at the start."""
        self._start.restore()

    def _held_out(self, fold: np.ndarray, values: dict[str, float]) -> np.ndarray:
        self._start.restore()
        rest = np.setdiff1d(np.arange(len(self._examples)), fold)
        self._train(self._examples.take(rest), values)
        self._after_fit()
        held_out = self._examples.take(fold).dataset().batch(_ROWS)
        return np.concatenate([self._loss(*batch).numpy() for batch in held_out])

    def _row_losses(self, x: Any, y: Any, weights: Any = None) -> tf.Tensor:
        own = self._model.likelihood
        given = heads.for_each("sample_weight", own, weights)
        mixture, y = evaluated(self._model, x), heads.matched("y", own, y)
        return tf.add_n(heads.parts(own, heads.map_heads(_losses_of, own, mixture, y, given)))


def _losses_of(_: Any, mixture: Any, y: Any, weights: Any) -> tf.Tensor:
    losses = -mixture.log_prob(y)
    if weights is None:
        return losses
    return losses * tf.reduce_max(tf.reshape(weights, [tf.shape(losses)[0], -1]), axis=-1)


def excess(losses: np.ndarray, others: np.ndarray) -> float:
    """By how many standard errors losses exceed others, row by row over the rows of both."""
    rows = min(len(losses), len(others))
    difference = losses[:rows] - others[:rows]
    error = float(difference.std()) / np.sqrt(rows)
    return float(difference.mean()) / max(error, 1e-12)
