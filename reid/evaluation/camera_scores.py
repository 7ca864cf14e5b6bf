"""Scores of one trial that are re-ranked or expanded with neighbours of each camera (``--rerank camera``)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from reid.errors import DataError
from reid.evaluation.score_blocks import ScoreBlocks
from reid.evaluation.trial_scores import Reranking
from reid.files import file_keys
from reid.records import Embeddings
from reid.retrieval.camera_rerank import METHOD, expand_crops, find_camera_lists, learn_metric, rerank_by_camera
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.mutual_metric import Declined
from reid.retrieval.rerank_normalized import k_reciprocal_normalized
from reid.retrieval.score_normalization import normalize_scores


class TooFewCropsError(DataError):
    """An identity has too few crops in a camera for a ranking by neighbours; the message is one line."""


@dataclass(frozen=True, eq=False)
class CameraScores:
    """Scores in blocks of queries, and the stamps that must stand beside every number computed with them.

    Args:
        scores: The scores of the queries with the gallery rows.
        stamp: The steps and their parameters.
        norm_stamp: How the scores that choose neighbours are normalized.
    """

    scores: ScoreBlocks
    stamp: str
    norm_stamp: str


def camera_scores(queries: Embeddings, gallery: Embeddings, reranking: Reranking) -> CameraScores:
    """Compute the scores that rank gallery rows with neighbours of each camera.

    Args:
        queries: The queries.
        gallery: The gallery of this trial; a crop may be a query as well.
        reranking: What is done, at least one of its steps by camera.

    Returns:
        The scores and their stamps.

    Raises:
        TooFewCropsError: Neighbours would be other identities.
    """
    keys = file_keys(sample.path for side in (queries, gallery) for sample in side.samples)
    sides = [CohortRows.of_samples(side.samples, side.vectors, keys) for side in (queries, gallery)]
    stamps = []
    if reranking.learn_metric:
        metric = learn_metric(sides[0], sides[1])
        if isinstance(metric, Declined):
            raise TooFewCropsError(metric.reason)
        sides = [replace(side, vectors=metric.apply(side.vectors)) for side in sides]
        stamps.append(metric.stamp)
    if reranking.by_camera or reranking.expand_by_camera:
        lists = find_camera_lists(sides[0], sides[1])
        if isinstance(lists, Declined):
            raise TooFewCropsError(f"{reranking.stamp}: {lists.reason}")
        if reranking.expand_by_camera:
            vectors, stamp = expand_crops(lists)
            sides = [replace(side, vectors=rows) for side, rows in zip(sides, vectors, strict=True)]
            stamps.append(stamp)
        if reranking.by_camera:
            changed = lists.of_vectors(sides[0], sides[1]) if reranking.expand_by_camera else lists
            reranked = rerank_by_camera(changed)
            return CameraScores(reranked, "; ".join([*stamps, reranked.stamp]), changed.normalized.stamp)
    normalized = normalize_scores(sides[0], sides[1], METHOD, cohort=CohortRows.joined(*sides))
    if not reranking.k_reciprocal:
        return CameraScores(normalized, "; ".join(stamps), normalized.stamp)
    k1, k2, weight = reranking.k_reciprocal
    mixed = k_reciprocal_normalized(normalized, k1=k1, k2=k2, weight=weight)
    return CameraScores(mixed, "; ".join([*stamps, mixed.stamp]), normalized.stamp)
