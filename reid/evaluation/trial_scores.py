"""The scores of one trial: inner products, normalized or re-ranked scores, by the rule of a protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from reid.data.protocols.protocol_table import Rule
from reid.errors import DataError
from reid.evaluation.analysis.open_set import (
    FALSE_ALARM_RATES,
    Identification,
    best_of_blocks,
    identification_rates,
)
from reid.evaluation.labels import Labels, market_labels, track_order
from reid.evaluation.metrics import MetricOptions, Metrics, score_metrics
from reid.evaluation.ranks import drawn_ranks
from reid.evaluation.score_blocks import (
    ScoreBlocks,
    Vectors,
    best_of_tracks,
    block_size,
    check_vectors,
    inner_products,
)
from reid.records import Embeddings, IntArray
from reid.retrieval.rerank import average_query_expansion, k_reciprocal
from reid.retrieval.rerank_normalized import expand_normalized, k_reciprocal_normalized
from reid.retrieval.score_normalization import NormalizedScores

ARRAYS_OF_A_BLOCK = 4  # normalizing a block of scores holds the statistics of both sides beside it
CMC_OVER = {"image": "rows", "single-shot": "rows", "identity": "identities"}


@dataclass(frozen=True)
class Reranking:
    """How to order the answers again with the help of neighbours.

    Args:
        k_reciprocal: k1, k2 and lambda of k-reciprocal re-ranking (Zhong et al. 2017); None for none.
        neighbours: How many neighbours expand each query (average query expansion); 0 for none.

    Example:
        >>> Reranking((20, 6, 0.3)).stamp
        'k-reciprocal, k1 20, k2 6, lambda 0.3'
    """

    k_reciprocal: tuple[int, int, float] | None = None
    neighbours: int = 0

    @property
    def stamp(self) -> str:
        """The words that must stand beside every number computed with it."""
        words = [f"average query expansion over {self.neighbours}"] if self.neighbours else []
        if self.k_reciprocal:
            words.append("k-reciprocal, k1 {}, k2 {}, lambda {:g}".format(*self.k_reciprocal))
        return "; ".join(words)


class TrialScores(NamedTuple):
    """What one trial found; ``identification`` is () where all queries or none have a right answer."""

    metrics: Metrics
    labels: Labels
    identification: tuple[Identification, ...]


def score_trial(
    queries: Embeddings,
    gallery: Embeddings,
    rule: Rule,
    locations: Mapping[str, str] | None = None,
    reranking: Reranking | None = None,
    memory: int | None = None,
    normalized: NormalizedScores | None = None,
) -> TrialScores:
    """Score queries against one gallery under a rule.

    Args:
        queries: The queries.
        gallery: The gallery of this trial.
        rule: The rule of the protocol.
        locations: Maps a camera to the camera that it shares a location with.
        reranking: How to order the answers again; None for not at all.
        memory: Bytes of scores to hold at a time.
        normalized: The normalized scores of these queries and gallery rows; None takes inner products.

    Returns:
        The metrics, the labels by which answers counted as right, and the open-set rates.
    """
    _check_rule(rule, reranking)
    order, starts = np.arange(len(gallery)), None
    if rule.ranked == "track":
        order, starts = track_order(gallery)
    answers = [gallery.samples[row] for row in (order if starts is None else order[starts])]
    labels = market_labels(queries.samples, answers, ignore=rule.ignore, locations=locations)
    options = _options_of(rule)
    scores, size = _ranked_scores(queries.vectors, gallery.vectors, reranking, normalized, memory)
    if starts is not None:
        scores = best_of_tracks(_in_order(scores, order), starts)
    metrics = score_metrics(scores, labels, options, block=size)
    identification = _identification(scores, size, labels, metrics)
    if rule.cmc != "single-shot":
        return TrialScores(metrics, labels, identification)
    scores, _ = _ranked_scores(queries.vectors, gallery.vectors, reranking, normalized, None)  # draws depend on blocks
    ranked = _with_ranks(metrics, drawn_ranks(scores, labels, rule.repeats))
    return TrialScores(ranked, labels, identification)


def _identification(scores: ScoreBlocks, size: int, labels: Labels, metrics: Metrics) -> tuple[Identification, ...]:
    """Compute the open-set rates where some queries, and not all, are unmatched."""
    if not 0 < metrics.queries_without_match < metrics.queries:
        return ()
    return identification_rates(best_of_blocks(scores, labels, size), FALSE_ALARM_RATES)


def _check_rule(rule: Rule, reranking: Reranking | None) -> None:
    needs_images = rule.cmc == "single-shot" or rule.ignore == "itself"
    if rule.ranked == "track" and needs_images:
        raise DataError(
            f"rule: ranked=track puts tracks in place of images; cmc={rule.cmc}, ignore={rule.ignore} needs images,"
            " so choose other settings or ranked=image"
        )
    if reranking is not None and needs_images:
        raise DataError("re-ranking uses the whole gallery and needs queries outside of it; not for this protocol")


def _options_of(rule: Rule) -> MetricOptions:
    wanted = {"trapezoid": rule.precision == "trapezoid", "all_queries": rule.unmatched == "zero"}
    variants = tuple(name for name, chosen in wanted.items() if chosen)
    return MetricOptions(rule.ties, variants, CMC_OVER[rule.cmc])


def _ranked_scores(
    queries: Vectors,
    gallery: Vectors,
    reranking: Reranking | None,
    normalized: NormalizedScores | None,
    memory: int | None,
) -> tuple[ScoreBlocks, int]:
    """Return the scores that rank the gallery rows, and how many queries to score at a time."""
    queries, gallery = check_vectors(queries, gallery)
    arrays = 1 if normalized is None else ARRAYS_OF_A_BLOCK
    size = block_size(len(gallery), gallery.itemsize * arrays, memory)
    if reranking is not None and reranking.neighbours:
        if normalized is None:
            queries = average_query_expansion(queries, gallery, reranking.neighbours)
        else:
            normalized = expand_normalized(normalized, reranking.neighbours)
    if reranking is not None and reranking.k_reciprocal:
        k1, k2, weight = reranking.k_reciprocal
        if normalized is None:
            return k_reciprocal(queries, gallery, k1=k1, k2=k2, weight=weight), size
        return k_reciprocal_normalized(normalized, k1=k1, k2=k2, weight=weight), size
    return inner_products(queries, gallery, size) if normalized is None else normalized, size


def _in_order(scores: ScoreBlocks, order: IntArray) -> ScoreBlocks:
    """Put the columns of scores into the order (G,) of gallery rows."""
    return lambda start, stop: scores(start, stop)[:, order]


def _with_ranks(metrics: Metrics, ranks: IntArray) -> Metrics:
    """Replace the CMC of ``metrics`` by that of single-shot ``ranks`` (repeats, Q), the mean over the repeats."""
    matched = metrics.first_match > 0
    counted = len(matched) if "all_queries" in metrics.variants else int(np.count_nonzero(matched))
    length = len(metrics.cmc)
    counts = np.bincount(np.minimum(ranks[:, matched], length + 1).reshape(-1), minlength=length + 2)
    return replace(
        metrics,
        cmc=np.cumsum(counts[1 : length + 1]) / (counted * len(ranks)),
        rank1=np.where(matched, (ranks == 1).mean(axis=0), np.nan),
        first_match=np.where(matched, np.median(ranks, axis=0).astype(np.int64), 0),
        cmc_over="single-shot",
    )
