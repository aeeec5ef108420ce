"""Small scenes of overlapping shapes, with the class of every pixel."""

from __future__ import annotations

import numpy as np

from examples.datasets.small import Split

__all__ = ["CLASSES", "load_scenes"]

CLASSES = "background", "disc", "square", "triangle"
SIDE = 32


def load_scenes(train: int = 800, test: int = 200, seed: int = 0) -> Split:
    """Grey scenes `[N, 32, 32, 1]` in noise, and labels `[N, 32, 32]` of `CLASSES`.

    A shape has a brightness of its own that its class does not tell, and hides what is behind it.

    Args:
        train: number of training scenes.
        test: number of test scenes.
        seed: of all scenes.
    """
    rng = np.random.default_rng(seed)
    images, labels = zip(*(_scene(rng) for _ in range(train + test)), strict=True)
    x, y = np.stack(images)[..., np.newaxis], np.stack(labels)
    return Split(x[:train], y[:train], x[train:], y[train:])


def _scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    image = np.zeros((SIDE, SIDE), "float32")
    label = np.zeros((SIDE, SIDE), "int32")
    for _ in range(rng.integers(1, 5)):
        kind = int(rng.integers(1, len(CLASSES)))
        inside = _shape(kind, rng)
        image[inside], label[inside] = rng.uniform(0.4, 1.0), kind
    noisy = image + 0.15 * rng.normal(size=image.shape)
    return noisy.astype("float32"), label


def _shape(kind: int, rng: np.random.Generator) -> np.ndarray:
    """Which pixels lie in a shape, boolean `[32, 32]`."""
    row, column = np.mgrid[:SIDE, :SIDE]
    size, turn = rng.uniform(4.0, 8.0), rng.uniform(0.0, 2.0 * np.pi)
    y, x = row - rng.uniform(4, SIDE - 4), column - rng.uniform(4, SIDE - 4)
    if kind == 1:
        return x**2 + y**2 < size**2
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    if kind == 2:
        return np.maximum(np.abs(u), np.abs(v)) < 0.85 * size
    # Three half planes at a distance of size / 2 from the middle.
    angles = 2.0 * np.pi * np.arange(3) / 3.0
    sides = [np.cos(a) * u + np.sin(a) * v < 0.55 * size for a in angles]
    return np.logical_and.reduce(sides)
