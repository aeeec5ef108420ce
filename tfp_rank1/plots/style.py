"""The look of all pictures: one palette, and a background that is the page's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from tfp_rank1.predictive import PredictiveMixture

try:
    import matplotlib.pyplot as plt
    from cycler import cycler
    from matplotlib.ticker import MaxNLocator
    from sklearn import metrics as sklearn_metrics
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError(
        "tfp_rank1.plots needs matplotlib and scikit-learn. Install the extra: "
        "pip install 'rank1-bali[plots]'"
    ) from error

__all__ = ["BLUE", "GRAY", "LOOK", "ORANGE", "PALETTE", "count_along_x", "draw_diagonal", "entry"]
__all__ += ["look", "new_axes", "plt", "points_of", "require_predictions", "sklearn_metrics"]

# Each has a contrast of at least 3.4 to white and to the near-black of dark pages.
BLUE, ORANGE, GREEN, PINK, PURPLE, GRAY = (
    "#4a7fc1", "#cb7018", "#3b9169", "#c4527f", "#8a6fc9", "#808080",
)  # fmt: skip
PALETTE = BLUE, ORANGE, GREEN, PINK, PURPLE

# `plt.rcParams.update(LOOK)` gives figures of one's own the same look.
LOOK: Any = {  # matplotlib lists every key in the type
    "axes.prop_cycle": cycler(color=PALETTE),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GRAY
    ),
}

F = TypeVar("F", bound=Callable[..., Any])


def look(draw: F) -> F:
    """As a decorator: what a function draws has the look, and the user's settings stay."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        with plt.rc_context(LOOK):
            return draw(*args, **kwargs)

    return cast(F, drawn)


def new_axes() -> Any:
    """Axes of a new figure, in which no label is cut."""
    return plt.subplots(layout="constrained")[1]


def entry(label: str, score: str) -> str:
    """What the legend says of a model: its name, and a score in brackets."""
    return f"{label} ({score})" if label else score


def points_of(values: Any) -> dict[str, Any]:
    """Style of a line: with points where a value has no neighbour that a line could go to."""
    values = np.asarray(values, "float64")
    return {} if values.size > 1 and np.isfinite(values).all() else {"marker": "."}


def count_along_x(ax: Any) -> None:
    """Whole numbers along x."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def require_predictions(name: str, value: Any) -> None:
    """Refuse what is no predictive distribution.

    Args:
        name: of the argument, for the message.
        value: what was given.

    Raises:
        ValueError: with the way to make one.
    """
    if not isinstance(value, PredictiveMixture):
        raise ValueError(
            f"Argument `{name}` must be what `model.posterior_predictive(x)` returns. Received: a "
            f"{type(value).__name__}"
        )


def draw_diagonal(ax: Any) -> None:
    """The diagonal of the unit square, once where several models share the axes."""
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle="--")
