"""Seconds of whole nets as ratios: rank-1 nets of every sampling beside the stock net.

    python -m examples.benchmark.net_speed [--nets dense conv lstm] [--edward2 FOLDER]
    python -m examples.benchmark.net_speed --scaling

Every net takes K = 4 members times 64 rows, the stock net 256 rows. A training step is that of
`fit`, compiled, with Adam; an inference call is `model(x, training=False)`, compiled. All nets of a
kind run in turn, A B C A B C ..., and every ratio is a median over the turns. `--edward2` names a
folder with the package `edward2`, which gets rows in the same run, in tf_keras. `--scaling` takes
dense nets of widths 64 to 2,048, batches of 16 to 1,024 and 1 to 32 members in place of the nets.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # what edward2 knows as tf.keras; this package uses keras

import keras
import numpy as np
import rich
import tensorflow as tf
from rich.progress import track
from rich.table import Table

import tfp_rank1 as r1

MEMBERS, ROWS, LABELS, EXAMPLES = 4, 64, 10, 50_000
SAMPLINGS = "example", "flipout", "member"
SHAPES = {"dense": (784,), "conv": (32, 32, 3), "lstm": (32, 64)}
TITLES = {
    "dense": "784-512-512-10",
    "conv": "convolutions 32-64-64 of 32 x 32 x 3",
    "lstm": "LSTM 128, 32 steps of 64",
}
WIDTHS, BATCHES, NUMBERS = (64, 256, 512, 1024, 2048), (16, 64, 256, 1024), (1, 4, 16, 32)

Layers = dict[str, Callable[..., Any]]
Run = Callable[[], Any]


def hidden(kind: str, h: Any, layers: Layers, pool: Any, width: int = 512) -> Any:
    """The layers of a net before its last."""
    if kind == "dense":
        for _ in range(2):
            h = layers["dense"](width, activation="relu")(h)
        return h
    if kind == "lstm":
        return layers["lstm"](128)(h)
    for filters in (32, 64, 64):
        h = layers["conv"](filters, 3, padding="same", activation="relu")(h)
        h = pool.MaxPooling2D()(h)
    return pool.GlobalAveragePooling2D()(h)


def stock(kind: str, width: int = 512, shape: tuple[int, ...] | None = None) -> keras.Model:
    """The stock net."""
    layers: Layers = {
        "dense": keras.layers.Dense,
        "conv": keras.layers.Conv2D,
        "lstm": lambda units: keras.layers.LSTM(units, use_cudnn=False),
    }
    inputs = keras.Input(shape or SHAPES[kind])
    h = hidden(kind, inputs, layers, keras.layers, width)
    model = keras.Model(inputs, keras.layers.Dense(LABELS)(h))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def rank1(
    kind: str,
    sampling: str,
    width: int = 512,
    shape: tuple[int, ...] | None = None,
    members: int = MEMBERS,
) -> r1.BayesianModel:
    """The rank-1 net."""

    def with_sampling(cls: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: cls(*args, sampling=sampling, **kwargs)

    with r1.members(members):
        layers: Layers = {
            "dense": with_sampling(r1.layers.DenseRank1),
            "conv": with_sampling(r1.layers.Conv2DRank1),
            "lstm": with_sampling(r1.layers.LSTMRank1),
        }
        inputs = keras.Input(shape or SHAPES[kind])
        h = hidden(kind, r1.layers.TileMembers()(inputs), layers, keras.layers, width)
        outputs = r1.layers.SplitMembers()(layers["dense"](LABELS)(h))
    model = r1.BayesianModel(inputs, outputs, likelihood="categorical", num_train_examples=EXAMPLES)
    model.compile("adam")
    return model


def edward2(kind: str) -> Any:
    """The net of edward2 in tf_keras, with its defaults; a KL weight of 1 / N."""
    old = tf.keras
    theirs: Any = importlib.import_module("edward2.tensorflow.layers")
    regularizers: Any = importlib.import_module("edward2.tensorflow.regularizers")
    kl = regularizers.NormalKLDivergence(scale_factor=1.0 / EXAMPLES)
    common = {"ensemble_size": MEMBERS, "alpha_regularizer": kl, "gamma_regularizer": kl}
    recurrent = {"recurrent_alpha_regularizer": kl, "recurrent_gamma_regularizer": kl}

    def with_common(cls: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: cls(*args, **common, **kwargs)

    def lstm(units: int) -> Any:
        return old.layers.RNN(theirs.LSTMCellRank1(units, **common, **recurrent))

    layers = {
        "dense": with_common(theirs.DenseRank1),
        "conv": with_common(theirs.Conv2DRank1),
        "lstm": lstm,
    }
    # A caller of edward2 repeats the rows for its members.
    inputs = old.Input(SHAPES[kind])
    h = hidden(kind, inputs, layers, old.layers)
    model = old.Model(inputs, layers["dense"](LABELS)(h))
    model.compile("adam", old.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def runs(model: Any, rows: int, shape: tuple[int, ...]) -> dict[str, Run]:
    """A training step and an inference call of a model."""
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(rows, *shape)).astype("float32"))
    y = tf.constant(rng.integers(0, LABELS, rows))
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    model.fit(data, steps_per_epoch=5, verbose=0)
    model.make_train_function()
    iterator = iter(data)

    def train() -> Any:
        found = model.train_function(iterator)
        return float(found["loss"])

    call = tf.function(lambda: model(x, training=False), autograph=False)
    return {"training": train, "inference": lambda: call().numpy()}


def medians(ways: dict[str, Run], repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of every way, and its median ratio to the first, run in turn."""
    for run in ways.values():
        for _ in range(3):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    first = next(iter(seconds.values()))
    return {
        name: {
            "ms": 1e3 * statistics.median(values),
            "ratio": statistics.median(b / a for a, b in zip(first, values, strict=True)),
        }
        for name, values in seconds.items()
    }


def compared(models: dict[str, tuple[Any, int]], shape: Any, repeats: int) -> list[dict[str, Any]]:
    """Rows of both modes for models and their numbers of rows, the stock model first."""
    ready = {name: runs(model, rows, shape) for name, (model, rows) in models.items()}
    found = []
    for mode in ("training", "inference"):
        ways = {name: run[mode] for name, run in ready.items()}
        found += [
            {"mode": mode, "way": name, **values} for name, values in medians(ways, repeats).items()
        ]
    return found


def by_net(kinds: Sequence[str], repeats: int, has_edward2: bool) -> list[dict[str, Any]]:
    """The nets, one after the other."""
    found = []
    for kind in track(list(kinds), "nets"):
        models: dict[str, tuple[Any, int]] = {"stock": (stock(kind), MEMBERS * ROWS)}
        models |= {name: (rank1(kind, name), ROWS) for name in SAMPLINGS}
        if has_edward2:
            models["edward2"] = edward2(kind), MEMBERS * ROWS
        found += [{"net": TITLES[kind], **v} for v in compared(models, SHAPES[kind], repeats)]
        keras.backend.clear_session()
    return found


def by_size(repeats: int) -> list[dict[str, Any]]:
    """Dense nets of several widths, batches and numbers of members."""
    usual = 512, ROWS, MEMBERS
    sizes = [(width, *usual[1:]) for width in WIDTHS]
    sizes += [(usual[0], batch, usual[2]) for batch in BATCHES if batch != ROWS]
    sizes += [(*usual[:2], number) for number in NUMBERS if number != MEMBERS]
    found = []
    for width, batch, members in track(sizes, "sizes"):
        shape = (width,)
        models: dict[str, tuple[Any, int]] = {
            "stock": (stock("dense", width, shape), members * batch)
        }
        for name in SAMPLINGS:
            models[name] = rank1("dense", name, width, shape, members), batch
        title = f"width {width:,}, batch {batch:,}, K = {members}"
        found += [{"net": title, **v} for v in compared(models, shape, repeats)]
        keras.backend.clear_session()
    return found


def table(rows: list[dict[str, Any]]) -> Table:
    """One line per net and mode: milliseconds, and ratios to the stock net."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    found = Table("net", "mode", *ways, title=f"TensorFlow {tf.__version__}, milliseconds (ratio)")
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cell = f"{row['ms']:.1f}" + ("" if row["way"] == "stock" else f" ({row['ratio']:.2f})")
        cells.setdefault((row["net"], row["mode"]), {})[row["way"]] = cell
    for key, values in cells.items():
        found.add_row(*key, *(values.get(way, "") for way in ways))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--edward2", type=Path, help="folder that holds the package edward2")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.edward2 is not None:
        # Its own `__init__` imports a part that newer SciPy breaks; the layers do not need it.
        package = types.ModuleType("edward2")
        package.__path__ = [str(options.edward2 / "edward2")]
        sys.modules["edward2"] = package
    if options.scaling:
        found = by_size(options.repeats)
    else:
        found = by_net(options.nets, options.repeats, options.edward2 is not None)
    rich.print(table(found))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
