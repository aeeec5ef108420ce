"""Docstrings, with Markdown's fences and indented equations, as reStructuredText."""

from __future__ import annotations

import re
from typing import Any

SECTION = re.compile(r"^[A-Z][a-z]+( [a-z]+)?:( .*)?$")
FENCE = re.compile(r"^(\s*)```(\w*)\s*$")


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Called by autodoc with the lines of a docstring, which it changes in place."""
    lines[:] = _equations(_fences(lines))


def _fences(lines: list[str]) -> list[str]:
    """Blocks between fences as code blocks."""
    found: list[str] = []
    language: str | None = None
    for line in lines:
        fence = FENCE.match(line)
        if fence and language is None:
            language = fence[2] or "text"
            found += ["", f"{fence[1]}.. code-block:: {language}", ""]
        elif fence:
            language = None
            found.append("")
        else:
            found.append(f"    {line}" if language is not None and line else line)
    return found


def _equations(lines: list[str]) -> list[str]:
    """Indented blocks that stand in running text, between blank lines, as literal text."""
    found: list[str] = []
    in_section = in_code = False
    for index, line in enumerate(lines):
        indented = line.startswith("    ")
        if line and not indented:
            in_section = bool(SECTION.match(line))
            in_code = line.startswith("..")
        before = lines[index - 1] if index else ""
        begins = indented and not before.strip()
        if begins and not in_section and not in_code:
            found += [".. code-block:: text", ""]
            in_code = True
        found.append(line)
    return found
