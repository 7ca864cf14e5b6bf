"""Choose without labels how the cameras are normalized: by statistics, by centering, by scores, or not at all.

The criterion is the share of mutual nearest neighbours across cameras: a crop of one camera and a crop of another are
mutual neighbours when each is the nearest of its camera to the other.  Where cameras are comparable, many crops have
one; where a camera adds something of its own to every embedding, few have.  The vectors that are compared must not come
from statistics or centers of the same crops (:mod:`reid.retrieval.camera_normalization` measures them on one half of
the crops and compares the other half), because statistics flatter the crops that they were measured on.

A choice is kept only where it is better than doing nothing by more than its error.  Of the choices that are not worse
than the best by more than their error, the one with the fewest levels is taken, and centering before statistics,
because it changes less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from reid.errors import ConfigError
from reid.records import FloatArray, IntArray

Float64Array = npt.NDArray[np.float64]
NameArray = npt.NDArray[np.str_]

AUTO = "auto"
NONE = "none"
STATISTICS, CENTERING = "statistics", "centering"
SCORE_LEVELS = ("csls", "snorm")
CERTAIN = 2.0  # standard errors by which a choice has to be better than doing nothing
SIMILAR = 1.0  # standard errors within which the choice with fewer levels is taken
LEAST_GAIN = 0.01  # of the share; less is not worth another network
ROWS_AT_ONCE = 512


@dataclass(frozen=True, order=True)
class CameraLevels:
    """The levels at which a camera is normalized.

    Args:
        statistics: Whether its activations are normalized with statistics of its own.
        centering: Whether its embeddings are centered.

    Example:
        >>> str(CameraLevels(True, True)), str(CameraLevels())
        ('statistics+centering', 'none')
    """

    statistics: bool = False
    centering: bool = False

    def __str__(self) -> str:
        names = [name for name in (STATISTICS, CENTERING) if getattr(self, name)]
        return "+".join(names) or NONE

    @property
    def count(self) -> int:
        """How many levels are used."""
        return self.statistics + self.centering


AS_IT_IS = CameraLevels()


@dataclass(frozen=True)
class NormalizationRequest:
    """What a user asks for: levels by name, or "auto".

    Args:
        is_auto: Whether the levels are chosen from the crops.
        levels: The levels of every camera, where they are given.
        score_norm: The normalization of scores, where it is given; "" leaves it open.
    """

    is_auto: bool
    levels: CameraLevels = AS_IT_IS
    score_norm: str = ""


def parse_normalization(text: str) -> NormalizationRequest:
    """Read the value of ``--normalize``.

    Args:
        text: "auto", "none", or levels joined by "+": statistics, centering, and one of csls and snorm.

    Raises:
        ConfigError: A level is unknown, named twice, or both normalizations of scores are named.

    Example:
        >>> parse_normalization("statistics+csls")
        NormalizationRequest(is_auto=False, levels=CameraLevels(statistics=True, centering=False), score_norm='csls')
    """
    if text in (AUTO, NONE):
        return NormalizationRequest(text == AUTO, score_norm=NONE if text == NONE else "")
    names = text.split("+")
    known = (STATISTICS, CENTERING, *SCORE_LEVELS)
    scores = [name for name in names if name in SCORE_LEVELS]
    if not set(names) <= set(known) or len(set(names)) != len(names) or len(scores) > 1:
        raise ConfigError(
            f'--normalize "{text}": expected auto, none, or levels joined by "+", such as statistics+centering+csls;'
            f" known levels: {', '.join(known)}, of csls and snorm only one"
        )
    levels = CameraLevels(STATISTICS in names, CENTERING in names)
    return NormalizationRequest(False, levels, scores[0] if scores else "")


@dataclass(frozen=True, eq=False)
class CandidateVectors:
    """Vectors of the same crops, normalized in different ways.

    Args:
        cameras: (N,) the camera of each crop, with its category where that is part of the domain.
        groups: (N,) int64; crops of one group may show the same object and do not count as independent.
        vectors: (N, D) float32 of unit length for each choice of levels, the network as it is among them.
    """

    cameras: NameArray
    groups: IntArray
    vectors: Mapping[CameraLevels, FloatArray]

    def mixed(self, levels: Mapping[str, CameraLevels]) -> FloatArray:
        """Return vectors (N, D) that are normalized by other levels in each camera."""
        found = np.empty_like(self.vectors[AS_IT_IS])
        for camera, level in levels.items():
            rows = self.cameras == camera
            found[rows] = self.vectors[level][rows]
        return found


@dataclass(frozen=True)
class Candidate:
    """One choice of levels for all cameras, and what it promises.

    Attributes:
        levels: The levels.
        share: The share of crops with a mutual nearest neighbour in another camera, the mean over the other cameras.
        gain: The share minus that of the network as it is.
        error: The standard error of the gain.
    """

    levels: CameraLevels
    share: float
    gain: float
    error: float


@dataclass(frozen=True)
class LevelsChoice:
    """What is chosen, and why.

    Attributes:
        levels: The levels of each camera.
        candidates: What each choice for all cameras promises, the network as it is first.
        share: The share with the chosen levels.
        reason: Why, in one line.
    """

    levels: Mapping[str, CameraLevels]
    candidates: tuple[Candidate, ...]
    share: float
    reason: str


def mutual_neighbours(vectors: FloatArray, cameras: NameArray, pairs: Sequence[tuple[str, str]]) -> Float64Array:
    """Find for each crop the share of other cameras in which it has a mutual nearest neighbour.

    Args:
        vectors: (N, D) float32 of unit length.
        cameras: (N,) the camera of each crop.
        pairs: The pairs of cameras that are compared.

    Returns:
        (N,) in 0..1; NaN for crops of a camera that is in no pair.

    Example:
        >>> vectors = np.float32([[1, 0], [0, 1], [1, 0], [0.8, 0.6]])
        >>> mutual_neighbours(vectors, np.array(["a", "a", "b", "b"]), [("a", "b")]).tolist()
        [1.0, 0.0, 1.0, 0.0]
    """
    rows_of = {name: np.flatnonzero(cameras == name) for name in {name for pair in pairs for name in pair}}
    found, compared = np.zeros(len(cameras)), np.zeros(len(cameras))
    for one, other in pairs:
        first, second = rows_of[one], rows_of[other]
        nearest, back = nearest_both_ways(vectors[first], vectors[second])
        found[first] += back[nearest] == np.arange(len(first))
        found[second] += nearest[back] == np.arange(len(second))
        compared[first] += 1
        compared[second] += 1
    with np.errstate(invalid="ignore"):
        share: Float64Array = found / compared
    return share


def nearest_both_ways(first: FloatArray, second: FloatArray) -> tuple[IntArray, IntArray]:
    """Return for each row of the first (A, D) the most similar one of the second (A,), and the reverse (B,).

    A block of scores is held at a time; of equal ones, the lower row counts.
    """
    there = np.empty(len(first), np.int64)
    back, best = np.zeros(len(second), np.int64), np.full(len(second), -np.inf, np.float32)
    for start in range(0, len(first), ROWS_AT_ONCE):
        scores = first[start : start + ROWS_AT_ONCE] @ second.T
        there[start : start + ROWS_AT_ONCE] = scores.argmax(1)
        highest = scores.max(0)
        better = highest > best
        back[better] = scores.argmax(0)[better] + start
        best[better] = highest[better]
    return there, back


def camera_pairs(cameras: Sequence[str], most: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return all pairs of cameras that can be compared, or so many of them that every camera is in some.

    Cameras whose names differ in the category, as in "person/door" and "vehicle/door", are not compared.

    Args:
        cameras: The names.
        most: The most pairs.
        seed: Decides which pairs are taken where there are more.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(cameras):
        groups.setdefault(name.rpartition("/")[0], []).append(name)
    pairs = [pair for names in groups.values() for pair in combinations(names, 2)]
    if len(pairs) <= most:
        return pairs
    ring = [(names[i - 1], name) for names in groups.values() if len(names) > 1 for i, name in enumerate(names)]
    chosen = np.random.default_rng(seed).permutation(len(pairs))[: max(0, most - len(ring))]
    return sorted({*(tuple(sorted(pair)) for pair in ring), *(pairs[i] for i in chosen)})


def choose_levels(
    candidates: CandidateVectors, pairs: Sequence[tuple[str, str]], *, each_camera: bool = True
) -> LevelsChoice:
    """Choose the levels of each camera by mutual nearest neighbours.

    Args:
        candidates: The vectors of the crops by each choice of levels.
        pairs: The pairs of cameras to compare.
        each_camera: Whether a camera may have other levels than the rest.

    Returns:
        The choice; the network as it is where nothing is certainly better.
    """
    shares = {
        levels: mutual_neighbours(vectors, candidates.cameras, pairs) for levels, vectors in candidates.vectors.items()
    }
    before = shares[AS_IT_IS]
    tried = [_candidate(levels, share, before, candidates.groups) for levels, share in sorted(shares.items())]
    best = max(tried, key=lambda one: one.share)
    similar = [
        one
        for one in tried
        if best.share - one.share <= SIMILAR * _error(shares[best.levels] - shares[one.levels], candidates.groups)
    ]
    chosen = min(similar, key=lambda one: (one.levels.count, one.levels.statistics, -one.share))
    if chosen.gain < max(LEAST_GAIN, CERTAIN * chosen.error):
        chosen = next(one for one in tried if one.levels == AS_IT_IS)
    levels = dict.fromkeys(sorted({name for pair in pairs for name in pair}), chosen.levels)
    choice = LevelsChoice(levels, tuple(tried), chosen.share, _reason(chosen, best))
    return _choose_each_camera(candidates, pairs, choice) if each_camera and len(levels) > 2 else choice


def _candidate(levels: CameraLevels, share: Float64Array, before: Float64Array, groups: IntArray) -> Candidate:
    gain = share - before
    return Candidate(levels, float(np.nanmean(share)), float(np.nanmean(gain)), _error(gain, groups))


def _choose_each_camera(
    candidates: CandidateVectors, pairs: Sequence[tuple[str, str]], choice: LevelsChoice
) -> LevelsChoice:
    """Change the levels of one camera after the other where its crops then have certainly more mutual neighbours."""
    levels = dict(choice.levels)
    certain = CERTAIN + np.log10(len(levels))  # the more cameras, the more chances to be wrong
    for camera in sorted(levels):
        own_pairs = [pair for pair in pairs if camera in pair]
        present = mutual_neighbours(candidates.mixed(levels), candidates.cameras, own_pairs)
        found = []
        for other in candidates.vectors:
            if other == levels[camera]:
                continue
            share = mutual_neighbours(candidates.mixed({**levels, camera: other}), candidates.cameras, own_pairs)
            found.append(_candidate(other, share, present, candidates.groups))
        best = max(found, key=lambda one: one.gain)
        if best.gain > max(LEAST_GAIN, certain * best.error):
            levels[camera] = best.levels
    if levels == dict(choice.levels):
        return choice
    together = float(np.nanmean(mutual_neighbours(candidates.mixed(levels), candidates.cameras, pairs)))
    others = ", ".join(f"{name} by {level}" for name, level in levels.items() if level != choice.levels[name])
    return replace(choice, levels=levels, share=together, reason=f"{choice.reason}; {others}, which helps it more")


def _error(differences: Float64Array, groups: IntArray) -> float:
    """Return the standard error of a mean of values (N,) of which those of one group are not independent."""
    valid = ~np.isnan(differences)
    values, members = differences[valid], groups[valid]
    if len(values) < 2:
        return float("inf")
    _, index = np.unique(members, return_inverse=True)
    sums = np.bincount(index.reshape(-1), values - values.mean())
    count = len(sums)
    return float(np.sqrt((sums**2).sum() * count / max(count - 1, 1)) / len(values))


def _reason(chosen: Candidate, best: Candidate) -> str:
    if chosen.levels == AS_IT_IS:
        return (
            f"no level is certainly better: the best, {best.levels}, has {100 * best.share:.1f} % mutual neighbours,"
            f" {100 * best.gain:+.1f} points with an error of {100 * best.error:.1f}"
        )
    text = (
        f"{100 * chosen.share:.1f} % of crops have a mutual neighbour in another camera, {100 * chosen.gain:+.1f}"
        f" points with an error of {100 * chosen.error:.1f}"
    )
    return text if chosen == best else f"{text}; {best.levels} has {100 * best.share:.1f} %, not certainly more"
