"""Evaluate one data set with one network: the report, its details, and the columns with corrupted images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from reid.data.loading import ImageChange
from reid.data.protocols.data_sets import DataSet
from reid.evaluation.analysis.details import Details, details_of
from reid.evaluation.corruption_benchmark import CorruptionBenchmark
from reid.evaluation.results import Report
from reid.evaluation.run import evaluate
from reid.evaluation.trial_scores import Reranking
from reid.models.checkpoint import Checkpoint
from reid.models.provenance import provenance_of
from reid.records import Embeddings
from reid.retrieval.camera_normalization import cohort_rows_of


def evaluate_data_set(
    data: DataSet,
    checkpoint: Checkpoint,
    embed: Callable[[ImageChange | None, str], Embeddings],
    *,
    reranking: Reranking | None = None,
    memory: int | None = None,
    query_examples: int | None = None,
    score_norm: str = "",
    corruption: CorruptionBenchmark | None = None,
) -> Details:
    """Evaluate one data set.

    Args:
        data: The data set.
        checkpoint: The network that ``embed`` uses, which is stated in the report.
        embed: Embeds the samples of the data set that are evaluated; is given what changes every image before it is
            resized, None for images as they are, and a title.
        reranking: Adds a result with this re-ranking to each.
        memory: The most bytes of scores held at a time.
        query_examples: How many of the best and of the worst queries to show; None computes scores only.
        score_norm: "csls" or "snorm" adds results; "" does what the profiles of the network recommend.
        corruption: Adds results with corrupted images.

    Returns:
        The report and its details; the details are those of the images as they are.
    """

    def score(embeddings: Embeddings) -> Report:
        return evaluate(
            embeddings,
            protocol=data.name,
            scoring=data.scoring,
            provenance=provenance_of(checkpoint),
            reranking=reranking,
            score_norm=score_norm or checkpoint.score_norm or "none",
            cohort=cohort_rows_of(checkpoint),
            memory=memory,
        )

    if corruption is not None:
        corruption.roles(data.scoring.rule.ignore == "itself")  # before the images are embedded
    clean = embed(None, "embedding")
    report = score(clean)
    details = Details(report)
    if query_examples is not None:
        details = details_of(report, clean, data.scoring, query_examples=query_examples, memory=memory)
    if corruption is None:
        return details
    report, maps = corruption.add_to(report, clean, embed, score)
    return replace(details, report=report, corruptions=maps)
