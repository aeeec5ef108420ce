"""From data to a served model with honest uncertainty, in under three minutes on two cores.

    python -m examples.quickstart

1. Handwritten digits: a deterministic net, a rank-1 Bayesian net and a BALI net of the same size,
   compared in accuracy, negative log-likelihood, calibration, and the detection of scrambled
   images.
2. A 1-D regression with a gap in the data, where the Bayesian nets' error bars open.
3. Export to a SavedModel, loaded and asked in a process that knows nothing of this package.

Writes `quickstart_output/quickstart.png` and `quickstart_output/served/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import rich
import tensorflow as tf
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import bali_keras as bk
import tfp_rank1 as r1
from examples.datasets.small import Split, load_digits, shuffle_blocks, sine_with_gap

MEMBERS = 4
SAMPLES = 32


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table: how to build, compile and ask a classifier.

    `effort` is the fraction of the epochs it gets: BALI needs few iterations.
    """

    name: str
    build: Callable[[], r1.BayesianModel]
    compile: Callable[[r1.BayesianModel], None]
    samples: int
    effort: float = 1.0


def net(dense: Any) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Inputs and outputs of 64 - 128 - 128 - 10, of one kind of dense layer at its defaults."""
    x = inputs = keras.Input((64,))
    x = dense(128, activation="relu")(x)
    x = dense(128, activation="relu")(x)
    return inputs, dense(10)(x)


def build_deterministic() -> r1.BayesianModel:
    """A stock Keras net."""
    return r1.BayesianModel(*net(keras.layers.Dense), likelihood=r1.likelihoods.Categorical())


def build_classifier() -> r1.BayesianModel:
    """The same net with rank-1 layers, all at their defaults."""
    x = inputs = keras.Input((64,))
    x = r1.layers.TileMembers(MEMBERS)(x)
    x = r1.layers.DenseRank1(128, activation="relu", ensemble_size=MEMBERS)(x)
    x = r1.layers.DenseRank1(128, activation="relu", ensemble_size=MEMBERS)(x)
    x = r1.layers.DenseRank1(10, ensemble_size=MEMBERS)(x)
    outputs = r1.layers.SplitMembers(MEMBERS)(x)
    return r1.BayesianModel(inputs, outputs, likelihood=r1.likelihoods.Categorical())


def build_bali_classifier() -> bk.BaliModel:
    """The same net with BALI layers, all at their defaults."""
    return bk.BaliModel(*net(bk.layers.DenseBali), likelihood=r1.likelihoods.Categorical())


def build_regressor() -> r1.BayesianModel:
    """1 - 64 - 64 - 1 with learned noise and a wide prior, for functions that vary freely."""
    wide = {
        "ensemble_size": MEMBERS,
        "posterior": r1.posteriors.Normal(keras.initializers.RandomNormal(1.0, 0.5), stddev=0.1),
        "prior": r1.priors.Normal(1.0, 0.5),
        "bias_initializer": keras.initializers.RandomNormal(stddev=1.0),
    }
    x = inputs = keras.Input((1,))
    x = r1.layers.TileMembers(MEMBERS)(x)
    x = r1.layers.DenseRank1(64, activation="relu", **wide)(x)
    x = r1.layers.DenseRank1(64, activation="relu", **wide)(x)
    x = r1.layers.DenseRank1(1, **wide)(x)
    outputs = r1.layers.SplitMembers(MEMBERS)(x)
    return r1.BayesianModel(inputs, outputs, likelihood=r1.likelihoods.Normal(initial_scale=0.3))


def build_bali_regressor() -> bk.BaliModel:
    """1 - 64 - 64 - 1 with learned noise; biases spread, so that the kinks of the ReLUs do."""
    spread = {"bias_initializer": keras.initializers.RandomNormal(stddev=1.0)}
    x = inputs = keras.Input((1,))
    x = bk.layers.DenseBali(64, activation="relu", **spread)(x)
    x = bk.layers.DenseBali(64, activation="relu", **spread)(x)
    outputs = bk.layers.DenseBali(1)(x)
    return bk.BaliModel(inputs, outputs, likelihood=r1.likelihoods.Normal())


def compile_with_adam(model: r1.BayesianModel) -> None:
    """Adam at its usual rate, for every method."""
    model.compile(keras.optimizers.Adam(1e-3))


def compile_bali(model: r1.BayesianModel) -> None:
    """No optimizer and no learning rate."""
    model.compile()


# Another method is one more line here.
METHODS = (
    Method("deterministic", build_deterministic, compile_with_adam, 1),
    Method("rank-1", build_classifier, compile_with_adam, SAMPLES),
    Method("BALI", build_bali_classifier, compile_bali, SAMPLES, effort=0.3),
)


class FitProgress(keras.callbacks.Callback):
    """Shows the epochs of one `fit` as a bar with the current NLL."""

    def __init__(self, progress: Progress, name: str, epochs: int) -> None:
        super().__init__()
        self._progress = progress
        self._task = progress.add_task(name, total=epochs, nll="")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Advance the bar."""
        nll = (logs or {}).get("nll", float("nan"))
        self._progress.update(self._task, advance=1, nll=f"NLL {nll:.3f}")


def progress_bar() -> Progress:
    """One line per fit: name, bar, NLL, time."""
    columns = TextColumn("{task.description:>24}"), BarColumn(), TextColumn("{task.fields[nll]}")
    return Progress(*columns, TimeElapsedColumn())


def train_classifier(
    method: Method, data: Split, epochs: int, progress: Progress
) -> tuple[r1.BayesianModel, float]:
    """A trained model and the seconds it took."""
    model = method.build()
    method.compile(model)
    start = time.perf_counter()
    epochs = max(1, round(method.effort * epochs))
    callbacks = [FitProgress(progress, f"digits, {method.name}", epochs)]
    model.fit(
        data.x_train, data.y_train, batch_size=32, epochs=epochs, verbose=0, callbacks=callbacks
    )
    return model, time.perf_counter() - start


def score(
    y: np.ndarray, inside: r1.PosteriorPredictive, outside: r1.PosteriorPredictive
) -> dict[str, float]:
    """Accuracy, NLL, ECE, Brier score, and AUROC of the entropy against scrambled images."""
    metrics: dict[str, Any] = {
        "accuracy": r1.metrics.Accuracy(),
        "NLL": r1.metrics.PredictiveNLL(likelihood="categorical"),
        "ECE": r1.metrics.ExpectedCalibrationError(),
        "Brier": r1.metrics.BrierScore(),
    }
    for metric in metrics.values():
        metric.update_state(y, inside)
    separation: Any = r1.metrics.OODAUROC("entropy")
    separation.update_state(np.zeros(len(y)), inside)
    separation.update_state(np.ones(outside.outputs.shape[0]), outside)
    values = {**metrics, "OOD AUROC": separation}
    return {name: float(metric.result()) for name, metric in values.items()}


def run_digits(epochs: int, seed: int, axes: Any) -> tuple[Table, r1.BayesianModel, np.ndarray]:
    """Train and compare all methods; returns the table, the rank-1 model and test images.

    Args:
        epochs: of a method with effort 1.
        seed: of the split and the start.
        axes: for the calibration, the ROC, and the entropies of each Bayesian method.
    """
    data = load_digits(seed)
    scrambled = shuffle_blocks(data.x_test, seed)
    calibration, roc, *histograms = axes
    rows, models = [], {}
    with progress_bar() as progress:
        for method in METHODS:
            keras.utils.set_random_seed(seed)
            model, seconds = train_classifier(method, data, epochs, progress)
            inside = model.posterior_predictive(data.x_test, num_samples=method.samples)
            outside = model.posterior_predictive(scrambled, num_samples=method.samples)
            rows.append((method.name, score(data.y_test, inside, outside), seconds))
            models[method.name] = model
            r1.plots.reliability_diagram(data.y_test, inside, ax=calibration, label=method.name)
            r1.plots.ood_roc(inside, outside, ax=roc, label=method.name)
            if method.samples > 1:
                ax = histograms.pop(0)
                r1.plots.ood_histogram(inside, outside, ax=ax)
                ax.set_title(f"entropy, {method.name}")
    calibration.set_title("digits: calibration")
    roc.set_title("digits against scrambled digits")
    return comparison_table(rows), models["rank-1"], data.x_test


def comparison_table(rows: list[tuple[str, dict[str, float], float]]) -> Table:
    """One row per method."""
    table = Table(title="Handwritten digits, test set")
    for column in ("method", *rows[0][1], "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, values, seconds in rows:
        table.add_row(name, *(f"{value:.3f}" for value in values.values()), f"{seconds:.1f}")
    return table


@dataclasses.dataclass(frozen=True)
class Regression:
    """How to build, compile and train a regression net."""

    name: str
    build: Callable[[], r1.BayesianModel]
    compile: Callable[[r1.BayesianModel], None]
    anneals: bool = False


REGRESSIONS = (
    Regression(
        "rank-1", build_regressor, lambda m: m.compile(keras.optimizers.Adam(3e-3)), anneals=True
    ),
    Regression("BALI", build_bali_regressor, compile_bali),
)


def run_regression(method: Regression, epochs: int, seed: int, ax: Any) -> tuple[float, float]:
    """Fit the sine with a gap; returns the epistemic stddev on the data and in the gap."""
    keras.utils.set_random_seed(seed)
    x, y = sine_with_gap(160, seed)
    model = method.build()
    method.compile(model)
    with progress_bar() as progress:
        callbacks: list[Any] = [FitProgress(progress, f"regression, {method.name}", epochs)]
        if method.anneals:
            callbacks.append(r1.callbacks.KLAnnealing(epochs=epochs / 2))
        model.fit(x, y, batch_size=32, epochs=epochs, verbose=0, callbacks=callbacks)
    grid = np.linspace(-7.0, 7.0, 281, dtype="float32")[:, np.newaxis]
    predictive = model.posterior_predictive(grid, num_samples=256, seed=seed, batch_size=512)
    r1.plots.predictive_band(grid, predictive, data=(x, y), ax=ax)
    ax.set(title=f"regression with a gap, {method.name}", ylim=(-3, 3))
    epistemic = np.sqrt(np.ravel(predictive.epistemic_variance()))
    position = np.abs(grid[:, 0])
    on_data = epistemic[(position > 2.5) & (position < 4.5)].mean()
    return float(on_data), float(epistemic[position < 1.0].mean())


_CLIENT = """
import json, sys
sys.modules["tfp_rank1"] = sys.modules["tensorflow_probability"] = None   # not to be imported
import numpy as np, tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
answer = served.serve(tf.constant(np.load(sys.argv[2])))
print(json.dumps({name: value.numpy().tolist() for name, value in answer.items()}))
"""


def ask_in_clean_process(folder: Path, images: np.ndarray) -> dict[str, Any]:
    """Load the SavedModel in a process without this package and predict."""
    np.save(folder / "images.npy", images)
    command = [sys.executable, "-c", _CLIENT, str(folder / "served"), str(folder / "images.npy")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Run the whole path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100, help="epochs on the digits")
    parser.add_argument("--regression-epochs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("quickstart_output"))
    arguments = parser.parse_args()
    start = time.perf_counter()
    arguments.out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(r1.plots.LOOK)
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")

    digits_axes = (axes[0, 0], axes[1, 0], axes[0, 1], axes[1, 1])
    table, model, images = run_digits(arguments.epochs, arguments.seed, digits_axes)
    rich.print(table)
    for method, ax in zip(REGRESSIONS, axes[:, 2], strict=True):
        spread = run_regression(method, arguments.regression_epochs, arguments.seed, ax)
        rich.print(
            f"Epistemic standard deviation, {method.name}: {spread[0]:.3f} on the data, "
            f"{spread[1]:.3f} in the gap"
        )
    figure.savefig(arguments.out / "quickstart.png", dpi=120)

    model.export_predictive(str(arguments.out / "served"), num_samples=SAMPLES)
    answer = ask_in_clean_process(arguments.out, images[:3])
    for row, probabilities in enumerate(answer["probs"]):
        rich.print(
            f"served, image {row}: digit {np.argmax(probabilities)} with probability "
            f"{max(probabilities):.2f}, mutual information "
            f"{answer['mutual_information'][row]:.3f} nats"
        )
    rich.print(
        f"Wrote {arguments.out / 'quickstart.png'} and {arguments.out / 'served'} in "
        f"{time.perf_counter() - start:.0f} s (TensorFlow {tf.__version__})"
    )


if __name__ == "__main__":
    main()
