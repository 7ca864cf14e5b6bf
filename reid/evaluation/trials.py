"""One trial of a protocol, and the mean over several.

A trial is a set of queries against one gallery under a rule.  SYSU-MM01 and LLCM draw ten galleries
for the same queries; VIPeR, RegDB and others divide the people ten times.  Nothing here knows files
or which galleries to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reid.data.protocols.protocol_table import Rule
from reid.errors import DataError
from reid.evaluation.labels import MarketLabels, judge, market_labels
from reid.evaluation.metrics import MAX_RANK, Metrics, market_metrics, score_metrics
from reid.evaluation.ranks import Float64Array
from reid.evaluation.score_blocks import Vectors, block_size, check_vectors, inner_products
from reid.evaluation.tracks import best_of_tracks, by_track
from reid.records import Embeddings, IntArray
from reid.retrieval.rerank import average_query_expansion, k_reciprocal

CMC_OVER = {"image": "rows", "single-shot": "rows", "identity": "identities"}


@dataclass(frozen=True)
class Reranking:
    """Second thoughts about a ranking: k-reciprocal with (k1, k2, lambda), or ``neighbours`` of query expansion."""

    k_reciprocal: tuple[int, int, float] | None = None
    neighbours: int = 0

    @property
    def stamp(self) -> str:
        """What must stand beside every number computed so."""
        parts = [f"average query expansion over {self.neighbours}"] if self.neighbours else []
        if self.k_reciprocal:
            parts.append("k-reciprocal, k1 {}, k2 {}, lambda {:g}".format(*self.k_reciprocal))
        return "; ".join(parts)


def score_trial(
    queries: Embeddings,
    gallery: Embeddings,
    rule: Rule,
    locations: Mapping[str, str] | None = None,
    reranking: Reranking | None = None,
    memory: int | None = None,
) -> tuple[Metrics, MarketLabels]:
    """Metrics of ``queries`` against ``gallery`` under ``rule``, and the labels they were judged by.

    ``memory`` bounds the bytes of scores held at a time.
    """
    starts = None
    if rule.ranked == "track":
        _check_ranks_tracks(rule)
        gallery, starts = by_track(gallery)
    answers = gallery.samples if starts is None else tuple(gallery.samples[row] for row in starts)
    labels = market_labels(queries.samples, answers, ignore=rule.ignore, locations=locations)
    variants = [
        name
        for name, wanted in (("trapezoid", rule.precision == "trapezoid"), ("all_queries", rule.unmatched == "zero"))
        if wanted
    ]
    how: dict[str, Any] = {
        **{name: value for name, value in vars(labels).items() if value is not None},
        "ties": rule.ties,
        "variants": variants,
        "cmc_over": CMC_OVER[rule.cmc],
    }
    if reranking is not None:
        return _reranked(queries, gallery, starts, rule, reranking, how, memory), labels
    metrics = _by_vectors(queries.vectors, gallery.vectors, starts, how, memory)
    if rule.cmc != "single-shot":
        return metrics, labels
    ranks = single_shot_ranks(queries.vectors, gallery.vectors, labels, rule.repeats)
    return _with_ranks(metrics, ranks), labels


def _check_ranks_tracks(rule: Rule) -> None:
    if rule.cmc == "single-shot" or rule.ignore == "itself":
        raise DataError(
            f"rule: ranked=track puts tracks in place of images; cmc={rule.cmc}, ignore={rule.ignore} needs images,"
            " so choose other settings or ranked=image"
        )


def _by_vectors(
    queries: Vectors, gallery: Vectors, starts: IntArray | None, how: dict[str, Any], memory: int | None
) -> Metrics:
    """``starts`` (T,): where the tracks start that are ranked instead of rows, None without."""
    if starts is None:
        return market_metrics(queries, gallery, **how, memory=memory)
    queries, gallery = check_vectors(queries, gallery)
    size = block_size(len(gallery), gallery.itemsize, memory)
    return score_metrics(best_of_tracks(inner_products(queries, gallery, size), starts), **how, block=size)


def _reranked(
    queries: Embeddings,
    gallery: Embeddings,
    starts: IntArray | None,
    rule: Rule,
    reranking: Reranking,
    how: dict[str, Any],
    memory: int | None,
) -> Metrics:
    if rule.cmc == "single-shot" or rule.ignore == "itself":
        raise DataError("re-ranking looks at the whole gallery and needs queries apart from it; not for this protocol")
    vectors = queries.vectors
    if reranking.neighbours:
        vectors = average_query_expansion(vectors, gallery.vectors, reranking.neighbours)
    if not reranking.k_reciprocal:
        return _by_vectors(vectors, gallery.vectors, starts, how, memory)
    k1, k2, weight = reranking.k_reciprocal
    scores = k_reciprocal(vectors, gallery.vectors, k1=k1, k2=k2, weight=weight)
    ranked = scores if starts is None else best_of_tracks(scores, starts)
    return score_metrics(ranked, **how, block=block_size(len(gallery), memory=memory))


def single_shot_ranks(queries: Vectors, gallery: Vectors, labels: MarketLabels, repeats: int, seed: int = 0) -> Vectors:
    """(repeats, Q) int64: the place of the right image if only one image of each identity is in the gallery.

    It is drawn anew for every query and repeat from the rows that are not left out (Li et al., "DeepReID",
    CVPR 2014).  Equal scores count as worse; 0 without a right image.
    """
    queries, gallery = check_vectors(queries, gallery)
    judgement = judge(labels.query_identities, labels.gallery_identities, labels.query_cameras, labels.gallery_cameras)
    order = judgement.order
    starts = np.flatnonzero(np.diff(labels.gallery_identities[order], prepend=-(2**62)))
    sizes = np.diff(starts, append=len(order))
    own = np.searchsorted(starts, judgement.first)  # identity of the query among the sorted ones
    size = block_size(len(gallery), 8)
    scores = inner_products(queries, gallery, size)
    generator = np.random.default_rng(seed)
    ranks = np.zeros((repeats, len(queries)), np.int64)
    for start in range(0, len(queries), size):
        stop = min(start + size, len(queries))
        part = scores(start, stop)
        offsets, rows, left_out = judgement.same_identity(start, stop)
        part[offsets[left_out], rows[left_out]] = -np.inf
        part = part[:, order]
        matched = judgement.last[start:stop] > judgement.first[start:stop]
        for repeat in range(repeats):
            drawn = _one_of_each(part, starts, sizes, generator)  # (B, I) scores
            right = np.where(matched, drawn[np.arange(stop - start), np.where(matched, own[start:stop], 0)], -np.inf)
            rank = np.count_nonzero(drawn >= right[:, None], axis=1)
            ranks[repeat, start:stop] = np.where(right > -np.inf, rank, 0)
    return ranks


def _one_of_each(scores: Vectors, starts: Vectors, sizes: Vectors, generator: np.random.Generator) -> Vectors:
    """The score (B, I) of one row of each identity, any that is not -inf; columns are sorted by identity."""
    keys = np.where(scores > -np.inf, generator.random(scores.shape), -1.0)
    best = np.repeat(np.maximum.reduceat(keys, starts, axis=1), sizes, axis=1)
    return np.maximum.reduceat(np.where(keys == best, scores, -np.inf), starts, axis=1)


def _with_ranks(metrics: Metrics, ranks: Vectors) -> Metrics:
    """``metrics`` with the CMC of ``ranks`` (repeats, Q), the mean over the repeats."""
    matched = metrics.first_match > 0
    counted = len(matched) if "all_queries" in metrics.variants else int(np.count_nonzero(matched))
    counts = np.bincount(np.minimum(ranks[:, matched], MAX_RANK + 1).reshape(-1), minlength=MAX_RANK + 2)
    return replace(
        metrics,
        cmc=np.cumsum(counts[1 : MAX_RANK + 1]) / (counted * len(ranks)),
        rank1=np.where(matched, (ranks == 1).mean(axis=0), np.nan),
        first_match=np.where(matched, np.median(ranks, axis=0).astype(np.int64), 0),
        cmc_over="single-shot",
    )


def mean_of_galleries(trials: Sequence[Metrics]) -> Metrics:
    """The mean over trials that ask the same queries; per query, too, over the trials in which it has a match.

    ``first_match`` is the middle place (the lower of two).
    """
    if len(trials) == 1:
        return trials[0]
    ranks = np.stack([trial.first_match for trial in trials]).astype(np.float64)  # (T, Q)
    ranks[ranks == 0] = np.nan
    middle = _per_query(ranks, lambda values: np.nanquantile(values, 0.5, axis=0, method="lower"))
    first = np.nan_to_num(middle).astype(np.int64)
    return replace(
        _mean(trials),
        queries_without_match=int(np.count_nonzero(first == 0)),
        average_precision=_per_query([trial.average_precision for trial in trials]),
        inverse_negative_penalty=_per_query([trial.inverse_negative_penalty for trial in trials]),
        rank1=_per_query([trial.rank1 for trial in trials]),
        first_match=first,
    )


def mean_of_splits(trials: Sequence[Metrics]) -> Metrics:
    """The mean over trials that ask different queries: scores are means of the trials, rows and counts add up."""
    return replace(
        _mean(trials),
        queries=sum(trial.queries for trial in trials),
        queries_without_match=sum(trial.queries_without_match for trial in trials),
        gallery=sum(trial.gallery for trial in trials),
        average_precision=np.concatenate([trial.average_precision for trial in trials]),
        inverse_negative_penalty=np.concatenate([trial.inverse_negative_penalty for trial in trials]),
        rank1=np.concatenate([trial.rank1 for trial in trials]),
        first_match=np.concatenate([trial.first_match for trial in trials]),
    )


def _mean(trials: Sequence[Metrics]) -> Metrics:
    return replace(
        trials[0],
        mAP=float(np.mean([trial.mAP for trial in trials])),
        mINP=float(np.mean([trial.mINP for trial in trials])),
        cmc=np.mean([trial.cmc for trial in trials], axis=0),
        r_precision=float(np.mean([trial.r_precision for trial in trials])),
        map_at_r=float(np.mean([trial.map_at_r for trial in trials])),
    )


def _per_query(
    values: Sequence[Float64Array] | Float64Array, middle: Callable[[Float64Array], Float64Array] | None = None
) -> Float64Array:
    """Per query (Q,) over the trials (T, Q) the mean, or ``middle``; NaN stays where every trial has it."""
    table = np.stack(list(values))
    known = ~np.isnan(table).all(axis=0)
    result = np.full(table.shape[1], np.nan)
    result[known] = (middle or (lambda rows: np.nanmean(rows, axis=0)))(table[:, known])
    return result
