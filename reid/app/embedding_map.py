"""Embeddings as points on a plane, before and after normalization or adaptation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid.app.projections import project_later
from reid.app.served_data import ServedData, ServedGallery
from reid.errors import DataError, GalleryError
from reid.records import FloatArray, IntArray
from reid.retrieval.centering import centered_by_camera
from reid.retrieval.gallery import Gallery
from reid.retrieval.gallery_header import read_header
from reid.retrieval.persons.person_state import codes_of

MOST_POINTS = 1500
SEED = 0
FEWEST = 3  # points of a map
ADAPTED = "-adapted"  # the end of the name of the gallery of an adapted network


@dataclass(frozen=True)
class EmbeddingMap:
    """Points of one set of vectors.

    Args:
        title: What was done to the vectors.
        points: (N, 2) float32 in 0..1.
        camera_share: The share in 0..1 of the variance that the means of cameras explain: what normalization is to
            remove.
    """

    title: str
    points: FloatArray
    camera_share: float


def drawn_rows(served: ServedGallery, category: str) -> IntArray:
    """Return the positions of at most ``MOST_POINTS`` rows of a category, drawn at random but always the same.

    Raises:
        DataError: There are too few.
    """
    codes, words = served.gallery.table.codes("category")
    rows = np.flatnonzero(codes == (words.index(category) if category in words else -1))
    if len(rows) < FEWEST:
        raise DataError(
            f"a map needs three crops of {category or 'a category'} at least, and the gallery has {len(rows)}"
        )
    if len(rows) > MOST_POINTS:
        rows = np.sort(np.random.default_rng(SEED).choice(rows, MOST_POINTS, replace=False))
    return rows.astype(np.int64)


def maps_of(data: ServedData, rows: IntArray, *, compare: bool, projection: str = "pca") -> list[EmbeddingMap]:
    """Return the maps of the same rows of the main gallery.

    Args:
        data: What the application serves.
        rows: Positions of rows of the main gallery.
        compare: Show the networks that are compared instead, each of which embedded the same images.
        projection: A key of :data:`reid.app.projections.PROJECTIONS`.

    Returns:
        As the network made the vectors, and centered per camera; or one for each compared network.

    Raises:
        NotDrawnYetError: The points are computed in the background.
    """
    main = data.main
    if compare:
        paths = main.gallery.table.take(rows).column("path").to_pylist()
        maps = []
        for served in data.galleries:
            if not served.is_compared:
                continue
            own = {path: row for row, path in enumerate(served.gallery.table.column("path").to_pylist())}
            there = np.array([own[path] for path in paths if path in own], np.int64)
            if len(there) == len(paths):
                cameras = codes_of(served.gallery.table.take(there), ("camera",))
                maps.append(_map(served.title, served.gallery.rows.vectors_at(there), cameras, projection))
        return maps
    vectors, table = main.gallery.rows.vectors_at(rows), main.gallery.table.take(rows)
    cameras = codes_of(table, ("camera",))
    centered = centered_by_camera(vectors, codes_of(table, ("category", "modality", "camera")))
    return [
        _map("As the network made them", vectors, cameras, projection),
        _map("Centered per camera", centered, cameras, projection),
    ]


def adapted_folder(data: ServedData) -> Path | None:
    """Return the gallery that the job "adapt" has built beside the main one with the adapted network; None without."""
    folder = data.main.folder.resolve()
    beside = folder.with_name(f"{folder.name}{ADAPTED}")
    try:
        fingerprint = read_header(beside).get("fingerprint")
    except GalleryError:  # there is none
        return None
    return None if fingerprint == data.main.gallery.fingerprint else beside  # this gallery may have taken it over


def maps_of_adaptation(
    served: ServedGallery, rows: IntArray, adapted: Path, projection: str = "pca"
) -> tuple[list[EmbeddingMap], IntArray]:
    """Return the maps of the rows that the adapted network has embedded as well, before and after, and these rows.

    Raises:
        DataError: The adapted network has embedded fewer than three of the rows.
        GalleryError: Its gallery is damaged.
        NotDrawnYetError: The points are computed in the background.
    """
    after = Gallery.open(adapted)
    own = {path: row for row, path in enumerate(after.table.column("path").to_pylist())}
    paths = served.gallery.table.take(rows).column("path").to_pylist()
    both = [position for position, path in enumerate(paths) if path in own]
    if len(both) < FEWEST:
        raise DataError(f"the adapted network has embedded only {len(both)} of these crops; adapt it to more of them")
    chosen = rows[both]
    cameras = codes_of(served.gallery.table.take(chosen), ("camera",))
    vectors = after.rows.vectors_at(np.array([own[paths[position]] for position in both], np.int64))
    before = served.gallery.rows.vectors_at(chosen)
    maps = [
        _map("Before adaptation", before, cameras, projection),
        _map("After adaptation", vectors, cameras, projection),
    ]
    return maps, chosen


def _map(title: str, vectors: FloatArray, cameras: IntArray, projection: str) -> EmbeddingMap:
    points = project_later(vectors, projection)
    mean = vectors.mean(axis=0)
    total = float(((vectors - mean) ** 2).sum())
    between = sum(
        int((cameras == camera).sum()) * float(((vectors[cameras == camera].mean(axis=0) - mean) ** 2).sum())
        for camera in np.unique(cameras).tolist()
    )
    low, high = points.min(axis=0), points.max(axis=0)
    return EmbeddingMap(
        title, ((points - low) / np.maximum(high - low, 1e-9)).astype(np.float32), between / max(total, 1e-9)
    )
