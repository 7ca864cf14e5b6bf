"""Camera-aware Jaccard similarity (Chen et al., CVPR 2024, arXiv 2311.10605), exactly and with sparse matrices.

Two crops are similar where their neighbours are the same crops. Here the neighbours are chosen separately from the own
camera and from the other cameras, so that the look of one camera cannot fill all lists. The similarities need no
labels. They order answers again and are what crops are clustered by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, IntArray
from reid.retrieval.camera_neighbours import (
    NOBODY,
    CameraNeighbours,
    Similarity,
    check_cameras,
    own_and_other_neighbours,
)
from reid.retrieval.rerank import SparseRows, sum_of_minima, transpose_from

if TYPE_CHECKING:
    import scipy.sparse

K1, K2 = (8, 8), (4, 4)  # for about eight crops of an identity in each camera
CELLS_AT_ONCE = 2**22  # of the dense block in which rows are compared


def camera_jaccard(
    similarity: Similarity, cameras: IntArray, *, k1: tuple[int, int] = K1, k2: tuple[int, int] = K2
) -> scipy.sparse.csr_matrix:
    """Compute the camera-aware Jaccard similarity of all pairs of crops.

    The neighbours of a crop i are the crops j of its own camera that are among the first k1 + 1 of the list of i and
    have i among the first k1 + 1 of theirs, and likewise those of the other cameras. The weights of i are the softmax
    of its similarities to its neighbours. They are averaged over the nearest crops of both lists, k2 of each. The
    Jaccard similarity of two crops is the sum of the smaller weights divided by the sum of the larger weights. With
    one camera only the parts of the own camera count. Adding a constant to all similarities changes nothing.

    Memory grows with the lists and with the number of pairs that share a neighbour, and one block of similarities is
    held at a time.

    Args:
        similarity: (start, stop) -> the similarities (stop - start, N) float32 of these crops to all N crops, for
            example :func:`~reid.retrieval.camera_neighbours.cosine_blocks`.
        cameras: (N,) int64, the camera of each crop.
        k1: For the own and for the other cameras, the length of the lists that must hold each other, minus one; the
            list of the own camera starts with the crop itself.
        k2: For the own and for the other cameras, how many crops of the lists the weights are averaged over; (1, 0)
            leaves this step out.

    Returns:
        (N, N) float32 in 0..1, symmetric, with 1 on the diagonal; a missing entry is 0. The Jaccard distance is 1
        minus this similarity.

    Raises:
        DataError: A parameter is out of range, a shape is wrong, or a similarity is not finite.

    Example:
        >>> from reid.retrieval.camera_neighbours import cosine_blocks
        >>> angles = np.radians([0, 5, 60, 2, 62, 150])
        >>> vectors = np.float32(np.stack([np.cos(angles), np.sin(angles)], axis=1))
        >>> found = camera_jaccard(cosine_blocks(vectors), np.array([0, 0, 0, 1, 1, 1]), k1=(1, 1), k2=(1, 1))
        >>> [round(float(value), 1) for value in found.toarray()[0]]
        [1.0, 0.8, 0.2, 1.0, 0.2, 0.0]
    """
    import scipy.sparse

    features = camera_features(similarity, cameras, k1=k1, k2=k2)
    count = len(cameras)
    columns = transpose_from(features, 0)
    size = max(1, CELLS_AT_ONCE // count)
    parts, lengths = [], [np.zeros(1, np.int64)]
    for start in range(0, count, size):
        near = jaccard_of_sums(sum_of_minima(features, columns, start, min(start + size, count), count))
        row, column = np.nonzero(near)
        parts.append((near[row, column], column))
        lengths.append(np.count_nonzero(near, axis=1))
    values, indices = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    return scipy.sparse.csr_matrix((values, indices, np.cumsum(np.concatenate(lengths))), shape=(count, count))


def camera_features(
    similarity: Similarity, cameras: IntArray, *, k1: tuple[int, int] = K1, k2: tuple[int, int] = K2
) -> SparseRows:
    """Compute the averaged weights of each crop over its neighbours, which sum to 1; see :func:`camera_jaccard`."""
    check_cameras(cameras)
    _check_lengths("k1", k1, (1, 1))
    _check_lengths("k2", k2, (1, 0))
    near = own_and_other_neighbours(similarity, cameras, max(k1[0] + 1, k2[0]), max(k1[1] + 1, k2[1]))
    return _average(_weights_of_neighbours(near, k1), near, k2)


def jaccard_of_sums(sums: FloatArray) -> FloatArray:
    """Turn sums of minima of rows that sum to 1 into Jaccard similarities in 0..1, in place."""
    sums /= 2 - sums  # the sum of the maxima is 2 minus the sum of the minima
    np.minimum(sums, 1, out=sums)  # rounding
    return sums


def _check_lengths(name: str, lengths: Sequence[int], least: tuple[int, int]) -> None:
    if len(lengths) != 2 or any(length < low for length, low in zip(lengths, least, strict=True)):
        raise DataError(
            f"camera-aware Jaccard similarity: expected {name} as two numbers of at least {least[0]} and {least[1]},"
            f" for the own and for the other cameras, got {lengths}"
        )


def _weights_of_neighbours(near: CameraNeighbours, k1: tuple[int, int]) -> scipy.sparse.csr_matrix:
    """Return (N, N): the softmax of the similarities of each crop to its reciprocal neighbours.

    A pair of one camera can only be in lists of the own camera, and a pair of two cameras only in the others, so the
    lists may be joined before asking which pairs are in both directions.
    """
    import scipy.sparse

    rows = np.hstack([near.own[:, : k1[0] + 1], near.others[:, : k1[1] + 1]])
    scores = np.hstack([near.own_scores[:, : k1[0] + 1], near.other_scores[:, : k1[1] + 1]])
    count = len(rows)
    row, rank = np.nonzero(rows != NOBODY)
    column = rows[row, rank]
    mutual = np.isin(row * count + column, column * count + row)
    row, column, score = row[mutual], column[mutual], scores[row, rank][mutual].astype(np.float64)
    largest = np.full(count, -np.inf)
    np.maximum.at(largest, row, score)
    value = np.exp(score - largest[row])
    total = np.bincount(row, value, count)
    return scipy.sparse.csr_matrix((value / total[row], (row, column)), shape=(count, count))


def _average(weights: scipy.sparse.csr_matrix, near: CameraNeighbours, k2: tuple[int, int]) -> SparseRows:
    """Average the weights over the nearest crops of both lists: camera-aware local query expansion."""
    import scipy.sparse

    rows = np.hstack([near.own[:, : k2[0]], near.others[:, : k2[1]]])
    row, rank = np.nonzero(rows != NOBODY)
    share = 1 / np.bincount(row)
    averaging = scipy.sparse.csr_matrix((share[row], (row, rows[row, rank])), shape=weights.shape)
    mean = (averaging @ weights).tocsr()
    mean.sort_indices()
    return SparseRows(mean.indptr.astype(np.int64), mean.indices.astype(np.int64), mean.data.astype(np.float32))
