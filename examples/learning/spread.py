"""How much means over seeds may be off."""

from __future__ import annotations

import numpy as np

__all__ = ["standard_errors"]


def standard_errors(values: np.ndarray) -> np.ndarray:
    """Standard errors of the means over seeds, `[...]`, from values `[seeds, ...]`; 0 for one."""
    seeds = len(values)
    return values.std(axis=0, ddof=1) / seeds**0.5 if seeds > 1 else np.zeros(values.shape[1:])
