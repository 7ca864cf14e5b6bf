"""The nearest crops of other cameras to some crops of a new camera, before and after it was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from reid.app.gallery_service import GalleryService
from reid.app.network_changes import NetworkChange, rows_of_change
from reid.errors import DataError
from reid.models.checkpoint import load_checkpoint
from reid.models.execution import as_stored
from reid.pipeline import unknown_domains
from reid.records import FloatArray, IntArray, UnseenCameraPolicy
from reid.retrieval.embed import embed
from reid.retrieval.row_table import RowTable

SHOWN = 4  # crops of the camera
NEAREST = 5  # neighbours of each


@dataclass(frozen=True)
class NeighboursOfCrop:
    """One crop of a camera and its nearest crops of other cameras.

    Args:
        row: The position of the crop in the gallery.
        before: Positions of the nearest rows with the network before the change, and their scores.
        after: The same with the network of today.
    """

    row: int
    before: tuple[tuple[int, float], ...]
    after: tuple[tuple[int, float], ...]


def neighbours_of_change(service: GalleryService, change: NetworkChange) -> list[NeighboursOfCrop]:
    """Compare the neighbours of some crops of a camera before and after a change of its statistics.

    The rows of other cameras are those of the gallery, which the change has left as they are.

    Args:
        service: The gallery.
        change: A change that concerns one camera and is done.

    Raises:
        DataError: The change concerns all cameras, or the gallery has no crops of this camera or of others.
    """
    served = service.data.main
    table, checkpoint = served.gallery.table, served.checkpoint
    if not change.camera or checkpoint is None:
        raise DataError("this change concerns all cameras; the page Map shows them before and after")
    codes, names = table.codes("camera")
    of_camera = codes == (names.index(change.camera) if change.camera in names else -1)
    added = rows_of_change(service, change)
    own = np.array(added, np.int64) if added else np.flatnonzero(of_camera)
    own = own[[position for position, row in enumerate(own.tolist()) if table.samples[row].path.is_file()]]
    others = _others(table, of_camera, own)
    if not len(own) or not len(others):
        raise DataError("the gallery needs crops of this camera and of others of its category, to compare them")
    chosen = own[np.unique(np.linspace(0, len(own) - 1, min(SHOWN, len(own))).astype(np.int64))]
    old = load_checkpoint(change.network)
    old = old.with_execution(as_stored(checkpoint.execution, old.extra, str(change.network)))
    samples = table.samples_at(chosen)
    if unknown_domains(old, samples) and old.unknown_domain is None:
        old = old.with_unseen_camera_policy(UnseenCameraPolicy.MIXTURE)
    vectors = served.gallery.rows.vectors_at(others)
    before = _nearest(embed(old, samples).vectors, vectors, others)
    after = _nearest(served.gallery.rows.vectors_at(chosen), vectors, others)
    return [NeighboursOfCrop(row, first, then) for row, first, then in zip(chosen.tolist(), before, after, strict=True)]


def _others(table: RowTable, of_camera: Any, own: IntArray) -> IntArray:
    """Return the rows of other named cameras with the category of the first own row."""
    codes, names = table.codes("camera")
    category = table.codes("category")[0]
    named = np.array([bool(name) for name in names], np.bool_)[codes]
    if not len(own):
        return np.zeros(0, np.int64)
    found: IntArray = np.flatnonzero(named & ~of_camera & (category == category[own[0]])).astype(np.int64)
    return found


def _nearest(queries: FloatArray, vectors: FloatArray, rows: IntArray) -> list[tuple[tuple[int, float], ...]]:
    scores = queries @ vectors.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :NEAREST]
    return [
        tuple((int(rows[column]), float(scores[number, column])) for column in columns.tolist())
        for number, columns in enumerate(best)
    ]


def neighbours_json(service: GalleryService, change: NetworkChange) -> list[dict[str, Any]]:
    """Return the neighbours before and after as plain values: ids of crops, their cameras and their scores."""
    table = service.data.main.gallery.table

    def described(found: tuple[tuple[int, float], ...]) -> list[dict[str, Any]]:
        samples = table.samples_at(np.array([row for row, _ in found], np.int64))
        return [
            {"crop": int(table.row_ids[row]), "camera": sample.camera, "score": round(score, 6)}
            for (row, score), sample in zip(found, samples, strict=True)
        ]

    return [
        {"crop": int(table.row_ids[one.row]), "before": described(one.before), "after": described(one.after)}
        for one in neighbours_of_change(service, change)
    ]
