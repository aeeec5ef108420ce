"""Examples in the order of a score, and groups of examples with equal scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_rank1.metrics.ood import default_score, ood_score
from tfp_rank1.metrics.risk import area_under_risk, default_loss, losses_by_example
from tfp_rank1.predictive.mixture import PredictiveMixture

__all__ = ["Ranking", "ranked"]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Examples with the lowest score first, the order in which they are kept.

    Attributes:
        score: scores, ascending, `[N]`.
        loss: losses in the same order, `[N]`.
        weight: weights in the same order, above 0, `[N]`.
    """

    score: np.ndarray
    loss: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, score: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> Ranking:
        """The ranking of examples in any order."""
        order = np.argsort(score, kind="stable")
        return cls(score[order], loss[order], weight[order])

    def best(self) -> Ranking:
        """The ranking of a score that knows the losses."""
        return Ranking.of(self.loss, self.loss, self.weight)

    def first_of_groups(self) -> np.ndarray:
        """Where a group of equal scores begins, `[G]`."""
        return np.flatnonzero(np.r_[True, self.score[1:] != self.score[:-1]])

    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums over each group of the weight, and of weight times loss, `[G]`."""
        first = self.first_of_groups()
        weight = np.add.reduceat(self.weight, first)
        return weight, np.add.reduceat(self.weight * self.loss, first)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Coverage and risk with the first n examples kept, n = 1..N.

        Within a group, risk is the mean over all orders of the group: that with each example in it
        at the mean loss.
        """
        weight, loss = self.groups()
        first = self.first_of_groups()
        mean = np.repeat(loss / weight, np.diff(np.r_[first, len(self.score)]))
        kept = np.cumsum(self.weight)
        return kept / kept[-1], np.cumsum(self.weight * mean) / kept

    def area(self) -> float:
        """The area under `curve`."""
        return float(area_under_risk(*map(tf.constant, self.groups())))


def ranked(
    p: PredictiveMixture,
    y: Any,
    score: Any = None,
    loss: str | None = None,
    sample_weight: Any = None,
) -> Ranking:
    """The examples of a prediction that have a target, ranked.

    Args:
        p: the prediction of N examples.
        y: targets `[N]` or `[N, targets]`; examples without any are left out. Every position of
            `[N, ..., targets]` is an example of its own.
        score: a score of `ood_score`, or numbers `[N]`. Defaults to None: `default_score`.
        loss: see `losses_by_example`. Defaults to None: `default_loss`.
        sample_weight: `[N]` or `[N, targets]`. Defaults to None: 1.

    Raises:
        ValueError: for scores of another shape, NaN scores, or without any example that counts.
    """
    _check_prediction(p, y, sample_weight)
    y, mixture, sample_weight = p.at_positions(y, sample_weight)
    chosen = loss or default_loss(mixture.likelihood)
    found = losses_by_example(y, mixture, chosen, sample_weight)
    losses, weights = (np.asarray(v, "float64") for v in found)
    scores = _scores(mixture, score, len(losses))
    counted = weights > 0.0
    if not counted.any():
        raise ValueError(
            "No example counts: all targets are missing, or all weights are 0. "
            f"Received: {len(losses)} examples"
        )
    return Ranking.of(scores[counted], losses[counted], weights[counted])


def _check_prediction(p: Any, y: Any, sample_weight: Any) -> None:
    """Refuse a prediction without samples, another number of targets, and odd weights."""
    if not isinstance(p, PredictiveMixture):
        raise ValueError(
            "Argument `p` must be a prediction with its samples: posterior_predictive(x), with "
            f"reduce=None. Received: a {type(p).__name__}"
        )
    examples, targets = int(p.outputs.shape[0]), np.shape(y)
    if not targets or targets[0] != examples:
        raise ValueError(
            f"Argument `y` must have a target for each of the {examples} examples of `p`. "
            f"Received: y of shape {targets}"
        )
    weights = np.zeros(0) if sample_weight is None else np.asarray(sample_weight, "float64")
    if not np.isfinite(weights).all() or (weights < 0.0).any():
        raise ValueError(
            "Argument `sample_weight` must be finite and at least 0. Received: "
            f"min={weights.min()}, max={weights.max()}"
        )


def _scores(mixture: PredictiveMixture, score: Any, num_examples: int) -> np.ndarray:
    if score is None or isinstance(score, str):
        scores = np.asarray(ood_score(mixture, score or default_score(mixture.likelihood)))
    else:
        scores = np.asarray(score)
    if scores.shape != (num_examples,):
        raise ValueError(
            "Argument `score` must be the name of a score, or one number per example, "
            f"[{num_examples}]. Received: shape {scores.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError(
            "Scores must be numbers, which have an order. Received: NaN in "
            f"{np.isnan(scores).sum()} of {num_examples} scores, score={score!r}"
        )
    return scores
