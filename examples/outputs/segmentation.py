"""A small U-Net that knows which pixels it is unsure of: stock, rank-1 and BALI.

    python -m examples.outputs.segmentation [--epochs 20] [--out segmentation_output]

Prints accuracy and NLL per pixel, and the mutual information of wrong and of right pixels; writes
`segmentation.png` with scenes, answers and the mutual information of every pixel.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from rich.table import Table

import bali_keras as bk
import tfp_rank1 as r1
from examples.datasets.scenes import CLASSES, load_scenes
from examples.datasets.small import Split
from examples.record import show

SAMPLES = 32


def unet(filters: int = 16) -> keras.Model:
    """Logits of every pixel of a 32 x 32 scene; a stock Keras model."""
    layers = keras.layers
    inputs = keras.Input((32, 32, 1))

    def block(h: Any, size: int) -> Any:
        for _ in range(2):
            h = layers.Conv2D(size, 3, padding="same", activation="relu")(h)
        return h

    fine = block(inputs, filters)
    middle = block(layers.MaxPooling2D()(fine), 2 * filters)
    coarse = block(layers.MaxPooling2D()(middle), 4 * filters)
    up = layers.Conv2DTranspose(2 * filters, 2, strides=2)(coarse)
    middle = block(layers.Concatenate()([up, middle]), 2 * filters)
    up = layers.Conv2DTranspose(filters, 2, strides=2)(middle)
    fine = block(layers.Concatenate()([up, fine]), filters)
    return keras.Model(inputs, layers.Conv2D(len(CLASSES), 1)(fine))


def trained(data: Split, epochs: int) -> dict[str, r1.BayesianModel]:
    """The stock net, and two Bayesian nets that start from it, by name."""
    net = unet()
    stock = r1.BayesianModel(net, likelihood="categorical")
    stock.compile(keras.optimizers.Adam(2e-3))
    models = {"stock": stock}
    stock.fit(data.x_train, data.y_train, batch_size=32, epochs=epochs, verbose=2)
    models["rank-1"] = r1.convert(net, likelihood="categorical", ensemble_size=4)
    models["rank-1"].compile(keras.optimizers.Adam(1e-3), member_batches="split")
    models["BALI"] = bk.convert(net, likelihood="categorical")
    models["BALI"].compile()
    for name in ("rank-1", "BALI"):
        models[name].fit(data.x_train, data.y_train, batch_size=32, epochs=epochs // 2, verbose=2)
    return models


def scores(p: r1.PosteriorPredictive, y: np.ndarray) -> dict[str, float]:
    """Accuracy and NLL per pixel, and mutual information in nats where the answer is wrong."""
    is_right = np.argmax(p.mean(), axis=-1) == y
    information = p.mutual_information()
    return {
        "accuracy": float(is_right.mean()),
        "NLL per pixel": float(-np.mean(p.log_prob(y)) / y[0].size),
        "information, right": float(information[is_right].mean()),
        "information, wrong": float(information[~is_right].mean()),
    }


def figure(data: Split, answers: dict[str, r1.PosteriorPredictive], rows: int = 4) -> plt.Figure:
    """Scenes, their labels, and for every net the answer and what it does not know."""
    bayesian = [name for name in answers if name != "stock"]
    titles = ["scene", "truth"] + [f"{n}: {w}" for n in bayesian for w in ("answer", "information")]
    fig, axes = plt.subplots(rows, len(titles), figsize=(2 * len(titles), 2 * rows))
    for i, line in enumerate(axes):
        pictures: list[tuple[np.ndarray, dict[str, Any]]] = [
            (data.x_test[i, ..., 0], {"cmap": "gray"}),
            (data.y_test[i], {"cmap": "viridis", "vmin": 0, "vmax": len(CLASSES) - 1}),
        ]
        for name in bayesian:
            p = answers[name]
            pictures.append((np.argmax(p.mean()[i], axis=-1), pictures[1][1]))
            pictures.append((p.mutual_information()[i], {"cmap": "magma", "vmin": 0}))
        for ax, title, (picture, style) in zip(line, titles, pictures, strict=True):
            ax.imshow(picture, **style)
            ax.set_axis_off()
            if i == 0:
                ax.set_title(title, fontsize=9)
    fig.tight_layout()
    return fig


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--scenes", type=int, default=800)
    parser.add_argument("--out", type=Path, default=Path("segmentation_output"))
    options = parser.parse_args(arguments)
    plt.rcParams.update(r1.plots.LOOK)
    keras.utils.set_random_seed(0)
    data = load_scenes(options.scenes, max(8, options.scenes // 4))
    table = Table("net", "accuracy", "NLL per pixel", "information, right", "wrong")
    answers = {}
    for name, model in trained(data, options.epochs).items():
        answers[name] = model.posterior_predictive(data.x_test, SAMPLES, batch_size=50, seed=0)
        ways = {name: answers[name]}
        if name != "stock":  # samples of what pixels share, and moments behind them
            p = model.posterior_predictive(data.x_test, batch_size=50, method="moments")
            ways[f"{name}, moments"] = p
        for way, p in ways.items():
            table.add_row(way, *(f"{value:.4f}" for value in scores(p, data.y_test).values()))
    show(table, options.out / "segmentation.json")
    figure(data, answers).savefig(options.out / "segmentation.png", dpi=120)
    print(f"wrote {options.out / 'segmentation.png'}")


if __name__ == "__main__":
    main()
