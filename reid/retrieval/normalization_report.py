"""What was chosen for the cameras of a site, why, and what the alternatives promised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reid.retrieval.cohorts import FEWEST
from reid.retrieval.normalization_choice import Candidate

SCORE_NORM = "csls"  # the method that docs/scores.md recommends
SHARE_WITH_COHORT = 0.5  # of the crops that must be of cameras with enough crops for a cohort


@dataclass(frozen=True)
class CameraChoice:
    """The levels of one camera, such as "statistics+centering", and how many crops it has."""

    camera: str
    crops: int
    levels: str


@dataclass(frozen=True)
class NormalizationReport:
    """What was chosen.

    Attributes:
        cameras: The levels of each camera.
        candidates: What each choice for all cameras promised; () where the levels were given.
        share: The share of crops with a mutual neighbour in another camera, with the chosen levels; NaN where it was
            not measured.
        reason: Why these levels, in one line.
        score_norm: The normalization of scores: "csls", "snorm", "none", or "" where it is left open.
        score_reason: Why this normalization of scores.
    """

    cameras: tuple[CameraChoice, ...]
    candidates: tuple[Candidate, ...]
    share: float
    reason: str
    score_norm: str
    score_reason: str

    def summary(self) -> str:
        """Return the choice and the reason in one line."""
        levels = sorted({camera.levels for camera in self.cameras})
        return f"auto: {' and '.join(levels)}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; shares are fractions in 0..1, null where they were not measured."""
        return {
            "cameras": [asdict(camera) for camera in self.cameras],
            "candidates": [{**asdict(one), "levels": str(one.levels)} for one in self.candidates],
            "mutual_neighbours": None if math.isnan(self.share) else self.share,
            "reason": self.reason,
            "score_norm": self.score_norm,
            "score_reason": self.score_reason,
        }

    def camera_lines(self) -> list[str]:
        """Return one line for each camera: its name, its number of crops, its levels."""
        return [f"{camera.camera}\t{camera.crops} images\t{camera.levels}" for camera in self.cameras]

    def lines(self) -> list[str]:
        """Return the report as lines of text, the cameras first."""
        lines = [*self.camera_lines(), f"levels: {self.reason}"]
        lines += [
            f"  {one.levels}: {100 * one.share:.1f} % mutual neighbours, {100 * one.gain:+.1f} points"
            f" (error {100 * one.error:.1f})"
            for one in self.candidates
        ]
        if self.score_reason:
            lines.append(f"scores: {self.score_norm or 'left open'}: {self.score_reason}")
        return lines


def choose_score_norm(crops: Mapping[str, int]) -> tuple[str, str]:
    """Choose the normalization of scores by the number of crops of each camera.

    Mutual neighbours cannot decide this: normalizing scores makes neighbours mutual whether it helps or not.

    Args:
        crops: The number of crops of each camera.

    Returns:
        "csls", or "" to leave it open, and the reason.

    Example:
        >>> choose_score_norm({"door": 100, "yard": 90})[0], choose_score_norm({"door": 100})[0]
        ('csls', '')
    """
    enough = sum(count for count in crops.values() if count >= FEWEST)
    total = sum(crops.values())
    if len(crops) < 2:
        return "", "one camera has no other to be compared with"
    if enough < SHARE_WITH_COHORT * total:
        return "", f"most cameras have fewer than {FEWEST} crops, too few for a cohort"
    return SCORE_NORM, f"the cameras have {FEWEST} crops or more, enough for a cohort"
