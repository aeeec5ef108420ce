"""Steps of BALI beside steps of Adam: dense nets of several widths, and a converted ResNet-50.

    python -m examples.benchmark.bali_steps [--widths 64 256 512 1024] [--steps 120]
    python -m examples.benchmark.bali_steps --resnet stock
    python -m examples.benchmark.bali_steps --resnet bali

Of the steps of BALI at a constant rate of 0.01 some collect statistics and some factorise: the mean
of many counts. Both nets of a width take turns of 20 steps in one process. The ResNet, at 64 x 64
pixels and batch 32, runs in a process of its own, for its memory at the peak.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from rich.table import Table

import bali_keras as bk
from examples.record import show

RATE, TURN, EXAMPLES = 0.01, 20, 50_000


def stock_compiled(model: keras.Model) -> keras.Model:
    """A net of stock layers that ends in logits, under Adam."""
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def bali_compiled(model: bk.BaliModel) -> bk.BaliModel:
    """A BALI net at a constant rate, with nothing left to search for."""
    model.compile(forgetting=RATE, prior_precision=1.0, damping=1e-3, covariance_scale=1.0)
    return model


def dense_nets(width: int) -> tuple[keras.Model, bk.BaliModel]:
    """`width - width - width - 10`, ReLU, of stock layers and of BALI layers."""
    graphs = []
    for dense in (keras.layers.Dense, bk.layers.DenseBali):
        h = inputs = keras.Input((width,))
        for _ in range(2):
            h = dense(width, activation="relu")(h)
        graphs.append((inputs, dense(10)(h)))
    bali = bk.BaliModel(*graphs[1], likelihood="categorical", num_train_examples=EXAMPLES)
    return stock_compiled(keras.Model(*graphs[0])), bali_compiled(bali)


def resnet() -> keras.Model:
    """ResNet-50 on images of 64 x 64 pixels, ten classes, random weights."""
    body = keras.applications.ResNet50(
        weights=None, include_top=False, input_shape=(64, 64, 3), pooling="avg"
    )
    return keras.Model(body.input, keras.layers.Dense(10)(body.output))


def stepper(model: Any, x: np.ndarray, y: np.ndarray, first: int) -> Callable[[int], float]:
    """A function that takes some steps on one batch, and returns seconds per step."""
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    model.fit(data, steps_per_epoch=first, verbose=0, shuffle=False)  # traces the step
    iterator = iter(data)

    def run(steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            logs = model.train_function(iterator)
        float(logs["loss"])
        return (time.perf_counter() - begin) / steps

    return run


def batch_of(rows: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and labels."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, *shape)).astype("float32"), rng.integers(0, 10, rows)


def measure_widths(widths: Sequence[int], steps: int) -> Table:
    """Milliseconds of a step and their ratio, by width and batch size."""
    table = Table("width", "batch", "Adam, ms", "BALI, ms", "ratio", title="mean step")
    for width in widths:
        for rows in (256, 32):
            batch = batch_of(rows, (width,))
            runs = [stepper(model, *batch, first=45) for model in dense_nets(width)]
            turns = [[run(TURN) for run in runs] for _ in range(1 + steps // TURN)][1:]
            stock, bali = 1e3 * np.mean(turns, axis=0)
            numbers = f"{stock:.2f}", f"{bali:.2f}", f"{bali / stock:.2f}"
            table.add_row(str(width), str(rows), *numbers)
    return table


def measure_resnet(kind: str, steps: int) -> str:
    """Seconds of a step, memory at the peak, and how many batches were refused."""
    model: Any = resnet()
    if kind == "bali":
        model = bali_compiled(bk.convert(model, "categorical", num_train_examples=EXAMPLES))
    else:
        model = stock_compiled(model)
    seconds = stepper(model, *batch_of(32, (64, 64, 3)), first=20)(steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    refused = f", {model.refused_updates} refused" if kind == "bali" else ""
    return f"ResNet-50, {kind}: {seconds:.2f} s per step, peak {peak:.2f} GiB{refused}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 512, 1024])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--resnet", choices=["stock", "bali"], help="in place of the widths")
    parser.add_argument("--out", type=Path, help="a JSON file, for the widths")
    options = parser.parse_args(arguments)
    if options.resnet:
        print(measure_resnet(options.resnet, options.steps))
    else:
        show(measure_widths(options.widths, options.steps), options.out)


if __name__ == "__main__":
    main()
