"""Where the source of a documented object lies, for `sphinx.ext.linkcode`."""

from __future__ import annotations

import importlib
import inspect
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """The address of an object's lines; None for what has none, such as a constant."""
    if domain != "py" or not info["module"]:
        return None
    found = importlib.import_module(info["module"])
    for part in info["fullname"].split("."):
        found = getattr(found, part, None)
    try:
        source = Path(inspect.getsourcefile(inspect.unwrap(found)))
        lines, first = inspect.getsourcelines(found)
    except (TypeError, OSError):
        return None
    if not source.is_relative_to(ROOT):
        return None  # inherited from Keras
    return f"{SOURCE}/blob/main/{source.relative_to(ROOT)}#L{first}-L{first + len(lines) - 1}"
