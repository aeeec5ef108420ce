"""Predictive mean of a regression with its uncertainty."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_rank1.plots.style import BLUE, GRAY, look, new_axes, require_predictions
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
        x: inputs `[N]` or `[N, 1]`, in any order.
        predictive: answers of `posterior_predictive` for these inputs, with one target.
        data: observed inputs and targets to draw as points. Defaults to None.
        ax: matplotlib axes. Defaults to new axes.

    Returns:
        The axes.

    Raises:
        ValueError: for answers of a classifier, with several targets, or of other inputs; for
            inputs that are not finite, or `data` that is no pair.

    Example:
    ```python
    grid = np.linspace(-2.0, 2.0, 200)[:, np.newaxis]
    r1.plots.predictive_band(grid, model.posterior_predictive(grid), data=(x, y))
    ```
    """
    require_predictions("predictive", predictive)
    x, mean = np.asarray(x), np.asarray(predictive.mean())
    if predictive.likelihood.predicts_probabilities or x.size != len(x) or mean.size != x.size:
        raise ValueError(
            "`predictive_band` draws one target over one input: `x` must be [N] or [N, 1] and "
            "`predictive` answers [N, 1] of a regression. To draw one target of several, or over "
            "one input of several, plot `predictive.mean()` and `predictive.stddev()`. Received: "
            f"`x` of shape {x.shape}, answers of shape {mean.shape}, "
            f"likelihood={type(predictive.likelihood).__name__}"
        )
    points = [] if data is None else [np.ravel(v) for v in data]
    is_pair = data is None or (isinstance(data, (tuple, list)) and len(points) == 2)
    if not is_pair or len({v.size for v in points}) > 1:
        raise ValueError(
            "Argument `data` must be a pair of inputs [N] and targets [N]. Received: a "
            f"{type(data).__name__} with parts of sizes {[v.size for v in points[:5]]}"
        )
    if not np.isfinite(x).all():
        raise ValueError(f"Argument `x` must be finite. Received: {x[~np.isfinite(x)][0]}")
    ax = ax or new_axes()
    order = np.argsort(np.ravel(x))
    x, mean, total, epistemic = (
        np.ravel(values)[order]
        for values in (
            x,
            mean,
            2.0 * predictive.stddev(),
            2.0 * np.sqrt(predictive.epistemic_variance()),
        )
    )
    ax.fill_between(
        x, mean - total, mean + total, color=BLUE, alpha=0.18, linewidth=0,
        label="with aleatoric noise",
    )  # fmt: skip
    ax.fill_between(
        x, mean - epistemic, mean + epistemic, color=BLUE, alpha=0.4, linewidth=0,
        label="epistemic, 2 sd",
    )  # fmt: skip
    ax.plot(x, mean, color=BLUE, label="mean")
    if points:
        ax.scatter(*points, s=8, color=GRAY, zorder=3, label="data")
    ax.set(xlabel="x", ylabel="y", xlim=(x.min(), x.max()))
    ax.legend(fontsize="small")
    return ax
