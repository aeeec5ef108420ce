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
TABLE_REFERENCE = "rank1_table"
TABLE_SCORES = "nll", "ece", "rmse", "train_seconds"
UCI_SCORES = "log_likelihood", "rmse", "crps"
RANKED = "log_likelihood"
SMOKE = "uci-smoke", "tables-smoke"
CORRUPTED = "accuracy", "nll", "ece"
# What results of one table must share, and what is said of it.
ALIKE = "layers", "held_out", "smoke", "corruptions", "data"
FLAGS = {"held_out": "scored on a fifth of the training set", "smoke": "a few steps only"}
Contents = list[dict[str, Any]]


def write(folder: Path) -> str:
    """Write `report.md` and its figures into the folder of results.

    Returns:
        A line that says what was written.

    Raises:
        ValueError: if the folder holds no results, a file that is none, or results of one task
            that cannot stand in one table.
    """
    contents = read_all(folder)
    by_task: dict[str, Contents] = defaultdict(list)
    for content in contents:
        by_task[content["task"]].append(content)
    for task, found in by_task.items():
        _check_alike(task, found)
    parts = ["# Results", "", *_origin(contents), ""]
    uci = {t: c for t, c in by_task.items() if t.startswith("uci-") and t not in SMOKE}
    if uci:
        ranks = folder / "uci-ranks.png"
        ranks.unlink(missing_ok=True)
        for name in UCI_SCORES:
            parts += [*_uci_table(folder, uci, name), ""]
        if ranks.exists():
            parts += [f"![Ranks by {title_of(RANKED)}]({ranks.name})", ""]
        if not _is_held_out(uci):
            parts += [published.NOTE, ""]
        parts += [*_paired(uci, "uci-", REFERENCE), ""]
    tables = {t: c for t, c in by_task.items() if t.startswith("tables-") and t not in SMOKE}
    if tables:
        for name in TABLE_SCORES:
            parts += [*_score_table(tables, name), ""]
        parts += [*_paired(tables, "tables-", TABLE_REFERENCE), ""]
    for task, found in by_task.items():
        parts += [*_task_table(task, found), ""]
    for title, path in figures.draw_all(folder, by_task):
        parts += [f"## {title}", "", f"![{title}]({path.name})", ""]
    target = folder / "report.md"
    target.write_text("\n".join(parts).rstrip() + "\n")
    return f"{len(contents)} result files: {target}"


def _check_alike(task: str, contents: Contents) -> None:
    """Refuse to compare what was asked different questions."""
    for name in ALIKE:
        found = {c["method"]: c["configuration"].get(name) for c in contents}
        if len({str(value) for value in found.values()}) > 1:
            raise ValueError(
                f"Results of {task!r} differ in {name!r} and cannot stand in one table: {found}. "
                "Keep them in different folders."
            )


def _is_held_out(uci: dict[str, Contents]) -> bool:
    return any(c["configuration"].get("held_out") for found in uci.values() for c in found)


def _origin(contents: Contents) -> list[str]:
    lines = set()
    for origin in (o for content in contents for o in content["origins"]):
        found, computer = origin["versions"], origin["machine"]
        packages = ", ".join(f"{name} {found[name]}" for name in found if name != "python")
        lines.add(
            f"Python {found['python']}, {packages}; {computer['cores']} cores, "
            f"{computer['memory_gib']} GiB, {origin['jobs']} at a time."
        )
    return [*sorted(lines), "", "Mean +- standard error over splits or seeds (their number in "
            "brackets where they differ)."]  # fmt: skip


def _setting(contents: Contents) -> str:
    """What the results of a task depend on, as far as methods share it."""
    first = contents[0]["configuration"]
    budgets = {str(c["configuration"].get("budget")): c["configuration"].get("budget")
               for c in contents}  # fmt: skip
    parts = [_net(first["layers"])] if first.get("layers") else []
    if len(budgets) == 1 and first.get("budget"):
        parts.append(_budget(first["budget"]))
    elif len(budgets) > 1:
        parts += [f"{c['method']}: {_budget(c['configuration']['budget'])}" for c in contents]
    parts += [text for name, text in FLAGS.items() if first.get(name)]
    return "; ".join(parts)


def _net(net: Any) -> str:
    sizes = [str(next(iter(layer.values()))) for layer in net["hidden"]]
    shape = "x".join(map(str, net["input_shape"]))
    return "-".join([shape, *sizes, str(net["outputs"])])


def _budget(budget: dict[str, int]) -> str:
    steps = f" and {budget['steps']} steps" if budget.get("steps") else ""
    return f"at least {budget['epochs']} epochs{steps} of batch {budget['batch_size']}"


# -- UCI ------------------------------------------------------------------------------------------


def _uci_table(folder: Path, uci: dict[str, Contents], name: str) -> list[str]:
    sets = sorted(uci)
    rows, by_set = _ranked(uci, sets, name)
    if name == RANKED and len(by_set) > 1:
        figures.draw_ranks(by_set, folder / "uci-ranks.png")
    header = ["", *(t.removeprefix("uci-") for t in sets), "mean rank"]
    if name in ("rmse", "log_likelihood") and not _is_held_out(uci):
        for title, row in published.ROWS.items():
            known = row.rmse if name == "rmse" else row.log_likelihood
            found_cells = [_published(known.get(t.removeprefix("uci-"))) for t in sets]
            rows.append([f"*{title}* ({row.source})", *found_cells, ""])
    return [f"## UCI regression: {title_of(name)}", "", *markdown_table(header, rows)]


def _score_table(tables: dict[str, Contents], name: str) -> list[str]:
    """Tables by score, of the sets that have it."""
    sets = sorted(t for t, c in tables.items() if any(_scores(one, name) for one in c))
    header = ["", *(t.removeprefix("tables-") for t in sets), "mean rank"]
    if not sets:
        return []
    rows, _ = _ranked(tables, sets, name)
    return [f"## Tables: {title_of(name)}", "", *markdown_table(header, rows)]


def _ranked(
    by_task: dict[str, Contents], sets: list[str], name: str
) -> tuple[list[list[str]], dict[str, list[float]]]:
    """Rows of methods with their cells and mean ranks, best first; and the ranks by set."""
    methods = list(dict.fromkeys(c["method"] for t in sets for c in by_task[t]))
    means: dict[str, dict[str, float]] = defaultdict(dict)
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for task in sets:
        whole = max(len(content["splits"]) for content in by_task[task])
        for content in by_task[task]:
            found = list(_scores(content, name).values())
            if found:
                cells[content["method"]][task] = cell(mean_and_error(found), whole=whole)
            if len(found) == whole:  # the mean of fewer splits is that of other data
                means[content["method"]][task] = float(np.mean(found))
    by_set = _ranks(means, sets, name)
    ranks = {m: float(np.mean(r)) for m, r in by_set.items()}
    order = sorted(methods, key=lambda m: (ranks.get(m, np.inf), m))
    rows = []
    for method in order:
        rank = f"{ranks[method]:.2f}" if method in ranks else ""
        rows.append([method, *(cells[method].get(t, "") for t in sets), rank])
    return rows, {m: by_set[m] for m in order if m in by_set}


def _scores(content: dict[str, Any], name: str) -> dict[str, float]:
    """A score by split; of regressions the NLL is the log-likelihood with another sign."""
    found = values(content, name)
    if found or name != "nll":
        return found
    return {i: -value for i, value in values(content, "log_likelihood").items()}


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


def _paired(by_task: dict[str, Contents], prefix: str, chosen: str) -> list[str]:
    """Log-likelihood of the reference less that of each method, split by split."""
    sets = sorted(by_task)
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for task in sets:
        by_method = {
            c["method"]: {i: -value for i, value in _scores(c, "nll").items()}
            for c in by_task[task]
        }
        whole = max(map(len, by_method.values()))
        reference = by_method.get(chosen, {})
        for method, found in by_method.items():
            common = sorted(reference.keys() & found.keys())
            if method != chosen and common:
                differences = [reference[i] - found[i] for i in common]
                rows[method][task] = cell(mean_and_error(differences), sign=True, whole=whole)
    header = [f"{chosen} less", *(t.removeprefix(prefix) for t in sets)]
    table = [[m, *(cells.get(t, "") for t in sets)] for m, cells in sorted(rows.items())]
    kind = "UCI regression" if prefix == "uci-" else "Tables"
    title = f"## {kind}: paired differences in log-likelihood"
    return [title, "", *markdown_table(header, table)] if table else []


# -- one task -------------------------------------------------------------------------------------


def _task_table(task: str, contents: Contents) -> list[str]:
    names = dict.fromkeys(n for c in contents for n in c["summary"] if "/" not in n)
    whole = max(len(c["splits"]) for c in contents)
    header = ["", *(title_of(n) for n in names)]
    rows = [[c["method"], *(_summary_cell(c, name, whole) for name in names)] for c in contents]
    lines = [f"## {task}, {whole} splits or seeds", "", _setting(contents), ""]
    lines += markdown_table(header, rows)
    for more in (_corrupted(contents, whole), _steps_to_target(contents)):
        if more:
            lines += ["", *more]
    return lines


def _summary_cell(content: dict[str, Any], name: str, whole: int) -> str:
    found = content["summary"].get(name)
    return "" if found is None else cell(found, whole=whole)


def _corrupted(contents: Contents, whole: int) -> list[str]:
    """Scores of corrupted inputs, by severity, over the kinds of corruption."""
    names = sorted({n for c in contents for n in c["summary"] if "/" in n})
    severities = sorted({name.rsplit("_", 1)[1] for name in names})
    header = ["corrupted", *(f"{s}, severity {v}" for s in CORRUPTED for v in severities)]
    rows = []
    for content in contents:
        cells = []
        for score in CORRUPTED:
            for severity in severities:
                wanted = [n for n in names if n.startswith(f"{score}/") and n.endswith(severity)]
                by_split = [
                    float(np.mean([split["scores"][n] for n in wanted]))
                    for split in content["splits"].values()
                    if wanted and all(n in split["scores"] for n in wanted)
                ]
                cells.append(cell(mean_and_error(by_split), whole=whole) if by_split else "")
        rows.append([content["method"], *cells])
    return markdown_table(header, rows) if names else []


def _steps_to_target(contents: Contents) -> list[str]:
    """Steps until each method is as good as the least good one ever becomes."""
    curves = {
        c["method"]: figures.finite(c["splits"]["0"]["figures"]["curve"])
        for c in contents
        if c["splits"].get("0", {}).get("figures", {}).get("curve")
    }
    curves = {method: curve for method, curve in curves.items() if curve}
    if len(curves) < 2:
        return []
    target = max(min(p["test_nll"] for p in curve) for curve in curves.values())
    rows = []
    for method, curve in curves.items():
        first = next(p for p in curve if p["test_nll"] <= target)
        rows.append([method, f"{first['step']:.0f}", f"{first['seconds']:.1f}"])
    header = ["", f"steps to a test NLL of {target:.4g}", "seconds"]
    return markdown_table(header, rows)


# -- text -----------------------------------------------------------------------------------------


def cell(found: dict[str, Any], sign: bool = False, whole: int | None = None) -> str:
    """Mean and standard error as text.

    Args:
        found: as `results.mean_and_error` makes it.
        sign: whether to write a plus.
        whole: number of splits that others have; another one is added in brackets.
    """
    mean, error, count = found["mean"], found["standard_error"], found["count"]
    suffix = "" if whole in (None, count) else f" ({count})"
    if not error and float(mean).is_integer():
        return f"{mean:.0f}{suffix}"  # such as a number of parameters
    # As many digits as the error has two of.
    digits = min(5, max(0, 1 - int(np.floor(np.log10(error))))) if error else 3
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    return f"{text} +- {error:.{digits}f}{suffix}" if error is not None else f"{text}{suffix}"


def title_of(name: str) -> str:
    """A score's name as a column's title."""
    arrow = {"up": " (more is better)", "down": ""}[BETTER.get(name, "down")]
    return name.replace("_", " ") + arrow


def markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
