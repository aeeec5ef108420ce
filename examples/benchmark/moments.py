"""Answers of one pass of moments beside those of 128 samples, of the same trained nets.

    python -m examples.benchmark.moments uci/boston --splits 20
    python -m examples.benchmark.moments mnist --npz mnist.npz --outside-npz fashion_mnist.npz
    python -m examples.benchmark.moments mnist --net lstm --methods rank1_normal --epochs 2

Printed are the scores of samples, and by how much those of other samples and of moments differ: the
mean over splits or seeds, with standard errors. Nets whose positions share weights (cnn, lstm,
transformer) draw what is shared in 8 passes; "0 passes" counts positions as independent.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import rich
from rich.progress import track
from rich.table import Table

import tfp_rank1 as r1
from examples.benchmark import methods, tasks
from examples.benchmark.nets import Net
from examples.benchmark.report import cell
from examples.benchmark.results import mean_and_error
from examples.benchmark.scores import classification, regression, told_apart
from examples.benchmark.training import fit

SAMPLES = 128
Answers = Callable[[np.ndarray], Any]


def lstm(net: Net, likelihood: Any) -> r1.BayesianModel:
    """A rank-1 LSTM of 64 units over the rows of an image."""
    inputs = keras.Input(net.input_shape)
    with r1.members(methods.MEMBERS):
        h = r1.layers.TileMembers()(inputs)
        h = keras.layers.Reshape((net.input_shape[0], -1))(h)
        h = r1.layers.DenseRank1(net.outputs)(r1.layers.LSTMRank1(64)(h))
        return r1.BayesianModel(inputs, r1.layers.SplitMembers()(h), likelihood=likelihood)


def transformer(net: Net, likelihood: Any) -> r1.BayesianModel:
    """A rank-1 transformer of two blocks on patches of 7 x 7 pixels."""
    return r1.models.vision_transformer(
        net.input_shape, net.outputs, patch_size=7, depth=2, width=32, likelihood=likelihood
    )


# Nets that no task has, for rank-1 layers.
SEQUENCES = {"lstm": lstm, "transformer": transformer}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, compare, and print; write JSON if asked."""
    options = parsed(arguments)
    (task,) = tasks.get(options.task, task_options(options))
    budget = task.budget
    if options.epochs is not None:
        budget = dataclasses.replace(budget, epochs=options.epochs, steps=0)
    found: list[dict[str, Any]] = []
    jobs = [(i, name) for i in range(options.splits) for name in options.methods.split(",")]
    for index, name in track(jobs, task.name):
        data, method = task.load(index), methods.get(name)
        if options.net in SEQUENCES:
            method = dataclasses.replace(method, build=SEQUENCES[options.net])
        model: Any = fit(method, task, data, budget, index, curve=False).model
        for answers, ask in ways(model).items():
            scores = scored(ask, task, data)
            found.append({"method": name, "split": index, "answers": answers, **scores})
    for name in options.methods.split(","):
        rich.print(table(name, [row for row in found if row["method"] == name]))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", help="uci/SET, toy/SET, or an image set")
    parser.add_argument("--methods", default="bali,rank1_normal", help="names, by commas")
    parser.add_argument("--splits", "--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="in place of the task's")
    parser.add_argument("--net", choices=("mlp", "cnn", *SEQUENCES), default="mlp")
    parser.add_argument("--npz", type=Path, help="a local image archive in place of TFDS")
    parser.add_argument("--outside-npz", type=Path, help="one of out-of-distribution images")
    parser.add_argument("--data-dir", type=Path, help="of TFDS")
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args(arguments)


def task_options(options: argparse.Namespace) -> tasks.Options:
    """What the task is told; the nets of this module take the images of the mlp."""
    return tasks.Options(
        data_dir=options.data_dir,
        npz=options.npz,
        outside_npz=options.outside_npz,
        net="mlp" if options.net in SEQUENCES else options.net,
    )


def ways(model: r1.BayesianModel) -> dict[str, Answers]:
    """Ways to ask a model, by name."""
    ask = functools.partial(model.posterior_predictive, batch_size=1000)
    found: dict[str, Answers] = {
        f"{SAMPLES} samples": functools.partial(ask, num_samples=SAMPLES, seed=1),
        "other samples": functools.partial(ask, num_samples=SAMPLES, seed=2),
        "moments": functools.partial(ask, method="moments"),
    }
    if not r1.moments.takes_one_pass(model):
        found["0 passes"] = functools.partial(ask, method="moments", num_passes=0)
    return found


def scored(ask: Answers, task: tasks.Task, data: tasks.Data) -> dict[str, float]:
    """Scores of test examples, and of those of other sources."""
    p, y = ask(data.split.x_test), data.split.y_test
    if task.likelihood == "normal":
        return regression(p, y, data.scale)
    entropies = {
        "entropy": float(np.mean(p.entropy())),
        "mutual_information": float(np.mean(p.mutual_information())),
    }
    scores = classification(p, y) | entropies
    for images in data.outside.values():
        scores |= told_apart(p, ask(images))
    return scores


def table(method: str, rows: list[dict[str, Any]]) -> Table:
    """Scores of samples, and differences of the others, with standard errors."""
    by_way: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_way.setdefault(row["answers"], []).append(row)
    (first, base), *others = by_way.items()
    found = Table("score", first, *(f"{name} less {first}" for name, _ in others), title=method)
    for score in [key for key in base[0] if key not in ("method", "split", "answers")]:
        columns = [[row[score] for row in base]]
        columns += [[a[score] - b[score] for a, b in zip(v, base, strict=True)] for _, v in others]
        found.add_row(score, *(cell(mean_and_error(column)) for column in columns))
    return found


if __name__ == "__main__":
    main()
