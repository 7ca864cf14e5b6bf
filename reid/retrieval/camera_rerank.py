"""Camera-aware re-ranking, expansion and metric of queries and gallery, with lists that fit the data.

All work on all crops of the queries and of the gallery together, each image once, and choose neighbours by CSLS scores
of each pair of cameras (:mod:`reid.retrieval.score_normalization`). How many crops an identity has in a camera is
estimated without labels (:mod:`reid.retrieval.identity_size`); the lengths of all lists follow from it. Where an
identity has about one crop in a camera, neighbours are other identities, so re-ranking and expansion decline and say
so; the metric needs one crop in each of two cameras.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.records import FloatArray, IntArray
from reid.retrieval.camera_expansion import expand_by_camera
from reid.retrieval.camera_jaccard import camera_features, jaccard_of_sums
from reid.retrieval.camera_neighbours import CameraNeighbours
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.identity_size import FEWEST_CROPS, IdentitySize, estimate_identity_size, lists_for_estimate
from reid.retrieval.mutual_metric import Declined, MutualMetric, mutual_neighbour_metric
from reid.retrieval.rerank import SparseRows, sum_of_minima
from reid.retrieval.score_normalization import NormalizedScores, normalize_scores

METHOD = "csls"
FEWEST_PER_CAMERA = 2  # crops of an identity; with one, its neighbours are other identities
SMALLEST_SHARE = 0.4  # of crops in groups; where fewer are, the groups are chance
METRIC_NEIGHBOURS = {False: 1, True: 3}  # by whether an identity surely has several crops in a camera
MOST_EXPANDED = 5  # crops of a camera that a vector is averaged with
SCORE_RANGE = 4.0  # CSLS scores are within -4..4


@dataclass(frozen=True, eq=False)
class JoinedCrops:
    """The crops of queries and gallery, each image once.

    Args:
        rows: The vectors (N, D) with their cameras and images.
        queries: (Q,) int64, the row of each query.
        gallery: (G,) int64, the row of each gallery row.
    """

    rows: CohortRows
    queries: IntArray
    gallery: IntArray

    @property
    def cameras(self) -> IntArray:
        """The camera of each row (N,) as an index."""
        cameras: IntArray = np.unique(self.rows.cameras, return_inverse=True)[1].reshape(-1).astype(np.int64)
        return cameras


def join_crops(queries: CohortRows, gallery: CohortRows) -> JoinedCrops:
    """Join queries and gallery; rows of equal images become one row.

    Example:
        >>> vectors = np.float32([[1, 0], [0, 1]])
        >>> rows = CohortRows.of_cameras(["door", "hall"], vectors)
        >>> joined = join_crops(rows, rows)
        >>> len(joined.rows.vectors), joined.queries.tolist(), joined.gallery.tolist()
        (2, [0, 1], [0, 1])
    """
    images = np.concatenate([queries.images, gallery.images])
    _, first, inverse = np.unique(images, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    row = rank[inverse.reshape(-1)]
    kept = first[order]
    rows = CohortRows(
        np.concatenate([queries.vectors, gallery.vectors])[kept],
        np.concatenate([queries.cameras, gallery.cameras])[kept],
        np.concatenate([queries.keys, gallery.keys])[kept],
        images[kept],
    )
    return JoinedCrops(rows, row[: len(queries.images)], row[len(queries.images) :])


@dataclass(frozen=True, eq=False)
class CameraReranked:
    """Camera-aware Jaccard similarities of Q queries and G gallery rows, computed a block of queries at a time.

    A call with (start, stop) returns the scores (stop - start, G) float32 of these queries; a larger score means more
    similar. Crops that share a neighbour have their Jaccard similarity in 0..1. All others have a score in -1..0, in
    the order of their normalized scores. :func:`reid.evaluation.score_metrics` takes such an object.

    Args:
        crops: The crops of queries and gallery.
        normalized: The normalized scores of all crops with each other.
        features: The weights (N, N) of every crop over its neighbours.
        gallery_columns: The transpose (N, G) of the weights of the gallery rows.
        size: The estimate that the lengths of the lists follow from.
    """

    crops: JoinedCrops
    normalized: NormalizedScores
    features: SparseRows
    gallery_columns: SparseRows
    size: IdentitySize

    @property
    def stamp(self) -> str:
        """The method and its parameters, to be reported with every number computed from these scores."""
        k1, k2 = ("{}+{}".format(*lengths) for lengths in (self.size.k1, self.size.k2))
        return f"camera-aware Jaccard on {METHOD} (k1 {k1}, k2 {k2})"

    def __call__(self, start: int, stop: int) -> FloatArray:
        queries = self.crops.queries[start:stop]
        gallery = self.crops.gallery
        vectors = self.crops.rows.vectors
        scores = self.normalized.normalize(vectors[queries] @ vectors[gallery].T, queries, gallery)
        scores -= SCORE_RANGE
        scores /= 2 * SCORE_RANGE
        near = jaccard_of_sums(sum_of_minima(self.features, self.gallery_columns, queries, len(gallery)))
        np.copyto(scores, near, where=near > 0)
        return scores


@dataclass(frozen=True, eq=False)
class CameraLists:
    """The neighbours of all crops of queries and gallery, and how many crops an identity has.

    Args:
        crops: The crops of queries and gallery.
        normalized: The normalized scores of all crops with each other.
        near: The lists of neighbours by these scores.
        size: The estimate.
    """

    crops: JoinedCrops
    normalized: NormalizedScores
    near: CameraNeighbours
    size: IdentitySize

    def of_vectors(self, queries: CohortRows, gallery: CohortRows) -> CameraLists:
        """Find the lists of the same crops with other vectors, such as expanded ones; the size stays."""
        return _lists_of(join_crops(queries, gallery), self.size)


def _lists_of(crops: JoinedCrops, size: IdentitySize | None = None) -> CameraLists:
    """Find the lists, and estimate the size unless it is given."""
    normalized = normalize_scores(crops.rows, crops.rows, METHOD)
    near = lists_for_estimate(normalized, crops.cameras)
    return CameraLists(crops, normalized, near, size or estimate_identity_size(near, crops.cameras))


def find_camera_lists(queries: CohortRows, gallery: CohortRows) -> CameraLists | Declined:
    """Find the neighbours of all crops, and decline where they are other identities.

    That is so where an identity has one crop in a camera, where few crops are similar to others, and where similar
    crops are of one camera only.

    Args:
        queries: The queries.
        gallery: The gallery rows.

    Returns:
        The lists, or why neighbours are not to be used.
    """
    crops = join_crops(queries, gallery)
    count = len(crops.rows.vectors)
    if len(np.unique(crops.rows.cameras)) < 2:
        return Declined("not used, because all crops are of one camera, or of unknown ones; it needs two cameras")
    if count < FEWEST_CROPS:
        return Declined(
            f"not used, because {count} crops are too few to tell how many an identity has in a camera; it needs"
            f" {FEWEST_CROPS}"
        )
    lists = _lists_of(crops)
    against = _reason_against(lists.size, count)
    return Declined(f"not used, because {against}") if against else lists


def _reason_against(size: IdentitySize, count: int) -> str:
    """Say why the neighbours of ``count`` crops are other identities; "" where they are not."""
    if size.crops < FEWEST_PER_CAMERA:
        return (
            f"an identity has about {size.crops} crop in a camera, by {size.groups} groups of similar crops among"
            f" {count}; it needs {FEWEST_PER_CAMERA}"
        )
    if size.grouped < SMALLEST_SHARE:
        return (
            f"only {size.grouped:.0%} of {count} crops are similar enough to others to belong to a group; it needs"
            f" {SMALLEST_SHARE:.0%}"
        )
    if size.others < 1:
        return f"most of the {size.groups} groups of similar crops are of one camera; it needs groups of several"
    return ""


def rerank_by_camera(lists: CameraLists) -> CameraReranked:
    """Rank gallery rows by camera-aware Jaccard similarity on normalized scores.

    Memory grows with the lists of neighbours, and one block of scores is held at a time.

    Args:
        lists: The neighbours from :func:`find_camera_lists`.

    Returns:
        The scores of the queries.

    Example:
        >>> random = np.random.default_rng(0)
        >>> vectors = np.repeat(random.standard_normal((40, 16)), 6, axis=0) + 0.3 * random.standard_normal((240, 16))
        >>> vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        >>> rows = CohortRows.of_cameras(["door", "hall"] * 120, vectors)
        >>> reranked = rerank_by_camera(find_camera_lists(rows.select(np.arange(3)), rows))
        >>> reranked.stamp
        'camera-aware Jaccard on csls (k1 4+4, k2 2+2)'
        >>> reranked(0, 3).argsort(axis=1)[:, -6:].max(axis=1).tolist()
        [5, 5, 5]
    """
    import scipy.sparse

    features = camera_features(lists.near, lists.size.k1, lists.size.k2)
    count = len(lists.near.own)
    table = scipy.sparse.csr_matrix((features.values, features.columns, features.bounds), shape=(count, count))
    columns = table[lists.crops.gallery].tocsc()
    transpose = SparseRows(columns.indptr.astype(np.int64), columns.indices.astype(np.int64), columns.data)
    return CameraReranked(lists.crops, lists.normalized, features, transpose, lists.size)


def expand_crops(lists: CameraLists) -> tuple[tuple[FloatArray, FloatArray], str]:
    """Replace queries and gallery rows by means of themselves and their nearest crops in each camera.

    Args:
        lists: The neighbours from :func:`find_camera_lists`.

    Returns:
        The vectors of the queries (Q, D) and of the gallery rows (G, D), float32 of unit length, and the stamp that
        must stand beside every number computed with them.
    """
    own = min(lists.size.crops - 1, MOST_EXPANDED)
    others = min(lists.size.crops, MOST_EXPANDED)
    crops = lists.crops
    vectors = expand_by_camera(crops.rows.vectors, lists.normalized, crops.cameras, own=own, others=others)
    stamp = f"camera-balanced expansion by {METHOD} ({own} of the own, {others} of each other camera)"
    return (vectors[crops.queries], vectors[crops.gallery]), stamp


def learn_metric(queries: CohortRows, gallery: CohortRows) -> MutualMetric | Declined:
    """Learn a metric from the crops of queries and gallery that are mutual neighbours of two cameras.

    Args:
        queries: The queries.
        gallery: The gallery rows.

    Returns:
        The metric, or why it is not used; see :func:`~reid.retrieval.mutual_metric.mutual_neighbour_metric`.
    """
    lists = _lists_of(join_crops(queries, gallery))
    k = METRIC_NEIGHBOURS[not _reason_against(lists.size, len(lists.near.own))]
    return mutual_neighbour_metric(lists.crops.rows.vectors, lists.normalized, lists.crops.cameras, k=k)
