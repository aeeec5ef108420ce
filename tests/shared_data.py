"""Real data beside the checkout: `../shared/data`, or `RANK1_BALI_DATA`."""

import os
from pathlib import Path

import numpy as np
import pytest

UCI = {
    "boston": "bostonHousing",
    "concrete": "concrete",
    "energy": "energy",
    "yacht": "yacht",
    "wine": "wine-quality-red",
    "power": "power-plant",
}


def data_folder():
    """Where the files are, if anywhere."""
    default = Path(__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("RANK1_BALI_DATA", default))


def load(name):
    """The arrays of a file, or skip the test."""
    path = data_folder() / name
    if not path.exists():
        pytest.skip(f"needs {path.name} in ../shared/data or RANK1_BALI_DATA")
    return np.load(path)


def uci_split(name, split):
    """Standardized `x, y, x_test, y_test` of a standard split, and the target's scale."""
    data = load(f"uci/{UCI[name]}.npz")
    train, test = data[f"train_idx_{split}"], data[f"test_idx_{split}"]
    x, y = data["X"], data["y"][:, None]
    mean, scale = x[train].mean(0), x[train].std(0)
    x = ((x - mean) / np.where(scale > 0, scale, 1.0)).astype("float32")
    mean, scale = y[train].mean(), y[train].std()
    y = ((y - mean) / scale).astype("float32")
    return x[train], y[train], x[test], y[test], scale


def images(name, flat=True):
    """`x, y, x_test, y_test`; pixels in [0, 1]."""
    data = load(f"{name}.npz")
    shape = (-1, 784) if flat else (-1, 28, 28, 1)

    def pixels(key):
        return (data[key].reshape(shape) / 255.0).astype("float32")

    labels = data["y_train"].astype("int32"), data["y_test"].astype("int32")
    return pixels("x_train"), labels[0], pixels("x_test"), labels[1]


def mean_and_error(values):
    """Mean and standard error over splits or seeds, as text."""
    values = np.asarray(values)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{values.mean():.4f} +- {error:.4f}"
