"""What an evaluation found: results, reports, and means over trials."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from reid import __version__
from reid.data.protocols.gallery_draws import ALL as ALL_ROWS
from reid.errors import DataError
from reid.evaluation.analysis.intervals import Interval, metric_intervals
from reid.evaluation.analysis.open_set import Identification
from reid.evaluation.metrics import Metrics
from reid.evaluation.ranks import Float64Array
from reid.records import Sample
from reid.retrieval.score_normalization import NONE

if TYPE_CHECKING:
    import pandas as pd

RULE = "market"
TIES = "worst case"


@dataclass(frozen=True, eq=False)
class Result:
    """How the queries of one category and modality are answered by a gallery of one modality.

    Attributes:
        category: What the crops show.
        direction: "<query modality>-><gallery modality>", or "all" where the data have one modality.
        metrics: The scores; a mean over ``trials`` if there are several.
        query_identities: The number of identities among the queries.
        gallery_identities: The number of identities in the gallery.
        unmatched: The queries without any right answer; they enter no mean.
        trials: The metrics of each trial, if there are several.
        gallery_source: How the galleries of the trials were drawn.
        left_out: The number of pairs of a query and a gallery row that the rule leaves out, over all trials.
        query_samples: The queries, (Q,), in the order of the rows of ``metrics``.
        reranking: How the ranking was changed; "" for the plain result, beside which a changed one stands.
        score_norm: How scores were normalized per pair of cameras: "none", "csls" or "snorm".
        score_norm_stamp: The method and its parameters; "" for scores as they are.
        corruption: Which images are corrupted: "both" (queries and gallery), "query" or "gallery"; "" for none.  The
            ``trials`` are its repeats then.
        corruption_stamp: The types, the severity and the seed of the corruption.
        identification: The open-set identification rates; () where all queries or none have a right answer, and for
            means.
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
    query_samples: tuple[Sample, ...] = ()
    reranking: str = ""
    score_norm: str = NONE
    score_norm_stamp: str = ""
    identification: tuple[Identification, ...] = ()
    corruption: str = ""
    corruption_stamp: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether the result is that of the images and the scores as they are, without re-ranking."""
        return not (self.reranking or self.corruption) and self.score_norm == NONE

    @property
    def change(self) -> str:
        """How the result differs from the plain one, in a word or two; "" for the plain one."""
        norm = "" if self.score_norm == NONE else self.score_norm
        corrupted = f"{self.corruption} corrupted" if self.corruption else ""
        return " ".join(filter(None, [corrupted, norm, "re-ranked" if self.reranking else ""]))

    def deviations(self) -> dict[str, float]:
        """Return the standard deviation of mAP, mINP and rank-1 over repeated corruptions; {} where there are none."""
        if not self.corruption or len(self.trials) < 2:
            return {}
        values = np.array([[one.mAP, one.mINP, one.rank(1)] for one in self.trials])
        return dict(zip(("mAP", "mINP", "rank1"), values.std(axis=0, ddof=1).tolist(), strict=True))

    @property
    def reranking_method(self) -> str:
        """The re-ranking without what follows from the data, by which the same step is found in other results."""
        return reranking_method(self.reranking)

    def intervals(self) -> dict[str, Interval]:
        """Compute bootstrap intervals of mAP, mINP and rank-1 over the identities of the queries.

        Returns:
            Intervals by name of the score; none if the queries show a single identity.
        """
        identities = [sample.identity for sample in self.query_samples]
        return metric_intervals(self.metrics, identities) if len(set(identities)) > 1 else {}


@dataclass(frozen=True, eq=False)
class Report:
    """The results of one evaluation, and what was evaluated.

    Attributes:
        protocol: The name of the protocol.
        fingerprint: A hash of the weights, the image preparation and the statistics that made the vectors.
        results: One result for each category and direction, and further ones where scores or the ranking were changed.
        notes: What could not be scored and why, one line each.
        rule: The rule in words.
        ties: The tie rule in words.
        variant: The choices of the protocol that were made.
        settings: Every setting of the rule.
        provenance: How the vectors came about (neck, flip, ...).
        version: The version of this program.
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

    def __getitem__(self, key: tuple[str, str]) -> Result:
        """Return the plain result of (category, direction); DataError if there is none."""
        for result in self.results:
            if (result.category, result.direction) == key:
                return result
        known = ", ".join(f"{result.category} {result.direction}" for result in self.results)
        raise DataError(f"no result for {key[0]} {key[1]}; there are: {known}")

    def __str__(self) -> str:
        """Return the report as a text table of 80 columns."""
        from reid.evaluation.reports.report_text import report_table

        return report_table(self)

    def to_frame(self) -> pd.DataFrame:
        """Return the results as a table with one row for each.

        Returns:
            Columns category, direction, score_norm, reranking, rank1, rank5, rank10, mAP, mINP, r_precision, map_at_r
            (fractions in 0..1), queries, unmatched_queries, gallery, query_identities, gallery_identities,
            pairs_left_out, protocol and fingerprint.

        Example:
            >>> Report("market", "f00d", ()).to_frame().empty
            True
        """
        import pandas as pd

        return pd.DataFrame([self._row(result) for result in self.results])

    def _row(self, result: Result) -> dict[str, object]:
        metrics = result.metrics
        return {
            "category": result.category,
            "direction": result.direction,
            "score_norm": result.score_norm,
            "reranking": result.reranking,
            **{f"rank{k}": metrics.rank(k) for k in (1, 5, 10)},
            "mAP": metrics.mAP,
            "mINP": metrics.mINP,
            "r_precision": metrics.r_precision,
            "map_at_r": metrics.map_at_r,
            "queries": metrics.queries,
            "unmatched_queries": metrics.queries_without_match,
            "gallery": metrics.gallery,
            "query_identities": result.query_identities,
            "gallery_identities": result.gallery_identities,
            "pairs_left_out": result.left_out,
            "protocol": self.protocol,
            "fingerprint": self.fingerprint,
        }

    def per_query_frame(self) -> pd.DataFrame:
        """Return the scores of the single queries as a table with one row for each query of each result.

        Returns:
            Columns path, identity, camera, modality, category, direction, score_norm, reranking, average_precision,
            inverse_negative_penalty, first_rank (the rank of the first right answer) and rank1.  Scores of queries
            without a right answer are missing.
        """
        import pandas as pd

        fields = ("path", "identity", "camera", "modality", "category")
        rows = []
        for result in self.results:
            metrics = result.metrics
            for i, sample in enumerate(result.query_samples):
                first = int(metrics.first_match[i])
                rows.append(
                    {
                        **{name: str(getattr(sample, name)) for name in fields},
                        "direction": result.direction,
                        "score_norm": result.score_norm,
                        "reranking": result.reranking,
                        "average_precision": float(metrics.average_precision[i]),
                        "inverse_negative_penalty": float(metrics.inverse_negative_penalty[i]),
                        "first_rank": first if first else pd.NA,
                        "rank1": float(metrics.rank1[i]),
                    }
                )
        scores = ("average_precision", "inverse_negative_penalty", "first_rank", "rank1")
        frame = pd.DataFrame(rows, columns=[*fields, "direction", "score_norm", "reranking", *scores])
        return frame.astype({"first_rank": "Int64"})


def reranking_method(stamp: str) -> str:
    """Remove from the stamp of a re-ranking what follows from the data; that stands in brackets.

    Example:
        >>> reranking_method("camera-aware Jaccard on csls (k1 4+4, k2 2+2)")
        'camera-aware Jaccard on csls'
    """
    return " | ".join(dict.fromkeys(re.sub(r" \([^()]*\)", "", stamp).split(" | ")))


def mean_report(reports: Sequence[Report], variant: Mapping[str, str]) -> Report:
    """Average ``reports`` of the same protocol on different splits of the data, such as ten trials.

    Args:
        reports: Reports with the same categories and directions.
        variant: The variant of the protocol to state in the mean.

    Returns:
        A report whose scores are the means of the splits; queries and counts add up. A re-ranking that some splits
        declined has no mean, and a note says so.

    Raises:
        DataError: The reports do not have the same results.
    """
    first = reports[0]
    tables = [{_key(result): result for result in report.results} for report in reports]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    partial = [key for key in dict.fromkeys(key for table in tables for key in table) if key not in set(shared)]
    if not all(key[-1] for key in partial):
        raise DataError(f"{first.protocol}: the splits do not have the same results; their mean means nothing")
    results = [_mean_result([table[key] for table in tables]) for key in shared]
    fingerprints = dict.fromkeys(report.fingerprint for report in reports)
    notes = tuple(note for report in reports for note in report.notes)
    notes += tuple(f"{key[0]} {key[1]}: {key[-1]} has no mean, because some splits declined it" for key in partial)
    joined = ", ".join(fingerprints)
    return replace(first, fingerprint=joined, results=tuple(results), notes=notes, variant=dict(variant))


def _key(result: Result) -> tuple[str, str, str, str]:
    return result.category, result.direction, result.corruption + result.score_norm, result.reranking_method


def _mean_result(results: Sequence[Result]) -> Result:
    """Average one result over the splits."""
    return replace(
        results[0],
        metrics=mean_of_splits([result.metrics for result in results]),
        unmatched=tuple(sample for result in results for sample in result.unmatched),
        trials=tuple(result.metrics for result in results),
        identification=(),
        left_out=sum(result.left_out for result in results),
        query_samples=tuple(sample for result in results for sample in result.query_samples),
        reranking=" | ".join(dict.fromkeys(result.reranking for result in results)),
    )


def mean_of_galleries(trials: Sequence[Metrics]) -> Metrics:
    """Average trials of the same queries against different galleries.

    The values of a query are means over the trials in which it has a right answer; ``first_match`` is the middle rank
    (the lower of two).
    """
    if len(trials) == 1:
        return trials[0]
    ranks = np.stack([trial.first_match for trial in trials]).astype(np.float64)  # (T, Q)
    ranks[ranks == 0] = np.nan
    middle = _average_queries(ranks, lambda values: np.nanquantile(values, 0.5, axis=0, method="lower"))
    first = np.nan_to_num(middle).astype(np.int64)
    return replace(
        _average_scores(trials),
        queries_without_match=int(np.count_nonzero(first == 0)),
        average_precision=_average_queries([trial.average_precision for trial in trials]),
        inverse_negative_penalty=_average_queries([trial.inverse_negative_penalty for trial in trials]),
        rank1=_average_queries([trial.rank1 for trial in trials]),
        first_match=first,
    )


def mean_of_splits(trials: Sequence[Metrics]) -> Metrics:
    """Average trials of different queries: scores are means of the trials, queries and counts add up."""
    return replace(
        _average_scores(trials),
        queries=sum(trial.queries for trial in trials),
        queries_without_match=sum(trial.queries_without_match for trial in trials),
        gallery=sum(trial.gallery for trial in trials),
        average_precision=np.concatenate([trial.average_precision for trial in trials]),
        inverse_negative_penalty=np.concatenate([trial.inverse_negative_penalty for trial in trials]),
        rank1=np.concatenate([trial.rank1 for trial in trials]),
        first_match=np.concatenate([trial.first_match for trial in trials]),
    )


def _average_scores(trials: Sequence[Metrics]) -> Metrics:
    return replace(
        trials[0],
        mAP=float(np.mean([trial.mAP for trial in trials])),
        mINP=float(np.mean([trial.mINP for trial in trials])),
        cmc=np.mean([trial.cmc for trial in trials], axis=0),
        r_precision=float(np.mean([trial.r_precision for trial in trials])),
        map_at_r=float(np.mean([trial.map_at_r for trial in trials])),
    )


def _average_queries(
    values: Sequence[Float64Array] | Float64Array, average: Callable[[Float64Array], Float64Array] | None = None
) -> Float64Array:
    """Average each query (Q,) over the trials (T, Q), by the mean or ``average``; NaN where every trial has NaN."""
    table = np.stack(list(values))
    known = ~np.isnan(table).all(axis=0)
    result = np.full(table.shape[1], np.nan)
    result[known] = (average or (lambda rows: np.nanmean(rows, axis=0)))(table[:, known])
    return result
