"""What an attack does to a search: embeddings that move, neighbours that change, and scores before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from reid.errors import DataError
from reid.evaluation.run import evaluate
from reid.models.checkpoint import Checkpoint
from reid.records import Embeddings, IntArray, Sample, Split

Embed = Callable[[Checkpoint, Sequence[Sample], str], Embeddings]
"""Called with a network, samples and a title; returns their embeddings in the same order."""


@dataclass(frozen=True)
class DirectionScores:
    """The scores of the queries of one category and direction, fractions in 0..1."""

    category: str
    direction: str
    queries: int
    clean_rank1: float
    clean_mAP: float  # noqa: N815
    attacked_rank1: float
    attacked_mAP: float  # noqa: N815


@dataclass(frozen=True)
class AttackScores:
    """What an attack does in one network.

    Attributes:
        weights: The file of the network.
        role: "white box" for the network that was attacked, "transfer" for another one.
        queries: How many queries were attacked.
        cosine: The mean cosine between the embeddings of the clean and of the attacked image.
        changed: The share (0..1) of the queries whose most similar crop is another one than before.
        results: One for each category and direction that can be scored; () without labels.
    """

    weights: str
    role: str
    queries: int
    cosine: float
    changed: float
    results: tuple[DirectionScores, ...]

    def to_json(self) -> dict[str, object]:
        """Return values that JSON can hold."""
        return {**asdict(self), "results": [asdict(result) for result in self.results]}

    def lines(self) -> list[str]:
        """Describe the scores, a line for each direction."""
        head = (
            f"{self.role}\t{self.weights}\t{self.queries} queries\tcosine to clean {self.cosine:.3f}"
            f"\tother nearest crop {100 * self.changed:.1f} %"
        )
        return [
            head,
            *(
                f"{self.role}\t{one.category} {one.direction}\trank-1 {100 * one.clean_rank1:.1f} -> "
                f"{100 * one.attacked_rank1:.1f}\tmAP {100 * one.clean_mAP:.1f} -> {100 * one.attacked_mAP:.1f}"
                for one in self.results
            ),
        ]


def queries_and_gallery(samples: Sequence[Sample]) -> tuple[list[int], list[int]]:
    """Find the rows to attack and those to search: the splits; without queries every row not for training is both.

    Raises:
        DataError: There is nothing to attack.

    Example:
        >>> from pathlib import Path
        >>> rows = [Sample(Path("1.jpg"), split="query"), Sample(Path("2.jpg")), Sample(Path("3.jpg"), split="train")]
        >>> queries_and_gallery(rows), queries_and_gallery(rows[1:])
        (([0], [1]), ([0], [0]))
    """
    queries = [row for row, sample in enumerate(samples) if sample.split is Split.QUERY]
    gallery = [row for row, sample in enumerate(samples) if sample.split is Split.GALLERY]
    if not queries:
        queries = gallery
    if not queries:
        raise DataError("attack: the data has no row of split query or gallery, so there is nothing to attack")
    return queries, gallery


def score_attack(
    checkpoint: Checkpoint,
    clean: Sequence[Sample],
    attacked: Sequence[Sample],
    gallery: Sequence[Sample],
    embed: Embed,
    role: str = "white box",
) -> AttackScores:
    """Embed queries before and after an attack, and search the gallery with both.

    Labels count as :func:`reid.evaluation.evaluate` counts them.  Where the queries are the gallery itself, or have no
    labels, only what needs no labels is measured.

    Args:
        checkpoint: The network.
        clean: The Q queries.
        attacked: The same with the files of the attacked images.
        gallery: The crops that are searched.
        embed: Computes embeddings.
        role: What the network is to the attack.

    Returns:
        The scores.
    """
    before = embed(checkpoint, clean, "embedding clean queries")
    after = embed(checkpoint, attacked, "embedding attacked queries")
    crops = embed(checkpoint, gallery, "embedding the gallery") if gallery else before
    cosine = float((before.vectors * after.vectors).sum(1).mean())
    changed = float((_nearest(before, clean, crops) != _nearest(after, clean, crops)).mean())
    has_splits = all(sample.split is Split.QUERY for sample in clean)
    results = _results(before, after, crops) if has_splits else ()
    return AttackScores(checkpoint.source, role, len(clean), cosine, changed, results)


def _nearest(queries: Embeddings, clean: Sequence[Sample], gallery: Embeddings) -> IntArray:
    """The row of the most similar crop that is another file than the query; -1 where there is none."""
    rows_of: dict[object, list[int]] = {}
    for row, sample in enumerate(gallery.samples):
        rows_of.setdefault(sample.path, []).append(row)
    found = np.full(len(queries), -1, np.int64)
    for number, (sample, vector) in enumerate(zip(clean, queries.vectors, strict=True)):
        scores = gallery.vectors @ vector
        scores[rows_of.get(sample.path, [])] = -np.inf
        if np.isfinite(scores).any():
            found[number] = int(scores.argmax())
    return found


def _results(before: Embeddings, after: Embeddings, gallery: Embeddings) -> tuple[DirectionScores, ...]:
    try:
        clean, attacked = (evaluate(_joined(queries, before.samples, gallery)) for queries in (before, after))
    except DataError:  # no query with a right answer
        return ()
    return tuple(
        DirectionScores(
            one.category,
            one.direction,
            len(one.query_samples),
            one.metrics.rank(1),
            one.metrics.mAP,
            other.metrics.rank(1),
            other.metrics.mAP,
        )
        for one, other in zip(clean.results, attacked.results, strict=True)
    )


def _joined(queries: Embeddings, labels: Sequence[Sample], gallery: Embeddings) -> Embeddings:
    """The vectors of the queries under the paths of the clean images, beside the gallery."""
    vectors = np.concatenate([queries.vectors, gallery.vectors])
    return Embeddings((*labels, *gallery.samples), vectors, queries.fingerprint)
