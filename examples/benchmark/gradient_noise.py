"""Variance of a step's gradients by how factors are drawn: `sampling=` example, flipout, member.

    python -m examples.benchmark.gradient_noise [--draws 400]

One rank-1 net is trained on digits for a few epochs. Then gradients of the loss of one batch are
drawn again and again, with the same weights; printed is the sum of the variances of the kernels'
gradients, and its ratio to that with a draw for every row.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from rich.table import Table

import tfp_rank1 as r1
from examples.datasets.small import load_digits
from examples.record import show

SAMPLINGS, BATCH, MEMBERS, STDDEV = ("example", "flipout", "member"), 64, 4, 0.1


def net(sampling: str) -> r1.BayesianModel:
    """A net of two hidden layers with four members."""

    def dense(units: int, activation: str | None = None) -> keras.layers.Layer:
        posterior = r1.posteriors.Normal(stddev=STDDEV)
        return r1.layers.DenseRank1(
            units, activation=activation, posterior=posterior, sampling=sampling
        )

    with r1.members(MEMBERS):
        inputs = keras.Input((64,))
        h = dense(100, "relu")(r1.layers.TileMembers()(inputs))
        outputs = r1.layers.SplitMembers()(dense(10)(dense(100, "relu")(h)))
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical")
    model.compile("adam")
    return model


def variance(model: r1.BayesianModel, x: np.ndarray, y: np.ndarray, draws: int) -> float:
    """The sum of the variances of the gradients of all kernels."""
    kernels = [v.kernel.value for v in model.layers if isinstance(v, r1.layers.DenseRank1)]

    @tf.function(autograph=False)
    def gradient() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = model.loss(y, model(x, training=True))
        parts = tape.gradient(loss, kernels)
        return tf.concat([tf.reshape(v, [-1]) for v in parts], axis=0)

    return float(np.stack([gradient() for _ in range(draws)]).var(axis=0, ddof=1).sum())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    data = load_digits(0)
    keras.utils.set_random_seed(0)
    trained = net("example")
    trained.fit(data.x_train, data.y_train, batch_size=BATCH, epochs=5, verbose=0)
    x, y = tf.constant(data.x_train[:BATCH]), tf.constant(data.y_train[:BATCH])
    table = Table("sampling", "variance", "ratio")
    first = None
    for sampling in SAMPLINGS:
        model = net(sampling)
        model.set_weights(trained.get_weights())
        found = variance(model, x, y, options.draws)
        first = found if first is None else first
        table.add_row(sampling, f"{found:.4f}", f"{found / first:.2f}")
    show(table, options.out)


if __name__ == "__main__":
    main()
