"""A thousand labels on the features of a frozen backbone: BALI beside laplace-torch's last layer.

    python -m examples.benchmark.many_labels [--labels 1000] [--inputs 2048] [--rows 10000]

All train one dense layer on the same features with batches of 256 for as many epochs, then predict
the same rows. Each runs in a process of its own. Prints seconds, memory beyond that of imports and
data, and the NLL of rows held out. laplace-torch needs `pip install 'rank1-bali[peers]'`, or its
rows are left out.

laplace-torch draws one label per row for its Fisher information: its sum over all labels takes a
pass for each. Its default prediction linearises the net, for which it holds rows x labels x weights
numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from rich.table import Table

from examples.benchmark.memory import resident
from examples.record import show

BATCH, EPOCHS, TESTED, SAMPLES, RATE = 256, 5, 1000, 32, 1e-3
MEBIBYTE = 2**20


def features(labels: int, inputs: int, rows: int) -> tuple[np.ndarray, ...]:
    """Rectified features around a centre per label, and the labels; the last rows are for tests."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(labels, inputs)).astype("float32") * 0.25
    y = rng.integers(0, labels, rows + TESTED)
    x = np.maximum(centres[y] + rng.normal(size=(len(y), inputs)).astype("float32"), 0.0)
    return x[:rows], y[:rows], x[rows:], y[rows:]


def held(before: int) -> float:
    """Mebibytes at the peak beyond the bytes held before."""
    return (resident("VmHWM") - before) / MEBIBYTE


def nll(probabilities: np.ndarray, y: np.ndarray) -> float:
    """Negative log-likelihood in nats per row."""
    picked = np.asarray(probabilities, "float64")[np.arange(len(y)), y]
    return float(-np.mean(np.log(np.maximum(picked, 1e-30))))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it returns."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def bali(data: tuple[np.ndarray, ...], way: str) -> dict[str, float]:
    """A `DenseBali` layer; `way` is the `method` of its answers."""
    import keras

    import bali_keras as bk

    x, y, x_test, y_test = data
    keras.utils.set_random_seed(0)
    inputs = keras.Input(x.shape[1:])
    outputs = bk.layers.DenseBali(int(y.max()) + 1)(inputs)
    model = bk.BaliModel(inputs, outputs, likelihood="categorical")
    model.compile()
    before = resident("VmRSS")
    fit, _ = timed(lambda: model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0))
    options: dict[str, Any] = {"num_samples": SAMPLES, "seed": 0} if way == "samples" else {}
    predict, answer = timed(
        lambda: model.posterior_predictive(x_test, method=way, **options).mean()
    )
    return {"fit": fit, "predict": predict, "memory": held(before), "nll": nll(answer, y_test)}


def point(data: tuple[np.ndarray, ...], way: str) -> dict[str, float]:
    """The stock layer and Adam, which know of no uncertainty."""
    import keras

    x, y, x_test, y_test = data
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(int(y.max()) + 1)])
    model.compile(
        keras.optimizers.Adam(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    before = resident("VmRSS")
    fit, _ = timed(lambda: model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0))
    predict, logits = timed(lambda: model.predict(x_test, verbose=0))
    answer = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    return {"fit": fit, "predict": predict, "memory": held(before), "nll": nll(answer, y_test)}


def laplace(data: tuple[np.ndarray, ...], way: str) -> dict[str, float]:
    """A linear layer, Adam, and a Kronecker-factored Laplace approximation of it."""
    import torch
    from laplace import Laplace

    torch.manual_seed(0)
    x, y, x_test, _ = map(torch.from_numpy, data)
    layer = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    net = torch.nn.Sequential(torch.nn.Identity(), layer)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=BATCH, shuffle=True
    )
    before = resident("VmRSS")

    def fit() -> Any:
        optimizer = torch.optim.Adam(net.parameters(), RATE)
        for _ in range(EPOCHS):
            for rows, labels in loader:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(rows), labels).backward()
                optimizer.step()
        # Of the labels one is drawn per row: all of them would take 20 times as long.
        drawn = {"stochastic": True}
        found: Any = Laplace(net, "classification", "last_layer", "kron", backend_kwargs=drawn)
        found.fit(loader)
        found.optimize_prior_precision(method="marglik")
        return found

    seconds, found = timed(fit)
    tested = x_test if way == "nn" else x_test[:1]  # one row is all that fits
    options = {"pred_type": "nn", "link_approx": "mc", "n_samples": SAMPLES}
    options = options if way == "nn" else {"pred_type": "glm", "link_approx": "probit"}
    predict, answer = timed(lambda: found(tested, **options).detach().numpy())
    share = len(x_test) / len(tested)
    return {
        "fit": seconds,
        "predict": predict * share,
        "memory": held(before),
        "nll": nll(answer, data[3][: len(tested)]),
    }


RUNS = {
    "Keras, a point": (point, ""),
    "BALI, moments": (bali, "moments"),
    f"BALI, {SAMPLES} samples": (bali, "samples"),
    f"laplace-torch, {SAMPLES} samples": (laplace, "nn"),
    "laplace-torch, linearised (predicts 1 row)": (laplace, "glm"),
}


def measured(name: str, arguments: Sequence[str]) -> dict[str, float] | str:
    """One run in a process of its own; what stopped it, for one that did not end."""
    command = [sys.executable, "-m", "examples.benchmark.many_labels", "--run", name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}, as without memory"
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.run:
        function, way = RUNS[args.run]
        print(json.dumps(function(features(args.labels, args.inputs, args.rows), way)))
        return
    sizes = [f"--labels={args.labels}", f"--inputs={args.inputs}", f"--rows={args.rows}"]
    table = Table("", "fit, s", f"predict {TESTED:,} rows, s", "memory, MiB", "NLL")
    has_peer = find_spec("laplace") is not None
    for name, (function, _) in RUNS.items():
        if function is laplace and not has_peer:
            continue
        found = measured(name, sizes)
        if isinstance(found, str):
            table.add_row(name, found)
            continue
        cells = ("fit", ".1f"), ("predict", ".1f"), ("memory", ",.0f"), ("nll", ".3f")
        table.add_row(name, *(f"{found[key]:{form}}" for key, form in cells))
    show(table, args.out)


if __name__ == "__main__":
    main()
