"""Seconds and memory as ratios against stock Keras: rank-1 layers, and a BALI training step.

    python -m examples.benchmark.speed [--repeats 30] [--layers Dense LSTM] [--out speed.json]

Both layers do the same work in turn, A B A B ..., in one process: an inference call, and a
training step (forward, backward to weights and inputs, Adam) of a model that holds nothing but
the layer. Printed are the medians and the median of the ratios, pair by pair; on Linux also the
memory at the peak of the training step, beyond what was held before it, and its ratio.

BALI: one batch of `fit` of a net 784-512-512-10 at batch 512, against the stock net under Adam. Of
its steps only some recompute covariances, so its mean step counts as well as its median.

Serving (`serving.py`): requests of 1, 32 and 1,024 rows to exported nets 784-100-100-10.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import rich
import tensorflow as tf
from rich.progress import track
from rich.table import Table

import bali_keras as bk
import tfp_rank1 as r1
from examples.benchmark import memory, serving

MEMBERS = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """A stock layer and its rank-1 counterpart on inputs `[rows, *shape]`.

    Attributes:
        name: of the layer, as in Keras.
        arguments: of both constructors.
        rows: of the batch, members included.
        shape: of a row.
        tokens: number of tokens, where inputs are whole numbers.
        samplings: ways to draw factors; the empty one is a layer without.
    """

    name: str
    arguments: dict[str, Any]
    rows: int
    shape: tuple[int, ...]
    tokens: int = 0
    samplings: tuple[str, ...] = ("example", "member")

    @property
    def title(self) -> str:
        """As printed."""
        return f"{self.name}, {MEMBERS} x {self.rows // MEMBERS} rows of {self.shape}"

    def stock(self) -> keras.layers.Layer:
        """The stock layer."""
        return getattr(keras.layers, self.name)(**self.arguments)

    def rank1(self, sampling: str) -> keras.layers.Layer:
        """Its counterpart."""
        cls = getattr(r1.layers, f"{self.name}Rank1")
        return cls(ensemble_size=MEMBERS, kl_weight=1e-4, sampling=sampling, **self.arguments)

    def inputs(self) -> tf.Tensor:
        """Random ones."""
        shape = [self.rows, *self.shape]
        if self.tokens:
            return tf.random.uniform(shape, 0, self.tokens, tf.int32)
        return tf.random.normal(shape)


class Normalization(Case):
    """`EnsembleBatchNormalization`, whose members have statistics, scale and offset."""

    def rank1(self, sampling: str) -> keras.layers.Layer:
        return r1.layers.EnsembleBatchNormalization(MEMBERS, **self.arguments)


class DenseOverTime(Case):
    """A dense layer in `TimeDistributed`."""

    def stock(self) -> keras.layers.Layer:
        return keras.layers.TimeDistributed(keras.layers.Dense(**self.arguments))

    def rank1(self, sampling: str) -> keras.layers.Layer:
        dense = Case("Dense", self.arguments, self.rows, self.shape)
        return r1.layers.TimeDistributedRank1(dense.rank1(sampling))


_FILTERS = {"filters": 64, "kernel_size": 3, "padding": "same"}
_DEPTHWISE = {"kernel_size": 3, "padding": "same"}
CASES = (
    Case("Dense", {"units": 1024}, 256, (1024,)),
    Case(
        "EinsumDense",
        {"equation": "abc,cde->abde", "output_shape": (32, 4, 64), "bias_axes": "de"},
        128,
        (32, 256),
    ),
    Case("Embedding", {"input_dim": 1000, "output_dim": 128}, 128, (64,), tokens=1000),
    Case("Conv1D", _FILTERS, 128, (256, 64)),
    Case("Conv2D", _FILTERS, 128, (32, 32, 64)),
    Case("Conv3D", {**_FILTERS, "filters": 32}, 32, (12, 12, 12, 32)),
    Case("Conv1DTranspose", {**_FILTERS, "strides": 2}, 128, (128, 64)),
    Case("Conv2DTranspose", {**_FILTERS, "strides": 2}, 64, (16, 16, 64)),
    Case("Conv3DTranspose", {**_FILTERS, "filters": 16, "strides": 2}, 16, (8, 8, 8, 32)),
    Case("DepthwiseConv1D", _DEPTHWISE, 128, (256, 64)),
    Case("DepthwiseConv2D", _DEPTHWISE, 64, (32, 32, 64)),
    Case("SeparableConv1D", _FILTERS, 128, (256, 64)),
    Case("SeparableConv2D", _FILTERS, 64, (32, 32, 64)),
    Case("MultiHeadAttention", {"num_heads": 4, "key_dim": 32}, 64, (64, 128)),
    Case("LSTM", {"units": 128, "use_cudnn": False}, 128, (32, 64)),
    Case("GRU", {"units": 128, "use_cudnn": False}, 128, (32, 64)),
    DenseOverTime("TimeDistributed", {"units": 256}, 128, (32, 256)),
    Normalization("BatchNormalization", {}, 128, (32, 32, 64), samplings=("",)),
)


def call(layer: keras.layers.Layer, x: tf.Tensor, training: bool) -> tf.Tensor:
    """The layer's outputs; attention is that of a sequence to itself."""
    is_attention = isinstance(layer, keras.layers.MultiHeadAttention)
    return layer(x, x, training=training) if is_attention else layer(x, training=training)


def inference(layer: keras.layers.Layer, x: tf.Tensor) -> Callable[[], Any]:
    """A compiled call of the layer."""
    compiled = tf.function(lambda: call(layer, x, training=False), autograph=False)
    return lambda: compiled().numpy()[0, 0]


def gradients(layer: keras.layers.Layer, x: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Mean squared output plus the layer's losses, and its gradients for inputs and weights."""
    variables = [v.value for v in layer.trainable_variables]
    # Inside a net a layer also passes the gradient on to the one before.
    sources = [x, *variables] if x.dtype.is_floating else variables
    with tf.GradientTape() as tape:
        tape.watch(sources)
        outputs = call(layer, x, training=True)
        loss = tf.reduce_mean(outputs**2) + sum(layer.losses)
    return loss, tape.gradient(loss, sources)


def training(layer: keras.layers.Layer, x: tf.Tensor) -> Callable[[], Any]:
    """A compiled step of Adam."""
    call(layer, x, training=True)
    optimizer = keras.optimizers.Adam()
    optimizer.build(layer.trainable_variables)

    @tf.function(autograph=False)
    def step() -> tf.Tensor:
        loss, found = gradients(layer, x)
        rest = found[-len(layer.trainable_variables) :]
        optimizer.apply_gradients(zip(rest, layer.trainable_variables, strict=True))
        return loss + (found[0][(0,) * len(x.shape)] if x.dtype.is_floating else 0.0)

    return lambda: step().numpy()


def compare(a: Callable[[], Any], b: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median seconds of a and b, and the median of b / a, run in turn after a warm-up."""
    for _ in range(5):
        a(), b()
    pairs = [(_seconds(a), _seconds(b)) for _ in range(repeats)]
    return {
        "stock_ms": 1e3 * statistics.median(s for s, _ in pairs),
        "ours_ms": 1e3 * statistics.median(r for _, r in pairs),
        "ratio": statistics.median(r / s for s, r in pairs),
        "ratio_of_means": sum(r for _, r in pairs) / sum(s for s, _ in pairs),
    }


def compare_memory(case: Case, sampling: str) -> dict[str, float]:
    """Mebibytes at the peak of a training step, and the ratio of ours to the stock layer's."""
    x = case.inputs()
    found = []
    for layer in case.stock(), case.rank1(sampling):
        step = training(layer, x)
        step(), step()
        found.append(memory.peak(step) / 2**20)
    stock, ours = found
    return {"stock_mib": stock, "ours_mib": ours, "memory_ratio": ours / stock}


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(repeats: int, layers: list[str]) -> list[dict[str, Any]]:
    """The layers' cases, both ways of sampling, inference and training."""
    results = []
    jobs = [
        (case, sampling, mode)
        for case in CASES
        if case.name in layers
        for sampling in case.samplings
        for mode in (inference, training)
    ]
    for case, sampling, mode in track(jobs, "timing"):
        x = case.inputs()
        stock, rank1 = case.stock(), case.rank1(sampling)
        row: dict[str, Any] = {"case": case.title, "sampling": sampling, "mode": mode.__name__}
        results.append(row | compare(mode(stock, x), mode(rank1, x), repeats))
    # Last, as it slows the process down.
    for row, (case, sampling, mode) in track(list(zip(results, jobs, strict=True)), "memory"):
        if mode is training and sys.platform == "linux":
            row |= compare_memory(case, sampling)
    return results


def net(dense: Any, hidden: tuple[int, ...]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Inputs and outputs of 784 - hidden - 10, ReLU."""
    h = inputs = keras.Input((784,))
    for units in hidden:
        h = dense(units, activation="relu")(h)
    return inputs, dense(10)(h)


def stepper(model: keras.Model, batch: int) -> Callable[[], Any]:
    """The compiled training function of a model on one random batch."""
    x = tf.random.normal([batch, 784])
    y = tf.random.uniform([batch], 0, 10, tf.int32)
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    iterator = iter(data)
    model.make_train_function()
    return lambda: float(model.train_function(iterator)["loss"])


def measure_bali(repeats: int, hidden: tuple[int, ...], batch: int) -> dict[str, Any]:
    """A step of BALI beside one of Adam, both through the compiled function of `fit`."""
    stock = keras.Model(*net(keras.layers.Dense, hidden))
    stock.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model = bk.BaliModel(
        *net(bk.layers.DenseBali, hidden), likelihood="categorical", num_train_examples=60_000
    )
    model.compile()
    x, y = np.zeros((batch, 784), "float32"), np.zeros(batch, "int32")
    model.fit(x, y, batch_size=batch, epochs=40, verbose=0)  # beyond the warm-up
    timing = compare(stepper(stock, batch), stepper(model, batch), repeats)
    name = "-".join(map(str, (784, *hidden, 10)))
    return {"case": f"BALI {name}, batch {batch}", "sampling": "", "mode": "fit step", **timing}


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Rows with the columns of the fullest."""
    columns = max(rows, key=len)
    found = Table(
        *columns, title=f"{title}, TensorFlow {tf.__version__}, Keras {keras.__version__}"
    )
    for row in rows:
        values = (row.get(column, "") for column in columns)
        found.add_row(*(v if isinstance(v, str) else f"{v:.2f}" for v in values))
    return found


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    names = [case.name for case in CASES]
    parser.add_argument("--layers", nargs="+", choices=names, help="these only, and no BALI")
    parser.add_argument("--requests", action="store_true", help="to exported nets only")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    requests: list[dict[str, Any]] = []
    if not arguments.requests:
        results += measure(arguments.repeats, arguments.layers or names)
    if not arguments.requests and not arguments.layers:
        results.append(measure_bali(arguments.repeats, (512, 512), 512))
        results.append(measure_bali(arguments.repeats, (100, 100), 250))
    if not arguments.layers:
        requests = serving.measure(10 * arguments.repeats)
        rich.print(table("requests to exported nets", requests))
    if results:
        rich.print(table("ours / stock", results))
    if arguments.out:
        arguments.out.write_text(json.dumps(results + requests, indent=2) + "\n")


if __name__ == "__main__":
    main()
