"""Calibration: of the classes' probabilities, and of a regression's quantiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_rank1.metrics import ExpectedCalibrationError
from tfp_rank1.plots.style import GRAY, draw_diagonal, entry, look, new_axes, require_predictions
from tfp_rank1.predictive import PredictiveMixture

__all__ = ["calibration_curve", "reliability_diagram"]


@look
def reliability_diagram(
    y: Any, predictive: PredictiveMixture, num_bins: int = 10, ax: Any = None, label: str = ""
) -> Any:
    """Accuracy against confidence in bins of equal width.

    Points on the diagonal are calibrated; below the diagonal the model is overconfident. The area
    of a point shows the share of examples in its bin, the bar one binomial standard error of the
    accuracy: a point far off with a long bar means little.

    Args:
        y: labels `[N]`.
        predictive: predictive distribution with a Categorical or Bernoulli likelihood.
        num_bins: number of bins. Defaults to 10.
        ax: matplotlib axes; several models may share them. Defaults to new axes.
        label: name of the model, for the legend.

    Returns:
        The axes.
    """
    require_predictions("predictive", predictive)
    calibration = ExpectedCalibrationError(num_bins)
    calibration.update_state(y, predictive)
    ax = ax or new_axes()
    sums = np.asarray(calibration.sums)
    count, confidence, correct = sums[:, sums[0] > 0]
    accuracy = correct / count
    # Laplace's rule of succession gives a bin without mistakes an error above 0 as well.
    smoothed = (correct + 1.0) / (count + 2.0)
    error = np.sqrt(smoothed * (1.0 - smoothed) / count)
    draw_diagonal(ax)
    title = entry(label, f"ECE {float(calibration.result()):.3f}")
    (line,) = ax.plot(confidence / count, accuracy, linewidth=1, alpha=0.5)
    color = line.get_color()
    ax.errorbar(confidence / count, accuracy, error, fmt="none", color=color, alpha=0.5)
    sizes = 15.0 + 250.0 * count / count.sum()
    ax.scatter(confidence / count, accuracy, sizes, color=color, alpha=0.8, label=title)
    ax.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="accuracy")
    legend = ax.legend()
    # The areas of points differ from bin to bin; in the legend all models have one.
    for handle in legend.legend_handles:
        handle.set_sizes([40.0])
    return ax


@look
def calibration_curve(
    y: Any, predictive: PredictiveMixture, num_levels: int = 100, ax: Any = None, label: str = ""
) -> Any:
    """Share of targets below the predicted quantile of a level, against the level.

        share(u) = 1/N sum_n P(cdf_n <= u)

    `cdf_n` is the predictive distribution function at the target n, and the indicator
    `[cdf_n <= u]` for continuous targets. For counts, which have no quantile of every level,
    `cdf_n` is spread evenly from `P(Y < y_n)` to `P(Y <= y_n)`.

    Points on the diagonal are calibrated. A curve that is flat at both ends, where few targets lie,
    is underconfident; one that is steep at both ends is overconfident. A curve above the diagonal
    predicts too much. The band is two binomial standard errors of the share of
    N calibrated predictions, for the model that is drawn first. The legend names the miscalibration
    area between curve and diagonal.

    Args:
        y: targets `[N]` or `[N, targets]`, NaN where missing; all targets count alike.
        predictive: predictive distribution of a regression.
        num_levels: number of steps between 0 and 1. Defaults to 100.
        ax: matplotlib axes; several models may share them. Defaults to new axes.
        label: name of the model, for the legend.

    Returns:
        The axes.

    Raises:
        ValueError: for a likelihood with probabilities, for which there is `reliability_diagram`,
            or without any target.

    Source: Kuleshov et al. (2018), "Accurate Uncertainties for Deep Learning Using Calibrated
    Regression"; for counts Czado et al. (2009), "Predictive Model Assessment for Count Data".
    """
    low, high = _cdf_around(y, predictive)
    levels = np.linspace(0.0, 1.0, num_levels + 1)
    share = np.array([_share_below(level, low, high) for level in levels])
    area = np.trapezoid(np.abs(share - levels), levels)
    ax = ax or new_axes()
    if not ax.lines:
        error = 2.0 * np.sqrt(levels * (1.0 - levels) / len(low))
        ax.fill_between(
            levels, levels - error, levels + error, color=GRAY, alpha=0.2, linewidth=0
        )  # fmt: skip
    draw_diagonal(ax)
    ax.plot(levels, share, label=entry(label, f"area {area:.3f}"))
    ax.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="level of the quantile", ylabel="share of targets below"
    )
    ax.legend(loc="upper left")
    return ax


def _cdf_around(y: Any, predictive: PredictiveMixture) -> tuple[np.ndarray, np.ndarray]:
    """`P(Y < y)` and `P(Y <= y)` of each observed target; one number twice if continuous."""
    require_predictions("predictive", predictive)
    likelihood = predictive.likelihood
    if likelihood.predicts_probabilities:
        raise ValueError(
            "`calibration_curve` is of regressions; for classes use `reliability_diagram`. "
            f"Received: likelihood={type(likelihood).__name__}"
        )
    targets = predictive.prepare_targets(y)
    filled, counted = predictive.filled(targets)
    observed = np.asarray(counted)
    if not observed.any():
        raise ValueError(
            "`calibration_curve` needs targets that are not missing. Received: `y` of shape "
            f"{np.shape(y)}, all NaN"
        )
    high = np.asarray(predictive.cdf(filled))
    low = np.asarray(predictive.cdf(filled - 1.0)) if likelihood.discrete else high
    return low[observed], high[observed]


def _share_below(level: float, low: np.ndarray, high: np.ndarray) -> float:
    """Mean over targets of the part of `[low, high]` that lies at `level` or below."""
    width = high - low
    part = np.clip((level - low) / np.where(width > 0.0, width, 1.0), 0.0, 1.0)
    return float(np.mean(np.where(width > 0.0, part, high <= level)))
