"""From predictions of held-out examples and their targets to conformal scores."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_rank1 import checks
from tfp_rank1.predictive.conformal import (
    BY_CLASS,
    DEFAULT_COVERAGE,
    Conformal,
    class_probabilities,
    grouped,
    groups_by_position,
    order_statistic,
)
from tfp_rank1.predictive.conformal_scores import CLASSES, NUMBERS, RAPS
from tfp_rank1.predictive.mixture import PredictiveMixture

__all__ = ["choose_raps", "conformalized", "joined_weights"]

# Penalties that RAPS chooses from, those of the paper, and the share of examples to choose by.
_PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)
_SHARE, _SEED = 0.2, 0


def conformalized(
    mixture: PredictiveMixture,
    y: Any,
    method: str | None = None,
    groups: Any = None,
    coverage: float | None = None,
    penalty: float | None = None,
    free_classes: int | None = None,
    weights: np.ndarray | None = None,
) -> Conformal:
    """Scores of held-out examples; errors are those of `BayesianModel.conformalize`.

    Args:
        mixture: predictions of the examples.
        y: targets of the examples, `[N]` or `[N, targets]`.
        method: as in `conformalize`, like all that follows.
        groups: None, `"class"`, or labels of groups `[N]`.
        coverage: of "cqr", and for the choice of "raps".
        penalty: of "raps".
        free_classes: of "raps".
        weights: as in `joined_weights`, of examples or of targets; those of weight 0 are left out.
    """
    num_samples = mixture.num_samples
    of_classes = mixture.likelihood.predicts_probabilities
    known = CLASSES if of_classes else NUMBERS
    method = checks.choice("method", next(iter(known)) if method is None else method, (*known,))
    _check_parameters(method, coverage, penalty, free_classes)
    if coverage is not None:
        coverage = checks.level(coverage, "coverage")
    if groups is not None and not isinstance(groups, str):
        groups = groups_by_position(groups, mixture)
    # Every position is an example of its own: the coverage is that of all positions together.
    y, mixture, weights = mixture.at_positions(y, weights)
    targets = mixture.prepare_targets(y)
    observed = mixture.observed(targets).numpy()
    if weights is not None:
        kept = np.asarray(weights) > 0.0
        observed &= kept if kept.ndim > 1 else kept[:, np.newaxis]
    if not observed.any():
        raise ValueError(
            "Conformal prediction needs held-out examples with targets. "
            f"Received: {observed.size} targets, none of them observed"
        )
    score = _score(method, coverage, penalty, free_classes)
    if of_classes:
        level = DEFAULT_COVERAGE if coverage is None else coverage
        found = _of_classes(mixture, targets, observed[:, 0], score, groups, level)
        return dataclasses.replace(found, num_samples=num_samples)
    values = np.where(observed, score.of_targets(mixture, targets).numpy(), np.nan)
    if isinstance(groups, str) and groups == BY_CLASS:
        raise ValueError(
            "groups='class' is for classes; give the group of every example in an array. "
            f"Received: groups='class' with a {type(mixture.likelihood).__name__} likelihood"
        )
    labels, codes = _groups(groups, len(values))
    arrays = [
        [column[(codes == i) & ~np.isnan(column)] for column in values.T]
        for i in range(len(labels))
    ]
    return Conformal(score, labels, False, grouped(arrays), num_samples)


def joined_weights(parts: list[Any]) -> Any:
    """The sample weights of all batches, refused unless examples count alike or not at all.

    Args:
        parts: weights of every batch, a structure of arrays, or None.

    Raises:
        ValueError: for weights of several sizes.
    """
    if all(part is None for part in parts):
        return None
    joined = keras.tree.map_structure(lambda *v: np.concatenate(list(map(np.asarray, v))), *parts)
    sizes = np.unique(np.concatenate([np.ravel(v) for v in keras.tree.flatten(joined)]))
    if len(sizes[sizes != 0.0]) > 1 or (sizes < 0.0).any():
        raise ValueError(
            "Conformal scores are order statistics, in which examples count alike: weights must be "
            f"0, which leaves an example out, or one number. Received: weights from {sizes.min()} "
            f"to {sizes.max()}"
        )
    return joined


def _of_classes(
    mixture: PredictiveMixture,
    targets: tf.Tensor,
    observed: np.ndarray,
    score: Any,
    groups: Any,
    coverage: float,
) -> Conformal:
    """Scores of classes; without a score RAPS is chosen, and the examples for it are left out."""
    probabilities = class_probabilities(mixture).numpy()
    labels = _class_labels(targets.numpy(), probabilities.shape[-1])
    chosen = np.flatnonzero(observed)
    if score is None:
        shuffled = np.random.default_rng(_SEED).permutation(chosen)
        first = math.ceil(_SHARE * len(chosen))
        held, chosen = shuffled[:first], np.sort(shuffled[first:])
        score = choose_raps(probabilities[held], labels[held], coverage)
    values = score.of_classes(tf.constant(probabilities)).numpy()
    values = values[chosen, labels[chosen]]
    by_class = isinstance(groups, str) and groups == BY_CLASS
    if by_class:
        names, codes = tuple(range(probabilities.shape[-1])), labels
    else:
        names, codes = _groups(groups, len(labels))
    arrays = [[values[codes[chosen] == i]] for i in range(len(names))]
    return Conformal(score, names, by_class, grouped(arrays))


def choose_raps(probabilities: np.ndarray, labels: np.ndarray, coverage: float) -> RAPS:
    """RAPS with the parameters that make the smallest sets.

    `free_classes` is the rank that a share `coverage` of the labels does not exceed; the penalty is
    the one of .001, .01, .1, .2 and .5 with the smallest mean size of sets on the same examples.

    Args:
        probabilities: `[n, C]`.
        labels: whole numbers `[n]`.
        coverage: strictly between 0 and 1.

    Source: Angelopoulos et al. (2021), algorithm 4 and appendix E.
    """
    own = np.take_along_axis(probabilities, labels[:, np.newaxis], axis=1)
    ranks = 1 + np.sum(probabilities > own, axis=1)
    free = int(min(order_statistic(ranks, coverage), probabilities.shape[-1]))

    def mean_size(penalty: float) -> float:
        score = RAPS(penalty, free)
        values = score.of_classes(tf.constant(probabilities)).numpy()
        own_values = np.take_along_axis(values, labels[:, np.newaxis], axis=1)[:, 0]
        threshold = np.float32(order_statistic(own_values, coverage))
        sets = score.holds(tf.constant(probabilities), tf.constant(threshold))
        return float(np.mean(np.sum(sets.numpy(), axis=1)))

    return RAPS(min(_PENALTIES, key=mean_size), free)


def _score(
    method: str, coverage: float | None, penalty: float | None, free_classes: int | None
) -> Any:
    """The score of a method; None for RAPS whose parameters are to be chosen."""
    if method == "cqr":
        return NUMBERS[method](coverage)
    if method == "raps":
        given = penalty is not None and free_classes is not None
        return RAPS(float(penalty or 0.0), int(free_classes or 0)) if given else None
    return {**CLASSES, **NUMBERS}[method]()


def _check_parameters(
    method: str, coverage: float | None, penalty: float | None, free_classes: int | None
) -> None:
    """Refuse parameters that the method does not have, or that it lacks."""
    if method == "cqr" and coverage is None:
        raise ValueError(
            "Method 'cqr' moves two quantiles, which belong to one coverage: pass coverage=0.9, "
            "or use method='normalized'. Received: coverage=None"
        )
    has_one = penalty is not None or free_classes is not None
    if method != "raps" and has_one:
        raise ValueError(
            "Arguments `penalty` and `free_classes` are for method 'raps'. "
            f"Received: method={method!r}, penalty={penalty}, free_classes={free_classes}"
        )
    if has_one and (penalty is None or free_classes is None):
        raise ValueError(
            "Give both `penalty` and `free_classes`, or neither to have them chosen. "
            f"Received: penalty={penalty}, free_classes={free_classes}"
        )
    if penalty is not None and not 0.0 <= penalty < math.inf:
        raise ValueError(
            f"Argument `penalty` must be a finite number of at least 0. Received: {penalty}"
        )
    if free_classes is not None:
        checks.whole("free_classes", free_classes, least=0)


def _class_labels(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Classes `[N]` from labels `[N, 1]` or one-hot rows `[N, C]`; 0 for a missing class.

    Raises:
        ValueError: for rows of soft labels, as no class is the right one.
    """
    if targets.shape[-1] == 1:
        label = targets[:, 0]
        return np.where((label >= 0) & (label < num_classes), label, 0).astype(int)
    if targets.max(axis=-1).min() < 0.999:
        raise ValueError(
            "Conformal prediction needs one class for every example. "
            "Received: rows of probabilities that are not one-hot"
        )
    return targets.argmax(axis=-1)


def _groups(groups: Any, examples: int) -> tuple[tuple[Any, ...], np.ndarray]:
    """Labels of the groups, and the number of every example's group, `[N]`."""
    if groups is None:
        return (None,), np.zeros(examples, int)
    given = np.asarray(groups)
    if given.dtype.kind == "O" and all(isinstance(v, str) for v in np.ravel(given)):
        given = given.astype(str)  # as a column of a table comes
    if isinstance(groups, str) or given.shape != (examples,) or given.dtype.kind not in "biufU":
        raise ValueError(
            f"Argument `groups` must be None, 'class', or an array [{examples}] of numbers or "
            f"texts. Received: groups of shape {given.shape} and dtype {given.dtype}"
        )
    labels, codes = np.unique(given, return_inverse=True)
    return tuple(labels.tolist()), np.ravel(codes)
