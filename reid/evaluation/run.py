"""From embeddings with query and gallery rows to a report: one result for each category and direction.

A direction is a pair of modalities, query to gallery.  Each is scored on its own, against the gallery rows of that
modality and of the query's category only, unless the rule mixes modalities.  Samples carry all labels, so nothing here
depends on the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from reid.data.protocols.data_sets import Scoring
from reid.data.protocols.gallery_draws import draw_galleries
from reid.errors import DataError
from reid.evaluation.camera_scores import TooFewCropsError, camera_scores
from reid.evaluation.cohort_scores import EvaluationCohorts
from reid.evaluation.labels import BoolArray
from reid.evaluation.metrics import NoMatchError
from reid.evaluation.results import RULE, Report, Result, mean_of_galleries
from reid.evaluation.trial_scores import Reranking, score_trial
from reid.files import file_keys
from reid.records import Embeddings, Modality, Sample, Split
from reid.retrieval.camera_rerank import METHOD
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.score_normalization import NONE, check_score_norm

ALL = "all"
MIXED = "mixed"


def evaluate(
    embeddings: Embeddings,
    *,
    protocol: str = RULE,
    scoring: Scoring | None = None,
    provenance: Mapping[str, object] | None = None,
    reranking: Reranking | None = None,
    score_norm: str = NONE,
    cohort: CohortRows | None = None,
    memory: int | None = None,
) -> Report:
    """Score the rows of split "query" against those of split "gallery"; other rows are not used.

    Where the rule leaves out only the query itself, every row of both splits is a query for all others.

    Args:
        embeddings: Samples and their vectors.
        protocol: The name of the protocol, stated in the report.
        scoring: The rule, the choices of the protocol and its locations; by default the Market-1501 rule.
        provenance: How the vectors came about, stated in the report.
        reranking: Adds a second result with this re-ranking to every plain result.
        score_norm: "csls" or "snorm" adds a result with scores that are normalized per pair of cameras, see
            :mod:`reid.retrieval.score_normalization`, and re-ranked ones where ``reranking`` is given too.  The cohort
            of a camera is its crops among all gallery rows of the category.
        cohort: Other crops of the cameras, for the cameras of which the gallery has too few to normalize scores.
        memory: Bytes of scores to hold at a time (default: 64 MiB); it changes no number.

    Returns:
        The report; what could not be scored is among its notes.

    Raises:
        DataError: There are no queries, no gallery, or no result at all.

    Example:
        >>> from pathlib import Path
        >>> samples = (
        ...     Sample(Path("1.jpg"), "anna", "door", split=Split.QUERY),
        ...     Sample(Path("2.jpg"), "anna", "hall"),
        ...     Sample(Path("3.jpg"), "ben", "hall"))
        >>> vectors = np.float32([[1, 0], [0.6, 0.8], [0.8, 0.6]])
        >>> report = evaluate(Embeddings(samples, vectors, "f00d"))
        >>> report["person", "all"].metrics.mAP
        0.5
    """
    how, norms = scoring or Scoring(), [NONE, *([check_score_norm(score_norm)] if score_norm != NONE else [])]
    queries, gallery = query_and_gallery_rows(embeddings.samples, how.rule.ignore == "itself")
    cohorts = (
        None if score_norm == NONE else EvaluationCohorts.measure(embeddings, queries, gallery, score_norm, cohort)
    )
    results: list[Result] = []
    notes: list[str] = []
    for rows in _directions(embeddings.samples, queries, gallery, how.rule.modalities == MIXED):
        if not rows.gallery.any():
            notes.append(f"{rows.category}: {np.count_nonzero(rows.queries)} queries, no gallery row of this category")
            continue
        try:
            for change, norm in _changes(reranking, norms):
                used = cohorts if norm != NONE else None
                results.append(_score_direction(embeddings, rows, how, change, used, memory))
        except (NoMatchError, TooFewCropsError) as error:
            notes.append(f"{rows.category} {rows.direction}: {error}")
    if not results:
        raise DataError(f"nothing could be scored: {'; '.join(notes)}")
    return Report(
        protocol,
        embeddings.fingerprint,
        tuple(results),
        tuple(notes),
        how.rule.text(),
        f"{how.rule.ties} case",
        dict(how.variant),
        how.rule.model_dump(),
        dict(provenance or {}),
    )


def _changes(reranking: Reranking | None, norms: Sequence[str]) -> list[tuple[Reranking | None, str]]:
    """List the re-ranking and the score normalization of each result; steps by camera have one of their own."""
    changes: list[tuple[Reranking | None, str]] = [(None, norm) for norm in norms]
    if reranking is None:
        return changes
    return [*changes, *((reranking, norm) for norm in (norms[:1] if reranking.uses_cameras else norms))]


def query_and_gallery_rows(samples: Sequence[Sample], leave_one_out: bool) -> tuple[BoolArray, BoolArray]:
    """Find the rows (N,) bool of queries and gallery; ``leave_one_out``: each image not for training is both."""
    if leave_one_out:
        images: dict[object, int] = {}
        keys = file_keys(sample.path for sample in samples)
        for row, sample in enumerate(samples):
            if sample.split is not Split.TRAIN:
                images.setdefault(keys[sample.path], row)
        both = np.zeros(len(samples), np.bool_)
        both[list(images.values())] = True
        splits = {"gallery": both}
    else:
        splits = {
            str(split): np.array([sample.split is split for sample in samples], dtype=np.bool_)
            for split in (Split.QUERY, Split.GALLERY)
        }
    for name, mask in splits.items():
        if not mask.any():
            raise DataError(f'no row of split "{name}" among {len(samples)}; evaluation needs queries and a gallery')
    return splits.get("query", splits["gallery"]), splits["gallery"]


@dataclass(frozen=True)
class _DirectionRows:
    """The rows (N,) bool of the queries and of the gallery of one category and direction."""

    category: str
    direction: str
    queries: BoolArray
    gallery: BoolArray


def _directions(
    samples: tuple[Sample, ...], queries: BoolArray, gallery: BoolArray, mixed: bool
) -> Iterator[_DirectionRows]:
    """List every category and direction with queries and gallery rows; a category without gallery rows once."""
    categories = np.array([sample.category for sample in samples])
    modalities = np.array([sample.modality.value for sample in samples])
    several = len(np.unique(modalities[queries | gallery])) > 1
    for category in dict.fromkeys(categories[queries].tolist()):
        its_queries, its_gallery = queries & (categories == category), gallery & (categories == category)
        if not (several and its_gallery.any()):
            yield _DirectionRows(category, ALL, its_queries, its_gallery)
            continue
        everything = np.ones_like(its_gallery)
        targets = {MIXED: everything} if mixed else {str(modality): modalities == modality for modality in Modality}
        for source, (target, rows) in product(Modality, targets.items()):
            found = _DirectionRows(
                category, f"{source}->{target}", its_queries & (modalities == source), its_gallery & rows
            )
            if found.queries.any() and found.gallery.any():
                yield found


def _score_direction(
    embeddings: Embeddings,
    rows: _DirectionRows,
    how: Scoring,
    reranking: Reranking | None,
    cohorts: EvaluationCohorts | None,
    memory: int | None,
) -> Result:
    queries = embeddings.select(rows.queries)
    gallery_rows = np.flatnonzero(rows.gallery).tolist()
    drawn = draw_galleries(embeddings.samples, gallery_rows, how.rule, how.permutation)
    trials, left_out, identities, norm = [], 0, set(), NONE if cohorts is None else cohorts.statistics.method
    norm_stamps, rerank_stamps = dict[str, None](), dict[str, None]()
    for chosen in drawn.trials:
        answers = np.array(chosen, dtype=np.int64)
        gallery = embeddings.select(answers)
        normalized = None if cohorts is None else cohorts.scores(np.flatnonzero(rows.queries), answers)
        by_camera = None
        if reranking is not None and reranking.uses_cameras:
            by_camera, norm = camera_scores(queries, gallery, reranking), METHOD
        scores = by_camera.scores if by_camera else None
        metrics, labels, identification = score_trial(
            queries, gallery, how.rule, how.locations, reranking, memory, normalized, scores
        )
        norm_stamps |= {normalized.stamp: None} if normalized else {by_camera.norm_stamp: None} if by_camera else {}
        rerank_stamps |= {by_camera.stamp if by_camera else reranking.stamp if reranking else "": None}
        trials.append(metrics)
        left_out += labels.count_left_out()
        identities |= _identities(gallery)
    metrics = mean_of_galleries(trials)
    return Result(
        rows.category,
        rows.direction,
        metrics,
        len(_identities(queries)),
        len(identities),
        tuple(queries.samples[i] for i in np.flatnonzero(metrics.first_match == 0)),
        tuple(trials) if len(trials) > 1 else (),
        drawn.source if how.rule.ranked == "image" else f"{drawn.source}, as tracks: each as near as its nearest image",
        left_out,
        queries.samples,
        " | ".join(rerank_stamps),
        norm,
        " | ".join(norm_stamps),
        identification if len(trials) == 1 else (),
    )


def _identities(embeddings: Embeddings) -> set[str]:
    return {sample.identity for sample in embeddings.samples if sample.identity}
