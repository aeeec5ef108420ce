"""Every link of the built manual to a page, a file or a place of its own exists.

python docs/check_links.py docs/_build
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the places that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = {"", "top"}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.add(value)
            if value and name == "id":
                self.places.add(value)


def broken(root: Path) -> Iterator[str]:
    """Links without a target, as `page: link`."""
    pages = {path.resolve(): Page(path) for path in root.rglob("*.html")}
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            is_place = target not in pages or unquote(parts.fragment) in pages[target].places
            if not target.exists() or not is_place:
                yield f"{path.relative_to(root.resolve())}: {link}"


if __name__ == "__main__":
    found = list(broken(Path(sys.argv[1])))
    sys.exit("\n".join(found) or 0)
