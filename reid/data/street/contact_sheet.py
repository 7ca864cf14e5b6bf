"""A contact sheet of a street: one row an object, one column a camera, people above vehicles.

Reads what :mod:`street` wrote; it draws nothing new and knows nothing of how crops come about.
"""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from reid.errors import DataError

CELLS = {"person": (64, 128), "vehicle": (128, 96)}  # width, height in pixels
SHARE_OF_PEOPLE = 0.75
GAP = 4
PAPER = (255, 255, 255)

Crops = dict[str, dict[str, Path]]


def contact_sheet(out: Path, rows: int = 8, *, site: str = "street-a") -> Image.Image:
    """The first ``rows`` test objects of ``site`` of the street in folder ``out``, by camera.

    About three quarters of the rows are people, the rest vehicles; either makes up for what the
    other lacks.  Each cell is the query of that object in that camera.
    """
    if rows < 1:
        raise DataError(f"contact sheet: expected at least 1 row, got {rows}")
    people, vehicles, cameras = _queries(out / site / "manifest.csv")
    above = min(len(people), max(round(rows * SHARE_OF_PEOPLE), rows - len(vehicles)))
    below = min(len(vehicles), rows - above)
    if above + below == 0:
        raise DataError(f"{out / site}: no query images; make a street with test identities first")
    shown = [("person", name, people[name]) for name in sorted(people)[:above]]
    shown += [("vehicle", name, vehicles[name]) for name in sorted(vehicles)[:below]]
    wide = max(CELLS[domain][0] for domain, _, _ in shown)
    heights = [CELLS[domain][1] for domain, _, _ in shown]
    sheet = Image.new("RGB", (len(cameras) * (wide + GAP) - GAP, sum(heights) + GAP * (len(heights) - 1)), PAPER)
    top = 0
    for (domain, _, crops), high in zip(shown, heights, strict=True):
        for column, camera in enumerate(cameras):
            if camera in crops:
                left = column * (wide + GAP) + (wide - CELLS[domain][0]) // 2
                sheet.paste(_read(crops[camera]).resize(CELLS[domain]), (left, top))
        top += high + GAP
    return sheet


def _queries(manifest: Path) -> tuple[Crops, Crops, list[str]]:
    """Paths of query crops by identity and camera, of people and of vehicles, and the cameras in order."""
    if not manifest.is_file():
        raise DataError(f'{manifest}: no manifest; make the street with "reid synth" first')
    found: dict[str, Crops] = {domain: {} for domain in CELLS}
    cameras: set[str] = set()
    with manifest.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["split"] == "query" and row["category"] in found:
                found[row["category"]].setdefault(row["identity"], {})[row["camera"]] = manifest.parent / row["path"]
                cameras.add(row["camera"])
    return found["person"], found["vehicle"], sorted(cameras)


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an image; delete the street and make it again") from error
