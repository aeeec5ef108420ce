"""Results on disk: one JSON per task and method, written after every split."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # there is none on Windows
    fcntl = None  # type: ignore[assignment]

PACKAGES = ("keras", "tensorflow", "tensorflow-probability", "numpy", "rank1-bali")
DIGITS, FIGURE_DIGITS = 6, 4
NEEDED = {"task", "method", "configuration", "origins", "splits", "summary"}


class Results:
    """Scores of one method on one task, by split.

    The file always holds whole results: a new one takes the place of the old by a rename, so a
    run that is killed leaves everything that was finished. Several runs may share a folder: what
    another one has added meanwhile is kept.

    Args:
        folder: of all results.
        task: name of the task.
        method: name of the method.
        configuration: what the results depend on; splits of another one are not mixed in.
        jobs: processes at a time, on which seconds depend.
        packages: distributions whose versions matter, beside `PACKAGES`.

    Raises:
        ValueError: if the file cannot be read or written, or was made with another configuration.
    """

    def __init__(
        self,
        folder: Path,
        task: str,
        method: str,
        configuration: dict[str, Any],
        jobs: int = 1,
        packages: tuple[str, ...] = (),
    ) -> None:
        self.path = folder / task / f"{method}.json"
        self._origin = {"versions": versions(packages), "machine": machine(), "jobs": jobs}
        self._content: dict[str, Any] = {
            "task": task,
            "method": method,
            "configuration": json.loads(json.dumps(configuration)),
            "origins": [],
            "splits": {},
        }
        self._take_what_is_there()

    def _take_what_is_there(self) -> None:
        if not self.path.exists():
            return
        old = read(self.path)
        if old["configuration"] != self._content["configuration"]:
            changed = _changes(old["configuration"], self._content["configuration"])
            raise ValueError(
                f"{self.path} holds results of another configuration ({changed}). Choose another "
                "folder, --out, or delete the file."
            )
        self._content |= {"splits": old["splits"], "origins": old["origins"]}

    def missing(self, indices: Iterable[int]) -> list[int]:
        """Those splits or seeds that have no results yet."""
        return [i for i in indices if str(i) not in self._content["splits"]]

    def values(self, name: str) -> list[float]:
        """One score of all splits or seeds."""
        return list(values(self._content, name).values())

    def add(self, index: int, scores: dict[str, float], figures: dict[str, Any]) -> None:
        """Add a split and write the file. Figures are kept for the first split only.

        Raises:
            ValueError: if a score is not finite; nothing is written then.
        """
        broken = [name for name, value in scores.items() if not math.isfinite(value)]
        if broken:
            raise ValueError(f"Scores must be finite. Received: {broken} of {scores}")
        entry: dict[str, Any] = {"scores": scores}
        if figures and (index == 0 or "curve" in figures):
            entry["figures"] = figures if index == 0 else {"curve": figures["curve"]}
        with _locked(self.path):
            self._take_what_is_there()
            self._write(index, entry)

    def _write(self, index: int, entry: dict[str, Any]) -> None:
        content = self._content
        if self._origin not in content["origins"]:
            content["origins"].append(self._origin)
        entry["origin"] = content["origins"].index(self._origin)
        if "figures" in entry:
            entry["figures"] = rounded(entry["figures"], FIGURE_DIGITS)
        splits = {**content["splits"], str(index): rounded(entry)}
        content["splits"] = dict(sorted(splits.items(), key=lambda item: int(item[0])))
        content["summary"] = summary(content)
        partial = self.path.with_suffix(".partial")
        partial.write_text(to_text(content))
        os.replace(partial, self.path)


def to_text(content: dict[str, Any]) -> str:
    """JSON, a line per entry, but lists of numbers on one line."""
    text = json.dumps(content, indent=1, allow_nan=False)
    inline = re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    return inline + "\n"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time changes a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_writable(folder: Path) -> None:
    """Find out before any training whether results can be written.

    Raises:
        ValueError: if not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"--out must be a folder to write to. Received: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """The content of a results file.

    Raises:
        ValueError: if it is not one.
    """
    try:
        content = json.loads(path.read_text())
        if not content.keys() >= NEEDED:
            raise KeyError(f"{sorted(NEEDED)} are needed")
        _check_splits(content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no results file: {error}. Delete or repair it.") from error
    return dict(content)


def _check_splits(content: dict[str, Any]) -> None:
    """Refuse splits without finite scores or without an origin."""
    for origin in content["origins"]:
        origin["versions"].items(), origin["machine"].items()
    for index, entry in content["splits"].items():
        content["origins"][entry["origin"]]
        broken = [name for name, value in entry["scores"].items() if not math.isfinite(value)]
        if not index.isdecimal() or not entry["scores"] or broken:
            raise ValueError(f"split {index!r} lacks finite scores {broken}")


def read_all(folder: Path) -> list[dict[str, Any]]:
    """All results below a folder.

    Raises:
        ValueError: if there are none.
    """
    found = [read(path) for path in sorted(folder.glob("*/*.json"))]
    if not found:
        raise ValueError(f"There are no results below {folder}. Run a task with --out {folder}.")
    return found


def values(content: dict[str, Any], name: str) -> dict[str, float]:
    """One score by split."""
    splits = content["splits"].items()
    return {i: v["scores"][name] for i, v in splits if name in v["scores"]}


def summary(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Mean, standard error and number of splits of every score."""
    names = dict.fromkeys(n for v in content["splits"].values() for n in v["scores"])
    return {name: mean_and_error(list(values(content, name).values())) for name in names}


def mean_and_error(numbers: list[float]) -> dict[str, Any]:
    """Mean, standard error of the mean (not the deviation; None for one number), and how many."""
    count = len(numbers)
    error = statistics.stdev(numbers) / count**0.5 if count > 1 else None
    found = {"mean": statistics.fmean(numbers), "standard_error": error, "count": count}
    return dict(rounded(found))


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """Floats to so many significant digits, through all structures; None if not finite."""
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v, digits) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def versions(more: tuple[str, ...] = ()) -> dict[str, str]:
    """Of Python, `PACKAGES` and more packages."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *more):
        found[package] = metadata.version(package)
    return found


def machine() -> dict[str, Any]:
    """Architecture, cores and memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
    }


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = [n for n in sorted({*old, *new}) if old.get(n) != new.get(n)]
    return ", ".join(f"{n}: {old.get(n)} before, {new.get(n)} now" for n in names)
