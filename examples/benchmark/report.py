"""Markdown tables and figures from the JSON results, without any model."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from examples.benchmark import figures, published
from examples.benchmark.results import mean_and_error, read_all, values
from examples.benchmark.scores import BETTER

REFERENCE = "bali"
UCI_SCORES = "log_likelihood", "rmse", "crps"
RANKED = "log_likelihood"
Contents = list[dict[str, Any]]


def write(folder: Path) -> str:
    """Write `report.md` and its figures into the folder of results.

    Returns:
        A line that says what was written.

    Raises:
        ValueError: if the folder holds no results, or a file that is none.
    """
    contents = read_all(folder)
    by_task: dict[str, Contents] = defaultdict(list)
    for content in contents:
        by_task[content["task"]].append(content)
    parts = ["# Results", "", *_origin(contents), ""]
    uci = {t: c for t, c in by_task.items() if t.startswith("uci-")}
    if uci:
        for name in UCI_SCORES:
            parts += [*_uci_table(folder, uci, name), ""]
        if (folder / "uci-ranks.png").exists():
            parts += [f"![Ranks by {_title(RANKED)}](uci-ranks.png)", ""]
        parts += [published.NOTE, ""]
        parts += [*_paired(uci), ""]
    for task, found in by_task.items():
        parts += [*_task_table(task, found), ""]
    for title, path in figures.draw_all(folder, by_task):
        parts += [f"## {title}", "", f"![{title}]({path.name})", ""]
    target = folder / "report.md"
    target.write_text("\n".join(parts).rstrip() + "\n")
    return f"{len(contents)} result files: {target}"


def _origin(contents: Contents) -> list[str]:
    lines = {
        f"Python {v['python']}, "
        + ", ".join(f"{name} {v[name]}" for name in v if name != "python")
        + f"; {c['machine']['cores']} cores, {c['machine']['memory_gib']} GiB."
        for c in contents
        for v in [c["versions"]]
    }
    return [*sorted(lines), "", "Mean +- standard error over splits or seeds (their number in "
            "brackets where they differ)."]  # fmt: skip


# -- UCI ------------------------------------------------------------------------------------------


def _uci_table(folder: Path, uci: dict[str, Contents], name: str) -> list[str]:
    sets = sorted(uci)
    methods = list(dict.fromkeys(c["method"] for t in sets for c in uci[t]))
    means: dict[str, dict[str, float]] = defaultdict(dict)
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for task in sets:
        for content in uci[task]:
            found = list(values(content, name).values())
            if found:
                means[content["method"]][task] = float(np.mean(found))
                cells[content["method"]][task] = _cell(mean_and_error(found))
    by_set = _ranks(means, sets, name)
    ranks = {m: float(np.mean(r)) for m, r in by_set.items()}
    order = sorted(methods, key=lambda m: (ranks.get(m, np.inf), m))
    if name == RANKED and len(ranks) > 1:
        figures.draw_ranks({m: by_set[m] for m in order if m in by_set}, folder / "uci-ranks.png")
    header = ["", *(t.removeprefix("uci-") for t in sets), "mean rank"]
    rows = []
    for method in order:
        rank = f"{ranks[method]:.2f}" if method in ranks else ""
        rows.append([method, *(cells[method].get(t, "") for t in sets), rank])
    if name in ("rmse", "log_likelihood"):
        for title, row in published.ROWS.items():
            known = row.rmse if name == "rmse" else row.log_likelihood
            found_cells = [_published(known.get(t.removeprefix("uci-"))) for t in sets]
            rows.append([f"*{title}* ({row.source})", *found_cells, ""])
    return [f"## UCI regression: {_title(name)}", "", *_markdown(header, rows)]


def _ranks(
    means: dict[str, dict[str, float]], sets: list[str], name: str
) -> dict[str, list[float]]:
    """Rank on every set, of the methods that have them all; ties share a rank."""
    complete = [m for m in means if all(t in means[m] for t in sets)]
    sign = 1.0 if BETTER[name] == "down" else -1.0
    ranks: dict[str, list[float]] = {m: [] for m in complete}
    for task in sets:
        found = np.array([sign * means[m][task] for m in complete])
        for method, value in zip(complete, found, strict=True):
            ranks[method].append(float((found < value).sum() + 0.5 * ((found == value).sum() + 1)))
    return ranks


def _published(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return ""
    mean, error = value
    return f"{mean:.2f}" if error is None else f"{mean:.2f} +- {error:.2f}"


def _paired(uci: dict[str, Contents]) -> list[str]:
    """Log-likelihood of the reference less that of each method, split by split."""
    sets = sorted(uci)
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for task in sets:
        by_method = {c["method"]: values(c, "log_likelihood") for c in uci[task]}
        reference = by_method.get(REFERENCE, {})
        for method, found in by_method.items():
            common = sorted(reference.keys() & found.keys())
            if method != REFERENCE and common:
                differences = [reference[i] - found[i] for i in common]
                rows[method][task] = _cell(mean_and_error(differences), sign=True)
    header = [f"{REFERENCE} less", *(t.removeprefix("uci-") for t in sets)]
    table = [[m, *(cells.get(t, "") for t in sets)] for m, cells in sorted(rows.items())]
    title = "## UCI regression: paired differences in log-likelihood"
    return [title, "", *_markdown(header, table)] if table else []


# -- one task -------------------------------------------------------------------------------------


def _task_table(task: str, contents: Contents) -> list[str]:
    names = dict.fromkeys(n for c in contents for n in c["summary"] if "/" not in n)
    header = ["", *(_title(n) for n in names)]
    rows = [
        [c["method"], *(_cell(c["summary"][n]) if n in c["summary"] else "" for n in names)]
        for c in contents
    ]
    count = max(len(c["splits"]) for c in contents)
    lines = [f"## {task}, {count} splits or seeds", "", *_markdown(header, rows)]
    target = _steps_to_target(contents)
    return [*lines, "", *target] if target else lines


def _steps_to_target(contents: Contents) -> list[str]:
    """Steps until each method is as good as the least good one ever becomes."""
    curves = {
        c["method"]: c["splits"]["0"]["figures"]["curve"]
        for c in contents
        if c["splits"].get("0", {}).get("figures", {}).get("curve")
    }
    if len(curves) < 2:
        return []
    target = max(min(p["test_nll"] for p in curve) for curve in curves.values())
    rows = []
    for method, curve in curves.items():
        first = next(p for p in curve if p["test_nll"] <= target)
        rows.append([method, f"{first['step']:.0f}", f"{first['seconds']:.1f}"])
    header = ["", f"steps to a test NLL of {target:.4g}", "seconds"]
    return _markdown(header, rows)


# -- text -----------------------------------------------------------------------------------------


def _cell(found: dict[str, float], sign: bool = False) -> str:
    mean, error = found["mean"], found["standard_error"]
    # As many digits as the error has two of.
    digits = 3 if error == 0.0 else min(5, max(0, 1 - int(np.floor(np.log10(error)))))
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    return f"{text} +- {error:.{digits}f}" if found["count"] > 1 else text


def _title(name: str) -> str:
    arrow = {"up": " (more is better)", "down": ""}[BETTER.get(name, "down")]
    return name.replace("_", " ") + arrow


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
