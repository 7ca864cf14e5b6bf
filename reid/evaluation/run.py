"""From embeddings with query and gallery rows to a report: one result a domain and direction.

A direction is a pair of modalities, query to gallery; each is scored on its own, against the gallery
rows of that modality and of the query's domain only, unless the rule mixes modalities.  Samples carry
all labels, so nothing here depends on the order of rows.  How vectors were made is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from reid import __version__
from reid.data.protocols.data_sets import Scoring
from reid.data.protocols.gallery_draws import ALL as ALL_ROWS
from reid.data.protocols.gallery_draws import draw_galleries
from reid.errors import DataError
from reid.evaluation.analysis.intervals import Interval, metric_intervals
from reid.evaluation.labels import BoolArray
from reid.evaluation.metrics import Metrics, NoMatchError
from reid.evaluation.trials import Reranking, mean_of_galleries, mean_of_splits, score_trial
from reid.records import Embeddings, Modality, Sample, Split

RULE = "market"
TIES = "worst case"
ALL = "all"
MIXED = "mixed"


@dataclass(frozen=True, eq=False)
class Result:
    """One line of a report: how queries of one modality fare against a gallery of another.

    ``direction`` is "<query modality>-><gallery modality>", or "all" where the data have one
    modality.  ``unmatched`` are the queries without any right answer; they enter no mean.
    ``trials`` are those that ``metrics`` is the mean of, if there are several; ``gallery_source`` says
    how their galleries were drawn; ``left_out`` counts the pairs of a query and a gallery row that
    the rule leaves out (over all trials).  ``asked`` are the queries (Q,) in the order of the metrics' rows.
    ``reranking`` is "" or says how the ranking was changed; such a result stands beside the plain one.
    """

    category: str
    direction: str
    metrics: Metrics
    query_identities: int
    gallery_identities: int
    unmatched: tuple[Sample, ...]
    trials: tuple[Metrics, ...] = ()
    gallery_source: str = ALL_ROWS
    left_out: int = 0
    asked: tuple[Sample, ...] = ()
    reranking: str = ""

    def intervals(self) -> dict[str, Interval]:
        """Bootstrap intervals of mAP, mINP and rank-1 over the identities of the queries; {} if there is but one."""
        identities = [sample.identity for sample in self.asked]
        return metric_intervals(self.metrics, identities) if len(set(identities)) > 1 else {}


@dataclass(frozen=True, eq=False)
class Report:
    """The results of one evaluation and what was evaluated.

    ``fingerprint`` names the weights, transform and camera statistics behind the vectors; ``notes``
    say what could not be scored and why, one line each.  ``variant`` holds the choices of the
    protocol that were made, ``settings`` every setting of the rule; ``provenance`` how the vectors came
    about (neck, flip, ...).
    """

    protocol: str
    fingerprint: str
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()
    rule: str = RULE
    ties: str = TIES
    variant: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)
    version: str = __version__

    def __str__(self) -> str:
        """Return the report as a text table of 80 columns."""
        from reid.evaluation.reports.report import report_table

        return report_table(self)

    def __getitem__(self, key: tuple[str, str]) -> Result:
        """The plain result of (domain, direction)."""
        for result in self.results:
            if (result.category, result.direction) == key:
                return result
        known = ", ".join(f"{result.category} {result.direction}" for result in self.results)
        raise DataError(f"no result for {key[0]} {key[1]}; there are: {known}")


def evaluate(
    embeddings: Embeddings,
    *,
    protocol: str = RULE,
    scoring: Scoring | None = None,
    provenance: Mapping[str, object] | None = None,
    reranking: Reranking | None = None,
    memory: int | None = None,
) -> Report:
    """Score the rows of split "query" against those of split "gallery"; others are not looked at.

    ``protocol`` is the name that is stamped on the report, ``scoring`` its rule (default: Market).
    Where the rule leaves only the query itself out, every row of both splits asks all others.
    ``reranking`` adds a second result to every one, never replaces it.  ``memory`` bounds the bytes of
    scores held at a time (default: 64 MiB), and changes no number.
    """
    how = scoring or Scoring()
    queries, gallery = _splits(embeddings.samples, how.rule.ignore == "itself")
    results: list[Result] = []
    notes: list[str] = []
    for part in _parts(embeddings.samples, queries, gallery, how.rule.modalities == MIXED):
        if not part.gallery.any():
            notes.append(f"{part.category}: {np.count_nonzero(part.queries)} queries, no gallery row of this domain")
            continue
        try:
            results += [
                _score(embeddings, part, how, way, memory) for way in ([None, reranking] if reranking else [None])
            ]
        except NoMatchError as error:
            notes.append(f"{part.category} {part.direction}: {error}")
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


def mean_report(reports: Sequence[Report], variant: Mapping[str, str]) -> Report:
    """The mean over ``reports`` of the same protocol on different splits of the data, such as ten trials.

    ``variant`` is what is stamped on it.  Every report must have the same results.
    """
    first = reports[0]
    keys = [[(result.category, result.direction, result.reranking) for result in report.results] for report in reports]
    if any(other != keys[0] for other in keys):
        raise DataError(f"{first.protocol}: the splits do not have the same results; their mean means nothing")
    results = []
    for column in zip(*(report.results for report in reports), strict=True):
        metrics = mean_of_splits([result.metrics for result in column])
        unmatched = tuple(sample for result in column for sample in result.unmatched)
        left_out = sum(result.left_out for result in column)
        trials = tuple(result.metrics for result in column)
        asked = tuple(sample for result in column for sample in result.asked)
        merged = replace(column[0], metrics=metrics, unmatched=unmatched, trials=trials)
        results.append(replace(merged, left_out=left_out, asked=asked))
    fingerprints = dict.fromkeys(report.fingerprint for report in reports)
    notes = tuple(note for report in reports for note in report.notes)
    joined = ", ".join(fingerprints)
    return replace(first, fingerprint=joined, results=tuple(results), notes=notes, variant=dict(variant))


def _splits(samples: Sequence[Sample], alone: bool) -> tuple[BoolArray, BoolArray]:
    """Rows (N,) bool of queries and gallery; ``alone``: each picture that is not for training is both."""
    if alone:
        seen: dict[object, int] = {}
        for row, sample in enumerate(samples):
            if sample.split is not Split.TRAIN:
                seen.setdefault(sample.path, row)
        both = np.zeros(len(samples), np.bool_)
        both[list(seen.values())] = True
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
    """Rows (N,) bool of the queries and of the gallery of one domain and direction."""

    category: str
    direction: str
    queries: BoolArray
    gallery: BoolArray


def _parts(
    samples: tuple[Sample, ...], queries: BoolArray, gallery: BoolArray, mixed: bool
) -> Iterator[_DirectionRows]:
    """Every domain and direction that has queries and gallery rows; a domain without gallery rows once."""
    categories = np.array([sample.category for sample in samples])
    modalities = np.array([sample.modality.value for sample in samples])
    several = len(np.unique(modalities[queries | gallery])) > 1
    for category in dict.fromkeys(categories[queries].tolist()):
        asked, answers = queries & (categories == category), gallery & (categories == category)
        if not (several and answers.any()):
            yield _DirectionRows(category, ALL, asked, answers)
            continue
        everything = np.ones_like(answers)
        targets = {MIXED: everything} if mixed else {str(kind): modalities == kind for kind in Modality}
        for source, (target, rows) in product(Modality, targets.items()):
            part = _DirectionRows(category, f"{source}->{target}", asked & (modalities == source), answers & rows)
            if part.queries.any() and part.gallery.any():
                yield part


def _score(
    embeddings: Embeddings, part: _DirectionRows, how: Scoring, reranking: Reranking | None, memory: int | None
) -> Result:
    queries = embeddings.select(part.queries)
    rows = np.flatnonzero(part.gallery).tolist()
    drawn = draw_galleries(embeddings.samples, rows, how.rule, how.permutation)
    trials, left_out, identities = [], 0, set()
    for chosen in drawn.trials:
        gallery = embeddings.select(np.array(chosen, dtype=np.int64))
        metrics, labels = score_trial(queries, gallery, how.rule, how.locations, reranking, memory)
        trials.append(metrics)
        left_out += labels.left_out()
        identities |= _identities(gallery)
    metrics = mean_of_galleries(trials)
    return Result(
        part.category,
        part.direction,
        metrics,
        len(_identities(queries)),
        len(identities),
        tuple(queries.samples[i] for i in np.flatnonzero(metrics.first_match == 0)),
        tuple(trials) if len(trials) > 1 else (),
        drawn.source if how.rule.ranked == "image" else f"{drawn.source}, as tracks: each as near as its nearest image",
        left_out,
        queries.samples,
        reranking.stamp if reranking else "",
    )


def _identities(embeddings: Embeddings) -> set[str]:
    return {sample.identity for sample in embeddings.samples if sample.identity}
