"""Normalized scores of an evaluation: the cohorts are the crops of each camera among all gallery rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.evaluation.labels import BoolArray
from reid.files import file_keys
from reid.records import Embeddings, IntArray
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.cohorts import CohortStatistics, measure_cohorts, with_other_cameras
from reid.retrieval.score_normalization import NormalizedScores


@dataclass(frozen=True, eq=False)
class EvaluationCohorts:
    """The cohort statistics of the queries and gallery rows of an evaluation; ``position`` (N,) finds a row of it."""

    rows: CohortRows
    cohort: CohortRows
    statistics: CohortStatistics
    position: IntArray

    @classmethod
    def measure(
        cls,
        embeddings: Embeddings,
        queries: BoolArray,
        gallery: BoolArray,
        method: str,
        others: CohortRows | None = None,
    ) -> EvaluationCohorts:
        """Measure the rows that are a query or in the gallery, (N,) bool each, toward the cameras of the gallery.

        ``others`` are crops of cameras of which the gallery has too few.
        """
        used = embeddings.select(queries | gallery)
        keys = file_keys(sample.path for sample in used.samples)
        rows = CohortRows.of_samples(used.samples, used.vectors, keys)
        cohort = with_other_cameras(rows.select(gallery[queries | gallery]), others)
        return cls(rows, cohort, measure_cohorts(rows, cohort, method), np.cumsum(queries | gallery) - 1)

    def scores(self, queries: IntArray, gallery: IntArray) -> NormalizedScores:
        """Return the normalized scores of rows of the embeddings."""
        first, second = (self.position[side] for side in (queries, gallery))
        sides = [self.rows.select(first), self.rows.select(second)]
        statistics = [self.statistics.select(first), self.statistics.select(second)]
        return NormalizedScores(sides[0], sides[1], self.cohort, statistics[0], statistics[1])
