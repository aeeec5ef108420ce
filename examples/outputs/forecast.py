"""Twelve hours of two series ahead, with intervals: stock net, rank-1 and BALI.

    python -m examples.outputs.forecast [--epochs 100] [--out forecast_output]

An encoder reads 48 hours, a decoder writes the next 12. Every net trains until held-out windows are
no longer better forecast, and is calibrated on them. Prints the CRPS and, by hour and series, how
often intervals of 90 % hold what came; writes `forecast.png`.
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
from examples.datasets.series import HISTORY, HORIZON, load_series
from examples.datasets.small import Split
from examples.record import show

SAMPLES, LEVEL, UNITS = 64, 0.9, 48


def stock() -> r1.BayesianModel:
    """LSTM, repeated for every hour ahead, LSTM, a dense layer at every hour; one noise for all."""
    layers = keras.layers
    inputs = keras.Input((HISTORY, 2))
    h = layers.RepeatVector(HORIZON)(layers.LSTM(UNITS)(inputs))
    h = layers.Dense(2)(layers.LSTM(UNITS, return_sequences=True)(h))
    return r1.BayesianModel(inputs, h, likelihood="normal")


def rank1() -> r1.BayesianModel:
    """The same of rank-1 layers with four members, with a noise for every hour."""
    inputs = keras.Input((HISTORY, 2))
    with r1.members(4):
        h = r1.layers.LSTMRank1(UNITS)(r1.layers.TileMembers()(inputs))
        h = keras.layers.RepeatVector(HORIZON)(h)
        h = r1.layers.LSTMRank1(UNITS, return_sequences=True)(h)
        h = r1.layers.SplitMembers()(r1.layers.DenseRank1(4)(h))
    return r1.BayesianModel(inputs, h, likelihood="heteroscedastic_normal")


def bali() -> bk.BaliModel:
    """BALI layers on the whole history, and at every hour ahead, with a noise for every hour."""
    inputs = keras.Input((HISTORY, 2))
    h = bk.layers.DenseBali(2 * UNITS, activation="tanh")(keras.layers.Flatten()(inputs))
    h = bk.layers.DenseBali(HORIZON * 16, activation="tanh")(h)
    h = keras.layers.Reshape((HORIZON, 16))(h)
    return bk.BaliModel(inputs, bk.layers.DenseBali(4)(h), likelihood="heteroscedastic_normal")


def trained(data: Split, epochs: int, seed: int = 0) -> dict[str, r1.BayesianModel]:
    """The three nets by name: the best epoch of each on held-out windows, calibrated on them."""
    fitted, held_out = apart(data)
    models: dict[str, r1.BayesianModel] = {}
    for name, build in {"stock": stock, "rank-1": rank1, "BALI": bali}.items():
        keras.utils.set_random_seed(seed)
        models[name] = model = build()
        optimizer = {} if name == "BALI" else {"optimizer": keras.optimizers.Adam(5e-3)}
        model.compile(**optimizer)
        stop = keras.callbacks.EarlyStopping("val_nll", patience=15, restore_best_weights=True)
        schedule = {"epochs": epochs, "validation_data": held_out, "callbacks": [stop]}
        model.fit(*fitted, batch_size=64, **schedule, verbose=2)
        model.calibrate(*held_out, verbose=0)
    return models


def apart(data: Split) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Windows to fit, and the last tenth, which shares no hour with them."""
    held_out = len(data.x_train) // 10
    fitted = len(data.x_train) - held_out - (HISTORY + HORIZON)
    x, y = data.x_train, data.y_train
    return (x[:fitted], y[:fitted]), (x[-held_out:], y[-held_out:])


def coverage(p: r1.PosteriorPredictive, y: np.ndarray) -> np.ndarray:
    """How often the intervals hold what came, by hour and series, `[12, 2]`."""
    low, high = p.credible_interval(LEVEL)
    return np.mean((low <= y) & (y <= high), axis=0)


def crps(p: r1.PosteriorPredictive, y: np.ndarray) -> float:
    """Continuous ranked probability score, the mean over hours and series."""
    metric = r1.metrics.CRPS()
    metric.update_state(y, p)
    return float(metric.result())


def figure(data: Split, answers: dict[str, Any], window: int = 100) -> plt.Figure:
    """One window of both series, and the intervals of every net."""
    fig, axes = plt.subplots(2, len(answers), figsize=(4 * len(answers), 5), sharey="row")
    past, ahead = np.arange(-HISTORY, 0), np.arange(HORIZON)
    for column, (name, p) in zip(axes.T, answers.items(), strict=True):
        low, high = p.credible_interval(LEVEL)
        for series, ax in enumerate(column):
            ax.plot(past, data.x_test[window, :, series], color="0.5", linewidth=1)
            ax.plot(ahead, data.y_test[window, :, series], "k.", markersize=4)
            ax.plot(ahead, p.mean()[window, :, series], color="C0")
            ax.fill_between(
                ahead, low[window, :, series], high[window, :, series], color="C0", alpha=0.3
            )
            ax.set(title=f"{name}, series {series + 1}", xlabel="hour")
    fig.tight_layout()
    return fig


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--windows", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("forecast_output"))
    options = parser.parse_args(arguments)
    plt.rcParams.update(r1.plots.LOOK)
    data = load_series(options.windows, max(120, options.windows // 5))
    answers = {}
    table = Table("net", "CRPS", "coverage of 90 %", "lowest", "highest")
    for name, model in trained(data, options.epochs).items():
        p = model.posterior_predictive(data.x_test, SAMPLES, batch_size=200, seed=0)
        held = coverage(p, data.y_test)
        numbers = crps(p, data.y_test), held.mean(), held.min(), held.max()
        table.add_row(name, *(f"{value:.3f}" for value in numbers))
        answers[name] = p
    show(table, options.out / "forecast.json")
    figure(data, answers).savefig(options.out / "forecast.png", dpi=120)
    print(f"wrote {options.out / 'forecast.png'}")


if __name__ == "__main__":
    main()
