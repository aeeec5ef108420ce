"""What a BALI layer's data determined (needs the `plots` extra)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_rank1.plots.style import count_along_x, look, new_axes

__all__ = ["row_spectrum"]


@look
def row_spectrum(layer: Any, ax: Any = None, label: str | None = None) -> Any:
    """Eigenvalues of a layer's row covariance L^-1, from the best known direction to the least.

        W ~ MN(M, L^-1, V),     L = (L0 + N S) / c

    Along an eigenvector of L the weights vary by its eigenvalue, times V. Where the inputs of the
    layer never went, that is the prior's: a flat end to the right are directions of which the data
    say nothing, and which open the error bars of inputs that take them.

    Args:
        layer: a BALI layer that has been fitted.
        ax: matplotlib axes; several layers may share them. Defaults to new axes.
        label: for the legend. Defaults to None: the name of the layer.

    Returns:
        The axes.

    Raises:
        ValueError: for a layer without a row covariance, or one that has not been fitted.

    Example:
    ```python
    bk.plots.row_spectrum(model.layers[1])
    ```
    """
    if not hasattr(layer, "posterior_state"):
        raise ValueError(
            "`layer` must be a BALI layer of a model, such as DenseBali. Received: "
            f"{type(layer).__name__}, built={getattr(layer, 'built', False)}"
        )
    row = layer.posterior.scale_row  # raises for a layer that has not been fitted
    factor = np.asarray(row.to_dense(), "float64")
    variances = np.sort(np.linalg.svd(factor, compute_uv=False) ** 2, axis=None)
    ax = ax or new_axes()
    ax.plot(np.arange(1, variances.size + 1), variances, label=label or layer.name)
    ax.set(xlabel="direction, best known first", ylabel="eigenvalue of L^-1", yscale="log")
    count_along_x(ax)
    ax.legend()
    return ax
