"""Means over seeds, and how much they may be off: as numbers, in a table and in a figure."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

__all__ = ["cells", "draw", "standard_errors"]


def standard_errors(values: np.ndarray) -> np.ndarray:
    """Standard errors of the means over seeds, `[...]`, from values `[seeds, ...]`; 0 for one."""
    seeds = len(values)
    return values.std(axis=0, ddof=1) / seeds**0.5 if seeds > 1 else np.zeros(values.shape[1:])


def cells(values: np.ndarray) -> list[str]:
    """`mean +- standard error` for every column of values `[seeds, columns]`."""
    pairs = zip(values.mean(axis=0), standard_errors(values), strict=True)
    return [f"{mean:.3f} +- {error:.3f}" for mean, error in pairs]


def draw(ax: Axes, x: np.ndarray, values: np.ndarray, label: str) -> None:
    """A line of means by x and a band of their standard errors, of values `[seeds, len(x)]`."""
    mean, error = values.mean(axis=0), standard_errors(values)
    (line,) = ax.plot(x, mean, label=label)
    ax.fill_between(x, mean - error, mean + error, color=line.get_color(), alpha=0.3)
