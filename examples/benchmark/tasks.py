"""The tasks: data, a net, a likelihood, and how long to train."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import json_format
from sklearn import datasets
from sklearn.model_selection import train_test_split

from examples.benchmark.nets import Conv, Dense, Net
from examples.datasets.images import SEVERITIES, corrupt, load_images
from examples.datasets.small import Split
from examples.datasets.toy import TOYS
from examples.datasets.uci_regression import SETS

ROUNDS = 20
# Out-of-distribution partners, where none is given.
PARTNERS = {"mnist": "fashion_mnist", "fashion_mnist": "mnist", "cifar10": "svhn_cropped"}


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a method trains.

    Attributes:
        batch_size: examples per step.
        epochs: at least so many.
        steps: at least so many.
    """

    batch_size: int
    epochs: int
    steps: int = 0

    def steps_per_epoch(self, num_examples: int) -> int:
        """Steps that see so many examples once; the last batch may be short."""
        return -(-num_examples // self.batch_size)

    def epochs_for(self, num_examples: int) -> int:
        """Passes over so many examples, a multiple of `passes_for`."""
        passes = self.passes_for(num_examples)
        return passes * -(-self._least(num_examples) // passes)

    def passes_for(self, num_examples: int) -> int:
        """Passes that are one epoch of `fit`.

        An epoch of Keras costs some 40 ms beside its steps: with many passes over few data, several
        of them are one epoch, so that there are about `ROUNDS`.
        """
        return max(1, self._least(num_examples) // ROUNDS)

    def _least(self, num_examples: int) -> int:
        return max(self.epochs, -(-self.steps // self.steps_per_epoch(num_examples)))


@dataclasses.dataclass(frozen=True)
class Data:
    """One split.

    Attributes:
        split: inputs and targets; targets of a regression standardized.
        scale: of the target, by which errors are multiplied.
        outside: inputs of other sources by name, to be told apart.
        shifted: what makes corrupted test inputs, by name; one set at a time is held.
        grid: inputs to draw the predictive distribution on, or None.
    """

    split: Split
    scale: float = 1.0
    outside: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    shifted: dict[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)
    grid: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says about data.

    Attributes:
        data_dir: of TFDS; None for its own default.
        manual_dir: where TFDS finds files that were fetched by hand.
        npz: a local image archive in place of a TFDS set.
        outside_npz: one for its out-of-distribution partner.
        net: `"mlp"` or `"cnn"`, for images.
        corruptions: whether to score corrupted images.
        held_out: whether to score a fifth of the training set in place of the test set, as for
            choosing settings.
        smoke: a few examples only, of sets that need no download.
        table: a csv file or npz archive, for the task `tables/file`.
        target: column of its targets.
        regression: whether its targets are numbers, although they are whole.
        rows: at most so many rows of a table to train on; None for seven tenths of it.
    """

    data_dir: Path | None = None
    manual_dir: Path | None = None
    npz: Path | None = None
    outside_npz: Path | None = None
    net: str = "mlp"
    corruptions: bool = False
    held_out: bool = False
    smoke: bool = False
    table: Path | None = None
    target: str | None = None
    regression: bool = False
    rows: int | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """What all methods are asked.

    Attributes:
        name: of the results.
        load: data of split or seed i.
        net: what all methods use.
        likelihood: `"normal"` or `"categorical"`.
        budget: of every method; see `budgets` for the tuned ones.
        kind: `"uci"`, `"images"`, `"toy"` or `"tables"`.
        splits: how many the task has by standard; for seeds the default number.
    """

    name: str
    load: Callable[[int], Data]
    net: Net
    likelihood: str
    budget: Budget
    kind: str
    splits: int


def get(name: str, options: Options) -> list[Task]:
    """Tasks by name: `uci` or `uci/boston`, `toy/gap`, `tables/adult`, or an image set.

    Raises:
        ValueError: for a name of a set that there is not.
    """
    kind, _, part = name.partition("/")
    if kind == "tables":
        _check_no_image_options(kind, options)
        return tables_of(part, options)
    if kind in ("uci", "toy"):
        known = list(SETS) if kind == "uci" else list(TOYS)
        if part and part not in known:
            raise ValueError(f"Sets of {kind!r} are {known}. Received: {name!r}")
        _check_no_image_options(kind, options)
        if options.smoke and kind == "uci":
            return [_diabetes(options)]
        names = [part] if part else known
        return [(_uci if kind == "uci" else _toy)(n, options) for n in names]
    return [_images(name, options)]


def _check_no_image_options(kind: str, options: Options) -> None:
    """Refuse what would do nothing."""
    given = {
        "--net": options.net != "mlp",
        "--corruptions": options.corruptions,
        "--npz": options.npz is not None,
        "--outside-npz": options.outside_npz is not None,
        "--held-out": options.held_out and kind == "toy",
        "--manual-dir": options.manual_dir is not None and kind == "toy",
        "--table": options.table is not None and kind != "tables",
        "--rows": options.rows is not None and kind != "tables",
    }
    ignored = [name for name, is_given in given.items() if is_given]
    if ignored:
        raise ValueError(f"The task {kind!r} has no {', '.join(ignored)}: leave it out.")


# -- regression -----------------------------------------------------------------------------------


def _uci(name: str, options: Options) -> Task:
    known = SETS[name].splits
    if options.manual_dir is not None and not options.manual_dir.is_dir():
        raise ValueError(f"--manual-dir must be a folder. Received: {options.manual_dir}")

    def load(index: int) -> Data:
        if index >= known:
            raise ValueError(f"The set {name!r} has {known} splits. Received: split {index}")
        config = tfds.download.DownloadConfig(manual_dir=options.manual_dir)
        tfds.disable_progress_bar()
        try:
            builder = tfds.builder(f"uci_regression/{name}", data_dir=options.data_dir)
            builder.download_and_prepare(download_config=config)
            parts = builder.as_dataset(split=[f"train_{index}", f"test_{index}"], batch_size=-1)
            train, test = (tfds.as_numpy(part) for part in parts)
        except (OSError, tf.errors.OpError, json_format.ParseError) as error:
            raise ValueError(
                f"The set {name!r} cannot be downloaded or read. Check --manual-dir; or delete "
                f"what was prepared below --data-dir ({options.data_dir or 'that of TFDS'}), "
                f"uci_regression/{name}, to prepare it anew. Received: {error}"
            ) from error
        return standardized(Split(train["x"], train["y"], test["x"], test["y"]), options, index)

    net = Net((SETS[name].inputs,), (Dense(50),), 1)
    return Task(f"uci-{name}", load, net, "normal", Budget(32, 20, 4000), "uci", known)


def _diabetes(options: Options) -> Task:
    """Scikit-learn's diabetes set, which needs no download, in the place of all UCI sets."""

    def load(index: int) -> Data:
        x, y = datasets.load_diabetes(return_X_y=True)
        x, x_test, y, y_test = train_test_split(x, y, test_size=0.1, random_state=index)
        return standardized(Split(x, y, x_test, y_test), options, index)

    net = Net((10,), (Dense(50),), 1)
    return Task("uci-smoke", load, net, "normal", Budget(64, 2, 20), "uci", 1)


def standardized(split: Split, options: Options, index: int) -> Data:
    """Inputs and target in units of the training set's standard deviations."""
    if options.held_out:
        split = hold_out(split, index)
    mean, scale = split.x_train.mean(axis=0), split.x_train.std(axis=0)
    x_train, x_test = (
        ((x - mean) / np.where(scale > 0.0, scale, 1.0)).astype("float32")
        for x in (split.x_train, split.x_test)
    )
    y_mean, y_scale = float(split.y_train.mean()), float(split.y_train.std())
    y_train, y_test = (
        ((y[:, np.newaxis] - y_mean) / y_scale).astype("float32")
        for y in (split.y_train, split.y_test)
    )
    return Data(Split(x_train, y_train, x_test, y_test), y_scale)


def hold_out(split: Split, index: int) -> Split:
    """A fifth of the training examples in the place of the test examples."""
    x_train, x_test, y_train, y_test = train_test_split(
        split.x_train, split.y_train, test_size=0.2, random_state=1000 + index
    )
    return Split(x_train, y_train, x_test, y_test)


def _toy(name: str, options: Options) -> Task:
    def load(index: int) -> Data:
        split, grid = TOYS[name](index)
        return Data(split, grid=grid)

    classes = name == "two_moons"
    net = Net((2 if classes else 1,), (Dense(64), Dense(64)), 2 if classes else 1)
    budget = Budget(32, 2 if options.smoke else 20, 20 if options.smoke else 4000)
    likelihood = "categorical" if classes else "normal"
    return Task(f"toy-{name}", load, net, likelihood, budget, "toy", 1)


# -- tables ---------------------------------------------------------------------------------------

# Splits of a table, into seven tenths and three.
TABLE_SPLITS = 5
SMOKE_ROWS = 120


def tables_of(part: str, options: Options) -> list[Task]:
    """Tasks of tables: all sets, one, or `file` for `--table FILE`.

    Raises:
        ValueError: for a name of a set that there is not, or `file` without one.
    """
    from examples.benchmark.tables.sets import SETS as TABLES  # pandas, which others do not need

    if part and part not in (*TABLES, "file"):
        raise ValueError(f"Sets of 'tables' are {[*TABLES, 'file']}. Received: {part!r}")
    if (part == "file") != (options.table is not None):
        raise ValueError(
            "The task 'tables/file', and no other, has a file: --table FILE [--target COLUMN]. "
            f"Received: {part!r} with --table {options.table}"
        )
    if part == "file" and options.table is not None:
        return [_table(options.table.stem, options)]
    if options.smoke:
        return [_table("breast_cancer", options)]
    return [_table(name, options) for name in ([part] if part else TABLES)]


def _table(name: str, options: Options) -> Task:
    from examples.benchmark.tables.sets import SETS as TABLES
    from examples.benchmark.tables.sets import from_file

    rows = SMOKE_ROWS if options.smoke else None

    @functools.cache
    def whole() -> tuple[Any, np.ndarray, bool]:
        if options.table is not None:
            frame, y = from_file(options.table, options.target)
            regression = options.regression or y.dtype.kind == "f"
        else:
            found = TABLES[name]
            (frame, y), regression = found.load(options.manual_dir), found.regression
        if regression:
            y = y.astype("float32")[:, np.newaxis]
        else:
            y = np.unique(y, return_inverse=True)[1]
        return frame[:rows], y[:rows], regression

    def load(index: int) -> Data:
        frame, y, regression = whole()
        kept = None if regression else y
        parts = train_test_split(frame, y, test_size=0.3, random_state=index, stratify=kept)
        split = Split(parts[0], parts[2], parts[1], parts[3])
        split = hold_out(split, index) if options.held_out else split
        return Data(_fewer_rows(split, options.rows, regression))

    frame, y, regression = whole()
    net = Net((frame.shape[1],), (), 1 if regression else int(y.max()) + 1)
    likelihood = "normal" if regression else "categorical"
    kind = f"tables-{'smoke' if rows and options.table is None else name}"
    kind += f"-{options.rows}" if options.rows is not None else ""
    return Task(kind, load, net, likelihood, Budget(1, 1), "tables", 1 if rows else TABLE_SPLITS)


def _fewer_rows(split: Split, rows: int | None, regression: bool) -> Split:
    """A split with the first rows of its training part, whose order is random."""
    if rows is None:
        return split
    x_train, y_train = split.x_train[:rows], split.y_train[:rows]
    if rows > len(split.x_train):
        raise ValueError(
            f"There are {len(split.x_train)} rows to train on: --rows must be at most so many. "
            f"Received: --rows {rows}"
        )
    missing = set() if regression else {*split.y_train.tolist()} - {*y_train.tolist()}
    if missing:
        raise ValueError(
            f"The first {rows} rows to train on lack {len(missing)} of the classes: raise --rows. "
            f"Received: --rows {rows}"
        )
    return split._replace(x_train=x_train, y_train=y_train)


# -- images ---------------------------------------------------------------------------------------


def _images(name: str, options: Options) -> Task:
    if options.net not in ("mlp", "cnn"):
        raise ValueError(f"Argument `net` must be 'mlp' or 'cnn'. Received: {options.net!r}")
    whole = load_images(name, options.npz, options.data_dir, options.manual_dir)
    partner = PARTNERS.get(name, "outside")
    outside: dict[str, np.ndarray] = {}
    if options.outside_npz is not None or (options.npz is None and name in PARTNERS):
        archive = options.outside_npz
        partner = partner if archive is None else archive.stem
        outside[partner] = load_images(
            partner, archive, options.data_dir, options.manual_dir
        ).x_test
    for other, images in outside.items():
        if images.shape[1:] != whole.x_train.shape[1:]:
            raise ValueError(
                f"Out-of-distribution images must have the shape of {name!r}, "
                f"{whole.x_train.shape[1:]}. Received: {other} with {images.shape[1:]}"
            )

    def load(index: int) -> Data:
        split = hold_out(whole, index) if options.held_out else whole
        if options.smoke:
            split = Split(split.x_train[:500], split.y_train[:500], *(v[:200] for v in split[2:]))
        shifted: dict[str, Callable[[], np.ndarray]] = {}
        if options.corruptions:
            shifted = {
                f"{c}_{s}": functools.partial(corrupt, split.x_test, c, s, seed=index)
                for c in SEVERITIES
                for s in range(1, 6)
            }
        return Data(split, outside=outside, shifted=shifted)

    hidden: tuple[Any, ...] = (Dense(100), Dense(100))
    if options.net == "cnn":
        hidden = (Conv(16, 3, 2), Conv(32, 3, 2))
    classes = int(whole.y_train.max()) + 1
    net = Net(whole.x_train.shape[1:], hidden, classes)
    budget = Budget(250, 1 if options.smoke else 10)
    suffix = "" if options.net == "mlp" else f"-{options.net}"
    return Task(f"{name.replace('/', '-')}{suffix}", load, net, "categorical", budget, "images", 3)
