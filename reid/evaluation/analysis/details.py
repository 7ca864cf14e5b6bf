"""What lies behind the scores of a report: thresholds, pairs of cameras, and the queries that went best and worst.

Everything a reader of ``page`` or ``detail_tables`` sees is computed here, once, as a frozen value:
scores in blocks, and pictures only of the queries asked for.  Nothing here knows HTML.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid.data.images import read_image
from reid.data.protocols.data_sets import Scoring
from reid.errors import DataError
from reid.evaluation.analysis.breakdown import CameraBias, PairTable, camera_bias, pair_table
from reid.evaluation.analysis.open_set import (
    BINS,
    Identification,
    OperatingPoint,
    best_scores,
    identification_rates,
    score_histograms,
)
from reid.evaluation.answers import answers_to
from reid.evaluation.labels import MarketLabels, market_labels
from reid.evaluation.metrics import Metrics
from reid.evaluation.ranks import Float64Array
from reid.evaluation.run import MIXED, Report, Result
from reid.evaluation.score_blocks import block_size, inner_products
from reid.records import Embeddings, IntArray, Modality, Sample, Split

FALSE_MATCH_RATES = (0.1, 0.01, 0.001, 0.0001)
FALSE_ALARM_RATES = (0.1, 0.01)
ANSWERS = 10  # in a strip
THUMBNAIL = (96, 160)  # pixels, at most
MOST_PAIRS = 900  # of cameras; a larger table cannot be read
FEWEST_BINS = 24  # of a histogram, where its scores are


@dataclass(frozen=True, eq=False)
class Verification:
    """How pairs of one identity and of two score, and what a threshold lets through.

    ``edges`` (B + 1,) float64 of the bins that hold scores; ``same`` and ``different`` (B,) int64 count
    valid pairs.  ``points`` are those wished false-match rates that at least one wrong pair may use up;
    ``equal_error`` is (rate, threshold).
    """

    edges: Float64Array
    same: IntArray
    different: IntArray
    points: tuple[OperatingPoint, ...]
    equal_error: tuple[float, float]


@dataclass(frozen=True)
class ExampleAnswer:
    """A gallery row in ``place`` (1 is best) of a ranking; ``picture`` is a ``data:`` address of it, downscaled."""

    sample: Sample
    place: int
    score: float
    right: bool
    picture: str


@dataclass(frozen=True)
class QueryExample:
    """A query and its first answers, left-out rows apart; the first right one comes last if it stands further back."""

    query: Sample
    picture: str
    average_precision: float
    answers: tuple[ExampleAnswer, ...]


@dataclass(frozen=True, eq=False)
class ResultDetails:
    """What lies behind one plain result; None or () where the data cannot say it.

    Taken over all ``gallery`` rows, also where the protocol draws some of them for each trial or ranks tracks.
    ``cameras`` has the pairs of cameras; ``strangers`` counts the queries without a right answer.
    """

    result: Result
    gallery: int
    strangers: int
    verification: Verification | None
    identification: tuple[Identification, ...]
    cameras: PairTable | None
    bias: CameraBias | None
    best: tuple[QueryExample, ...]
    worst: tuple[QueryExample, ...]


@dataclass(frozen=True, eq=False)
class Details:
    """A report and what lies behind its plain results; ``modalities`` holds a table for each domain with several.

    ``parts`` is () where nothing was asked for, and for a mean over reports.
    """

    report: Report
    parts: tuple[ResultDetails, ...] = ()
    modalities: tuple[tuple[str, PairTable], ...] = ()


def details_of(
    report: Report,
    embeddings: Embeddings,
    scoring: Scoring | None = None,
    *,
    query_examples: int = 0,
    memory: int | None = None,
) -> Details:
    """Look behind ``report``, made of ``embeddings`` under ``scoring``.

    ``query_examples``: of how many best and of how many worst queries of each result to show the pictures, which
    are read from their files.  ``memory`` bounds the bytes of scores held at a time.  Other vectors than
    those of the report are a DataError.
    """
    how = scoring or Scoring()
    parts: list[ResultDetails] = []
    by_modality: dict[str, list[tuple[str, PairTable]]] = {}
    for result in report.results:
        if result.reranking:
            continue
        queries, gallery = _sides(embeddings, result, how.rule.ignore == "itself")
        labels = market_labels(queries.samples, gallery.samples, ignore=how.rule.ignore, locations=how.locations)
        parts.append(_part(result, queries, gallery, labels, how.rule.ties, query_examples, memory))
        source, arrow, target = result.direction.partition("->")
        if arrow:
            table = (
                _row(queries, gallery, labels, how.rule.ties, memory)
                if target == MIXED
                else _cell(result.metrics, target)
            )
            by_modality.setdefault(result.category, []).append((source, table))
    return Details(report, tuple(parts), tuple((category, _joined(rows)) for category, rows in by_modality.items()))


def _sides(embeddings: Embeddings, result: Result, alone: bool) -> tuple[Embeddings, Embeddings]:
    """The queries and all gallery rows of a result; ``alone``: every picture is both."""
    source, _, target = result.direction.partition("->")
    sides = []
    for split, modality in ((Split.QUERY, source if target else ""), (Split.GALLERY, target)):
        rows: dict[object, int] = {}
        for row, sample in enumerate(embeddings.samples):
            chosen = sample.split is not Split.TRAIN if alone else sample.split is split
            if chosen and sample.category == result.category and modality in ("", MIXED, sample.modality):
                rows.setdefault(sample.path if alone else row, row)
        sides.append(embeddings.select(np.array(list(rows.values()), np.int64)))
    if sides[0].samples != result.asked:
        raise DataError(
            f"details of {result.category} {result.direction}: the vectors are of {len(sides[0])} queries, not the"
            f" {len(result.asked)} of the report; pass the embeddings it was made of"
        )
    return sides[0], sides[1]


def _part(
    result: Result,
    queries: Embeddings,
    gallery: Embeddings,
    labels: MarketLabels,
    ties: str,
    query_examples: int,
    memory: int | None,
) -> ResultDetails:
    vectors = (queries.vectors, gallery.vectors)
    best = best_scores(*vectors, labels, memory)
    strangers = int(np.count_nonzero(best.right == -np.inf))
    some = 0 < strangers < len(queries)
    asked, shown = ([sample.camera or "unknown" for sample in side.samples] for side in (queries, gallery))
    pairs = len(set(asked)) * len(set(shown))
    precision = result.metrics.average_precision
    order = np.argsort(-precision, kind="stable")[: np.count_nonzero(~np.isnan(precision))]  # NaN stands last
    worst = min(query_examples, len(order) // 2)  # a query is not shown twice
    return ResultDetails(
        result,
        len(gallery),
        strangers,
        _verification(queries, gallery, labels, memory),
        identification_rates(best, FALSE_ALARM_RATES) if some else (),
        pair_table(*vectors, labels, query_groups=asked, gallery_groups=shown, ties=ties, memory=memory)
        if 1 < pairs <= MOST_PAIRS
        else None,
        _bias(queries, gallery, labels, memory),
        _strips(queries, gallery, labels, precision, order[: min(query_examples, len(order) - worst)], memory),
        _strips(queries, gallery, labels, precision, order[::-1][:worst], memory),
    )


def _verification(
    queries: Embeddings, gallery: Embeddings, labels: MarketLabels, memory: int | None
) -> Verification | None:
    try:
        histograms = score_histograms(queries.vectors, gallery.vectors, labels, memory)
    except DataError:  # pairs of one kind only
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


def _bias(queries: Embeddings, gallery: Embeddings, labels: MarketLabels, memory: int | None) -> CameraBias | None:
    """The camera bias over queries of known identity and camera; None where no camera could attract any."""
    known = np.array([bool(sample.identity and sample.camera) for sample in queries.samples])
    asked = [sample.camera for sample in queries.samples if sample.identity and sample.camera]
    shown = [sample.camera for sample in gallery.samples]
    if len(set(shown)) < 2 or not set(asked) & set(shown):
        return None
    try:
        return camera_bias(
            queries.vectors[known], gallery.vectors,
            query_identities=labels.query_identities[known], gallery_identities=labels.gallery_identities,
            query_cameras=asked, gallery_cameras=shown, memory=memory,
        )  # fmt: skip
    except DataError:  # no row of another identity
        return None


def _row(queries: Embeddings, gallery: Embeddings, labels: MarketLabels, ties: str, memory: int | None) -> PairTable:
    groups = [[str(sample.modality) for sample in side.samples] for side in (queries, gallery)]
    return pair_table(
        queries.vectors, gallery.vectors, labels,
        query_groups=groups[0], gallery_groups=groups[1], ties=ties, memory=memory,
    )  # fmt: skip


def _cell(metrics: Metrics, target: str) -> PairTable:
    """A result of one pair of modalities as a table of one cell."""
    matched = np.array([[metrics.queries - metrics.queries_without_match]])
    return PairTable(("",), (target,), np.array([[metrics.mAP]]), np.array([[metrics.rank(1)]]), matched)


def _joined(rows: Sequence[tuple[str, PairTable]]) -> PairTable:
    """One table of tables with a row each; ``rows`` says whose row it is."""
    present = [{source for source, _ in rows}, {name for _, table in rows for name in table.gallery_groups}]
    names = [tuple(str(kind) for kind in Modality if kind in some) for some in present]
    values = [np.full((len(names[0]), len(names[1])), np.nan) for _ in range(2)]
    matched = np.zeros_like(values[0], np.int64)
    for source, table in rows:
        for column, target in enumerate(table.gallery_groups):
            cell = names[0].index(source), names[1].index(target)
            values[0][cell], values[1][cell] = table.mAP[0, column], table.rank1[0, column]
            matched[cell] = table.matched[0, column]
    return PairTable(names[0], names[1], values[0], values[1], matched)


def _strips(
    queries: Embeddings,
    gallery: Embeddings,
    labels: MarketLabels,
    precision: Float64Array,
    rows: IntArray,
    memory: int | None,
) -> tuple[QueryExample, ...]:
    """The queries at ``rows`` with their answers; of equal scores the wrong ones stand first."""
    if not len(rows):
        return ()
    sides = {name: column for name, column in vars(labels).items() if column is not None}
    chosen = {name: column[rows] if name.startswith("query_") else column for name, column in sides.items()}
    answers = answers_to(len(rows), len(gallery), **chosen)
    size = block_size(len(gallery), memory=memory)
    scores = inner_products(queries.vectors[rows], gallery.vectors, size)
    query_examples = []
    for start in range(0, len(rows), size):
        part = scores(start, min(start + size, len(rows)))
        offsets, same = answers.apply(part, start)
        for i, row in enumerate(rows[start : start + len(part)]):
            right = np.zeros(len(gallery), np.bool_)
            right[same[offsets == i]] = True
            sample = queries.samples[row]
            query_examples.append(
                QueryExample(
                    sample, thumbnail(sample.path), float(precision[row]), _answers(part[i], right, gallery.samples)
                )
            )
    return tuple(query_examples)


def _answers(scores: Float64Array, right: np.ndarray, samples: Sequence[Sample]) -> tuple[ExampleAnswer, ...]:
    order = np.lexsort((right, -scores))
    order = order[: np.count_nonzero(scores > -np.inf)]
    first = int(np.argmax(right[order]))
    places = [*range(min(ANSWERS, len(order))), *([first] if first >= ANSWERS else [])]
    return tuple(
        ExampleAnswer(
            samples[row], place + 1, float(scores[row]), bool(right[row]), thumbnail(samples[row].path)
        )
        for place, row in ((place, int(order[place])) for place in places)
    )  # fmt: skip


def thumbnail(path: Path) -> str:
    """``data:image/jpeg;base64,...`` of the picture at ``path``, at most ``THUMBNAIL`` large."""
    image = read_image(path)
    image.thumbnail(THUMBNAIL)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
