"""What the extra installs, and what the pictures share: colours and the diagonal."""

from __future__ import annotations

from typing import Any

try:
    import matplotlib.pyplot as plt
    from sklearn import metrics as sklearn_metrics
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError(
        "tfp_rank1.plots needs matplotlib and scikit-learn. Install the extra: "
        "pip install 'rank1-bali[plots]'"
    ) from error

__all__ = ["BLUE", "GRAY", "ORANGE", "draw_diagonal", "plt", "sklearn_metrics"]

BLUE, ORANGE, GRAY = "#3465a4", "#d9822b", "#777777"


def draw_diagonal(ax: Any) -> None:
    """The diagonal of the unit square, once where several models share the axes."""
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle="--")
