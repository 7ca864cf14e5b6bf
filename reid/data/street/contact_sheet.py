"""Draw a contact sheet of a street: one row for each object, one column for each camera, people above vehicles.

It reads the folder that :mod:`reid.data.street.generation` wrote.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from reid.data.images import read_image
from reid.data.manifest import read_manifest
from reid.errors import DataError
from reid.records import Split

CELLS = {"person": (64, 128), "vehicle": (128, 96)}  # width, height in pixels
SHARE_OF_PEOPLE = 0.75
GAP = 4
PAPER = (255, 255, 255)

Crops = dict[str, dict[str, Path]]
"""Paths of query crops by identity and camera."""


def contact_sheet(out: Path, rows: int = 8, *, site: str = "street-a") -> Image.Image:
    """Show the first test objects of a site as every camera sees them.

    About three quarters of the rows are people and the rest are vehicles; where there are too few of one category,
    the other fills the rows.  Each cell is the query of that object in that camera.

    Args:
        out: The folder of the street.
        rows: How many objects to show.
        site: The site to show.

    Returns:
        The sheet as an RGB image.

    Raises:
        DataError: ``rows`` is below 1, or the street has no queries or cannot be read.
    """
    if rows < 1:
        raise DataError(f"contact sheet: expected at least 1 row, got {rows}")
    people, vehicles, cameras = _queries(out / site / "manifest.csv")
    above = min(len(people), max(round(rows * SHARE_OF_PEOPLE), rows - len(vehicles)))
    below = min(len(vehicles), rows - above)
    if above + below == 0:
        raise DataError(f"{out / site}: no query images; make a street with test identities first")
    shown = [("person", people[name]) for name in sorted(people)[:above]]
    shown += [("vehicle", vehicles[name]) for name in sorted(vehicles)[:below]]
    wide = max(CELLS[category][0] for category, _ in shown)
    heights = [CELLS[category][1] for category, _ in shown]
    sheet = Image.new("RGB", (len(cameras) * (wide + GAP) - GAP, sum(heights) + GAP * (len(heights) - 1)), PAPER)
    top = 0
    for (category, crops), high in zip(shown, heights, strict=True):
        for column, camera in enumerate(cameras):
            if camera in crops:
                left = column * (wide + GAP) + (wide - CELLS[category][0]) // 2
                sheet.paste(read_image(crops[camera]).resize(CELLS[category]), (left, top))
        top += high + GAP
    return sheet


def _queries(manifest: Path) -> tuple[Crops, Crops, list[str]]:
    """Return the query crops of people and of vehicles, and the names of the cameras in order."""
    if not manifest.is_file():
        raise DataError(f'{manifest}: no manifest; make the street with "reid synth" first')
    found: dict[str, Crops] = {category: {} for category in CELLS}
    cameras: set[str] = set()
    for sample in read_manifest(manifest):
        if sample.split is Split.QUERY and sample.category in found:
            found[sample.category].setdefault(sample.identity, {})[sample.camera] = sample.path
            cameras.add(sample.camera)
    return found["person"], found["vehicle"], sorted(cameras)
