"""Two tasks one after the other: digits 0 to 4, then 5 to 9, without the first ones.

    python -m examples.learning.continual [--seeds 5] [--out continual_output]

After the first task its posterior becomes the prior, `posterior_to_prior(strength)`. Printed are
the accuracies on test images of both tasks, with standard errors, for several strengths, without
the prior, and for training on all digits at once; writes `continual.png`.
"""

from __future__ import annotations

import argparse
import os
import warnings
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
from examples.learning.spread import cells, standard_errors
from examples.record import show
from tfp_rank1.plots import LOOK

STRENGTHS = 0.03, 0.1, 0.3, 1.0
SECOND = 5  # the first digit of the second task


def net() -> bk.BaliModel:
    """A net of one hidden layer for all ten digits."""
    inputs = keras.Input((64,))
    h = bk.layers.DenseBali(50, activation="relu")(inputs)
    model = bk.BaliModel(inputs, bk.layers.DenseBali(10)(h), likelihood="categorical")
    model.compile()
    return model


def accuracies(model: bk.BaliModel, data: Split) -> tuple[float, float]:
    """The shares of test images of both tasks that the model names right, among all digits."""
    p = model.posterior_predictive(data.x_test, method="moments")
    right = np.argmax(p.mean(), axis=1) == data.y_test
    is_second = data.y_test >= SECOND
    return float(right[~is_second].mean()), float(right[is_second].mean())


def after_both(data: Split, epochs: int, strength: float | None) -> tuple[float, float]:
    """Accuracies after both tasks; without a prior of the first for a strength of None."""
    model, is_second = net(), data.y_train >= SECOND
    fit = {"batch_size": 32, "epochs": epochs, "verbose": 0}
    model.fit(data.x_train[~is_second], data.y_train[~is_second], **fit)
    if strength is not None:
        model.posterior_to_prior(strength)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other data, where there is no prior of the first
        model.fit(data.x_train[is_second], data.y_train[is_second], **fit)
    return accuracies(model, data)


def at_once(data: Split, epochs: int) -> tuple[float, float]:
    """Accuracies of one fit to all digits."""
    model = net()
    model.fit(data.x_train, data.y_train, batch_size=32, epochs=epochs, verbose=0)
    return accuracies(model, data)


def measured(seeds: int, epochs: int) -> dict[str, np.ndarray]:
    """Accuracies `[seeds, 2]` by how the tasks were learned."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in track(range(seeds), "seeds"):
        data = load_digits(seed)
        for strength in (None, *STRENGTHS):
            keras.utils.set_random_seed(seed)
            name = "no prior" if strength is None else f"strength {strength:g}"
            found.setdefault(name, []).append(after_both(data, epochs, strength))
        keras.utils.set_random_seed(seed)
        found.setdefault("all at once", []).append(at_once(data, epochs))
    return {name: np.array(rows) for name, rows in found.items()}


def figure(found: dict[str, np.ndarray]) -> plt.Figure:
    """Accuracies on both tasks, as bars."""
    fig, ax = plt.subplots(figsize=(8, 3.5))
    places = np.arange(len(found))
    for task, (label, color) in enumerate((("digits 0-4", "C0"), ("digits 5-9", "C1"))):
        heights = [rows.mean(axis=0)[task] for rows in found.values()]
        widths = [standard_errors(rows)[task] for rows in found.values()]
        ax.bar(places + 0.4 * task - 0.2, heights, 0.4, yerr=widths, color=color, label=label)
    ax.set(xticks=places, xticklabels=list(found), ylabel="accuracy", ylim=(0.0, 1.0))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    fig.tight_layout()
    return fig


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30, help="of each task")
    parser.add_argument("--out", type=Path, default=Path("continual_output"))
    options = parser.parse_args(arguments)
    plt.rcParams.update(LOOK)
    tf.get_logger().setLevel("ERROR")  # of tracing anew for every net
    found = measured(options.seeds, options.epochs)
    table = Table("second task", "digits 0-4", "digits 5-9")
    for name, rows in found.items():
        table.add_row(name, *cells(rows))
    show(table, options.out / "continual.json")
    figure(found).savefig(options.out / "continual.png", dpi=150)
    print(f"wrote {options.out / 'continual.png'}")


if __name__ == "__main__":
    main()
