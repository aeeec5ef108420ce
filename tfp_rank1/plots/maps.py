"""Uncertainty over a picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_rank1.checks import not_negative
from tfp_rank1.plots.style import look, new_axes

__all__ = ["uncertainty_map"]


@look
def uncertainty_map(
    image: Any, uncertainty: Any, highest: float | None = None, ax: Any = None
) -> Any:
    """An image in grey, and over it in colour how uncertain each pixel is.

    The overlay is as opaque as its pixel is uncertain, so that the image shows where the model is
    sure.

    Args:
        image: `[H, W]`, `[H, W, 1]` or `[H, W, 3]`; channels are averaged.
        uncertainty: `[H, W]`, at least 0: `mutual_information()`, `entropy()` or `stddev()` of one
            example.
        highest: the uncertainty of the last colour; give several maps the same number to compare
            them. Defaults to None: the largest here.
        ax: matplotlib axes. Defaults to new axes.

    Returns:
        The axes.

    Raises:
        ValueError: for shapes that do not fit, a negative uncertainty, or a negative `highest`.

    Example:
    ```python
    p = model.posterior_predictive(images)
    r1.plots.uncertainty_map(images[0], p.mutual_information()[0])
    ```
    """
    image, uncertainty = np.asarray(image), np.asarray(uncertainty)
    has_channels = image.ndim == 3 and image.shape[-1] in (1, 3)
    gray = image.mean(axis=-1) if has_channels else image
    if gray.ndim != 2 or uncertainty.shape != gray.shape or not gray.size:
        raise ValueError(
            "`image` must be [H, W], [H, W, 1] or [H, W, 3] with pixels, and `uncertainty` [H, W]. "
            f"Received: shapes {image.shape} and {uncertainty.shape}"
        )
    if not np.all(uncertainty >= 0.0):
        raise ValueError(
            "`uncertainty` must be numbers of at least 0. Received: a smallest of "
            f"{np.min(uncertainty)}"
        )
    highest = float(uncertainty.max()) if highest is None else not_negative("highest", highest)
    strength = np.clip(uncertainty / highest, 0.0, 1.0) if highest > 0.0 else uncertainty
    ax = ax or new_axes()
    ax.imshow(gray, cmap="gray")
    ax.imshow(uncertainty, cmap="plasma", vmin=0.0, vmax=highest or 1.0, alpha=strength)
    ax.set_axis_off()
    return ax
