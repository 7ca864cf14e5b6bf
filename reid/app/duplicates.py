"""Crops that a gallery holds more than once: the same image, or images whose embeddings are nearly the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.records import IntArray
from reid.retrieval.gallery import Gallery
from reid.retrieval.neighbours import nearest_among
from reid.retrieval.persons.person_state import contents_of

SAME, NEAR = "the same image", "nearly the same"
NEAREST = 0.999  # similarity, from which two crops of a camera count as nearly the same
COMPARED_ROWS = 20_000  # of a gallery; in a larger one, only images that are the same are found
NEIGHBOURS = 8


@dataclass(frozen=True)
class Duplicates:
    """Crops that are one, or nearly.

    Args:
        kind: ``SAME`` or ``NEAR``.
        rows: Positions of the rows in the gallery, two at least.
        score: The lowest similarity of a crop to its nearest other one here, -1..1.
    """

    kind: str
    rows: tuple[int, ...]
    score: float


def find_duplicates(gallery: Gallery) -> list[Duplicates]:
    """Find the crops that a gallery holds more than once.

    Args:
        gallery: The gallery.

    Returns:
        Groups of rows, those of the same image first, and then the largest first; a row is in one group at most.

    Example:
        >>> from pathlib import Path
        >>> from reid.records import Embeddings, Sample
        >>> vectors = np.float32([[1, 0], [0, 1], [1, 0]])
        >>> samples = tuple(Sample(Path(name), camera="door") for name in ("1.jpg", "2.jpg", "3.jpg"))
        >>> [(one.kind, one.rows) for one in find_duplicates(Gallery.build(Embeddings(samples, vectors, "f00d")))]
        [('nearly the same', (0, 2))]
    """
    found = _same_images(gallery)
    taken = {row for one in found for row in one.rows}
    if 1 < len(gallery) <= COMPARED_ROWS:
        found += _near_images(gallery, taken)
    return found


def _same_images(gallery: Gallery) -> list[Duplicates]:
    groups: dict[str, list[int]] = {}
    for row, content in enumerate(contents_of(gallery.table)):
        if content:
            groups.setdefault(content, []).append(row)
    found = [Duplicates(SAME, tuple(rows), 1.0) for rows in groups.values() if len(rows) > 1]
    return sorted(found, key=lambda one: (-len(one.rows), one.rows))


def _near_images(gallery: Gallery, taken: set[int]) -> list[Duplicates]:
    """Return the groups of rows of one category and camera that near pairs connect."""
    vectors = gallery.rows.vectors()
    near = nearest_among(vectors, min(NEIGHBOURS, len(vectors)))
    kinds = np.stack([gallery.table.codes(name)[0] for name in ("category", "camera")], axis=1)
    groups = list(range(len(vectors)))
    best = np.full(len(vectors), -1.0)

    def root(row: int) -> int:
        while groups[row] != row:
            groups[row] = row = groups[groups[row]]
        return row

    rows, places = np.nonzero(near.scores >= NEAREST)
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        other = int(near.rows[row, place])
        if other != row and not {row, other} & taken and np.array_equal(kinds[row], kinds[other]):
            best[[row, other]] = np.maximum(best[[row, other]], near.scores[row, place])
            groups[root(row)] = root(other)
    members: dict[int, list[int]] = {}
    chosen: IntArray = np.flatnonzero(best >= NEAREST)
    for row in chosen.tolist():
        members.setdefault(root(row), []).append(row)
    found = [Duplicates(NEAR, tuple(rows), float(best[rows].min())) for rows in members.values()]
    return sorted(found, key=lambda one: (-len(one.rows), one.rows))
