"""Trains a BALI net on MNIST, and exports its answers of one pass for the server.

    python -m examples.serving.train [--npz mnist.npz] [--epochs 5] [--out served.onnx]
    python -m examples.serving.server served.onnx

An ONNX file needs `pip install rank1-bali[export]`; any other name is the folder of a SavedModel.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import bali_keras as bk
from examples.datasets.images import load_images


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npz", type=Path, help="a local archive in place of TFDS")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("served.onnx"))
    options = parser.parse_args(arguments)
    data = load_images("mnist", options.npz)
    keras.utils.set_random_seed(0)
    model = net(data.x_train.shape[1:], int(data.y_train.max()) + 1)
    model.compile(metrics=["accuracy"])
    model.fit(data.x_train, data.y_train, batch_size=250, epochs=options.epochs)
    p = model.posterior_predictive(data.x_test, method="moments", batch_size=1000)
    print(f"test NLL {-np.mean(p.log_prob(data.y_test)):.4f} nats")
    format = "onnx" if options.out.suffix == ".onnx" else "tf_saved_model"
    model.export_predictive(str(options.out), method="moments", format=format)
    print(f"wrote {options.out}")


def net(shape: tuple[int, ...], classes: int) -> bk.BaliModel:
    """Two hidden layers of 100 units."""
    inputs = keras.Input(shape)
    h = keras.layers.Flatten()(inputs)
    for units in (100, 100):
        h = bk.layers.DenseBali(units, activation="relu")(h)
    return bk.BaliModel(inputs, bk.layers.DenseBali(classes)(h), likelihood="categorical")


if __name__ == "__main__":
    main()
