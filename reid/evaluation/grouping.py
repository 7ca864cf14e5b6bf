"""How well a grouping of crops into persons agrees with the identities that are known.

Labels are used here only, after the grouping is done.  A crop without a person counts as a person of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.records import IntArray


@dataclass(frozen=True)
class GroupingScores:
    """How well persons agree with identities; shares are in 0..1.

    Attributes:
        crops: Crops whose identity is known; only these count.
        identities: Identities that they show.
        persons: Persons that they were put into.
        undecided: Crops without a person.
        pairwise_precision: Share of the pairs of crops of one person that show one identity.
        pairwise_recall: Share of the pairs of crops of one identity that are in one person.
        pairwise_f1: The harmonic mean of both.
        purity: Share of the crops with a person that show the most frequent identity of their person.
        v_measure: The harmonic mean of homogeneity and completeness (Rosenberg and Hirschberg, EMNLP 2007).
        wrong_merges: Persons that hold crops of several identities.
        split_identities: Identities whose crops are in several persons.
        crops_per_wrong_merge: The cost of a wrong merge: crops of other identities than the most frequent one, that
            somebody has to take out of a wrongly merged person, as a mean.
        pairs_per_wrong_merge: The pairs of crops of different identities in a wrongly merged person, as a mean.
    """

    crops: int
    identities: int
    persons: int
    undecided: int
    pairwise_precision: float
    pairwise_recall: float
    pairwise_f1: float
    purity: float
    v_measure: float
    wrong_merges: int
    split_identities: int
    crops_per_wrong_merge: float
    pairs_per_wrong_merge: float

    def to_json(self) -> dict[str, int | float]:
        """Return the scores as numbers, rounded to six digits."""
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}


def score_grouping(persons: IntArray, identities: Sequence[str] | npt.NDArray[np.generic]) -> GroupingScores | None:
    """Compare persons with identities.

    Args:
        persons: (N,) int64, the person of each crop, 0 for none.
        identities: (N,) the identity of each crop, "" where it is unknown.

    Returns:
        The scores; None where no identity is known.

    Raises:
        DataError: The lengths differ.

    Example:
        >>> scores = score_grouping(np.array([1, 1, 1, 2, 0]), ["anna", "anna", "ben", "ben", "ben"])
        >>> round(scores.pairwise_precision, 3), scores.pairwise_recall, scores.purity, scores.crops_per_wrong_merge
        (0.333, 0.25, 0.75, 1.0)
    """
    names = np.asarray(identities).astype(np.str_)
    if persons.shape != names.shape or persons.ndim != 1:
        raise DataError(f"scores of persons: expected two arrays (N,), got {persons.shape} and {names.shape}")
    known = names != ""
    if not known.any():
        return None
    persons, names = persons[known], names[known]
    decided = persons > 0
    alone = int(persons.max()) + 1 + np.arange(len(persons))
    groups = np.unique(np.where(decided, persons, alone), return_inverse=True)[1]
    truth = np.unique(names, return_inverse=True)[1]
    cells, counts = np.unique(np.stack([groups, truth]), axis=1, return_counts=True)
    sizes, totals = np.bincount(groups), np.bincount(truth)
    right = _pairs(counts)
    precision = right / _pairs(sizes) if _pairs(sizes) else 1.0
    recall = right / _pairs(totals) if _pairs(totals) else 1.0
    largest = np.zeros(len(sizes), np.int64)
    np.maximum.at(largest, cells[0], counts)
    mixed = largest < sizes
    inside = np.zeros(len(sizes), np.int64)
    np.add.at(inside, cells[0], counts * (counts - 1) // 2)
    wrong_pairs = (sizes * (sizes - 1) // 2 - inside)[mixed]
    of_persons = np.unique(groups[decided])
    return GroupingScores(
        crops=len(persons),
        identities=len(totals),
        persons=len(of_persons),
        undecided=int(np.count_nonzero(~decided)),
        pairwise_precision=precision,
        pairwise_recall=recall,
        pairwise_f1=_harmonic_mean(precision, recall),
        purity=float(largest[of_persons].sum() / decided.sum()) if decided.any() else 1.0,
        v_measure=_v_measure(counts, sizes[cells[0]], totals[cells[1]], sizes, totals),
        wrong_merges=int(np.count_nonzero(mixed)),
        split_identities=int(np.count_nonzero(np.bincount(cells[1]) > 1)),
        crops_per_wrong_merge=float((sizes - largest)[mixed].mean()) if mixed.any() else 0.0,
        pairs_per_wrong_merge=float(wrong_pairs.mean()) if mixed.any() else 0.0,
    )


def _pairs(counts: IntArray) -> int:
    return int((counts * (counts - 1) // 2).sum())


def _harmonic_mean(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first + second else 0.0


def _v_measure(
    counts: IntArray, of_person: IntArray, of_identity: IntArray, sizes: IntArray, totals: IntArray
) -> float:
    """Return the V-measure from the counts of all pairs of a person and an identity that occur."""
    crops = int(counts.sum())
    given_person = -float((counts / crops * np.log(counts / of_person)).sum())
    given_identity = -float((counts / crops * np.log(counts / of_identity)).sum())
    persons, identities = _entropy(sizes), _entropy(totals)
    homogeneity = 1 - given_person / identities if identities else 1.0
    completeness = 1 - given_identity / persons if persons else 1.0
    return max(_harmonic_mean(homogeneity, completeness), 0.0)


def _entropy(counts: IntArray) -> float:
    shares = counts / counts.sum()
    return -math.fsum((shares * np.log(shares)).tolist())
