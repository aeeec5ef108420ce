"""Seconds per request of exported models, as ratios against a deterministic net.

Answers from samples and from one pass of moments; the latter also from an ONNX file and from a
LiteRT file, where the packages that run these are installed.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
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
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        stock().export(str(path / "stock"), verbose=False)
        plain = load(path / "stock")
        cases = [
            (f"{name}, {answers}", request)
            for name, model, counts in nets
            for answers, request in exported(model, counts, path / name)
        ]
        for name, ours in track(cases, "serving"):
            for rows in ROWS:
                x = tf.random.uniform([rows, INPUTS])
                results.append(compare(name, plain, ours, x, repeats))
    return results


def exported(model: r1.BayesianModel, counts: Iterable[int], path: Path) -> list[tuple[str, Any]]:
    """What a model can be exported to, by name, as functions that answer a request."""
    found = []
    for samples in counts:
        model.export_predictive(f"{path}-{samples}", num_samples=samples)
        found.append((f"{samples} samples", load(Path(f"{path}-{samples}"))))
    model.export_predictive(f"{path}-moments", method="moments")
    found.append(("moments", load(Path(f"{path}-moments"))))
    for format, package, load_file in FILES:
        if importlib.util.find_spec(package):
            file = f"{path}.{format}"
            model.export_predictive(file, method="moments", format=format)
            found.append((f"moments, {format}", load_file(file)))
    return found


def load(path: Path) -> Callable[[tf.Tensor], Any]:
    """A function that answers a request, results on the host."""
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    (name,) = function.structured_input_signature[1]

    def request(x: tf.Tensor, held: Any = loaded) -> Any:  # held: its functions do not hold it
        return {key: value.numpy() for key, value in function(**{name: x}).items()}

    return request


def load_onnx(file: str) -> Callable[[tf.Tensor], Any]:
    """As `load`, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    (given,) = session.get_inputs()
    return lambda x: session.run(None, {given.name: x.numpy()})


def load_litert(file: str) -> Callable[[tf.Tensor], Any]:
    """As `load`, by the LiteRT interpreter."""
    from ai_edge_litert import interpreter

    loaded = interpreter.Interpreter(model_path=file, num_threads=os.cpu_count())
    runner = loaded.get_signature_runner("serving_default")
    (name,) = runner.get_input_details()
    return lambda x: runner(**{name: x.numpy()})


FILES = (("onnx", "tf2onnx", load_onnx), ("litert", "ai_edge_litert", load_litert))


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
