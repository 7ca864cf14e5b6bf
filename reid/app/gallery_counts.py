"""What a gallery holds, in numbers: crops, identities, cameras and times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.app.served_data import ServedData
from reid.retrieval.row_table import RowTable


@dataclass(frozen=True)
class GalleryCounts:
    """What the main gallery holds.

    Args:
        crops: The number of its rows.
        identities: The number of known identities; 0 where none is known.
        unlabelled: The number of rows of unknown identity.
        cameras: The number of known cameras.
        without_camera: The number of rows of an unknown camera.
        categories: The categories, sorted.
        name: The name of its folder.
    """

    crops: int
    identities: int
    unlabelled: int
    cameras: int
    without_camera: int
    categories: tuple[str, ...]
    name: str


def count_gallery(data: ServedData) -> GalleryCounts:
    """Count what the main gallery holds now."""
    served = data.main
    table = served.gallery.table
    if not len(table):
        return GalleryCounts(0, 0, 0, 0, 0, (), served.folder.name)
    return GalleryCounts(
        crops=len(table),
        identities=_count_pairs(table, "category", "identity"),
        unlabelled=_count_empty(table, "identity"),
        cameras=len(table.distinct("camera")),
        without_camera=_count_empty(table, "camera"),
        categories=tuple(table.distinct("category")),
        name=served.folder.resolve().name,
    )


def _count_pairs(table: RowTable, first: str, second: str) -> int:
    """Count the distinct pairs of two columns whose second text is known."""
    (codes, _), (others, words) = table.codes(first), table.codes(second)
    pairs = np.unique(codes.astype(np.int64) * len(words) + others)
    return sum(bool(words[pair % len(words)]) for pair in pairs.tolist())


def _count_empty(table: RowTable, name: str) -> int:
    codes, words = table.codes(name)
    return int(np.count_nonzero(codes == words.index(""))) if "" in words else 0
