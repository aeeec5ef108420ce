"""Pictures of predictive distributions (needs the `plots` extra)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_rank1.metrics import ExpectedCalibrationError, ood_score
from tfp_rank1.predictive import PredictiveMixture

__all__ = [
    "ood_histogram",
    "ood_roc",
    "predictive_band",
    "reliability_diagram",
]

try:
    import matplotlib.pyplot as plt
    from sklearn import metrics as sklearn_metrics
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError(
        "tfp_rank1.plots needs matplotlib and scikit-learn. Install the extra: "
        "pip install 'rank1-bali[plots]'"
    ) from error

_BLUE, _ORANGE, _GRAY = "#3465a4", "#d9822b", "#777777"


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
    ax = ax or plt.subplots()[1]
    calibration = ExpectedCalibrationError(num_bins)
    calibration.update_state(y, predictive)
    sums = np.asarray(calibration.sums)
    count, confidence, correct = sums[:, sums[0] > 0]
    accuracy = correct / count
    # Laplace's rule of succession gives a bin without mistakes an error above 0 as well.
    smoothed = (correct + 1.0) / (count + 2.0)
    error = np.sqrt(smoothed * (1.0 - smoothed) / count)
    # The diagonal once, also where several models share the axes.
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color=_GRAY, linewidth=1, linestyle="--")
    title = f"{label} (ECE {float(calibration.result()):.3f})".strip()
    (line,) = ax.plot(confidence / count, accuracy, linewidth=1, alpha=0.5)
    color = line.get_color()
    ax.errorbar(confidence / count, accuracy, error, fmt="none", color=color, alpha=0.5)
    sizes = 15.0 + 250.0 * count / count.sum()
    ax.scatter(confidence / count, accuracy, sizes, color=color, alpha=0.8, label=title)
    ax.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="accuracy")
    legend = ax.legend(loc="upper left", frameon=False)
    # The areas of points differ from bin to bin; in the legend all models have one.
    for handle in legend.legend_handles:
        handle.set_sizes([40.0])
    return ax


def predictive_band(
    x: Any, predictive: PredictiveMixture, data: tuple[Any, Any] | None = None, ax: Any = None
) -> Any:
    """Predictive mean of a 1-D regression with its two kinds of uncertainty.

    The dark band is two epistemic standard deviations around the mean; the light band adds the
    aleatoric part.

    Args:
        x: inputs `[N]` or `[N, 1]`, in increasing order.
        predictive: a `PosteriorPredictive` for these inputs, with one target.
        data: observed inputs and targets to draw as points. Defaults to None.
        ax: matplotlib axes. Defaults to new axes.

    Returns:
        The axes.
    """
    ax = ax or plt.subplots()[1]
    x, mean = np.ravel(x), np.ravel(predictive.mean())
    total = 2.0 * np.ravel(predictive.stddev())
    epistemic = 2.0 * np.sqrt(np.ravel(predictive.epistemic_variance()))
    ax.fill_between(
        x, mean - total, mean + total, color=_BLUE, alpha=0.18, linewidth=0,
        label="with aleatoric noise",
    )  # fmt: skip
    ax.fill_between(
        x, mean - epistemic, mean + epistemic, color=_BLUE, alpha=0.4, linewidth=0,
        label="epistemic, 2 sd",
    )  # fmt: skip
    ax.plot(x, mean, color=_BLUE, label="mean")
    if data is not None:
        ax.scatter(*map(np.ravel, data), s=8, color="black", zorder=3, label="data")
    ax.set(xlabel="x", ylabel="y", xlim=(x.min(), x.max()))
    ax.legend(frameon=False, fontsize="small")
    return ax


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
    ax = ax or plt.subplots()[1]
    values = [np.asarray(ood_score(p, score)) for p in (inside, outside)]
    edges = np.linspace(min(map(np.min, values)), max(map(np.max, values)), 31)
    for value, color, label in zip(
        values, (_BLUE, _ORANGE), ("in distribution", "out of distribution"), strict=True
    ):
        # Shares and no counts, because the two sets may differ in size.
        share = np.full(len(value), 1.0 / len(value))
        ax.hist(value, edges, weights=share, alpha=0.6, color=color, label=label)
    ax.set(xlabel=score.replace("_", " "), ylabel="share of examples")
    ax.legend(frameon=False)
    return ax


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
    ax = ax or plt.subplots()[1]
    values = [np.asarray(ood_score(p, score)) for p in (inside, outside)]
    is_outside = np.repeat([0, 1], [len(v) for v in values])
    false_positive, true_positive, _ = sklearn_metrics.roc_curve(is_outside, np.concatenate(values))
    area = sklearn_metrics.auc(false_positive, true_positive)
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color=_GRAY, linewidth=1, linestyle="--")
    ax.plot(false_positive, true_positive, label=f"{label} (AUROC {area:.3f})".strip())
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="false positive rate", ylabel="true positive rate")
    ax.legend(loc="lower right", frameon=False)
    return ax
