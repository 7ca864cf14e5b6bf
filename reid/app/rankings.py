"""The ways to rank the rows of a gallery for one query: plain scores, normalized scores, and re-ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, Sample
from reid.retrieval.cohort_rows import CohortRows, cohort_camera
from reid.retrieval.filters import BoolArray
from reid.retrieval.gallery import Gallery
from reid.retrieval.match_thresholds import SAME_RATE, false_alarm_rate, verdict_of
from reid.retrieval.normalized_search import normalized_gallery, search_normalized
from reid.retrieval.rerank import k_reciprocal
from reid.retrieval.search import DEFAULT_SCORE_NORM, Answer, Match, judge_answers, nobody_found

CANDIDATES = 500  # of the nearest rows are re-ranked
JUDGED_ROWS = 200_000  # answers in larger galleries are judged only where scores are normalized
NOT_NORMALIZED = "The gallery has too few crops to normalize scores; they are ranked as they are."
NOBODY = "Perhaps nobody here: the best answer is as good as those to somebody who is not in this gallery."


@dataclass(frozen=True)
class Ranked:
    """The answers to one query, best first, and what the visitor should know about them."""

    answers: tuple[Answer, ...]
    notes: tuple[str, ...] = ()


Rank = Callable[[Gallery, FloatArray, Sample, BoolArray, int, str], Ranked]
"""Ranks rows for an embedding (1, D) of a query; ``keep`` (G,) may answer, and one per label of a column if wished."""


def _by_score(gallery: Gallery, vector: FloatArray, query: Sample, keep: BoolArray, count: int, one_per: str) -> Ranked:
    ranking = gallery.search(vector, count, keep=keep, fingerprint=gallery.fingerprint, one_per=one_per)
    rows = ranking.answers(0)
    samples = gallery.table.samples_at(np.array([row for row, _ in rows], np.int64))
    answers = [Answer(row, sample, score) for (row, score), sample in zip(rows, samples, strict=True)]
    return _noted(_judged(gallery, vector, query, keep, answers), query)


def _by_normalized_score(
    gallery: Gallery, vector: FloatArray, query: Sample, keep: BoolArray, count: int, one_per: str
) -> Ranked:
    found = search_normalized(
        gallery, vector, [query], count, fingerprint=gallery.fingerprint, keep=keep, one_per=one_per
    )
    if found is None:
        plain = _by_score(gallery, vector, query, keep, count, one_per)
        return replace(plain, notes=(NOT_NORMALIZED, *plain.notes))
    rows = int(np.count_nonzero(keep))
    return _noted(judge_answers(gallery, found, query, rows, DEFAULT_SCORE_NORM, SAME_RATE), query)


def _by_reciprocal_neighbours(
    gallery: Gallery, vector: FloatArray, query: Sample, keep: BoolArray, count: int, one_per: str
) -> Ranked:
    near = _by_score(gallery, vector, query, keep, max(CANDIDATES, count), one_per)
    rows = np.array([answer.row for answer in near.answers], np.int64)
    scores = k_reciprocal(vector, gallery.rows.vectors_at(rows))(0, 1)[0]
    order = np.argsort(-scores, kind="stable")[:count]
    return Ranked(tuple(near.answers[position] for position in order.tolist()), near.notes)


RANKINGS: dict[str, Rank] = {
    "plain": _by_score,
    "normalized": _by_normalized_score,
    "reranked": _by_reciprocal_neighbours,
}


def _judged(
    gallery: Gallery, vector: FloatArray, query: Sample, keep: BoolArray, answers: Sequence[Answer]
) -> list[Answer]:
    """Return the answers with their verdicts, where the gallery has enough crops for that."""
    if len(keep) > JUDGED_ROWS:
        return list(answers)
    prepared, own = normalized_gallery(gallery), cohort_camera(query)
    try:
        if not prepared.can_rank(CohortRows.of_samples([query], vector), keep):
            return list(answers)
        thresholds = prepared.thresholds([own])
    except DataError:  # too few crops of this camera
        return list(answers)
    rows, judged = int(np.count_nonzero(keep)), []
    for answer in answers:
        rate = thresholds.false_match_rate(answer.score, own, cohort_camera(answer.sample))
        known = not np.isnan(rate)
        match = Match(verdict_of(rate), rate, false_alarm_rate(rate, rows)) if known else None
        judged.append(replace(answer, match=match))
    return judged


def _noted(answers: Sequence[Answer], query: Sample) -> Ranked:
    """Return the answers; where the identity of the query is known, labels tell more than the rates of strangers."""
    is_nobody = not query.identity and nobody_found(answers)
    return Ranked(tuple(answers), (NOBODY,) if is_nobody else ())
