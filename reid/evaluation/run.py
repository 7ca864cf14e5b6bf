"""From embeddings with query and gallery rows to a report: one result for each category and direction.

A direction is a pair of modalities, query to gallery.  Each is scored on its own, against the gallery rows of that
modality and of the query's category only, unless the rule mixes modalities.  Samples carry all labels, so nothing here
depends on the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np

from reid.data.protocols.data_sets import Scoring
from reid.data.protocols.gallery_draws import draw_galleries
from reid.data.protocols.protocol_table import Rule
from reid.errors import DataError
from reid.evaluation.labels import BoolArray, Labels, market_labels
from reid.evaluation.metrics import MetricOptions, Metrics, NoMatchError, score_metrics, vector_metrics
from reid.evaluation.ranks import single_shot_ranks
from reid.evaluation.results import RULE, Report, Result, mean_of_galleries
from reid.evaluation.score_blocks import Vectors, best_of_tracks, block_size, check_vectors, inner_products
from reid.evaluation.tracks import sort_by_track
from reid.files import file_keys
from reid.records import Embeddings, IntArray, Modality, Sample, Split
from reid.retrieval.rerank import average_query_expansion, k_reciprocal

ALL = "all"
MIXED = "mixed"
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


def evaluate(
    embeddings: Embeddings,
    *,
    protocol: str = RULE,
    scoring: Scoring | None = None,
    provenance: Mapping[str, object] | None = None,
    reranking: Reranking | None = None,
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
    how = scoring or Scoring()
    queries, gallery = _query_and_gallery_rows(embeddings.samples, how.rule.ignore == "itself")
    results: list[Result] = []
    notes: list[str] = []
    for rows in _directions(embeddings.samples, queries, gallery, how.rule.modalities == MIXED):
        if not rows.gallery.any():
            notes.append(f"{rows.category}: {np.count_nonzero(rows.queries)} queries, no gallery row of this category")
            continue
        try:
            results += [
                _score_direction(embeddings, rows, how, change, memory)
                for change in ([None, reranking] if reranking else [None])
            ]
        except NoMatchError as error:
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


def _query_and_gallery_rows(samples: Sequence[Sample], leave_one_out: bool) -> tuple[BoolArray, BoolArray]:
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
    embeddings: Embeddings, rows: _DirectionRows, how: Scoring, reranking: Reranking | None, memory: int | None
) -> Result:
    queries = embeddings.select(rows.queries)
    gallery_rows = np.flatnonzero(rows.gallery).tolist()
    drawn = draw_galleries(embeddings.samples, gallery_rows, how.rule, how.permutation)
    trials, left_out, identities = [], 0, set()
    for chosen in drawn.trials:
        gallery = embeddings.select(np.array(chosen, dtype=np.int64))
        metrics, labels = score_trial(queries, gallery, how.rule, how.locations, reranking, memory)
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
        reranking.stamp if reranking else "",
    )


def _identities(embeddings: Embeddings) -> set[str]:
    return {sample.identity for sample in embeddings.samples if sample.identity}


def score_trial(
    queries: Embeddings,
    gallery: Embeddings,
    rule: Rule,
    locations: Mapping[str, str] | None = None,
    reranking: Reranking | None = None,
    memory: int | None = None,
) -> tuple[Metrics, Labels]:
    """Score queries against one gallery under a rule.

    Args:
        queries: The queries.
        gallery: The gallery of this trial.
        rule: The rule of the protocol.
        locations: Maps a camera to the camera that it shares a location with.
        reranking: How to order the answers again; None for not at all.
        memory: Bytes of scores to hold at a time.

    Returns:
        The metrics, and the labels by which answers counted as right.
    """
    _check_rule(rule, reranking)
    starts = None
    if rule.ranked == "track":
        gallery, starts = sort_by_track(gallery)
    answers, images = gallery.samples, None
    if starts is not None:
        images = [answers[start:stop] for start, stop in pairwise([*starts.tolist(), len(answers)])]
        answers = tuple(track[0] for track in images)
    labels = market_labels(queries.samples, answers, ignore=rule.ignore, locations=locations, images=images)
    options = _options_of(rule)
    if reranking is not None:
        return _score_reranked(queries.vectors, gallery.vectors, starts, labels, options, reranking, memory), labels
    metrics = _score_vectors(queries.vectors, gallery.vectors, starts, labels, options, memory)
    if rule.cmc != "single-shot":
        return metrics, labels
    ranks = single_shot_ranks(queries.vectors, gallery.vectors, labels, rule.repeats)
    return _with_ranks(metrics, ranks), labels


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


def _score_vectors(
    queries: Vectors,
    gallery: Vectors,
    starts: IntArray | None,
    labels: Labels,
    options: MetricOptions,
    memory: int | None,
) -> Metrics:
    """Score by inner products; ``starts`` (T,) are the first rows of the tracks that are ranked instead of rows."""
    if starts is None:
        return vector_metrics(queries, gallery, labels, options, memory=memory)
    queries, gallery = check_vectors(queries, gallery)
    size = block_size(len(gallery), gallery.itemsize, memory)
    return score_metrics(best_of_tracks(inner_products(queries, gallery, size), starts), labels, options, block=size)


def _score_reranked(
    queries: Vectors,
    gallery: Vectors,
    starts: IntArray | None,
    labels: Labels,
    options: MetricOptions,
    reranking: Reranking,
    memory: int | None,
) -> Metrics:
    if reranking.neighbours:
        queries = average_query_expansion(queries, gallery, reranking.neighbours)
    if not reranking.k_reciprocal:
        return _score_vectors(queries, gallery, starts, labels, options, memory)
    k1, k2, weight = reranking.k_reciprocal
    scores = k_reciprocal(queries, gallery, k1=k1, k2=k2, weight=weight)
    ranked = scores if starts is None else best_of_tracks(scores, starts)
    return score_metrics(ranked, labels, options, block=block_size(len(gallery), memory=memory))


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
