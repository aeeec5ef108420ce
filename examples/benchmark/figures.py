"""Figures from the JSON results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

Contents = list[dict[str, Any]]
COLUMNS, SIZE = 4, 2.8


def draw_all(folder: Path, by_task: dict[str, Contents]) -> Iterator[tuple[str, Path]]:
    """Draw what there are results for; titles and paths."""
    kinds = (
        ("grid", "Predictive distribution", draw_toy),
        ("reliability", "Reliability", draw_reliability),
        ("roc", "Telling other data apart", draw_roc),
        ("curve", "NLL over iterations", draw_curves),
    )
    for task, contents in by_task.items():
        for kind, title, draw in kinds:
            found = {
                c["method"]: c["splits"]["0"]["figures"][kind]
                for c in contents
                if kind in c["splits"].get("0", {}).get("figures", {})
            }
            if found:
                path = folder / f"{task}-{kind}.png"
                draw(found, path)
                yield f"{title}: {task}", path


def finite(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points of a curve without those that were not finite."""
    return [p for p in points if p["train_nll"] is not None and p["test_nll"] is not None]


def _panels(names: list[str]) -> tuple[Any, list[Any]]:
    """A grid of axes, one per method, titled."""
    rows = -(-len(names) // COLUMNS)
    columns = min(COLUMNS, len(names))
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(SIZE * columns, SIZE * rows),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    flat = list(axes.ravel())
    for ax, name in zip(flat, names, strict=False):
        ax.set_title(name, fontsize=10)
    for ax in flat[len(names) :]:
        ax.set_visible(False)
    for ax in flat[len(names) - columns : len(names)]:  # the lowest that are seen
        ax.tick_params(labelbottom=True)
    return figure, flat


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_toy(found: dict[str, Any], path: Path) -> None:
    """Mean with one and two standard deviations; for classes the entropy in the plane."""
    figure, axes = _panels(list(found))
    for ax, values in zip(axes, found.values(), strict=False):
        (_draw_plane if "entropy" in values else _draw_band)(ax, values)
    _save(figure, path)


def _draw_band(ax: Any, values: dict[str, Any]) -> None:
    grid, mean, stddev = (np.ravel(values[n]) for n in ("grid", "mean", "stddev"))
    y = np.asarray(values["y"])
    ax.plot(np.ravel(values["x"]), y, ".", color="black", markersize=1.5)
    for width in (2, 1):
        ax.fill_between(
            grid, mean - width * stddev, mean + width * stddev, color="C0", alpha=0.25, lw=0
        )
    ax.plot(grid, mean, color="C0")
    span = np.ptp(y)
    ax.set_ylim(y.min() - 1.2 * span, y.max() + 1.2 * span)


def _draw_plane(ax: Any, values: dict[str, Any]) -> None:
    grid, x = np.asarray(values["grid"]), np.asarray(values["x"])
    side = (len(np.unique(grid[:, 1])), len(np.unique(grid[:, 0])))
    shape = [v.reshape(side) for v in (grid[:, 0], grid[:, 1], np.asarray(values["entropy"]))]
    ax.contourf(*shape, levels=np.linspace(0.0, np.log(2.0) + 1e-6, 12), cmap="Blues")
    ax.scatter(x[:, 0], x[:, 1], c=values["y"], s=2, cmap="coolwarm")


def draw_reliability(found: dict[str, Any], path: Path) -> None:
    """Accuracy over confidence, bins sized by their share."""
    figure, axes = _panels(list(found))
    for ax, values in zip(axes, found.values(), strict=False):
        count = np.asarray(values["count"])
        used = count > 0
        x, y = (np.asarray(values[n])[used] for n in ("confidence", "accuracy"))
        ax.plot([0, 1], [0, 1], color="grey", lw=0.8)
        ax.plot(x, y, color="C0", lw=0.8)
        ax.scatter(x, y, s=4 + 100 * count[used] / count.sum(), color="C0")
        ax.set_xlabel("confidence")
        ax.set_ylabel("accuracy")
    _save(figure, path)


def _lines(path: Path, draw: Callable[[Any], None], labels: tuple[str, str]) -> None:
    figure, ax = plt.subplots(figsize=(7.0, 4.5))
    draw(ax)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, path)


def draw_roc(found: dict[str, Any], path: Path) -> None:
    """Rate of true over false alarms, by entropy."""

    def draw(ax: Any) -> None:
        for i, (name, values) in enumerate(found.items()):
            ax.plot(values["false"], values["true"], label=name, color=f"C{i % 10}")

    _lines(path, draw, ("false alarms", "true alarms"))


def draw_curves(found: dict[str, Any], path: Path) -> None:
    """Train (dashed) and test NLL over steps."""

    def draw(ax: Any) -> None:
        for i, (name, every) in enumerate(found.items()):
            points = finite(every)
            steps = [p["step"] for p in points]
            color = f"C{i % 10}"
            ax.plot(steps, [p["test_nll"] for p in points], label=name, color=color)
            ax.plot(steps, [p["train_nll"] for p in points], "--", color=color, lw=0.8)
        ax.set_xscale("log")
        values = [p["test_nll"] for points in found.values() for p in finite(points)]
        low, high = (min(values), np.quantile(values, 0.9)) if values else (0.0, 1.0)
        ax.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))

    _lines(path, draw, ("step", "NLL, nats per example"))


def draw_ranks(ranks: dict[str, list[float]], path: Path) -> None:
    """Mean rank of every method, and its ranks on the sets."""
    figure, ax = plt.subplots(figsize=(6.0, 0.35 * len(ranks) + 1.0))
    for row, values in enumerate(ranks.values()):
        ax.scatter(values, np.full(len(values), row), s=12, color="C0", alpha=0.4)
        ax.scatter(np.mean(values), row, s=50, color="C0")
    ax.set_yticks(range(len(ranks)), list(ranks))
    ax.invert_yaxis()
    ax.set_xlabel("rank on each set, and their mean; 1 is best")
    _save(figure, path)
