"""The corruption benchmark of re-identification (Chen et al., NeurIPS 2021): a data set scored with corrupted images.

There are four columns: clean images, corrupted queries and gallery, corrupted queries only, and a corrupted gallery
only.  Every image gets one type and one severity by chance, and all is repeated with other draws.  This module knows
embeddings and scores; how an image is corrupted is decided by :mod:`reid.data.corruptions.corruption_types`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from reid.data.corruptions.corruption_types import CORRUPTIONS, SEVERITIES, Corruption, CorruptionPlan
from reid.errors import ConfigError, DataError, unknown_name
from reid.evaluation.ranks import Float64Array
from reid.evaluation.results import Report, Result, mean_of_galleries
from reid.evaluation.run import query_and_gallery_rows
from reid.records import Embeddings, IntArray, Sample

if TYPE_CHECKING:
    from reid.data.loading import ImageChange

BOTH, QUERY, GALLERY, ALL = "both", "query", "gallery", "all"
ROLES = (BOTH, QUERY, GALLERY)

Score = Callable[[Embeddings], Report]
Embed = Callable[["ImageChange | None", str], Embeddings]
"""Called with what changes every image, and a title; embeds the same samples as the clean embeddings."""


@dataclass(frozen=True, eq=False)
class CorruptionMap:
    """The mean average precision of queries by the corruption that each of them got.

    ``names`` are the T types that were drawn.  ``mAP`` (T, 5) float64 has a column for each severity of 1..5 and NaN
    where no query with a right answer got the pair; ``queries`` (T, 5) int64 counts them, over all repeats.
    """

    category: str
    direction: str
    role: str
    names: tuple[str, ...]
    mAP: Float64Array  # noqa: N815
    queries: IntArray


class RecordedPlan:
    """A plan that remembers what each image got."""

    def __init__(self, plan: CorruptionPlan) -> None:
        self.plan = plan
        self.drawn: dict[Path, Corruption] = {}

    def __call__(self, sample: Sample, image: Image.Image) -> Image.Image:
        """Corrupt the image of a sample."""
        self.drawn[sample.path] = self.plan.draw(image, sample.modality)
        return self.plan.apply(sample, image)


@dataclass(frozen=True)
class CorruptionBenchmark:
    """What is corrupted, and how often.

    Args:
        role: "both" (queries and gallery), "query", "gallery", or "all" for these three.
        plan: The types and the severity; repeat i has its seed + i.
        repeats: How often everything is drawn anew, at least 1.

    Raises:
        ConfigError: The role is unknown, or there are no repeats.
    """

    role: str = ALL
    plan: CorruptionPlan = CorruptionPlan()  # noqa: RUF009
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.role not in (*ROLES, ALL):
            raise ConfigError(unknown_name("--corrupt", self.role, (*ROLES, ALL)))
        if self.repeats < 1:
            raise ConfigError(f"corruption: expected at least 1 repeat, got {self.repeats}")

    def roles(self, leave_one_out: bool) -> tuple[str, ...]:
        """Return the columns beside the clean one; where every row is a query and a gallery row, only "both".

        Raises:
            ConfigError: The role cannot be told from the other.
        """
        if not leave_one_out:
            return ROLES if self.role == ALL else (self.role,)
        if self.role not in (BOTH, ALL):
            raise ConfigError(
                f"--corrupt {self.role}: by this protocol every row is a query and a gallery row; pass both"
            )
        return (BOTH,)

    def add_to(
        self, report: Report, clean: Embeddings, embed: Embed, score: Score
    ) -> tuple[Report, tuple[CorruptionMap, ...]]:
        """Add the results with corrupted images to a report.

        Args:
            report: The report of the clean embeddings.
            clean: These embeddings.
            embed: Embeds the same samples with changed images.
            score: Makes the report of other embeddings of the same samples.

        Returns:
            The report with further results beside the clean one of each direction, and the maps of those whose queries
            are corrupted.

        Raises:
            DataError: The corrupted images gave other samples or other results.
        """
        is_query, _ = query_and_gallery_rows(clean.samples, False)
        roles = self.roles(report.settings.get("ignore") == "itself")
        reports: dict[str, list[Report]] = {role: [] for role in roles}
        drawn: list[dict[Path, Corruption]] = []
        for repeat in range(self.repeats):
            change = RecordedPlan(replace(self.plan, seed=self.plan.seed + repeat))
            changed = embed(change, f"embedding corrupted images {repeat + 1}/{self.repeats}")
            if changed.samples != clean.samples:
                raise DataError("corruption: other images could be read than before; run the evaluation again")
            drawn.append(change.drawn)
            for role in roles:
                reports[role].append(score(mix_rows(clean, changed, is_query, role)))
        results = [result for role in roles for result in self._mean_results(role, reports[role])]
        maps = [
            map_corruptions(role, [one.results[i] for one in reports[role]], drawn)
            for role in roles
            if role != GALLERY
            for i, result in enumerate(reports[role][0].results)
            if result.is_plain
        ]
        order = list(dict.fromkeys((result.category, result.direction) for result in report.results))
        together = sorted([*report.results, *results], key=lambda one: order.index((one.category, one.direction)))
        return replace(report, results=tuple(together)), tuple(maps)

    def _mean_results(self, role: str, reports: Sequence[Report]) -> list[Result]:
        if len({tuple((r.category, r.direction, r.change) for r in one.results) for one in reports}) > 1:
            raise DataError("corruption: the repeats do not have the same results; their mean means nothing")
        found = []
        for repeats in zip(*(one.results for one in reports), strict=True):
            trials = tuple(result.metrics for result in repeats)
            found.append(
                replace(
                    repeats[0],
                    metrics=mean_of_galleries(trials),
                    trials=trials,
                    identification=(),
                    corruption=role,
                    corruption_stamp=f"{self.plan.text()}, {self.repeats} repeats",
                )
            )
        return found


def mix_rows(clean: Embeddings, changed: Embeddings, is_query: np.typing.NDArray[np.bool_], role: str) -> Embeddings:
    """Take the vectors of corrupted images for the rows that ``role`` names, and clean ones for the others.

    Args:
        clean: N rows.
        changed: The same rows, all images corrupted.
        is_query: (N,) bool, the rows of split query.
        role: "both", "query" or "gallery"; "gallery" means every row that is no query.

    Example:
        >>> samples = (Sample(Path("1.jpg"), split="query"), Sample(Path("2.jpg")))
        >>> eye = np.eye(2, dtype=np.float32)
        >>> clean, changed = Embeddings(samples, eye, "f00d"), Embeddings(samples, eye[::-1].copy(), "f00d")
        >>> mix_rows(clean, changed, np.array([True, False]), "query").vectors.tolist()
        [[0.0, 1.0], [0.0, 1.0]]
    """
    taken = np.ones(len(clean), np.bool_) if role == BOTH else is_query if role == QUERY else ~is_query
    return replace(clean, vectors=np.where(taken[:, None], changed.vectors, clean.vectors))


def map_corruptions(role: str, repeats: Sequence[Result], drawn: Sequence[dict[Path, Corruption]]) -> CorruptionMap:
    """Average the precision of the queries of a result by what happened to each, over all repeats.

    Args:
        role: What was corrupted beside the queries, for the record.
        repeats: The same result in each repeat.
        drawn: What each image got in each repeat.
    """
    total = {(name, severity): [0.0, 0] for name in CORRUPTIONS for severity in SEVERITIES}
    for result, got in zip(repeats, drawn, strict=True):
        for sample, precision in zip(result.query_samples, result.metrics.average_precision, strict=True):
            corruption = got[sample.path]
            cell = total.get((corruption.name, corruption.severity))
            if cell is not None and not np.isnan(precision):
                cell[0] += float(precision)
                cell[1] += 1
    names = tuple(name for name in CORRUPTIONS if any(one.name == name for got in drawn for one in got.values()))
    queries = np.array([[total[name, s][1] for s in SEVERITIES] for name in names], np.int64).reshape(-1, 5)
    sums = np.array([[total[name, s][0] for s in SEVERITIES] for name in names]).reshape(-1, 5)
    precision = np.divide(sums, queries, out=np.full(sums.shape, np.nan), where=queries > 0)
    return CorruptionMap(repeats[0].category, repeats[0].direction, role, names, precision, queries)
