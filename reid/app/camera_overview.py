"""What the stored embeddings say about the cameras of a gallery, without labels and without reading an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.app.served_data import ServedGallery
from reid.models.profile_checks import measured_dates
from reid.records import FloatArray, IntArray, domain_of
from reid.retrieval.row_table import RowTable

MEASURED = 400  # crops of a camera behind its mean embedding
SAMPLES = 6  # crops of a camera that are shown
FEWEST = 20  # crops, below which the mean embedding of a camera says little


@dataclass(frozen=True)
class CameraOverview:
    """One camera.

    Args:
        name: Its name; "" for crops of unknown cameras.
        rows: How many crops it has.
        modality: Its light, or several words.
        first: When its first crop was taken, as text; "" when unknown.
        last: When its last one was taken.
        is_known: Whether the network has statistics for it; None where the network needs none.
        samples: Positions of some of its crops.
        neighbours: The cameras that are most like it, the nearest first, with the similarity of the mean embeddings.
        measured: When its statistics were measured, as text; "" where nobody measured them, or it is not known.
    """

    name: str
    rows: int
    modality: str
    first: str
    last: str
    is_known: bool | None
    samples: tuple[int, ...]
    neighbours: tuple[tuple[str, float], ...]
    measured: str = ""

    @property
    def advice(self) -> str:
        """What to do about the camera, and why, in one sentence."""
        if not self.name:
            return "These crops do not name their camera, so they cannot be normalized by it: name it in the manifest."
        if self.is_known is False:
            return "The network has no statistics of its own for this camera: calibrate it with unlabelled crops."
        if self.rows < FEWEST:
            return f"It has fewer than {FEWEST} crops, so little can be said about it: add more."
        if self.is_known is None:
            return "The network has one set of statistics for all cameras: camera-specific ones may bring it closer."
        return "The network has statistics of its own for this camera."


def overview_of(served: ServedGallery) -> tuple[list[CameraOverview], FloatArray]:
    """Describe the cameras of a gallery.

    Args:
        served: The gallery.

    Returns:
        The C cameras, sorted by name, and the similarity (C, C) of their mean embeddings in -1..1.
    """
    table = served.gallery.table
    codes, names = table.codes("camera")
    present = sorted(np.unique(codes).tolist(), key=lambda code: names[code])
    means = np.zeros((len(present), served.gallery.dimension), np.float32)
    for position, code in enumerate(present):
        rows = np.flatnonzero(codes == code)
        chosen = rows[np.linspace(0, len(rows) - 1, min(MEASURED, len(rows))).astype(np.int64)]
        means[position] = served.gallery.rows.vectors_at(chosen).mean(axis=0)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6)
    similarity: FloatArray = means @ means.T
    cameras = []
    for position, code in enumerate(present):
        near = [other for other in np.argsort(-similarity[position], kind="stable").tolist() if other != position]
        neighbours = tuple(
            (names[present[other]] or "unknown", float(similarity[position, other])) for other in near[:3]
        )
        cameras.append(_overview(served, table, names[code], np.flatnonzero(codes == code), neighbours))
    return cameras, similarity


def _overview(
    served: ServedGallery, table: RowTable, name: str, rows: IntArray, neighbours: tuple[tuple[str, float], ...]
) -> CameraOverview:
    part = table.take(rows)
    times = [time for time in part.column("time").to_pylist() if time is not None]
    checkpoint, is_known, dates = served.checkpoint, None, [""]
    if checkpoint is not None and "camera" in checkpoint.domain_fields:
        _, firsts = np.unique(part.codes("category")[0], return_index=True)
        domains = {domain_of(sample, checkpoint.domain_fields) for sample in part.samples_at(firsts)}
        is_known = domains <= set(checkpoint.domains)
        measured = measured_dates(checkpoint.extra)
        dates = sorted(measured.get(domain, "") for domain in domains)
    chosen = rows[np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).astype(np.int64)]
    return CameraOverview(
        name,
        len(rows),
        " and ".join(part.distinct("modality")),
        f"{min(times):%Y-%m-%d %H:%M}" if times else "",
        f"{max(times):%Y-%m-%d %H:%M}" if times else "",
        is_known,
        tuple(chosen.tolist()),
        neighbours,
        dates[0][:16].replace("T", " ") + " UTC" * bool(dates[0]) if dates else "",
    )
