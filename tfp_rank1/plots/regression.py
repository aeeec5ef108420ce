"""Predictive mean of a regression with its uncertainty."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_rank1.plots.style import BLUE, GRAY, look, plt
from tfp_rank1.predictive import PredictiveMixture

__all__ = ["predictive_band"]


@look
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
        x, mean - total, mean + total, color=BLUE, alpha=0.18, linewidth=0,
        label="with aleatoric noise",
    )  # fmt: skip
    ax.fill_between(
        x, mean - epistemic, mean + epistemic, color=BLUE, alpha=0.4, linewidth=0,
        label="epistemic, 2 sd",
    )  # fmt: skip
    ax.plot(x, mean, color=BLUE, label="mean")
    if data is not None:
        ax.scatter(*map(np.ravel, data), s=8, color=GRAY, zorder=3, label="data")
    ax.set(xlabel="x", ylabel="y", xlim=(x.min(), x.max()))
    ax.legend(fontsize="small")
    return ax
