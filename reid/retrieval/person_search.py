"""Rank the persons of a gallery by several images of one person, which are one query together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from reid.errors import DataError, GalleryError
from reid.models.checkpoint import Checkpoint
from reid.records import FloatArray, Modality, Sample, Split
from reid.retrieval.gallery import Gallery
from reid.retrieval.persons.person_state import PersonState, state_of_gallery
from reid.retrieval.search import (
    DEFAULT_SCORE_NORM,
    UPLOADED,
    Answer,
    embed_image,
    rows_that_may_answer,
    search_vector,
)

PERSON_COLUMN = "person"


def embed_together(
    checkpoint: Checkpoint,
    images: Sequence[Image.Image | Path],
    cameras: Sequence[str],
    *,
    modality: Modality = Modality.VISIBLE,
    category: str = "person",
) -> FloatArray:
    """Embed several images of one person as one query: the mean of their unit vectors, scaled to unit length.

    Args:
        checkpoint: The network.
        images: At least one image, each in memory or the path of a file.
        cameras: The camera of each image, or one for all; "" where it is unknown.
        modality: The light that the cameras record.
        category: What the images show.

    Returns:
        (1, D) float32 of unit length.

    Raises:
        DataError: There is no image, or the number of cameras does not fit.
        ConditionError: The network has no statistics for a camera.
    """
    if not images or len(cameras) not in (1, len(images)):
        raise DataError(f"expected images, and one camera for all or for each, got {len(images)} and {len(cameras)}")
    each = list(cameras) if len(cameras) == len(images) else list(cameras) * len(images)
    vectors = [
        embed_image(checkpoint, image, camera=camera, modality=modality, category=category)
        for image, camera in zip(images, each, strict=True)
    ]
    mean = np.concatenate(vectors).mean(axis=0, keepdims=True)
    length = float(np.linalg.norm(mean))
    joined: FloatArray = (mean / length if length > 1e-6 else vectors[0]).astype(np.float32)
    return joined


def search_persons(
    gallery: Gallery,
    vectors: FloatArray,
    *,
    fingerprint: str,
    camera: str = "",
    modality: Modality = Modality.VISIBLE,
    category: str = "person",
    k: int = 10,
    score_norm: str = DEFAULT_SCORE_NORM,
) -> list[Answer]:
    """Find the persons of a gallery whose best crops are nearest to a query.

    Args:
        gallery: The gallery, after :func:`label_persons`.
        vectors: (1, D) float32, the query.
        fingerprint: The fingerprint of the network that made it.
        camera: The camera of the query; "" where it is unknown or there are several.
        modality: The light that it records.
        category: What the query shows; only crops that show the same may answer.
        k: The number of persons.
        score_norm: How scores are normalized, see :func:`reid.retrieval.search.search_image`.

    Returns:
        The best crop of each of at most ``k`` persons, the best first; a crop without a person answers by itself.

    Raises:
        GalleryError: No crop shows this category, or another network made the gallery.
    """
    keep = rows_that_may_answer(gallery.samples, categories=[category])
    if not keep.any():
        raise GalleryError(f"none of the {len(keep)} gallery rows shows the category {category}")
    query = Sample(UPLOADED, "", camera, modality, category, Split.QUERY)
    return search_vector(
        gallery, vectors, query, k, fingerprint=fingerprint, keep=keep, score_norm=score_norm, one_per=PERSON_COLUMN
    )


def label_persons(gallery: Gallery) -> PersonState:
    """Give the rows of an open gallery the column "person", for filters and groups; return the persons.

    Rows that are undecided have no label there.  A column of this name that came with the manifest stays as it is
    until "reid identify" has found persons.

    Raises:
        GalleryError: A file of the gallery is damaged.
    """
    state = state_of_gallery(gallery)
    if PERSON_COLUMN not in gallery.table.column_names or (state.persons > 0).any():
        gallery.add_column(PERSON_COLUMN, state.labels())
    return state
