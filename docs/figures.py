"""Tables of README and manual, from the JSON that is committed with the examples.

python docs/figures.py     writes the README's tables anew
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from examples.benchmark import report  # noqa: E402
from examples.benchmark.results import mean_and_error, read_all, values  # noqa: E402

BENCHMARK = ROOT / "examples/benchmark/results"
RECORDS = ROOT / "examples/results"
CIFAR = ROOT / "examples/cifar_results"
# Folders of results that are reported whole: name of the page, title, folder.
REPORTS = (
    ("equal", "One configuration for all sets", BENCHMARK / "equal"),
    ("tuned", "Each method's own number of epochs", BENCHMARK / "tuned"),
    ("tables", "Tables", BENCHMARK / "tables"),
    ("cifar_plain", "A wide residual net, images as they are", CIFAR / "plain"),
    ("cifar_moved", "A wide residual net, images moved", CIFAR / "cifar10"),
)
README_METHODS = "bali", "rank1_normal", "deep_ensemble", "mc_dropout"
README_METHODS += "torch_laplace_all", "deterministic"
README_SETS = "boston", "concrete", "energy", "power", "wine", "yacht"


def write_pages(folder: Path) -> None:
    """Write every generated page into a folder."""
    shutil.rmtree(folder / "benchmark", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, title, source in REPORTS:
        if source.exists():
            _write_report(folder / "benchmark" / name, title, source)
    (folder / "records.md").write_text("\n".join(records_page()) + "\n")
    (folder / "speed.md").write_text("\n".join(speed_page()) + "\n")


def _write_report(target: Path, title: str, source: Path) -> None:
    """The report of a folder of results, made anew from its JSON."""
    is_task = any(source.glob("*.json"))
    copy = target / source.name if is_task else target
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.md", "*.png"))
    report.write(target)
    page = target / "report.md"
    text = page.read_text().replace("# Results", f"# {title}", 1)
    page.write_text(text.replace(" +- ", "\u00a0±\u00a0"))  # stays on one line on narrow pages


def records_page() -> list[str]:
    """What the longer examples printed, with the command of each."""
    lines = ["# What the longer examples printed", ""]
    for path in sorted(RECORDS.glob("*.json")):
        kept = _read(path)
        lines += [f"## {path.stem.replace('_', ' ').capitalize()}", "", f"`{kept['command']}`", ""]
        lines += [*report.markdown_table(kept["header"], kept["rows"]), ""]
    return lines


# -- speed ----------------------------------------------------------------------------------------


def speed_page() -> list[str]:
    """Layers, whole nets and requests beside the stock ones."""
    layers = _read(BENCHMARK / "speed.json")
    lines = ["# Time and memory", ""]
    lines += [
        "Ratios to the stock layer or net, from one run; medians. The stock one takes as many rows "
        "as all members together. A `fit` in which every member sees the whole batch takes K times "
        "the rows of the stock net's.",
        "",
    ]
    lines += ["## Layers", "", "`python -m examples.benchmark.speed`", ""]
    shared = [row for row in layers if "sampling" in row]
    lines += _pivoted(shared, lambda row: f"{row['mode']}, {row['sampling']}".strip(", "))
    lines += ["", "## Requests", "", "Milliseconds, to exported nets.", ""]
    requests = [row for row in layers if "rows" in row]
    lines += _pivoted(requests, lambda row: f"{row['rows']} rows", "ours_ms")
    for name, title in (("net_speed", "Whole nets"), ("net_scaling", "By size")):
        found = _read(BENCHMARK / f"{name}.json")
        lines += ["", f"## {title}", "", "`python -m examples.benchmark.net_speed`", ""]
        named = [{**row, "case": f"{row['net']}: {row['mode']}"} for row in found]
        lines += _pivoted(named, lambda row: row["way"])
    return lines


def _pivoted(
    rows: Iterable[dict[str, Any]],
    column: Callable[[dict[str, Any]], str],
    score: str = "ratio",
) -> list[str]:
    """A table with a row by case and a column by kind."""
    cells: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}
    for row in rows:
        if score in row:
            columns[column(row)] = None
            cells.setdefault(row["case"], {})[column(row)] = f"{row[score]:.2f}"
    body = [[case, *(found.get(c, "") for c in columns)] for case, found in cells.items()]
    return report.markdown_table(["", *columns], body)


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


# -- the README -----------------------------------------------------------------------------------


def readme_table() -> list[str]:
    """Negative log-likelihood of UCI regressions and images, by method."""
    by_task = {(c["task"], c["method"]): c for c in read_all(BENCHMARK / "equal")}

    def found(task: str, method: str, name: str, sign: float = 1.0) -> str:
        content = by_task.get((task, method))
        scores = [sign * value for value in values(content, name).values()] if content else []
        return report.cell(mean_and_error(scores)) if scores else ""

    columns = [(f"uci-{name}", "log_likelihood", -1.0) for name in README_SETS]
    columns += [("mnist", "nll", 1.0), ("fashion_mnist", "nll", 1.0)]
    rows = [
        [f"`{m}`", *(found(t, m, name, sign) for t, name, sign in columns)] for m in README_METHODS
    ]
    return report.markdown_table(["NLL", *README_SETS, "MNIST", "Fashion"], rows)


README_TABLES: dict[str, Callable[[], list[str]]] = {"results": readme_table}


def with_tables(text: str) -> str:
    """A text whose tables between `<!-- NAME -->` and `<!-- end -->` are those of the JSON."""
    for name, table in README_TABLES.items():
        head, begin, rest = text.partition(f"<!-- {name} -->\n")
        if begin:
            _, end, tail = rest.partition("<!-- end -->")
            text = "\n".join([head + begin, *table(), "", end + tail])
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text()))
