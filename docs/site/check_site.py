"""Check that the pages of a built site load nothing from another host.

``python docs/site/check_site.py SITE`` prints each script, style sheet, font, image or frame with an address elsewhere
and leaves with exit code 1 if there is one. Ordinary links that a reader may follow are no loads.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

REMOTE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
STYLE_LOAD = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^\"')\s;]+)", re.IGNORECASE)
# Links of these relations are addresses to name a page, not files to load.
NAMING = {"canonical", "author", "license", "next", "prev", "alternate", "edit"}
# The theme's own script can load one library, for diagrams, on pages that have an element of this class.
DIAGRAM_CLASS = "mermaid"


class Loads(HTMLParser):
    """Collect the addresses that a browser loads by itself when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one element of the page loads."""
        values = {name: value or "" for name, value in attrs}
        addresses = [values[name] for name in ("src", "poster", "data") if name in values]
        addresses += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        if tag == "link" and values.get("rel", "") not in NAMING:
            addresses.append(values.get("href", ""))
        if tag in ("image", "use"):
            addresses.append(values.get("href", "") or values.get("xlink:href", ""))
        addresses += STYLE_LOAD.findall(values.get("style", ""))
        self.found += [address for address in addresses if REMOTE.match(address)]
        if DIAGRAM_CLASS in values.get("class", "").split():
            self.found.append(f"an element of class {DIAGRAM_CLASS}, for which the theme loads a library")


def remote_loads(site: Path) -> Iterator[tuple[Path, str]]:
    """Every file of ``site`` that loads something from elsewhere, with what it loads."""
    for page in sorted(site.rglob("*.html")):
        loads = Loads()
        text = page.read_text(encoding="utf-8")
        loads.feed(text)
        styles = re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL)
        yield from ((page, address) for address in loads.found + STYLE_LOAD.findall("\n".join(styles)))
    for sheet in sorted([*site.rglob("*.css"), *site.rglob("*.svg")]):
        yield from ((sheet, address) for address in STYLE_LOAD.findall(sheet.read_text(encoding="utf-8")))


if __name__ == "__main__":
    pages = list(Path(sys.argv[1]).rglob("*.html"))
    problems = [f"{path} loads {address}" for path, address in remote_loads(Path(sys.argv[1]))]
    if problems or not pages:
        sys.exit("\n".join(problems) or f"{sys.argv[1]}: no pages there")
    sys.stdout.write(f"{len(pages)} pages, which load nothing from another host\n")
