"""Seconds per request of exported models, as ratios against a deterministic net."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.progress import track

import tfp_rank1 as r1
from examples.benchmark import methods
from examples.benchmark.nets import Dense, Net

INPUTS, HIDDEN, CLASSES = 784, (100, 100), 10
NET = Net((INPUTS,), tuple(Dense(units) for units in HIDDEN), CLASSES)
ROWS = 1, 32, 1024


def stock() -> keras.Model:
    """784-100-100-10 with a softmax."""
    h = inputs = keras.Input((INPUTS,))
    for units in HIDDEN:
        h = keras.layers.Dense(units, activation="relu")(h)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(h))


def bali() -> r1.BayesianModel:
    """The same of BALI layers, after a few steps."""
    model = methods.get("bali").build(NET, "categorical")
    model.num_train_examples = 60_000
    model.compile()
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(1000, INPUTS)).astype("float32")
    model.fit(x, rng.integers(0, CLASSES, 1000), batch_size=50, verbose=0)
    return model


def measure(repeats: int) -> list[dict[str, Any]]:
    """Requests to both nets in turn: median and 99th percentile of ours, ratio of the medians.

    Args:
        repeats: pairs of requests per case.
    """
    nets: list[tuple[str, r1.BayesianModel, tuple[int, int]]] = [
        ("rank-1", methods.get("rank1_normal").build(NET, "categorical"), (4, 16)),
        ("BALI", bali(), (8, 32)),
    ]
    cases = [
        (name, model, samples, rows)
        for name, model, counts in nets
        for samples in counts
        for rows in ROWS
    ]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        stock().export(str(path / "stock"), verbose=False)
        plain = load(path / "stock")
        for name, model, samples, rows in track(cases, "serving"):
            target = path / f"{name}-{samples}"
            if not target.exists():
                model.export_predictive(str(target), num_samples=samples)
            ours = load(target)
            x = tf.random.uniform([rows, INPUTS])
            results.append(compare(f"{name}, {samples} samples", plain, ours, x, repeats))
    return results


def load(path: Path) -> Callable[[tf.Tensor], Any]:
    """A function that answers a request, results on the host."""
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    (name,) = function.structured_input_signature[1]

    def request(x: tf.Tensor, held: Any = loaded) -> Any:  # held: its functions do not hold it
        return {key: value.numpy() for key, value in function(**{name: x}).items()}

    return request


def compare(
    name: str,
    plain: Callable[[tf.Tensor], Any],
    ours: Callable[[tf.Tensor], Any],
    x: tf.Tensor,
    repeats: int,
) -> dict[str, Any]:
    """One row of the table."""
    for _ in range(5):
        plain(x), ours(x)
    pairs = [(seconds(plain, x), seconds(ours, x)) for _ in range(repeats)]
    before, after = (sorted(column) for column in zip(*pairs, strict=True))
    median = statistics.median(after)
    return {
        "case": name,
        "rows": str(len(x)),
        "stock_ms": 1e3 * statistics.median(before),
        "ours_ms": 1e3 * median,
        "ours_99_ms": 1e3 * after[int(0.99 * (repeats - 1))],
        "ratio": median / statistics.median(before),
        "rows_per_second": len(x) / median,
    }


def seconds(function: Callable[[tf.Tensor], Any], x: tf.Tensor) -> float:
    """Of one request."""
    start = time.perf_counter()
    function(x)
    return time.perf_counter() - start
