"""A tagger that says which words it is unsure of: stock, rank-1 and BALI.

    python -m examples.outputs.tagging [--epochs 20] [--out tagging_output]

Orders have different lengths: what stands behind the end is masked, and counts nowhere. Prints
accuracy and NLL by word, and the entropy of known words and of words that training never had;
writes `tagging.png`.
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
from examples.datasets.orders import PADDING, TAGS, UNKNOWN, load_orders, vocabulary, words_of
from examples.datasets.small import Split
from examples.record import show

SAMPLES, UNITS = 32, 24


def features(inputs: Any) -> Any:
    """Words as vectors, each with what stands before and after it."""
    layers = keras.layers
    h = layers.Embedding(len(vocabulary()) + 2, 16, mask_zero=True)(inputs)
    return layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True))(h)


def stock() -> keras.Model:
    """A stock net: logits of the tags of every word."""
    inputs = keras.Input((None,), dtype="int32")
    return keras.Model(inputs, keras.layers.Dense(len(TAGS))(features(inputs)))


def bali() -> bk.BaliModel:
    """BALI layers at every word; what reads the words is trained by an optimizer beside them."""
    inputs = keras.Input((None,), dtype="int32")
    h = bk.layers.DenseBali(UNITS, activation="tanh")(features(inputs))
    return bk.BaliModel(inputs, bk.layers.DenseBali(len(TAGS))(h), likelihood="categorical")


def trained(data: Split, epochs: int) -> dict[str, r1.BayesianModel]:
    """The three nets by name."""
    models: dict[str, r1.BayesianModel] = {
        "stock": r1.BayesianModel(stock(), likelihood="categorical"),
        "rank-1": r1.convert(stock(), likelihood="categorical", ensemble_size=4),
        "BALI": bali(),
    }
    for model in models.values():
        model.compile(keras.optimizers.Adam(5e-3), metrics=["accuracy"])
        model.fit(data.x_train, data.y_train, batch_size=32, epochs=epochs, verbose=2)
    return models


def scores(p: r1.PosteriorPredictive, data: Split) -> dict[str, float]:
    """Accuracy and NLL by word, and the mean entropy of known and of unknown words, nats."""
    is_word, is_unknown = data.x_test != PADDING, data.x_test == UNKNOWN
    is_right = np.argmax(p.mean(), axis=-1) == data.y_test
    entropy = p.entropy()
    return {
        "accuracy": float(is_right[is_word].mean()),
        "NLL": float(-p.log_prob(data.y_test).sum() / is_word.sum()),
        "known": float(entropy[is_word & ~is_unknown].mean()),
        "unknown": float(entropy[is_unknown].mean()),
    }


def figure(data: Split, answers: dict[str, Any], rows: int = 6) -> plt.Figure:
    """The words of some orders, darker the less sure a net is of their tags."""
    chosen = np.flatnonzero((data.x_test == UNKNOWN).any(axis=1))[:rows]
    bayesian = [name for name in answers if name != "stock"]
    fig, axes = plt.subplots(1, len(bayesian), figsize=(6.5 * len(bayesian), 0.55 * rows + 0.8))
    for ax, name in zip(np.atleast_1d(axes), bayesian, strict=True):
        tags = answers[name].mean()[chosen].argmax(-1)
        is_word = data.x_test[chosen] != PADDING
        entropy = np.where(is_word, answers[name].entropy()[chosen], np.nan)
        ax.imshow(entropy, cmap="Oranges", vmin=0.0, vmax=np.log(len(TAGS)), aspect="auto")
        for line, row in enumerate(chosen):
            for place, word in enumerate(words_of(data.x_test[row])):
                tag = TAGS[tags[line, place]]
                ax.text(place, line, f"{word}\n{tag}", ha="center", va="center", fontsize=6)
        longest = int((data.x_test[chosen] != PADDING).sum(axis=1).max())
        ax.set(title=f"{name}: tags, and their entropy", xlim=(-0.5, longest - 0.5))
        ax.set_axis_off()
    fig.tight_layout()
    return fig


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--orders", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("tagging_output"))
    options = parser.parse_args(arguments)
    plt.rcParams.update(r1.plots.LOOK)
    keras.utils.set_random_seed(0)
    data = load_orders(options.orders, max(30, options.orders // 2))
    table = Table("net", "accuracy", "NLL", "entropy, known words", "unknown")
    answers = {}
    for name, model in trained(data, options.epochs).items():
        answers[name] = model.posterior_predictive(data.x_test, SAMPLES, seed=0)
        table.add_row(name, *(f"{value:.4f}" for value in scores(answers[name], data).values()))
    show(table, options.out / "tagging.json")
    figure(data, answers).savefig(options.out / "tagging.png", dpi=150)
    print(f"wrote {options.out / 'tagging.png'}")


if __name__ == "__main__":
    main()
