"""Two small data sets that need no download."""

from __future__ import annotations

import zipfile
import zlib
from typing import NamedTuple

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

# What NumPy raises for files that are missing, damaged or of another kind.
UNREADABLE = (
    OSError, EOFError, KeyError, IndexError, TypeError, ValueError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


class Split(NamedTuple):
    """Inputs and targets for training and testing."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_digits(seed: int, test_size: float = 0.5) -> Split:
    """Scikit-learn's scans of handwritten digits: 1,797 images of 8 x 8, ten classes.

    Args:
        seed: of the stratified split.
        test_size: share of the images held out.

    Returns:
        Pixels in [0, 1], float32 `[N, 64]`, and labels `[N]`.
    """
    x, y = datasets.load_digits(return_X_y=True)
    pixels = (x / 16.0).astype("float32")
    x_train, x_test, y_train, y_test = train_test_split(
        pixels, y, test_size=test_size, random_state=seed, stratify=y
    )
    return Split(x_train, y_train, x_test, y_test)


def shuffle_blocks(x: np.ndarray, seed: int) -> np.ndarray:
    """Out-of-distribution images: each digit's pixels, shuffled in 2 x 2 blocks.

    Ink, contrast and local strokes stay as they are; the shape of the digit is gone.

    Args:
        x: pixels `[N, 64]`.
        seed: of the permutations, one per image.
    """
    rng = np.random.default_rng(seed)
    blocks = x.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(len(x), 16, 2, 2)
    shuffled = np.stack([image[rng.permutation(16)] for image in blocks])
    return shuffled.reshape(-1, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4).reshape(len(x), 64)


def sine_with_gap(num_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy sine observed on [-5, -2] and [2, 5], never in between.

        y = sin(x) + 0.1 e,   e ~ N(0, 1)

    Returns:
        Inputs and targets, float32 `[num_examples, 1]`.
    """
    rng = np.random.default_rng(seed)
    side = rng.choice([-1.0, 1.0], size=(num_examples, 1))
    x = side * rng.uniform(2.0, 5.0, size=(num_examples, 1))
    y = np.sin(x) + 0.1 * rng.normal(size=x.shape)
    return x.astype("float32"), y.astype("float32")
