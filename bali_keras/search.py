"""Prior, damping and scale of a `BaliModel`, found by short fits to parts of the training data.

Every candidate is judged by `model.cross_validation` inside of the training data. All fits see the
same batches. Most are far shorter than the user's; but what short fits of regressions of one hidden
layer ask for makes long ones worse. These are searched by fits of at least half the length of the
user's, where there is time for that, and keep the defaults unless others are clearly better. The
model starts anew after the search, on all of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bali_keras.inference.step import is_nll, trained_layers
from tfp_rank1.model.counting import batch_size_of, count_steps, count_training_examples
from tfp_rank1.model.cross_validation import (
    NUM_FOLDS,
    CrossValidation,
    affordable_fits,
    build_on,
    told,
)
from tfp_rank1.model.search_data import Examples, in_memory

__all__ = ["Plan", "Search", "plan_for", "search_for_hyperparameters"]

# Steps of one short fit, in which BALI comes close to where a long fit ends.
_MOST_STEPS, _LEAST_STEPS = 200, 100
# The same for nets of which short fits say too little, and the part of the user's fit that one of
# the search must have there.
_LONG_STEPS, _LEAST_PART = 1000, 0.5
# Cost of a step beside that of its rows, in rows of a small net.
_ROWS_PER_STEP = 64
# Candidates of a search, for the estimate of its cost: by short fits, and by long ones.
_CANDIDATES, _FEW_CANDIDATES = 8, 4
_FEW_FOLDS = 3
# Precisions are tried in steps of this factor, and within these bounds.
_RATIO, _LEAST, _LARGEST = 10.0**0.5, 1e-3, 3.0
# Damping and scale are tried at the default and below it, divided by this number up to so often.
# Below a ninth of the scale the held-out losses of short fits are no guide to those of long ones.
_DIVISOR, _MOST_LOWER = 3.0, 2
# By how many standard errors lower damping or scale must be better, and another precision where the
# default is kept otherwise.
_MARGIN, _MARGIN_OF_PRECISION = 2.0, 1.0
# Nets of fewer layers keep the scale 1, and for continuous targets are searched by longer fits.
_FEWEST_LAYERS = 3


class Plan(NamedTuple):
    """How much a search does.

    Attributes:
        folds: number of parts that are held out in turn; 1 holds out a fifth once.
        steps: steps of every fit of the search.
        batch_size: examples per step.
        is_wary: whether the default precision stays unless another is clearly better.
    """

    folds: int
    steps: int
    batch_size: int
    is_wary: bool = False


def plan_for(
    num_found: int, count: int, steps: int, batch_size: int, is_wary: bool = False
) -> Plan | None:
    """The plan for a fit; None if there is too little data or time.

    Args:
        num_found: examples that the search holds in memory.
        count: number of training examples.
        steps: number of steps of the fit.
        batch_size: examples per step of the fit.
        is_wary: whether to search by long fits, and to keep the defaults where they are as good.
    """
    rows = int(np.clip(num_found // 8, 16, 128))
    fits = affordable_fits(num_found, count, steps)
    budget = fits * steps * (batch_size + _ROWS_PER_STEP) / (rows + _ROWS_PER_STEP)
    if is_wary:
        # A fit of as many rows as the user's sees every example as often.
        full = steps * batch_size / rows
        most = int(min(_LONG_STEPS, full, budget / _FEW_CANDIDATES / _FEW_FOLDS))
        is_long = most >= max(_LEAST_STEPS, _LEAST_PART * full)
        return Plan(_FEW_FOLDS, most, rows, True) if is_long else None
    for folds in (NUM_FOLDS, 1):
        most = int(min(_MOST_STEPS, budget / _CANDIDATES / folds))
        if most >= _LEAST_STEPS:
            return Plan(folds, most, rows)
    return None


def search_for_hyperparameters(model: Any, arguments: dict[str, Any]) -> None:
    """Find the hyperparameters that `compile` left open, before the first fit of a model.

    Args:
        model: a `BaliModel`.
        arguments: the arguments of `fit`, by name.
    """
    wanted, count = _wanted(model), count_training_examples(model, arguments)
    of_fit = count, count_steps(arguments, count), batch_size_of(arguments)
    is_wary = not model.is_discrete and _is_shallow(model)
    # Before the data are read: a fit that is too short needs no look at them.
    if not wanted or plan_for(count, *of_fit, is_wary) is None:
        return
    examples = in_memory(arguments, count)
    plan = plan_for(len(examples), *of_fit, is_wary) if examples is not None else None
    if examples is None or plan is None:
        return
    build_on(model, examples)
    # A net that was trained before has seen what would be held out.
    if any(layer.prior_at_mean for layer in model.bali_layers):
        return

    def find(after_fit: Callable[[], None]) -> dict[str, float]:
        return Search(model, examples, plan, after_fit).run(wanted)

    model.hyperparameters.assign(**told(arguments, wanted, find))


def _wanted(model: Any) -> tuple[str, ...]:
    """Names of the hyperparameters to search for."""
    is_fresh = int(model._counters.updates.numpy()) == 0 and not model.hyperparameters.are_found
    if not is_fresh or not is_nll(model):
        return ()
    left_out = {"covariance_scale"} if _is_shallow(model) else set()
    if model.is_discrete:  # for classes and counts less damping was never better
        left_out.add("damping")
    return tuple(name for name in model._options.not_given if name not in left_out)


def _is_shallow(model: Any) -> bool:
    return len(trained_layers(model)) < _FEWEST_LAYERS


class Search:
    """A search for hyperparameters, on a model that is built, compiled and untrained.

    Args:
        model: a `BaliModel`.
        examples: training examples in an order of chance.
        plan: folds and lengths of the short fits.
        after_fit: called after every one. Defaults to nothing.
    """

    def __init__(
        self,
        model: Any,
        examples: Examples,
        plan: Plan,
        after_fit: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._plan = model, plan
        self._held_out = CrossValidation(model, examples, plan.folds, self._train, after_fit)
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
                    at[name] = self._found(at, name)
        finally:
            self._held_out.restore()
            self._model.hyperparameters.assign(**dict.fromkeys((*at, "num_examples"), 0.0))
        return {name: at[name] for name in wanted}

    def _found(self, at: dict[str, float], name: str) -> float:
        held_out, default = self._held_out, self._default[name]
        if name != "prior_precision":
            least = 0.9 * default / _DIVISOR**_MOST_LOWER
            return held_out.clearly_better(at, name, _DIVISOR, (least, default), _MARGIN)
        bounds = _LEAST, _LARGEST
        if self._plan.is_wary:
            return held_out.clearly_better(at, name, _RATIO, bounds, _MARGIN_OF_PRECISION)
        return held_out.largest_good(at, name, _RATIO, bounds)

    def _train(self, examples: Examples, values: dict[str, float]) -> None:
        self._model.hyperparameters.assign(**values, num_examples=examples.total_weight)
        self._model.train_for(examples.endless_batches(self._plan.batch_size), self._plan.steps)
