"""What rejecting the least certain examples gains."""

from __future__ import annotations

from typing import Any

from tfp_rank1 import metrics
from tfp_rank1.plots.style import entry, look, new_axes, points_of
from tfp_rank1.predictive import PredictiveMixture

__all__ = ["risk_coverage", "sparsification"]


@look
def risk_coverage(
    y: Any,
    predictive: PredictiveMixture,
    score: Any = None,
    loss: str | None = None,
    ax: Any = None,
    label: str = "",
) -> Any:
    """Risk of the examples that are kept, against their share.

    A model that knows where it errs falls steeply to the left. The first percents are the mean over
    few examples, and jump. The legend names the area under the curve.

    Args:
        y: targets `[N]` or `[N, targets]`.
        predictive: predictive distribution of the examples.
        score: as in `metrics.risk_coverage`. Defaults to None: that of the likelihood.
        loss: as in `metrics.risk_coverage`. Defaults to None: that of the likelihood.
        ax: matplotlib axes; several models may share them. Defaults to new axes.
        label: name of the model, for the legend.

    Returns:
        The axes.

    Source: see `metrics.risk_coverage`.
    """
    curve = metrics.risk_coverage(predictive, y, score, loss)
    ax = ax or new_axes()
    ax.plot(
        curve.coverage,
        curve.risk,
        label=entry(label, f"AURC {curve.aurc:.3g}"),
        **points_of(curve.risk),
    )
    ax.set(xlim=(0, 1), xlabel="coverage", ylabel="risk")
    if curve.risk.min() >= 0.0:  # unlike a log-loss of densities
        ax.set_ylim(bottom=0.0, auto=True)  # the top is that of the largest of all models
    ax.legend(loc="lower right")
    return ax


@look
def sparsification(
    y: Any, predictive: PredictiveMixture, score: Any = None, ax: Any = None, label: str = ""
) -> Any:
    """Error of the rest of a regression, against the share of the least certain removed.

    The dashed line of the same colour is the oracle, which removes the largest errors first; the
    legend names the area between the two lines, relative to the error of all examples.

    Args:
        y: targets `[N]` or `[N, targets]`.
        predictive: predictive distribution of a regression.
        score: as in `metrics.sparsification`. Defaults to None: the total predictive variance.
        ax: matplotlib axes; several models may share them. Defaults to new axes.
        label: name of the model, for the legend.

    Returns:
        The axes.

    Source: see `metrics.sparsification`.
    """
    curve = metrics.sparsification(predictive, y, score)
    ax = ax or new_axes()
    title = entry(label, f"AUSE {curve.ause:.3f}")
    (line,) = ax.plot(curve.removed, curve.error, label=title, **points_of(curve.error))
    ax.plot(curve.removed, curve.oracle, color=line.get_color(), linewidth=1, linestyle="--")
    ax.set(xlim=(0, 1), xlabel="share removed", ylabel="RMSE of the rest")
    ax.set_ylim(bottom=0.0, auto=True)  # the top is that of the largest of all models
    ax.legend(loc="upper right")
    return ax
