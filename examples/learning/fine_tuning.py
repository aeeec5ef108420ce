"""A net that you have, made Bayesian: MobileNetV2 on small images, its head or all of its layers.

    python -m examples.learning.fine_tuning [--npz FILE] [--seeds 3]

A stock MobileNetV2 is trained, then either trained on at a tenth of its rate, or converted with
`layers="last"` or `layers="all"` and fitted for as many epochs. Prints accuracy, negative
log-likelihood and calibration error on test images, with standard errors, and seconds. The images
are CIFAR-10 of TFDS, or those of a NumPy archive with `x_train`, `y_train`, `x_test`, `y_test`.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from rich.table import Table

import bali_keras as bk
import tfp_rank1 as r1
from examples.datasets.images import load_images
from examples.datasets.small import Split
from examples.learning.spread import cells
from examples.record import show

BATCH, RATE = 64, 1e-3
METRICS = "accuracy", "NLL, nats", "calibration error", "seconds"


def trained(data: Split, epochs: int) -> keras.Model:
    """The stock net."""
    shape, labels = data.x_train.shape[1:], int(data.y_train.max()) + 1
    net = keras.applications.MobileNetV2(
        input_shape=shape, alpha=0.35, weights=None, classes=labels, classifier_activation=None
    )
    for layer in net.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # not 0.999: moving statistics must settle in few steps
    fit_stock(net, data, epochs, RATE)
    return net


def fit_stock(net: keras.Model, data: Split, epochs: int, rate: float) -> None:
    """Train the stock net with Adam."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(rate), loss)
    net.fit(data.x_train, data.y_train, batch_size=BATCH, epochs=epochs, verbose=0)


def trained_on(net: keras.Model, data: Split, epochs: int) -> np.ndarray:
    """Test probabilities of the stock net after some more epochs at a low rate."""
    copy = keras.models.clone_model(net)
    copy.set_weights(net.get_weights())
    fit_stock(copy, data, epochs, RATE / 10)
    return np.asarray(keras.ops.softmax(copy.predict(data.x_test, verbose=0)))


def converted(layers: str) -> Callable[[keras.Model, Split, int], np.ndarray]:
    """Test probabilities of the net with BALI layers, a function as `trained_on`."""

    def run(net: keras.Model, data: Split, epochs: int) -> np.ndarray:
        model = bk.convert(net, likelihood="categorical", layers=layers)
        model.compile()
        model.fit(data.x_train, data.y_train, batch_size=BATCH, epochs=epochs, verbose=0)
        return model.posterior_predictive(data.x_test, method="moments").mean()

    return run


WAYS: dict[str, Callable[[keras.Model, Split, int], np.ndarray]] = {
    "as it is": lambda net, data, _: np.asarray(
        keras.ops.softmax(net.predict(data.x_test, verbose=0))
    ),
    "trained on": trained_on,
    'BALI, layers="last"': converted("last"),
    'BALI, layers="all"': converted("all"),
}


def scores(p: np.ndarray, y: np.ndarray, seconds: float) -> list[float]:
    """The `METRICS` of probabilities `[B, labels]`."""
    calibration = r1.metrics.ExpectedCalibrationError()
    calibration.update_state(y, p)
    right = np.mean(np.argmax(p, axis=1) == y)
    nll = -np.mean(np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)))
    return [float(right), float(nll), float(calibration.result()), seconds]


def measured(data: Split, seeds: int, epochs: int, more: int) -> dict[str, np.ndarray]:
    """Scores `[seeds, metrics]` of every way."""
    found: dict[str, list[Any]] = {name: [] for name in WAYS}
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        net = trained(data, epochs)
        for name, run in WAYS.items():
            start = time.perf_counter()
            p = run(net, data, more)
            found[name].append(scores(p, data.y_test, time.perf_counter() - start))
            print(f"seed {seed}, {name}: {dict(zip(METRICS, found[name][-1], strict=True))}")
    return {name: np.array(rows) for name, rows in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npz", type=Path, help="archive of images, in place of TFDS")
    parser.add_argument("--images", type=int, help="number of training images; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of the stock net")
    parser.add_argument("--more", type=int, default=10, help="epochs of every way")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    tf.get_logger().setLevel("ERROR")  # of tracing anew for every net
    data = load_images("cifar10", options.npz)
    data = data._replace(
        x_train=data.x_train[: options.images], y_train=data.y_train[: options.images]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a net that stays mostly as it is: it is to be so
        found = measured(data, options.seeds, options.epochs, options.more)
    table = Table("", *METRICS)
    for name, rows in found.items():
        table.add_row(name, *cells(rows))
    show(table, options.out)


if __name__ == "__main__":
    main()
