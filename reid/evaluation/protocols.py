"""From embeddings with query and gallery rows to a report: one result a domain and direction.

A direction is a pair of modalities, query to gallery; each is scored on its own, against the gallery
rows of that modality and of the query's domain only.  Samples carry all labels, so nothing here
depends on the order of rows.  How vectors were made is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from reid.errors import DataError
from reid.evaluation.metrics import Metrics, NoMatchError, market_metrics
from reid.evaluation.rules import BoolArray, market_labels
from reid.records import Embeddings, Modality, Sample, Split

RULE = "market"
TIES = "worst case"
ALL = "all"


@dataclass(frozen=True, eq=False)
class Result:
    """One line of a report: how queries of one modality fare against a gallery of another.

    ``direction`` is "<query modality>-><gallery modality>", or "all" where the data have one
    modality.  ``unmatched`` are the queries without any right answer; they enter no mean.
    """

    domain: str
    direction: str
    metrics: Metrics
    query_identities: int
    gallery_identities: int
    unmatched: tuple[Sample, ...]


@dataclass(frozen=True, eq=False)
class Report:
    """The results of one evaluation and what was evaluated.

    ``fingerprint`` names the weights, transform and camera statistics behind the vectors; ``notes``
    say what could not be scored and why, one line each.
    """

    protocol: str
    fingerprint: str
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()
    rule: str = RULE
    ties: str = TIES

    def __getitem__(self, key: tuple[str, str]) -> Result:
        """The result of (domain, direction)."""
        for result in self.results:
            if (result.domain, result.direction) == key:
                return result
        known = ", ".join(f"{result.domain} {result.direction}" for result in self.results)
        raise DataError(f"no result for {key[0]} {key[1]}; there are: {known}")


def evaluate(embeddings: Embeddings, *, protocol: str = RULE) -> Report:
    """Score the rows of split "query" against those of split "gallery"; others are not looked at.

    ``protocol`` is the name that is stamped on the report.
    """
    samples = embeddings.samples
    queries, gallery = (
        np.array([sample.split is split for sample in samples], dtype=np.bool_)
        for split in (Split.QUERY, Split.GALLERY)
    )
    for name, mask in (("query", queries), ("gallery", gallery)):
        if not mask.any():
            raise DataError(f'no row of split "{name}" among {len(samples)}; evaluation needs queries and a gallery')
    results: list[Result] = []
    notes: list[str] = []
    for part in _parts(samples, queries, gallery):
        if not part.gallery.any():
            notes.append(f"{part.domain}: {np.count_nonzero(part.queries)} queries, no gallery row of this domain")
            continue
        try:
            results.append(_score(embeddings, part))
        except NoMatchError as error:
            notes.append(f"{part.domain} {part.direction}: {error}")
    if not results:
        raise DataError(f"nothing could be scored: {'; '.join(notes)}")
    return Report(protocol, embeddings.fingerprint, tuple(results), tuple(notes))


@dataclass(frozen=True)
class _Part:
    """Rows (N,) bool of the queries and of the gallery of one domain and direction."""

    domain: str
    direction: str
    queries: BoolArray
    gallery: BoolArray


def _parts(samples: tuple[Sample, ...], queries: BoolArray, gallery: BoolArray) -> Iterator[_Part]:
    """Every domain and direction that has queries and gallery rows; a domain without gallery rows once."""
    domains = np.array([sample.domain for sample in samples])
    modalities = np.array([sample.modality.value for sample in samples])
    several = len(np.unique(modalities[queries | gallery])) > 1
    for domain in dict.fromkeys(domains[queries].tolist()):
        asked, answers = queries & (domains == domain), gallery & (domains == domain)
        if not (several and answers.any()):
            yield _Part(domain, ALL, asked, answers)
            continue
        for source, target in product(Modality, Modality):
            part = _Part(
                domain, f"{source}->{target}", asked & (modalities == source), answers & (modalities == target)
            )
            if part.queries.any() and part.gallery.any():
                yield part


def _score(embeddings: Embeddings, part: _Part) -> Result:
    queries, gallery = embeddings.select(part.queries), embeddings.select(part.gallery)
    labels = market_labels(queries.samples, gallery.samples)
    metrics = market_metrics(
        queries.vectors,
        gallery.vectors,
        query_identities=labels.query_identities,
        gallery_identities=labels.gallery_identities,
        query_cameras=labels.query_cameras,
        gallery_cameras=labels.gallery_cameras,
    )
    unmatched = tuple(queries.samples[i] for i in np.flatnonzero(metrics.first_match == 0))
    return Result(part.domain, part.direction, metrics, _identities(queries), _identities(gallery), unmatched)


def _identities(embeddings: Embeddings) -> int:
    return len({sample.identity for sample in embeddings.samples if sample.identity})
