"""Write CSLS scores as inner products of slightly longer vectors, which any index of inner products searches.

Each camera takes two more dimensions: one picks the statistics of the query toward the camera of the row, the other
those of the row toward the camera of the query.
"""

from __future__ import annotations

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.normalized_ranking import NormalizedGallery


def extended_gallery(gallery: NormalizedGallery) -> FloatArray:
    """Write the rows of a gallery so that inner products with :func:`extended_queries` are their CSLS scores.

    Returns:
        (G, D + 2 C) float32, for any index that finds the largest inner products.

    Raises:
        DataError: The statistics are not those of CSLS.
    """
    if gallery.statistics.method != "csls":
        raise DataError(f"extended vectors: expected the statistics of csls, got {gallery.statistics.method}")
    own = np.eye(len(gallery.statistics.cameras), dtype=np.float32)[gallery.columns]
    toward = np.stack([gallery.toward(column).mean for column in range(own.shape[1])], axis=1)
    return np.concatenate([gallery.rows.vectors, own, toward], axis=1)


def extended_queries(gallery: NormalizedGallery, queries: CohortRows) -> FloatArray:
    """Write queries for the rows of :func:`extended_gallery`.

    Returns:
        (Q, D + 2 C) float32.
    """
    asked = gallery.query_terms(queries)
    cameras = np.eye(len(gallery.statistics.cameras), dtype=np.float32)[asked.own]
    return np.concatenate([2 * queries.vectors, -asked.terms.mean, -cameras], axis=1)
