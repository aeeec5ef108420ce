"""Abstaining: the threshold of a score that keeps the risk below a target."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow_probability as tfp

from tfp_rank1.metrics.ranking import Ranking, ranked
from tfp_rank1.predictive.mixture import PredictiveMixture

__all__ = ["Abstention", "abstention_threshold"]


class Abstention(NamedTuple):
    """Answer where the score is at most `threshold`, abstain elsewhere.

    Attributes:
        threshold: the largest score that is kept.
        coverage: share of the examples that is kept.
        risk: their mean loss.
        bound: with a `confidence`, the upper bound of the true risk; else None.
    """

    threshold: float
    coverage: float
    risk: float
    bound: float | None


def abstention_threshold(
    p: PredictiveMixture,
    y: Any,
    risk: float,
    score: Any = None,
    loss: str | None = None,
    confidence: float | None = None,
    sample_weight: Any = None,
) -> Abstention:
    """The threshold that keeps the most examples at a risk of at most `risk`.

        threshold = max {t : mean loss of the examples with score <= t is at most risk}

    The risk on the examples at hand is an estimate: about every second such threshold exceeds it on
    new examples. With a `confidence` c the upper bound b of Clopper and Pearson, for k errors among
    the m examples that are kept, takes the place of the mean:

        P(Binomial(m, b) <= k) = delta,   delta = (1 - c) / ceil(log2(N + 1))

    The search halves the thresholds, up if b is at most `risk` and down if not, and `delta` is the
    share of each of its steps. With probability c over the choice of the N examples, the error on
    new examples that are kept is at most `risk`, if new examples are like these, these were not
    trained on, and the true risk grows with the coverage.

    Args:
        p: a `PosteriorPredictive` of held-out examples.
        y: targets `[N]` or `[N, targets]`; examples without any are left out.
        risk: the largest mean loss allowed, in units of the loss: 0.02 allows 2 % errors.
        score: as in `risk_coverage`.
        loss: as in `risk_coverage`; with a `confidence` only `"error"`, with one target.
        confidence: strictly between 0 and 1, such as 0.95. Defaults to None: no guarantee.
        sample_weight: as in `risk_coverage`; not with a `confidence`.

    Returns:
        An `Abstention`. Examples of equal score are kept together or not at all.

    Raises:
        ValueError: if no threshold reaches `risk`, with the lowest one that is reached; for a
            `confidence` with weights, or with a loss other than 0 and 1.

    Example:
    ```python
    rule = r1.metrics.abstention_threshold(p_validation, y_validation, risk=0.02, confidence=0.95)
    is_answered = r1.metrics.ood_score(p, "max_probability") <= rule.threshold
    ```

    Source: Geifman & El-Yaniv (2017), "Selective Classification for Deep Neural Networks". There
    the last threshold of the search is returned, and here the best one whose bound holds.
    """
    if not math.isfinite(risk):
        raise ValueError(f"Argument `risk` must be a finite number. Received: risk={risk}")
    ranking = ranked(p, y, score, loss, sample_weight)
    weight, losses = ranking.groups()
    kept, lost = np.cumsum(weight), np.cumsum(losses)
    if confidence is None:
        bounds = lost / kept
        reached = np.flatnonzero(bounds <= risk)
        last = int(reached[-1]) if len(reached) else None
    else:
        _check_guarantee(ranking, confidence, sample_weight)
        delta = (1.0 - confidence) / math.ceil(math.log2(len(ranking.score) + 1))
        bounds = error_bound(lost, kept, delta)
        last = _found_by_halves(bounds <= risk)
    if last is None:
        raise ValueError(_unreached(bounds, kept, risk))
    ends = np.r_[ranking.first_of_groups()[1:], len(ranking.score)] - 1
    return Abstention(
        float(ranking.score[ends[last]]),
        float(kept[last] / kept[-1]),
        float(lost[last] / kept[last]),
        None if confidence is None else float(bounds[last]),
    )


def error_bound(errors: np.ndarray, trials: np.ndarray, delta: float) -> np.ndarray:
    """The probability b of an error with `P(Binomial(trials, b) <= errors) = delta`; 1 if all err.

    Source: Clopper & Pearson (1934), "The Use of Confidence or Fiducial Limits Illustrated in the
    Case of the Binomial".
    """
    right = np.maximum(trials - errors, 0.5)  # any number above 0 where all err
    bound = np.asarray(tfp.math.betaincinv(errors + 1.0, right, np.full(len(right), 1.0 - delta)))
    return np.where(errors < trials, bound, 1.0)


def _found_by_halves(is_low: np.ndarray) -> int | None:
    """The last group that a search by halves finds to keep the risk low; None if none.

    The search looks at few thresholds, which chance deceives less often than all.
    """
    low, high = 0, len(is_low)  # numbers of groups that are kept
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_low[middle - 1] else (low, middle - 1)
    return low - 1 if low else None


def _check_guarantee(ranking: Ranking, confidence: float, sample_weight: Any) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            "Argument `confidence` must lie strictly between 0 and 1. "
            f"Received: confidence={confidence}"
        )
    if sample_weight is not None:
        raise ValueError(
            "A guarantee needs examples that count alike: pass confidence=None, or no weights. "
            f"Received: confidence={confidence} with a sample_weight"
        )
    if not np.isin(ranking.loss, (0.0, 1.0)).all():
        raise ValueError(
            "A guarantee needs one decision per example, right or wrong: loss='error' with one "
            "target. Pass confidence=None for other losses. Received: losses from "
            f"{ranking.loss.min():.4g} to {ranking.loss.max():.4g}"
        )


def _unreached(bounds: np.ndarray, kept: np.ndarray, risk: float) -> str:
    best = int(np.argmin(bounds))
    untried = ", at a threshold that the search does not try" * bool(bounds[best] <= risk)
    return (
        f"No threshold was found that keeps the risk at {risk} or below. The lowest is "
        f"{bounds[best]:.4g}, with {kept[best] / kept[-1]:.1%} of the examples kept{untried}. "
        f"Allow more risk, give more examples, or choose another score. Received: risk={risk}"
    )
