"""What a rank-1 layer's factors became."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_rank1.plots.style import PALETTE, look, new_axes

__all__ = ["factor_posteriors"]


@look
def factor_posteriors(layer: Any, ax: Any = None) -> Any:
    """Means and standard deviations of all entries of a layer's factors, of all members.

    Means that left their start show what training changed; widths near that of the prior (a dashed
    line, where the prior has one width) show what the data did not determine.

    Args:
        layer: a built layer with `r_posterior` and `s_posterior`.
        ax: matplotlib axes. Defaults to new axes.

    Returns:
        The axes.

    Raises:
        ValueError: for a layer without factors, or whose factors have no standard deviation
            (Cauchy families and points).

    Example:
    ```python
    r1.plots.factor_posteriors(model.layers[2])
    ```
    """
    if not hasattr(layer, "r_posterior"):
        raise ValueError(
            "`layer` needs rank-1 factors, such as DenseRank1 has. Received: "
            f"{type(layer).__name__}"
        )
    ax = ax or new_axes()
    for name, color in zip("rs", PALETTE, strict=False):
        posterior = getattr(layer, f"{name}_posterior")
        prior = getattr(layer, f"{name}_prior")
        mean, stddev = _mean_and_width(posterior, layer)
        ax.plot(mean.ravel(), stddev.ravel(), ".", markersize=3, color=color, label=name)
        widths = _widths(prior)
        if widths is not None and np.ptp(widths) == 0.0:
            style = {"color": color, "linewidth": 1, "linestyle": "--", "label": f"prior of {name}"}
            ax.axhline(widths.flat[0], **style)
    ax.set(xlabel="posterior mean", ylabel="posterior standard deviation")
    ax.set_ylim(bottom=0.0, auto=True)
    ax.legend(markerscale=3)
    return ax


def _mean_and_width(posterior: Any, layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation `[members, dim]`, in float64."""
    stddev = _widths(posterior)
    if stddev is None or not stddev.any():
        raise ValueError(
            "`layer` needs factors with a standard deviation, as posterior='normal' has. "
            f"Received: {posterior.name} in layer {layer.name!r}"
        )
    return np.asarray(posterior.mean(), "float64"), stddev


def _widths(distribution: Any) -> np.ndarray | None:
    """The standard deviations of a distribution; None where it has none."""
    try:
        stddev = np.asarray(distribution.stddev(), "float64")
    except (AttributeError, NotImplementedError):
        return None
    return stddev if np.isfinite(stddev).all() else None
