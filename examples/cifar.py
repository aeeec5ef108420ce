"""A small wide residual net on CIFAR-10: deterministic, BatchEnsemble, rank-1 Normal and Cauchy.

    python -m examples.cifar --epochs 30
    python -m examples.cifar --npz cifar10.npz --methods deterministic,rank1_normal --seeds 1

The recipe is `tfp_rank1.recipes.get("mini_cifar10")`; all methods take the same steps. Scores are
those of the test images and of corrupted copies (Gaussian noise, contrast and brightness in five
severities each, averaged). `rank1_normal` starts around 1, `rank1_signs` as the layers' defaults
do. `--stddev` widens Normal draws, and Cauchy draws alike. Results go to one JSON per method, run
by run; what is there is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import rich
import tensorflow as tf
from rich.table import Table

import tfp_rank1 as r1
from examples.benchmark.report import cell
from examples.benchmark.results import Results, mean_and_error
from examples.benchmark.scores import classification
from examples.datasets.images import SEVERITIES, corrupt, load_images
from examples.datasets.small import Split
from tfp_rank1.posteriors import DEFAULT_HEAVY_PRIOR_SCALE, DEFAULT_HEAVY_SCALE

MINI = r1.recipes.get("mini_cifar10")
METHODS: dict[str, r1.recipes.Recipe] = {
    "deterministic": dataclasses.replace(MINI, ensemble_size=None),
    "batch_ensemble": dataclasses.replace(MINI, posterior="deterministic"),
    "rank1_normal": MINI,
    "rank1_signs": dataclasses.replace(MINI, prior_stddev=None),
    "rank1_cauchy": dataclasses.replace(
        MINI,
        posterior="cauchy",
        stddev=DEFAULT_HEAVY_SCALE,
        prior_stddev=DEFAULT_HEAVY_PRIOR_SCALE,
        clipnorm=1.0,
    ),
}
SHOWN = "accuracy", "nll", "ece", "corrupted_accuracy", "corrupted_nll", "corrupted_ece", "seconds"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=MINI.epochs)
    parser.add_argument("--depth", type=int, default=MINI.model_arguments["depth"])
    parser.add_argument("--samples", type=int, default=MINI.evaluation_samples, help="per member")
    parser.add_argument("--stddev", type=float, default=MINI.stddev, help="of Normal factors")
    parser.add_argument("--member-batches", choices=("tiled", "split"), default="tiled")
    parser.add_argument("--plain", action="store_true", help="images as they are: no augmentation")
    parser.add_argument("--npz", type=Path, help="a local archive in place of TFDS")
    parser.add_argument("--out", type=Path, default=Path("cifar_output"))
    options = parser.parse_args(arguments)
    names = options.methods.split(",")
    unknown = set(names) - METHODS.keys()
    if unknown:
        parser.error(f"methods are {sorted(METHODS)}. Received: {sorted(unknown)}")
    split = load_images("cifar10", options.npz)
    recipes = {name: adapted(METHODS[name], options) for name in names}
    found: dict[str, Results] = {}
    for name, recipe in recipes.items():
        settings = {
            "recipe": dataclasses.asdict(recipe),
            "batches": options.member_batches,
            "plain": options.plain,
        }
        found[name] = Results(options.out, "cifar10", name, settings)
    for seed in range(options.seeds):
        for name, results in found.items():
            if results.missing([seed]):
                scores = run(recipes[name], split, seed, options.member_batches, options.plain)
                results.add(seed, scores, {})
                print(name, seed, {k: round(scores[k], 4) for k in SHOWN}, flush=True)
    rich.print(table(found, options.seeds))


def adapted(recipe: r1.recipes.Recipe, options: argparse.Namespace) -> r1.recipes.Recipe:
    """The recipe at another depth and width of draws, with all of its epochs scaled."""
    share = options.epochs / recipe.epochs
    ratio = options.stddev / MINI.stddev if recipe.ensemble_size else 1.0
    # The variance of clipped Cauchy draws is in proportion to their scale; points have none.
    wider = {"normal": ratio, "cauchy": ratio**2}.get(recipe.posterior, 1.0)
    return dataclasses.replace(
        recipe,
        model_arguments={**recipe.model_arguments, "depth": options.depth},
        stddev=round(wider * recipe.stddev, 6),
        evaluation_samples=options.samples,
        epochs=options.epochs,
        # In a short training some fall together, and count once.
        decay_epochs=tuple(sorted({round(share * epoch) for epoch in recipe.decay_epochs})),
        kl_annealing_epochs=max(1, round(share * recipe.kl_annealing_epochs)),
    )


def batches(
    x: np.ndarray, y: np.ndarray, batch_size: int, seed: int, plain: bool
) -> tf.data.Dataset:
    """Whole shuffled batches; unless `plain`, mirrored and moved by up to four pixels at random."""
    size = x.shape[1:]
    images, labels = tf.constant(x), tf.constant(y)

    def pick(row: tf.Tensor, number: tf.Tensor) -> Any:
        if plain:
            return images[row], labels[row]
        key = tf.stack([tf.cast(number % (2**31 - 1), tf.int32), seed])
        padded = tf.pad(images[row], [[4, 4], [4, 4], [0, 0]])
        moved = tf.image.stateless_random_crop(padded, size, key)
        return tf.image.stateless_random_flip_left_right(moved, key + 1), labels[row]

    rows = tf.data.Dataset.range(len(x)).shuffle(len(x), seed=seed)
    data = tf.data.Dataset.zip(rows, tf.data.Dataset.random(seed=seed)).map(pick, 2)
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread holds up the start of an epoch for seconds
    return data.batch(batch_size, drop_remainder=True).prefetch(2).with_options(options)


def run(
    recipe: r1.recipes.Recipe, split: Split, seed: int, member_batches: str, plain: bool
) -> dict[str, float]:
    """Train one net and score it."""
    keras.utils.set_random_seed(seed)
    model = recipe.build()
    axes = (0, 1, 2)
    mean, stddev = split.x_train.mean(axes), split.x_train.std(axes)

    def scaled(images: np.ndarray) -> np.ndarray:
        return ((images - mean) / stddev).astype("float32")

    data = batches(scaled(split.x_train), split.y_train, recipe.batch_size, seed, plain)
    model.num_train_examples = len(split.x_train)
    arguments = {} if recipe.ensemble_size is None else {"member_batches": member_batches}
    recipe.compile(model, len(split.x_train) // recipe.batch_size, **arguments)
    start = time.perf_counter()
    model.fit(data, epochs=recipe.epochs, verbose=0, callbacks=recipe.callbacks())
    seconds = time.perf_counter() - start
    samples = recipe.evaluation_samples * (recipe.ensemble_size or 1)

    def scores(images: np.ndarray) -> dict[str, float]:
        p = model.posterior_predictive(scaled(images), samples, batch_size=250, seed=seed)
        return classification(p, split.y_test)

    found = scores(split.x_test) | {"seconds": seconds}
    shifted = [
        scores(corrupt(split.x_test, name, severity, seed))
        for name in SEVERITIES
        for severity in range(1, 6)
    ]
    return found | {f"corrupted_{k}": float(np.mean([s[k] for s in shifted])) for k in shifted[0]}


def table(found: dict[str, Results], seeds: int) -> Table:
    """Means and standard errors over seeds."""
    shown = Table("", *SHOWN, title=f"{seeds} seeds")
    for name, results in found.items():
        shown.add_row(name, *(cell(mean_and_error(results.values(key))) for key in SHOWN))
    return shown


if __name__ == "__main__":
    main()
