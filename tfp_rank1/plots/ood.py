"""Scores that tell out-of-distribution examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_rank1.metrics import ood_score
from tfp_rank1.plots.style import (
    BLUE,
    ORANGE,
    draw_diagonal,
    entry,
    look,
    new_axes,
    require_predictions,
    sklearn_metrics,
)
from tfp_rank1.predictive import PredictiveMixture

__all__ = ["ood_histogram", "ood_roc"]


@look
def ood_histogram(
    inside: PredictiveMixture, outside: PredictiveMixture, score: str = "entropy", ax: Any = None
) -> Any:
    """Histograms of a score on ordinary and on out-of-distribution examples.

    Args:
        inside: predictive distribution of examples like the training data.
        outside: predictive distribution of examples unlike the training data.
        score: see `tfp_rank1.metrics.ood_score`. Defaults to `"entropy"`.
        ax: matplotlib axes. Defaults to new axes.

    Returns:
        The axes.
    """
    values = [_scores("inside", inside, score), _scores("outside", outside, score)]
    ax = ax or new_axes()
    edges = np.linspace(min(map(np.min, values)), max(map(np.max, values)), 31)
    for value, color, label in zip(
        values, (BLUE, ORANGE), ("in distribution", "out of distribution"), strict=True
    ):
        # Shares and no counts, because the two sets may differ in size.
        share = np.full(len(value), 1.0 / len(value))
        ax.hist(value, edges, weights=share, alpha=0.6, color=color, label=label)
    ax.set(xlabel=score.replace("_", " "), ylabel="share of examples")
    ax.legend()
    return ax


@look
def ood_roc(
    inside: PredictiveMixture,
    outside: PredictiveMixture,
    score: str = "entropy",
    ax: Any = None,
    label: str = "",
) -> Any:
    """ROC curve, with its area, of a score that detects out-of-distribution examples.

    Args:
        inside: predictive distribution of examples like the training data.
        outside: predictive distribution of examples unlike the training data.
        score: see `tfp_rank1.metrics.ood_score`. Defaults to `"entropy"`.
        ax: matplotlib axes; several models may share them. Defaults to new axes.
        label: name of the model, for the legend.

    Returns:
        The axes.
    """
    values = [_scores("inside", inside, score), _scores("outside", outside, score)]
    ax = ax or new_axes()
    is_outside = np.repeat([0, 1], [len(v) for v in values])
    false_positive, true_positive, _ = sklearn_metrics.roc_curve(is_outside, np.concatenate(values))
    area = sklearn_metrics.auc(false_positive, true_positive)
    draw_diagonal(ax)
    ax.plot(false_positive, true_positive, label=entry(label, f"AUROC {area:.3f}"))
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="false positive rate", ylabel="true positive rate")
    ax.legend(loc="lower right")
    return ax


def _scores(name: str, p: PredictiveMixture, score: str) -> np.ndarray:
    """The score of every example, or of every position that no mask leaves out, `[N P]`."""
    require_predictions(name, p)
    by_position = p.by_position()
    values = np.asarray(ood_score(by_position, score))
    return values if by_position.mask is None else values[np.asarray(by_position.mask)]
