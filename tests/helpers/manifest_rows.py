"""Change the rows of a manifest, for tests."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path


def write_changed(manifest: Path, path: Path, change: Callable[[dict[str, str]], dict[str, str] | None]) -> Path:
    """Write a copy of a manifest to ``path``; a row is left out where ``change`` returns None."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [change({**row, "path": str(manifest.parent / row["path"])}) for row in csv.DictReader(file)]
    kept = [row for row in rows if row is not None]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, kept[0].keys())
        writer.writeheader()
        writer.writerows(kept)
    return path
