"""Sets of tables, as frames with numbers and categories."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn import datasets

from tfp_rank1.sklearn.column_kinds import NUMBERS, kind_of

__all__ = ["SETS", "TableSet", "from_file"]

Table = tuple[pd.DataFrame, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TableSet:
    """One table.

    Attributes:
        load: the frame and its targets, from the folder of files that were fetched by hand or None.
        regression: whether targets are numbers.
    """

    load: Callable[[Path | None], Table]
    regression: bool = False


def _bundled(loader: Callable[..., Any]) -> Callable[[Path | None], Table]:
    """A set that comes with scikit-learn."""

    def load(folder: Path | None) -> Table:
        found = loader(as_frame=True)
        return found.data, found.target.to_numpy()

    return load


def _from_openml(name: str, number: int) -> Callable[[Path | None], Table]:
    """A set of OpenML, or `NAME.npz` in the folder."""

    def load(folder: Path | None) -> Table:
        if folder is not None:
            return from_file(_existing(folder / f"{name}.npz"))
        try:
            found = datasets.fetch_openml(data_id=number, as_frame=True)
        except OSError as error:
            raise ValueError(
                f"The set {name!r} cannot be downloaded: put {name}.npz into a folder and name it, "
                f"--manual-dir. Received: {error}"
            ) from error
        return found.data, pd.factorize(found.target, sort=True)[0]

    return load


def _from_folder(name: str) -> Callable[[Path | None], Table]:
    """A UCI set, from the file that the task `uci` reads as well."""

    def load(folder: Path | None) -> Table:
        if folder is None:
            raise ValueError(
                f"The set {name!r} is read from {name}.npz: name its folder, --manual-dir"
            )
        return from_file(_existing(folder / f"{name}.npz"))

    return load


def _existing(path: Path) -> Path:
    """A file in the folder or in a folder below it."""
    found = [path] if path.exists() else sorted(path.parent.rglob(path.name))
    if not found:
        raise ValueError(f"--manual-dir must hold {path.name}. Received: {path.parent}")
    return found[0]


def from_file(path: Path, target: str | None = None) -> Table:
    """The table of a csv file, or of an npz archive with `X` and `y`.

    An archive may instead hold parts: numbers `Xnum_train`, codes `Xcat_train` of the categories in
    `vocab_COLUMN`, and `y_train`; the same with `_test` is put behind.

    Args:
        path: of the file.
        target: column of the targets, of a csv file. Defaults to None: the last one.

    Raises:
        ValueError: for a file that is not there or of another kind, or missing targets.
    """
    if not path.exists() or path.suffix not in (".csv", ".npz"):
        raise ValueError(f"A table is a file .csv or .npz. Received: {path}")
    frame, y = _read(path, target)
    missing = np.flatnonzero(pd.isna(y))
    if len(missing):
        raise ValueError(
            f"{path} must hold a target in every row. Received: none in {len(missing)} rows, "
            f"the first of them {missing[0]}"
        )
    return frame, y


def _read(path: Path, target: str | None) -> Table:
    if path.suffix == ".csv":
        frame = pd.read_csv(path)
        # Boosted trees know categories by their dtype.
        for name in frame.columns[[kind_of(frame[n]) not in NUMBERS for n in frame]]:
            frame[name] = frame[name].astype("category")
        target = str(frame.columns[-1]) if target is None else target
        if target not in frame:
            raise ValueError(f"--target must be one of {list(frame)}. Received: {target!r}")
        return frame.drop(columns=target), frame[target].to_numpy()
    with np.load(path) as archive:
        if "X" in archive:
            numbers = pd.DataFrame(archive["X"]).add_prefix("column_")
            return numbers, archive["y"]
        numbers, codes, y = (
            np.concatenate([archive[f"{name}_{part}"] for part in ("train", "test")])
            for name in ("Xnum", "Xcat", "y")
        )
        frame = pd.DataFrame(numbers).add_prefix("number_")
        words = [name for name in archive.files if name.startswith("vocab_")]
        for place, name in enumerate(words):
            column = archive[name][codes[:, place]]
            frame[name.removeprefix("vocab_")] = pd.Categorical(column)
        return frame, y


def houses(folder: Path | None, rows: int = 8000, seed: int = 0) -> Table:
    """Prices of houses that were made up: places with bends, skewed incomes, noise that grows.

        log price = hills(latitude, longitude) + log(income) / 2 + steps(age) + noise

    as in tables of census blocks: two coordinates that matter together only, counts with heavy
    tails, a column of text, missing numbers, and columns that say nothing.
    """
    rng = np.random.default_rng(seed)
    latitude, longitude = rng.uniform(0.0, 10.0, (2, rows))
    hills = [(2.0, 7.0, 0.8, 1.0), (7.5, 3.0, 1.2, 0.7), (5.0, 5.0, 0.5, 0.5)]
    height = sum(
        h * np.exp(-((latitude - a) ** 2 + (longitude - b) ** 2) / (2.0 * w**2))
        for a, b, w, h in hills
    )
    income = rng.lognormal(1.2, 0.5, rows)
    age = rng.integers(1, 60, rows).astype(float)
    kind = rng.choice(["flat", "house", "farm"], rows, p=[0.5, 0.4, 0.1])
    shift = pd.Series(kind).map({"flat": 0.0, "house": 0.3, "farm": -0.2}).to_numpy()
    clean = height + 0.5 * np.log(income) + 0.2 * (age > 40.0) - 0.1 * (age < 5.0) + shift
    noise = rng.normal(size=rows) * (0.1 + 0.05 * income / income.mean())
    rooms = np.where(rng.random(rows) < 0.05, np.nan, rng.gamma(4.0, 1.5, rows))
    frame = pd.DataFrame(
        {
            "latitude": latitude,
            "longitude": longitude,
            "income": income,
            "age": age,
            "kind": pd.Categorical(kind),
            "rooms": rooms,
            "people": rng.pareto(2.5, rows),
        }
    )
    return frame, clean + noise


SETS: dict[str, TableSet] = {
    "adult": TableSet(_from_openml("adult", 1590)),
    "phoneme": TableSet(_from_openml("phoneme", 1489)),
    "pima": TableSet(_from_openml("pima", 37)),
    "digits": TableSet(_bundled(datasets.load_digits)),
    "breast_cancer": TableSet(_bundled(datasets.load_breast_cancer)),
    "concrete": TableSet(_from_folder("concrete"), regression=True),
    "power-plant": TableSet(_from_folder("power-plant"), regression=True),
    "houses": TableSet(houses, regression=True),
}
