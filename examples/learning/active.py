"""Labels that the model asks for: mutual information against labels taken at random, on digits.

    python -m examples.learning.active [--seeds 5] [--out active_output]

Every round a BALI net is trained on the images that have a label, and ten more get one: those whose
label would say most about the weights, or any ten. Prints the accuracy on test images by number of
labels, with standard errors; writes `active.png`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from rich.progress import track
from rich.table import Table

import bali_keras as bk
from examples.datasets.small import Split, load_digits
from examples.learning.spread import cells, draw
from examples.record import show
from tfp_rank1.plots import LOOK

FIRST, MORE = 20, 10
WAYS = "mutual information", "random"


def fitted(data: Split, labelled: np.ndarray, epochs: int) -> bk.BaliModel:
    """A net of one hidden layer, trained on the labelled images."""
    inputs = keras.Input((64,))
    h = bk.layers.DenseBali(50, activation="relu")(inputs)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(10)(h), likelihood="categorical")
    model.compile(prior_precision=0.02, covariance_scale=1.0)  # the same in every round
    x, y = data.x_train[labelled], data.y_train[labelled]
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return model


def wanted(model: bk.BaliModel, data: Split, left: np.ndarray, way: str, seed: int) -> np.ndarray:
    """The images, out of those without a label, that get one next."""
    if way == "random":
        return np.random.default_rng(seed).choice(left, MORE, replace=False)
    p = model.posterior_predictive(data.x_train[left], method="moments")
    return left[np.argsort(-np.asarray(p.mutual_information()))[:MORE]]


def curve(data: Split, way: str, rounds: int, epochs: int, seed: int) -> list[float]:
    """Accuracy on the test images after every round."""
    order = np.random.default_rng(seed).permutation(len(data.x_train))
    labelled, left = order[:FIRST], order[FIRST:]
    found = []
    for index in range(rounds + 1):
        keras.utils.set_random_seed(seed)
        model = fitted(data, labelled, epochs)
        p = model.posterior_predictive(data.x_test, method="moments")
        found.append(float(np.mean(np.argmax(p.mean(), axis=1) == data.y_test)))
        chosen = wanted(model, data, left, way, seed + 1000 * index)
        labelled, left = np.concatenate([labelled, chosen]), np.setdiff1d(left, chosen)
    return found


def figure(labels: np.ndarray, curves: dict[str, np.ndarray]) -> plt.Figure:
    """Accuracy by number of labels, with standard errors."""
    fig, ax = plt.subplots(figsize=(6, 4))
    for way, values in curves.items():
        draw(ax, labels, values, way)
    ax.set(xlabel="labels", ylabel="accuracy on test images")
    ax.legend(frameon=False)
    fig.tight_layout()
    return fig


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("active_output"))
    options = parser.parse_args(arguments)
    plt.rcParams.update(LOOK)
    tf.get_logger().setLevel("ERROR")  # of tracing anew for every net
    collected: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for seed in track(range(options.seeds), "seeds"):
        data = load_digits(seed)
        for way, rows in collected.items():
            rows.append(curve(data, way, options.rounds, options.epochs, seed))
    curves = {way: np.array(rows) for way, rows in collected.items()}
    labels = FIRST + MORE * np.arange(options.rounds + 1)
    table = Table("labels", *WAYS)
    for row in zip(map(str, labels), *map(cells, curves.values()), strict=True):
        table.add_row(*row)
    show(table, options.out / "active.json")
    figure(labels, curves).savefig(options.out / "active.png", dpi=150)
    print(f"wrote {options.out / 'active.png'}")


if __name__ == "__main__":
    main()
