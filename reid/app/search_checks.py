"""What a search asks for that the gallery does not have, and what is assumed about the camera of a picture."""

from __future__ import annotations

from collections.abc import Sequence

from reid.app.query import MIXTURE, NEAREST, OWN, POOLED, Query, SearchOptions, assumption_about
from reid.app.served_data import ServedGallery
from reid.errors import ConfigError, unknown_name
from reid.pipeline import unknown_domains

STORED = "stored"  # the embedding that the gallery keeps of a crop
ASSUMED = {
    NEAREST: "its camera is unknown, so it is normalized with the statistics of the camera nearest to the image",
    MIXTURE: "its camera is unknown, so it is normalized with the statistics of all cameras, mixed",
    POOLED: "the network has one set of statistics for all cameras, so the camera of the picture changes no score",
}


def check_search(served: ServedGallery, query: Query, options: SearchOptions) -> list[str]:
    """Refuse labels that no crop of the gallery has, and say which options change nothing.

    Args:
        served: The gallery.
        query: The query.
        options: Which rows may answer.

    Returns:
        What is to be known about the options, a sentence each.

    Raises:
        ConfigError: No crop has the category or a camera to search in, or the network refuses the query's camera.
    """
    table = served.gallery.table
    cameras, categories = sorted(filter(None, table.distinct("camera"))), table.distinct("category")
    if categories and query.sample.category not in categories:
        raise ConfigError(unknown_name("category", query.sample.category, sorted(categories)))
    for name in options.cameras:
        if name not in cameras:
            raise ConfigError(f"in_camera: {unknown_name('camera', name, cameras)}")
    notes = [
        f"not_in_camera leaves nothing out: {unknown_name('camera', name, cameras)}"
        for name in options.without_cameras
        if name not in cameras
    ]
    camera = query.sample.camera
    if options.cross_camera and camera not in cameras:
        why = unknown_name("camera", camera, cameras) if camera else "the camera of the query is not named"
        notes.append(f"cross_camera leaves nothing out: {why}")
    _check_statistics(served, query, cameras)
    return notes


def _check_statistics(served: ServedGallery, query: Query, cameras: Sequence[str]) -> None:
    """Refuse a picture of a named camera that the network has no statistics for."""
    checkpoint, camera = served.checkpoint, query.sample.camera
    if checkpoint is None or not query.uploads or not camera or checkpoint.unknown_domain is not None:
        return
    if unknown_domains(checkpoint, [query.sample]):
        raise ConfigError(
            f'the network has no statistics for camera "{camera}" of category {query.sample.category}; known cameras:'
            f" {', '.join(cameras[:20])}; add the camera first, or leave its name out and choose unknown_camera nearest"
            " or mixture"
        )


def assumption_of(served: ServedGallery, query: Query) -> str:
    """Return a key of ``ASSUMED``, "own" for the statistics of the query's camera, or "stored"."""
    if not query.uploads or served.checkpoint is None:
        return STORED
    return assumption_about(served.checkpoint, query)


def notes_on_assumption(served: ServedGallery, query: Query) -> list[str]:
    """Return what a person should know about the statistics with which a picture was embedded, a sentence at most."""
    assumed = assumption_of(served, query)
    if assumed in (STORED, OWN) or (assumed == POOLED and query.sample.camera):
        return []
    return [ASSUMED[assumed]] if assumed in ASSUMED else []
