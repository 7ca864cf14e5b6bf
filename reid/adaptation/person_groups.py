"""Group the crops of a gallery into persons, without labels.

Crops that are close together start as one group: density clusters of the camera-aware Jaccard similarity, see
:mod:`reid.adaptation.clusters`.  Where density shows nothing, because each camera shows a person once, every crop
starts by itself.  Then groups are joined along pairs of crops that are each other's nearest in the camera of the other,
as long as the pairs of both groups score, as a mean, at least as high as a false-match rate demands.  The scores are
normalized, and most pairs of crops show different people, so the bulk of the scores tells how those are distributed.

Crops of different categories, or in different light, are never grouped together: their scores say little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from reid.adaptation.clusters import fitting_clusters, share_of_repeats
from reid.adaptation.stop_rule import figures_of, impossibility
from reid.errors import DataError, unknown_name
from reid.records import FloatArray, IntArray
from reid.retrieval.camera_neighbours import neighbours_in_each_camera
from reid.retrieval.centering import centered_by_camera
from reid.retrieval.score_normalization import NormalizedScores, normalize_among

METHODS = ("auto", "density", "mutual")
JOIN_RATE = 1e-3  # false-match rate of the mean score of two groups that are joined
ROUNDS = 5  # of joining, at most
PAIRS_AT_ONCE = 2**22
ROWS_AT_ONCE = 4096
SAMPLED = 256  # crops of a camera, the most whose scores show how those of different people are distributed
LEVELS = tuple(0.5 + 0.02 * step for step in range(21))  # quantiles of these scores that a line goes through
FEWEST_PAIRS = 256  # of crops of two cameras; with fewer, the scores of all cameras are taken
SMALLEST_SPREAD = 1e-6
FEWEST_CROPS = 3  # of a category in one light; fewer form no group


@dataclass(frozen=True)
class GroupFigures:
    """What was found among the crops of one category in one light.

    Attributes:
        group: Its name, such as "person visible".
        crops: Crops of it.
        persons: Groups that were found.
        undecided: Crops in no group.
        method: How they were found.
        reason: Why density was not used, "" where it was.
    """

    group: str
    crops: int
    persons: int
    undecided: int
    method: str
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the figures as numbers and strings."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class PersonGroups:
    """Crops grouped into persons.

    Attributes:
        labels: (N,) int64, the group of each crop from 0, -1 for none.
        figures: What was found in each category and light.
    """

    labels: IntArray
    figures: tuple[GroupFigures, ...]


def group_crops(
    vectors: FloatArray,
    cameras: Sequence[str],
    groups: Sequence[str],
    *,
    method: str = "auto",
    false_match_rate: float = JOIN_RATE,
) -> PersonGroups:
    """Group crops into persons.

    Args:
        vectors: (N, D) float32 of unit length.
        cameras: The camera of each crop; "" where it is unknown.
        groups: The category and light of each crop; crops of different ones are never grouped together.
        method: "density" uses density clusters only, "mutual" joins nearest neighbours only, and "auto" does both.
        false_match_rate: The share of pairs of different people that score as high as the pairs of two groups that are
            joined, above 0 and below 1.

    Returns:
        The groups.

    Raises:
        DataError: The method is unknown, the rate is out of range, or the lengths differ.

    Example:
        >>> random = np.random.default_rng(0)
        >>> people = random.standard_normal((12, 64)).repeat(8, axis=0)
        >>> crops = (people + 0.2 * random.standard_normal((96, 64))).astype(np.float32)
        >>> crops /= np.linalg.norm(crops, axis=1, keepdims=True)
        >>> found = group_crops(crops, ["door", "yard"] * 48, ["person visible"] * 96)
        >>> len(set(found.labels.tolist())), found.labels[:8].tolist()
        (12, [0, 0, 0, 0, 0, 0, 0, 0])
    """
    if method not in METHODS:
        raise DataError(unknown_name("method", method, METHODS))
    if not 0 < false_match_rate < 1:
        raise DataError(f"expected a false-match rate above 0 and below 1, got {false_match_rate:g}")
    if not len(vectors) == len(cameras) == len(groups):
        raise DataError(f"persons: {len(vectors)} vectors, {len(cameras)} cameras and {len(groups)} categories differ")
    labels = np.full(len(vectors), -1, np.int64)
    figures: list[GroupFigures] = []
    names, group_of = np.unique(np.asarray(groups, np.str_), return_inverse=True)
    for group, name in enumerate(names.tolist()):
        rows = np.flatnonzero(group_of == group)
        own = np.unique(np.asarray(cameras, np.str_)[rows], return_inverse=True)
        found, how, reason = _group_together(vectors[rows], own, name, method, false_match_rate)
        first = int(labels.max(initial=-1)) + 1
        labels[rows] = np.where(found >= 0, found + first, -1)
        count = int(found.max(initial=-1)) + 1
        figures.append(GroupFigures(name, len(rows), count, int((found < 0).sum()), how, reason))
    return PersonGroups(labels, tuple(figures))


def _group_together(
    vectors: FloatArray,
    cameras: tuple[npt.NDArray[np.str_], IntArray],
    name: str,
    method: str,
    rate: float,
) -> tuple[IntArray, str, str]:
    """Return the groups (M,) of crops of one category and light, how they were found, and why not by density."""
    camera_names, camera = cameras[0], cameras[1].astype(np.int64)
    singles = np.full(len(vectors), -1, np.int64)
    if len(vectors) < FEWEST_CROPS:
        return singles, "none", f"{len(vectors)} crops are too few, expected at least {FEWEST_CROPS}"
    centered = centered_by_camera(vectors, camera)
    start, reason = singles, ""
    if method != "mutual":
        start, _ = fitting_clusters(centered, camera)
        known = 0 if camera_names.tolist() == [""] else len(camera_names)
        reason = _why_no_density(start, camera, name, known, share_of_repeats(centered, camera))
        start = singles if reason and method == "auto" else start
    if method == "density":
        return _renumbered(start), "density", ""
    joined = join_groups(normalize_among(centered, camera), camera, start, rate)
    return joined, "mutual" if reason or method == "mutual" else "density and mutual", reason


def _why_no_density(labels: IntArray, cameras: IntArray, name: str, known: int, repeated: float) -> str:
    """Say why density shows nothing of some crops; "" where it does.  One camera is no hindrance here."""
    figures = figures_of(labels, cameras, name, repeated)
    return impossibility(figures, max(known, 2) if known else 0)


def join_groups(scores: NormalizedScores, cameras: IntArray, start: IntArray, rate: float) -> IntArray:
    """Join groups of crops along mutual nearest neighbours.

    Args:
        scores: The normalized scores of M crops with each other.
        cameras: (M,) int64, the camera of each crop.
        start: (M,) int64, groups to begin with; a crop of group -1 is by itself.
        rate: The false-match rate that the mean score of two joined groups may have.

    Returns:
        (M,) int64, the group of each crop from 0; -1 for a crop that stays by itself.
    """
    if not scores.is_applied:
        return _renumbered(start)
    level = _Levels(scores, cameras)
    first, second, height = _mutual_pairs(scores, cameras, level)
    wanted = -NormalDist().inv_cdf(rate)
    links = np.flatnonzero((height >= wanted) & (first < second))
    links = links[np.lexsort((second[links], first[links], -height[links]))]
    owner = np.arange(len(cameras))
    members: dict[int, list[int]] = {row: [row] for row in range(len(cameras))}
    for label in range(int(start.max(initial=-1)) + 1):
        rows = np.flatnonzero(start == label).tolist()
        for row in rows[1:]:
            members[rows[0]] += members.pop(row)
            owner[row] = rows[0]
    for _ in range(ROUNDS):
        before = len(members)
        for link in links.tolist():
            one, other = int(owner[first[link]]), int(owner[second[link]])
            if one != other and level.mean(members[one], members[other]) >= wanted:
                owner[members[other]] = one
                members[one] += members.pop(other)
        if len(members) == before:
            break
    sizes = np.bincount(owner, minlength=len(owner))
    return _renumbered(np.where(sizes[owner] > 1, owner, -1).astype(np.int64))


class _Levels:
    """Normalized scores in standard deviations of the scores of different people of the same two cameras."""

    def __init__(self, scores: NormalizedScores, cameras: IntArray) -> None:
        self._scores, self._cameras = scores, cameras
        count = int(cameras.max(initial=-1)) + 1
        some = [_spread_out(np.flatnonzero(cameras == camera)) for camera in range(count)]
        everywhere = _spread_out(np.arange(len(cameras)))
        self._lines = np.empty((count, count, 2))  # centre and deviation
        for one in range(count):
            for other in range(count):
                enough = len(some[one]) * len(some[other]) >= FEWEST_PAIRS
                rows = (some[one], some[other]) if enough else (everywhere, everywhere)
                self._lines[one, other] = self._fit(*rows)

    def _fit(self, first: IntArray, second: IntArray) -> tuple[float, float]:
        """Fit a normal distribution to the scores of different people: a line through the upper half of the bulk."""
        vectors = self._scores.gallery.vectors
        scores = self._scores.normalize(vectors[first] @ vectors[second].T, first, second)
        different = scores[first[:, None] != second[None]]
        normal = [NormalDist().inv_cdf(level) for level in LEVELS]
        slope, intercept = np.polyfit(normal, np.quantile(different, LEVELS), 1)
        return float(intercept), max(float(slope), SMALLEST_SPREAD)

    def of(self, first: IntArray, second: IntArray) -> npt.NDArray[np.float64]:
        """Return the levels (E,) of pairs of crops."""
        lines = self._lines[self._cameras[first], self._cameras[second]]
        scores = self._scores.normalize_pairs(first, second).astype(np.float64)
        return np.asarray((scores - lines[:, 0]) / lines[:, 1])

    def mean(self, one: Sequence[int], other: Sequence[int]) -> float:
        """Return the mean level of all pairs of two groups; of very large groups, of some of their pairs."""
        first, second = (np.array(rows[: int(PAIRS_AT_ONCE**0.5)], np.int64) for rows in (one, other))
        return float(self.of(first.repeat(len(second)), np.tile(second, len(first))).mean())


def _spread_out(rows: IntArray) -> IntArray:
    """Return at most ``SAMPLED`` of some rows, evenly spread over them."""
    chosen: IntArray = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED)).astype(np.int64))]
    return chosen


def _mutual_pairs(
    scores: NormalizedScores, cameras: IntArray, level: _Levels
) -> tuple[IntArray, IntArray, npt.NDArray[np.float64]]:
    """Return the pairs of crops that are each other's nearest in the camera of the other, and their levels."""
    nearest, _ = neighbours_in_each_camera(scores, cameras, 1)
    count, groups = nearest.shape[0], nearest.shape[1]
    first, second = np.repeat(np.arange(count), groups), nearest.reshape(-1)
    first, second = first[second >= 0], second[second >= 0]
    mutual = np.isin(first * count + second, second * count + first)
    first, second = first[mutual], second[mutual]
    return first, second, level.of(first, second)


def _renumbered(labels: IntArray) -> IntArray:
    """Number groups by their first crops."""
    used = labels[labels >= 0]
    _, first, inverse = np.unique(used, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    renumbered = np.full(len(labels), -1, np.int64)
    renumbered[labels >= 0] = rank[inverse]
    return renumbered


def confidence_of(persons: IntArray, vectors: FloatArray, groups: Sequence[str]) -> FloatArray:
    """Say how clearly each crop belongs to its person rather than to the most similar other one.

    The crop is compared with the mean of the other crops of its person and with the means of all other persons.

    Args:
        persons: (N,) int64, the person of each crop, 0 for none.
        vectors: (N, D) float32 of unit length, centered per camera.
        groups: The category and light of each crop; persons of other ones are not compared.

    Returns:
        (N,) float32 in 0..1: own / (own + other) for the two similarities, those below 0 taken as 0.  0.5 means that
        both are alike, 1 that nobody else is similar; 0 for a crop without a person or the only crop of one.

    Example:
        >>> vectors = np.float32([[1, 0], [1, 0], [0, 1], [0, 1]])
        >>> confidence_of(np.array([1, 1, 2, 2]), vectors, ["person"] * 4).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    confidence = np.zeros(len(persons), np.float32)
    names = np.asarray(groups, np.str_)
    for name in np.unique(names):
        rows = np.flatnonzero((names == name) & (persons > 0))
        if not len(rows):
            continue
        owner = np.unique(persons[rows], return_inverse=True)[1]
        sums = np.zeros((int(owner.max()) + 1, vectors.shape[1]))
        np.add.at(sums, owner, vectors[rows])
        means = sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-12)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            points, own = vectors[rows[part]].astype(np.float64), owner[part]
            scores = points @ means.T
            left = sums[own] - points
            mine = np.einsum("nd,nd->n", points, left) / np.linalg.norm(left, axis=1).clip(1e-6)
            scores[np.arange(len(own)), own] = 0
            rival, mine = scores.max(axis=1).clip(0), mine.clip(0)
            confidence[rows[part]] = np.where(mine > 0, mine / (mine + rival).clip(1e-12), 0)
    return confidence
