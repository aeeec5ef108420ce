"""Toy sets whose uncertainty can be seen: where there is no data it must grow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn import datasets

from examples.datasets.small import Split, sine_with_gap


class Toy(NamedTuple):
    """A toy set, and where to look at its predictive distribution.

    Attributes:
        split: inputs and targets, float32 `[N, D]` and `[N, 1]` (labels `[N]` for classes).
        grid: inputs to draw the predictive on, `[G, D]`, beyond the data on all sides.
    """

    split: Split
    grid: np.ndarray


def sinc(seed: int) -> Toy:
    """`y = sin(3 x) / (3 x) + 0.05 e` on [-3, 3]; the grid reaches to 6."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3.0, 3.0, size=(400, 1))
    y = np.sinc(3.0 * x / np.pi) + 0.05 * rng.normal(size=x.shape)
    return _regression(x, y, 6.0)


def sines_with_trend(seed: int) -> Toy:
    """`y = 0.3 x + 0.3 sin(2 pi x) + 0.3 sin(4 pi x) + 0.02 e` on [-0.5, 1]; the grid to 2."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.5, 1.0, size=(400, 1))
    waves = np.sin(2.0 * np.pi * x) + np.sin(4.0 * np.pi * x)
    return _regression(x, 0.3 * x + 0.3 * waves + 0.02 * rng.normal(size=x.shape), 2.0)


def gap(seed: int) -> Toy:
    """`y = sin(x) + 0.1 e`, observed on [-5, -2] and [2, 5]; the grid reaches to 8."""
    return _regression(*sine_with_gap(400, seed), 8.0)


def two_moons(seed: int) -> Toy:
    """Two half circles with noise 0.1; the grid is the square from -3 to 4 around them."""
    x, y = datasets.make_moons(400, noise=0.1, random_state=seed)
    x = x.astype("float32")
    axes = np.meshgrid(np.linspace(-3.0, 4.0, 41), np.linspace(-3.0, 3.5, 41))
    grid = np.stack([a.ravel() for a in axes], axis=1).astype("float32")
    return Toy(Split(x[:300], y[:300].astype("int32"), x[300:], y[300:].astype("int32")), grid)


def _regression(x: np.ndarray, y: np.ndarray, reach: float) -> Toy:
    x, y = x.astype("float32"), y.astype("float32")
    grid = np.linspace(-reach, reach, 161, dtype="float32")[:, np.newaxis]
    return Toy(Split(x[:300], y[:300], x[300:], y[300:]), grid)


TOYS = {
    "sinc": sinc,
    "sines_with_trend": sines_with_trend,
    "gap": gap,
    "two_moons": two_moons,
}
