"""The precision p of the kernels' prior, found by fits to parts of the training data.

A noisy table of some hundred rows asks for a p a hundred times that of clean digits, and a net that
is trained to the end overfits without it. Every candidate is judged by `model.cross_validation`, by
fits as long as the user's, up to 1,500 steps: overfitting shows at the end of a fit only. That
costs several fits, so it is left to small tables of classes or counts; beyond, and for continuous
targets, where p hardly matters, the default is used. The model starts anew after the search, on all
of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_rank1.losses import NegativeLogLikelihood
from tfp_rank1.model.counting import batch_size_of, count_steps, count_training_examples
from tfp_rank1.model.cross_validation import CrossValidation, affordable_fits, build_on, told
from tfp_rank1.model.kernel_prior import is_open
from tfp_rank1.model.search_data import Examples, in_memory

__all__ = ["find_kernel_precision", "folds_for"]

# Precisions are tried from the first one on, in steps of this factor and within these bounds.
_FIRST, _RATIO, _LEAST, _LARGEST = 0.1, 10.0**0.5, 0.0031, 3.2
# In so many steps a small table is overfitted.
_MOST_STEPS = 1500
# Candidates of a search, for the estimate of its cost.
_CANDIDATES = 4
_MOST_FOLDS = 3


def folds_for(count: int, steps: int) -> int:
    """How many folds a search may hold out in turn; 0 where it is not worth its time.

    Args:
        count: number of training examples.
        steps: number of steps of the fit.
    """
    return min(_MOST_FOLDS, int(affordable_fits(count, count, steps) / _CANDIDATES))


def find_kernel_precision(model: Any, arguments: dict[str, Any]) -> None:
    """Find p where `compile` left it open, before the first fit of a model.

    Args:
        model: a `BayesianModel`.
        arguments: the arguments of `fit`, by name.
    """
    if not _is_wanted(model, arguments):
        return
    count = count_training_examples(model, arguments)
    steps = count_steps(arguments, count)
    # Before the data are read: a fit that is too short or too large needs no look at them.
    num_folds = folds_for(count, steps)
    examples = in_memory(arguments, count) if num_folds else None
    if examples is None or len(examples) < count:
        return
    build_on(model, examples)

    def find(after_fit: Callable[[], None]) -> dict[str, float]:
        found = _search(model, examples, num_folds, steps, arguments, after_fit)
        return {"kernel_precision": found}

    found = told(arguments, ("kernel_precision",), find)
    model.found_kernel_precision.assign(found["kernel_precision"])


def _is_wanted(model: Any, arguments: dict[str, Any]) -> bool:
    """Whether a search may begin: a fresh net, one replica, and a fit of known length."""
    if model.has_seen_data or not is_open(model):
        return False
    # Under a loss of Keras held-out likelihoods are not what is trained for.
    if not model.is_discrete or not isinstance(model.loss, NegativeLogLikelihood):
        return False
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        return False
    # A fit that stops early is as long as its validation data say.
    given = keras.tree.flatten(arguments.get("callbacks"))
    return not any(isinstance(v, keras.callbacks.EarlyStopping) for v in given)


def _search(
    model: Any,
    examples: Examples,
    num_folds: int,
    steps: int,
    arguments: dict[str, Any],
    after_fit: Callable[[], None],
) -> float:
    """The largest p that is as good as the best one; the model is left as it was."""
    batch_size = batch_size_of(arguments)

    def train(rest: Examples, values: dict[str, float]) -> None:
        model.found_kernel_precision.assign(values["p"])
        length = max(1, min(_MOST_STEPS, steps * len(rest) // len(examples)))
        model.train_for(rest.endless_batches(batch_size), length)

    held_out = CrossValidation(model, examples, num_folds, train, after_fit)
    try:
        return held_out.largest_good({"p": _FIRST}, "p", _RATIO, (_LEAST, _LARGEST))
    finally:
        held_out.restore()
        model.found_kernel_precision.assign(None)
