"""Two hourly series, one of which follows the other."""

from __future__ import annotations

import numpy as np

from examples.datasets.small import Split

__all__ = ["HISTORY", "HORIZON", "load_series"]

HISTORY, HORIZON = 48, 12


def load_series(train: int = 3000, test: int = 600, seed: int = 0) -> Split:
    """Windows of two hourly series, `[N, 48, 2]`, and their next 12 hours, `[N, 12, 2]`.

    The first series has a daily wave whose height drifts, the second follows it three hours later
    and has noise of its own. Test windows come after all training windows.

    Args:
        train: number of training windows.
        test: number of test windows.
        seed: of the series.
    """
    rng = np.random.default_rng(seed)
    length = train + test + 2 * (HISTORY + HORIZON)
    hours = np.arange(length + 3)
    drift = 1.0 + 0.3 * np.sin(hours / 190.0) + np.cumsum(0.01 * rng.normal(size=length + 3))
    first = drift * np.sin(2.0 * np.pi * hours / 24.0) + 0.15 * rng.normal(size=length + 3)
    second = 0.7 * first[:-3] + 0.3 * np.cos(2.0 * np.pi * hours[3:] / 12.0)
    both = np.stack([first[3:], second + 0.1 * rng.normal(size=length)], axis=-1)
    both = both.astype("float32")
    windows = np.lib.stride_tricks.sliding_window_view(both, HISTORY + HORIZON, axis=0)
    windows = np.swapaxes(windows, 1, 2)  # [N, hours, series]
    gap = HISTORY + HORIZON  # no test window shares an hour with a training window
    parts = windows[:train], windows[train + gap : train + gap + test]
    (x, y), (x_test, y_test) = ((w[:, :HISTORY], w[:, HISTORY:]) for w in parts)
    return Split(*(np.ascontiguousarray(v) for v in (x, y, x_test, y_test)))
