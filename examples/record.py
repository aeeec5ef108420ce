"""A table that is printed, and kept as JSON with the command that made it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from examples.benchmark.results import machine, versions

__all__ = ["show"]


def show(table: Table, file: Path | None = None) -> None:
    """Print a table, and write it if a file is given.

    Args:
        table: of texts.
        file: a JSON file, whose folder is made. Defaults to None: none.
    """
    rich.print(table)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_content(table), indent=1) + "\n")


def _content(table: Table) -> dict[str, Any]:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return {
        "command": _command(),
        "versions": versions(),
        "machine": machine(),
        "header": [str(column.header) for column in table.columns],
        "rows": [list(row) for row in zip(*columns, strict=True)],
    }


def _command() -> str:
    """The command that runs, with names in the place of paths and without where it writes."""
    words = [Path(word).name for word in sys.argv[1:]]
    kept = [w for w, before in zip(words, ["", *words], strict=False) if "--out" not in (w, before)]
    spec = sys.modules["__main__"].__spec__
    module = spec.name if spec is not None else Path(sys.argv[0]).stem
    return " ".join(["python -m", module, *kept])
