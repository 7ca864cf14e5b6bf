"""The details of a report: thresholds, pairs of cameras, and the queries with the best and the worst answers.

Everything that the HTML page and the details in text show is computed here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from reid.data.protocols.data_sets import Scoring
from reid.errors import DataError
from reid.evaluation.analysis.breakdown import CameraBias, PairTable, camera_bias, pair_table
from reid.evaluation.analysis.match_rates import (
    BINS,
    OperatingPoint,
    ScoreHistograms,
    histograms_of_blocks,
    score_histograms,
)
from reid.evaluation.analysis.open_set import (
    FALSE_ALARM_RATES,
    Identification,
    best_of_blocks,
    best_scores,
    identification_rates,
)
from reid.evaluation.analysis.query_examples import QueryExample, query_examples
from reid.evaluation.cohort_scores import EvaluationCohorts
from reid.evaluation.corruption_benchmark import CorruptionMap
from reid.evaluation.labels import Labels, market_labels
from reid.evaluation.metrics import Metrics
from reid.evaluation.ranks import Float64Array
from reid.evaluation.results import Report, Result
from reid.evaluation.run import MIXED, query_and_gallery_rows
from reid.evaluation.score_blocks import block_size
from reid.records import Embeddings, IntArray, Modality, Split
from reid.retrieval.score_normalization import NormalizedScores

FALSE_MATCH_RATES = (0.1, 0.01, 0.001, 0.0001)
SCALES = {"csls": 4.0, "snorm": 64.0}  # powers of two that normalized scores do not exceed
MOST_PAIRS = 900  # of cameras; a larger table cannot be read
FEWEST_BINS = 24  # of a histogram, between its lowest and its highest score


@dataclass(frozen=True, eq=False)
class Verification:
    """How pairs of one identity and of two identities score, and what a threshold lets through.

    ``edges`` (B + 1,) float64 are those of the bins that hold scores; ``same`` and ``different`` (B,) int64 count valid
    pairs.  ``points`` are the wished false-match rates that allow at least one wrong pair.  ``equal_error`` is
    (rate, threshold).
    """

    edges: Float64Array
    same: IntArray
    different: IntArray
    points: tuple[OperatingPoint, ...]
    equal_error: tuple[float, float]


@dataclass(frozen=True, eq=False)
class ResultDetails:
    """The details of one result without re-ranking; None or () for what cannot be computed from the data.

    Of normalized scores there are the thresholds and the open set only.

    All ``gallery`` rows are used, also where the protocol draws some of them for each trial or ranks tracks.
    ``cameras`` has the scores by pairs of cameras.  ``unmatched`` counts the queries without a right answer.
    """

    result: Result
    gallery: int
    unmatched: int
    verification: Verification | None
    identification: tuple[Identification, ...]
    cameras: PairTable | None
    bias: CameraBias | None
    best: tuple[QueryExample, ...]
    worst: tuple[QueryExample, ...]


@dataclass(frozen=True, eq=False)
class Details:
    """A report and the details of its plain results.

    ``results`` is () where no details were asked for, and for a mean over reports.  ``modalities`` holds a table for
    each category with several modalities, and ``corruptions`` one for each result with corrupted queries.
    """

    report: Report
    results: tuple[ResultDetails, ...] = ()
    modalities: tuple[tuple[str, PairTable], ...] = ()
    corruptions: tuple[CorruptionMap, ...] = ()


def details_of(
    report: Report,
    embeddings: Embeddings,
    scoring: Scoring | None = None,
    *,
    query_examples: int = 0,
    memory: int | None = None,
) -> Details:
    """Compute the details of a report.

    Args:
        report: The report of :func:`reid.evaluation.evaluate`.
        embeddings: The embeddings that were evaluated.
        scoring: The scoring that was used.
        query_examples: How many of the best and of the worst queries of each result to show in images, which are read
            from their files.
        memory: Bytes of scores to hold at a time.

    Raises:
        DataError: The embeddings are not those of the report.
    """
    how = scoring or Scoring()
    found: list[ResultDetails] = []
    by_modality: dict[str, list[tuple[str, PairTable]]] = {}
    cohorts: EvaluationCohorts | None = None
    for result in report.results:
        if result.reranking:
            continue
        rows = _rows_of(embeddings, result, how.rule.ignore == "itself")
        queries, gallery = (embeddings.select(side) for side in rows)
        labels = market_labels(queries.samples, gallery.samples, ignore=how.rule.ignore, locations=how.locations)
        if not result.is_plain:
            if cohorts is None:
                sides = query_and_gallery_rows(embeddings.samples, how.rule.ignore == "itself")
                cohorts = EvaluationCohorts.measure(embeddings, sides[0], sides[1], result.score_norm)
            found.append(_normalized_details(result, cohorts.scores(rows[0], rows[1]), labels, memory))
            continue
        found.append(_result_details(result, queries, gallery, labels, how.rule.ties, query_examples, memory))
        source, arrow, target = result.direction.partition("->")
        if arrow:
            table = (
                _by_modality(queries, gallery, labels, how.rule.ties, memory)
                if target == MIXED
                else _one_cell(result.metrics, target)
            )
            by_modality.setdefault(result.category, []).append((source, table))
    tables = tuple((category, _join_rows(rows)) for category, rows in by_modality.items())
    return Details(report, tuple(found), tables)


def _rows_of(embeddings: Embeddings, result: Result, leave_one_out: bool) -> tuple[IntArray, IntArray]:
    """Find the positions of queries and gallery rows of a result; with ``leave_one_out`` every image is both."""
    source, _, target = result.direction.partition("->")
    sides = []
    for split, modality in ((Split.QUERY, source if target else ""), (Split.GALLERY, target)):
        rows: dict[object, int] = {}
        for row, sample in enumerate(embeddings.samples):
            chosen = sample.split is not Split.TRAIN if leave_one_out else sample.split is split
            if chosen and sample.category == result.category and modality in ("", MIXED, sample.modality):
                rows.setdefault(sample.path if leave_one_out else row, row)
        sides.append(np.array(list(rows.values()), np.int64))
    if embeddings.select(sides[0]).samples != result.query_samples:
        raise DataError(
            f"details of {result.category} {result.direction}: the vectors are of {len(sides[0])} queries, not the"
            f" {len(result.query_samples)} of the report; pass the embeddings it was made of"
        )
    return sides[0], sides[1]


def _result_details(
    result: Result,
    queries: Embeddings,
    gallery: Embeddings,
    labels: Labels,
    ties: str,
    examples: int,
    memory: int | None,
) -> ResultDetails:
    best = best_scores(queries.vectors, gallery.vectors, labels, memory)
    unmatched = int(np.count_nonzero(best.right == -np.inf))
    precision = result.metrics.average_precision
    order = np.argsort(-precision, kind="stable")[: np.count_nonzero(~np.isnan(precision))]  # NaN stands last
    worst = min(examples, len(order) // 2)  # so that no query is shown twice
    shown = (order[: min(examples, len(order) - worst)], order[::-1][:worst])
    return ResultDetails(
        result,
        len(gallery),
        unmatched,
        _verification(lambda: score_histograms(queries.vectors, gallery.vectors, labels, memory)),
        identification_rates(best, FALSE_ALARM_RATES) if 0 < unmatched < len(queries) else (),
        _by_camera(queries, gallery, labels, ties, memory),
        _bias(queries, gallery, labels, memory),
        *(query_examples(queries, gallery, labels, precision, rows, memory) for rows in shown),
    )


def _normalized_details(result: Result, scores: NormalizedScores, labels: Labels, memory: int | None) -> ResultDetails:
    size = block_size(labels.gallery, memory=memory)
    best = best_of_blocks(scores, labels, size)
    unmatched = int(np.count_nonzero(best.right == -np.inf))
    scale = SCALES[result.score_norm]
    return ResultDetails(
        result,
        labels.gallery,
        unmatched,
        _verification(lambda: histograms_of_blocks(scores, labels, size, scale)),
        identification_rates(best, FALSE_ALARM_RATES) if 0 < unmatched < labels.queries else (),
        None,
        None,
        (),
        (),
    )


def _verification(count_scores: Callable[[], ScoreHistograms]) -> Verification | None:
    try:
        histograms = count_scores()
    except DataError:  # all pairs are of one identity, or all of two
        return None
    count = int(histograms.different.sum())
    rates = [rate for rate in FALSE_MATCH_RATES if rate * count >= 1]
    points = histograms.operating_points(rates) if rates else ()
    bins = 65  # divides BINS, as do its multiples by powers of two
    while True:
        edges, same, different = histograms.coarse(bins)
        used = np.flatnonzero(same + different)
        first, last = int(used[0]), int(used[-1]) + 1
        if last - first >= FEWEST_BINS or bins * 2 > BINS:
            where = slice(first, last)
            return Verification(
                edges[first : last + 1], same[where], different[where], points, histograms.equal_error()
            )
        bins *= 2


def _by_camera(
    queries: Embeddings, gallery: Embeddings, labels: Labels, ties: str, memory: int | None
) -> PairTable | None:
    groups = [[sample.camera or "unknown" for sample in side.samples] for side in (queries, gallery)]
    if not 1 < len(set(groups[0])) * len(set(groups[1])) <= MOST_PAIRS:
        return None
    return pair_table(
        queries.vectors, gallery.vectors, labels,
        query_groups=groups[0], gallery_groups=groups[1], ties=ties, memory=memory,
    )  # fmt: skip


def _by_modality(queries: Embeddings, gallery: Embeddings, labels: Labels, ties: str, memory: int | None) -> PairTable:
    groups = [[str(sample.modality) for sample in side.samples] for side in (queries, gallery)]
    return pair_table(
        queries.vectors, gallery.vectors, labels,
        query_groups=groups[0], gallery_groups=groups[1], ties=ties, memory=memory,
    )  # fmt: skip


def _bias(queries: Embeddings, gallery: Embeddings, labels: Labels, memory: int | None) -> CameraBias | None:
    """Measure the camera bias of queries of known identity and camera; None where no camera could attract any."""
    known = np.array([bool(sample.identity and sample.camera) for sample in queries.samples])
    query_cameras = np.array([sample.camera for sample in queries.samples])[known]
    gallery_cameras = np.array([sample.camera for sample in gallery.samples])
    if len(set(gallery_cameras)) < 2 or not set(query_cameras) & set(gallery_cameras):
        return None
    named = Labels(labels.query_identities[known], labels.gallery_identities, query_cameras, gallery_cameras)
    try:
        return camera_bias(queries.vectors[known], gallery.vectors, named, memory)
    except DataError:  # no row of another identity
        return None


def _one_cell(metrics: Metrics, target: str) -> PairTable:
    """Write a result of one pair of modalities as a table of one cell."""
    matched = np.array([[metrics.queries - metrics.queries_without_match]])
    return PairTable(("",), (target,), np.array([[metrics.mAP]]), np.array([[metrics.rank(1)]]), matched)


def _join_rows(rows: Sequence[tuple[str, PairTable]]) -> PairTable:
    """Join tables of one row each into one table; each comes with the modality of its queries."""
    present = [{source for source, _ in rows}, {name for _, table in rows for name in table.gallery_groups}]
    names = [tuple(str(modality) for modality in Modality if modality in some) for some in present]
    values = [np.full((len(names[0]), len(names[1])), np.nan) for _ in range(2)]
    matched = np.zeros_like(values[0], np.int64)
    for source, table in rows:
        for column, target in enumerate(table.gallery_groups):
            cell = names[0].index(source), names[1].index(target)
            values[0][cell], values[1][cell] = table.mAP[0, column], table.rank1[0, column]
            matched[cell] = table.matched[0, column]
    return PairTable(names[0], names[1], values[0], values[1], matched)
