"""A stream that drifts: images of digits that turn by half a circle while a model learns.

    python -m examples.learning.drift [--seeds 5] [--out drift_output]

A BALI net sees every batch of the stream once. Its rate `forgetting=rho` says how many batches its
averages remember, about 1 / rho, so that N, the number of examples that the posterior counts, is
the batch size / rho. Printed is the negative log-likelihood of test images turned as far as those
of the moment, over the second half of the stream, with standard errors, for several rates and for a
net that stops learning after a quarter of it; writes `drift.png`.
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
from scipy.ndimage import rotate

import bali_keras as bk
from examples.datasets.small import Split, load_digits
from examples.learning.spread import cells, draw
from examples.record import show
from tfp_rank1.plots import LOOK

RATES = 0.1, 0.02, 0.005, 0.001
BATCH, LOOKS, TURN = 32, 20, 180.0
SIDE = 8  # pixels
STOPS = "stops after a quarter"


def turned(x: np.ndarray, share: float) -> np.ndarray:
    """Images `[B, 64]`, turned by a share of `TURN` degrees."""
    images = x.reshape(-1, SIDE, SIDE)
    angle = TURN * share
    return rotate(images, angle, axes=(2, 1), reshape=False, order=1).reshape(len(x), -1)


def net(rate: float) -> bk.BaliModel:
    """A net of one hidden layer that remembers about 1 / rate batches."""
    inputs = keras.Input((SIDE * SIDE,))
    h = bk.layers.DenseBali(50, activation="relu")(inputs)
    outputs = bk.layers.DenseBali(10)(h)
    remembered = BATCH / rate
    model = bk.BaliModel(inputs, outputs, likelihood="categorical", num_train_examples=remembered)
    model.compile(forgetting=rate)
    return model


def nll(model: bk.BaliModel, data: Split, share: float) -> float:
    """Negative log-likelihood of test images as they look by now, in nats per image."""
    p = model.posterior_predictive(turned(data.x_test, share), method="moments").mean()
    picked = np.take_along_axis(p, data.y_test[:, np.newaxis], axis=1)
    return float(-np.mean(np.log(picked)))


def followed(data: Split, rate: float, steps: int, seed: int, last: int) -> list[float]:
    """Negative log-likelihoods at `LOOKS` moments of the stream.

    Args:
        data: images that are not turned.
        rate: rho.
        steps: number of batches of the stream.
        seed: of the order of the images.
        last: the number of batches that the net learns from.
    """
    rng, model, found = np.random.default_rng(seed), net(rate), []
    for step in range(steps):
        share = step / steps
        if step < last:
            rows = rng.integers(0, len(data.x_train), BATCH)
            model.train_on_batch(turned(data.x_train[rows], share), data.y_train[rows])
        if (step + 1) % (steps // LOOKS) == 0:
            found.append(nll(model, data, share))
    return found


def measured(seeds: int, steps: int) -> dict[str, np.ndarray]:
    """Negative log-likelihoods `[seeds, LOOKS]` by how the net learned."""
    ways = {f"forgetting={rate:g}": (rate, steps) for rate in RATES} | {STOPS: (0.005, steps // 4)}
    found: dict[str, list[list[float]]] = {}
    for seed in track(range(seeds), "seeds"):
        data = load_digits(seed)
        for name, (rate, last) in ways.items():
            keras.utils.set_random_seed(seed)
            found.setdefault(name, []).append(followed(data, rate, steps, seed, last))
    return {name: np.array(rows) for name, rows in found.items()}


def figure(found: dict[str, np.ndarray]) -> plt.Figure:
    """Negative log-likelihood by angle, with standard errors."""
    fig, ax = plt.subplots(figsize=(7, 4))
    angles = TURN * np.arange(1, LOOKS + 1) / LOOKS
    for name, rows in found.items():
        draw(ax, angles, rows, name)
    ax.set(xlabel="angle of the images, degrees", ylabel="NLL of test images, nats", yscale="log")
    ax.legend()
    fig.tight_layout()
    return fig


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000, help="batches of the stream")
    parser.add_argument("--out", type=Path, default=Path("drift_output"))
    options = parser.parse_args(arguments)
    plt.rcParams.update(LOOK)
    tf.get_logger().setLevel("ERROR")  # of tracing anew for every net
    found = measured(options.seeds, options.steps)
    table = Table("", "NLL of the second half, nats")
    for name, rows in found.items():
        late = rows[:, LOOKS // 2 :].mean(axis=1, keepdims=True)
        table.add_row(name, *cells(late))
    show(table, options.out / "drift.json")
    figure(found).savefig(options.out / "drift.png", dpi=150)
    print(f"wrote {options.out / 'drift.png'}")


if __name__ == "__main__":
    main()
