"""One net, two answers: what a house fetches, and whether it is sold within a month.

    python -m examples.outputs.two_heads [--epochs 60] [--out two_heads_output]

Only a sale tells the price: the price of every other house is missing, and counts nowhere. Prints
NLL, coverage and calibration of both outputs, for houses like those of training and for larger
ones; writes `two_heads.png`.
"""

from __future__ import annotations

import argparse
import os
import warnings
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
from examples.datasets.houses import FEATURES, Houses, load_houses
from examples.record import show

SAMPLES, UNITS, LEVEL = 64, 32, 0.9
LIKELIHOOD = {"price": "log_normal", "sold": "bernoulli"}


def rank1() -> r1.BayesianModel:
    """A shared layer and a head for each output, of rank-1 layers with four members."""
    inputs = keras.Input((len(FEATURES),))
    with r1.members(4):
        h = r1.layers.DenseRank1(UNITS, activation="relu")(r1.layers.TileMembers()(inputs))
        outputs = {}
        for name in LIKELIHOOD:
            own = r1.layers.DenseRank1(UNITS, activation="relu")(h)
            outputs[name] = r1.layers.SplitMembers()(r1.layers.DenseRank1(1)(own))
    return r1.BayesianModel(inputs, outputs, likelihood=LIKELIHOOD)


def bali() -> bk.BaliModel:
    """The same of BALI layers; the price is regressed exactly, its noise found in closed form."""
    inputs = keras.Input((len(FEATURES),))
    h = bk.layers.DenseBali(UNITS, activation="relu")(inputs)
    outputs = {}
    for name in LIKELIHOOD:
        own = bk.layers.DenseBali(UNITS, activation="relu")(h)
        outputs[name] = bk.layers.DenseBali(1)(own)
    return bk.BaliModel(inputs, outputs, likelihood=LIKELIHOOD)


def trained(houses: Houses, epochs: int) -> dict[str, r1.BayesianModel]:
    """Both nets by name."""
    models: dict[str, r1.BayesianModel] = {"rank-1": rank1(), "BALI": bali()}
    for name, model in models.items():
        optimizer = {} if name == "BALI" else {"optimizer": keras.optimizers.Adam(5e-3)}
        model.compile(**optimizer, metrics={"price": ["mae"], "sold": ["accuracy"]})
        with warnings.catch_warnings():  # that prices are missing, which is meant
            warnings.filterwarnings("ignore", ".*targets are NaN.*", UserWarning)
            model.fit(houses.x, houses.y, batch_size=32, epochs=epochs, verbose=2)
    return models


def scores(p: dict[str, Any], houses: Houses, rows: slice) -> dict[str, float]:
    """NLL of both outputs, the coverage of intervals of the price, and the width of these."""
    low, high = (v[rows, 0] for v in p["price"].credible_interval(LEVEL))
    price = houses.price[rows]
    return {
        "price": float(-np.mean(p["price"].log_prob(houses.price)[rows])),
        "sold": float(-np.mean(p["sold"].log_prob(houses.y["sold"])[rows])),
        "coverage": float(np.mean((low <= price) & (price <= high))),
        "width": float(np.mean(high - low)),
    }


def figure(houses: Houses, answers: dict[str, Any]) -> plt.Figure:
    """By size: the interval of the price, and what is not known of the chance of a sale."""
    fig, axes = plt.subplots(2, len(answers), figsize=(5 * len(answers), 6), sharex=True)
    order = np.argsort(houses.x[:, 0])
    size = houses.x[order, 0]
    for column, (name, p) in zip(np.atleast_2d(axes.T), answers.items(), strict=True):
        mean, deviation = p["price"].mean()[order, 0], p["price"].stddev()[order, 0]
        column[0].errorbar(size, mean, 2.0 * deviation, fmt="none", ecolor="C0", alpha=0.2)
        column[0].plot(size, houses.price[order], "k.", markersize=2)
        column[0].set(title=f"{name}: price, two deviations", ylabel="hundreds of thousands")
        column[1].plot(size, p["sold"].mutual_information()[order], "C1.", markersize=3)
        column[1].set(title="sold: mutual information", xlabel="size, scaled", ylabel="nats")
    fig.tight_layout()
    return fig


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--houses", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=Path("two_heads_output"))
    options = parser.parse_args(arguments)
    plt.rcParams.update(r1.plots.LOOK)
    keras.utils.set_random_seed(0)
    houses, test = load_houses(options.houses, max(40, options.houses // 2))
    half = len(test.x) // 2
    table = Table("net", "houses", "NLL, price", "NLL, sold", f"coverage of {LEVEL:.0%}", "width")
    answers: dict[str, Any] = {}  # of every net a dict by output
    for name, model in trained(houses, options.epochs).items():
        answers[name] = model.posterior_predictive(test.x, SAMPLES, seed=0)
        for kind, rows in (("as in training", slice(half)), ("larger", slice(half, None))):
            found = scores(answers[name], test, rows)
            table.add_row(name, kind, *(f"{value:.3f}" for value in found.values()))
    show(table, options.out / "two_heads.json")
    figure(test, answers).savefig(options.out / "two_heads.png", dpi=120)
    print(f"wrote {options.out / 'two_heads.png'}")


if __name__ == "__main__":
    main()
