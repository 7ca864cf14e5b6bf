"""Repair the profile of a camera that has drifted: dirt on the lens, another exposure, another season.

Every cure is tried on the new crops of the camera and judged by the criterion of ``--normalize auto``, the share of
mutual nearest neighbours between this camera and the others (:mod:`reid.retrieval.normalization_choice`).  A cure is
measured on one half of the camera's crops and judged on the other.  The proposal is the cheapest cure that is not worse
than the best by more than its error, and certainly better than doing nothing.  Nothing here reads identities.

Centers are measured again only where the other cameras are centered too.  If one camera alone is centered, its crops
move away from those of all others, so people of the same camera outrank the right answers, which a criterion across
cameras does not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from reid.data.loading import Progress
from reid.errors import DataError, unknown_name
from reid.models.calibration import calibrate_checkpoint, can_be_calibrated, replace_domains
from reid.models.checkpoint import Checkpoint
from reid.norm import Profiles
from reid.norm.site_cohort import SiteCohort, join_cohorts
from reid.records import FloatArray, Sample, domain_of
from reid.retrieval.camera_normalization import MOST_OF_COHORT, group_crops
from reid.retrieval.cohort_rows import cohort_camera
from reid.retrieval.embed import embed
from reid.retrieval.normalization_candidates import FEWEST, HALVES, ComparedCrops, crops_outside_half, draw_compared
from reid.retrieval.normalization_choice import (
    CERTAIN,
    LEAST_GAIN,
    SIMILAR,
    CameraLevels,
    error_of_mean,
    mutual_neighbours,
)

NOTHING = "nothing"
PRIOR = 16.0  # images that the statistics of before count as (Schneider et al., NeurIPS 2020)


@dataclass(frozen=True)
class Cure:
    """What is measured again: the statistics of the camera, toward those of before by ``prior``, and its center."""

    statistics: bool = False
    prior: float = 0.0
    centering: bool = False


CURES = {  # the cheapest first: what changes less of the network, and needs fewer crops
    NOTHING: Cure(),
    "centering": Cure(centering=True),
    "statistics with prior": Cure(statistics=True, prior=PRIOR),
    "statistics": Cure(statistics=True),
    "statistics+centering": Cure(statistics=True, centering=True),
}


@dataclass(frozen=True)
class TriedCure:
    """A cure and what it promises.

    Attributes:
        name: A key of ``CURES``.
        share: The share of crops with a mutual nearest neighbour, over the pairs of this camera with another.
        gain: The share minus that of doing nothing.
        error: The standard error of the gain.
    """

    name: str
    share: float
    gain: float
    error: float


@dataclass(frozen=True, eq=False)
class CameraRepair:
    """What is proposed for a camera, why, and the profiles with it.

    ``crops`` counts the new crops of the camera, ``others`` names the cameras that it was compared with.
    """

    camera: str
    crops: int
    others: tuple[str, ...]
    cure: str
    tried: tuple[TriedCure, ...]
    profiles: Profiles

    def lines(self) -> list[str]:
        """Describe the proposal for a person."""
        best = next(one for one in self.tried if one.name == self.cure)
        shown = [
            f"  {one.name}\t{100 * one.share:.1f} %\t{100 * one.gain:+.1f} points, error {100 * one.error:.1f}"
            for one in self.tried
        ]
        verdict = (
            f"{self.camera}: no cure is certainly better; its profile stays as it is"
            if self.cure == NOTHING
            else f"{self.camera}: {self.cure}: {100 * best.share:.1f} % of crops have a mutual neighbour in another"
            f" camera, {100 * best.gain:+.1f} points"
        )
        return [f"{self.camera}: {self.crops} crops, compared with {', '.join(self.others)}", *shown, verdict]

    def to_json(self) -> dict[str, Any]:
        """Return values that JSON can hold."""
        tried = [asdict(one) for one in self.tried]
        return {"camera": self.camera, "crops": self.crops, "others": list(self.others), "cure": self.cure,
                "tried": tried}  # fmt: skip


def repair_camera(
    checkpoint: Checkpoint,
    profiles: Profiles,
    samples: Sequence[Sample],
    camera: str,
    *,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> CameraRepair:
    """Propose the cheapest sufficient cure for a camera that has drifted.

    Args:
        checkpoint: The network.
        profiles: Its profiles, which know the camera.
        samples: Unlabelled crops: new ones of the camera, and crops of other cameras that have not drifted.
        camera: The name of the camera in ``profiles``.
        workers: Threads that decode images.
        seed: Decides which crops are compared, and the order of the images.
        progress: Is called with the number of images done; :func:`count_repair_images` says how many there are.

    Returns:
        The proposal, with profiles in which only this camera has changed.

    Raises:
        DataError: The camera is unknown to the profiles, or it or all others have too few crops.
        WeightsError: The profiles do not belong to the network.
    """
    if camera not in profiles.domains:
        raise DataError(unknown_name("camera of the profiles", camera, profiles.domains))
    known = [sample for sample in samples if domain_of(sample, profiles.domain_fields) in profiles.domains]
    crops = group_crops(known, profiles.domain_fields, 1) if known else {}
    compared = draw_compared(crops, seed)
    pairs = [pair for pair in compared.pairs if camera in pair]
    if not pairs:
        counts = ", ".join(f"{name} ({len(rows)})" for name, rows in crops.items()) or "none"
        raise DataError(
            f"{camera}: expected {FEWEST} crops of it and of another camera of the profiles, got {counts}; collect more"
        )
    network = replace(checkpoint, centers=None)
    bench = _Bench(network, profiles, camera, workers, seed, progress)
    tried, shares = [], {}
    for name, vectors in bench.vectors_of_cures(compared).items():
        shares[name] = mutual_neighbours(vectors, compared.cameras, pairs)
        gain = shares[name] - shares[NOTHING]
        error = error_of_mean(gain, compared.groups)
        tried.append(TriedCure(name, float(np.nanmean(shares[name])), float(np.nanmean(gain)), error))
    best = max(tried, key=lambda one: one.share)
    chosen = next(
        one
        for one in tried
        if best.share - one.share <= SIMILAR * error_of_mean(shares[best.name] - shares[one.name], compared.groups)
    )
    is_certain = chosen.gain >= max(LEAST_GAIN, CERTAIN * chosen.error)
    cure = chosen.name if is_certain else NOTHING
    others = tuple(sorted({name for pair in pairs for name in pair} - {camera}))
    repaired = bench.repaired(crops[camera], CURES[cure])
    return CameraRepair(camera, len(crops[camera]), others, cure, tuple(tried), repaired)


def count_repair_images(samples: Sequence[Sample], profiles: Profiles, camera: str) -> int:
    """Return how many images :func:`repair_camera` runs through a network, at the most."""
    own = sum(domain_of(sample, profiles.domain_fields) == camera for sample in samples)
    return len(samples) - own + own * 4 * len(CURES)


@dataclass(frozen=True, eq=False)
class _Bench:
    """Measures and embeds the crops of one camera under each cure."""

    network: Checkpoint
    profiles: Profiles
    camera: str
    workers: int
    seed: int
    progress: Progress | None

    def vectors_of_cures(self, compared: ComparedCrops) -> dict[str, FloatArray]:
        """Embed all drawn crops: those of the camera under each cure, which is measured on their other half."""
        before = self._embed(compared.samples, self.profiles)
        found = {}
        for name, cure in CURES.items():
            if cure.statistics and not (self.profiles.mean and can_be_calibrated(self.network)):
                continue
            if cure.centering and not self._centers_all():
                continue
            found[name] = before if name == NOTHING else before.copy()
            for half in HALVES if name != NOTHING else ():
                rows = np.flatnonzero((compared.cameras == self.camera) & (compared.halves == half))
                if len(rows):
                    measured = self.repaired(crops_outside_half(compared, self.camera, half), cure)
                    found[name][rows] = self._embed([compared.samples[row] for row in rows.tolist()], measured)
        return found

    def _centers_all(self) -> bool:
        """Whether the profiles center every camera."""
        return self.profiles.centers is not None and bool(self.profiles.centers.any(dim=1).all())

    def repaired(self, crops: Sequence[Sample], cure: Cure) -> Profiles:
        """Return the profiles with the cure of the camera, measured on crops of it."""
        if cure == CURES[NOTHING]:
            return self.profiles
        found = self.profiles
        row = found.domains.index(self.camera)
        had_center = found.centers is not None and bool(found.centers[row].any())
        if cure.statistics:
            new = calibrate_checkpoint(
                self.network.with_profiles(found),
                crops,
                domain_fields=found.domain_fields,
                prior=cure.prior,
                prior_from="network",
                workers=self.workers,
                seed=self.seed,
                progress=self.progress,
            )
            found = replace_domains(found, new).select(found.domains)
        is_centered = cure.centering or had_center
        if is_centered:
            found = self._with_center(found, row, crops)
        if found.levels:
            level = str(CameraLevels(bool(found.mean), is_centered))
            found = replace(found, levels=(*found.levels[:row], level, *found.levels[row + 1 :]))
        return self._with_cohort(found, crops)

    def _with_center(self, profiles: Profiles, row: int, crops: Sequence[Sample]) -> Profiles:
        """Measure the center of the camera anew, as the mean of its embeddings without one."""
        centers = None if profiles.centers is None else profiles.centers.clone()
        if centers is not None:
            centers[row] = 0
        vectors = self._embed(crops, replace(profiles, centers=centers))
        if centers is None:
            centers = torch.zeros(len(profiles.domains), vectors.shape[1])
        centers[row] = torch.from_numpy(vectors.mean(axis=0))
        return replace(profiles, centers=centers)

    def _with_cohort(self, profiles: Profiles, crops: Sequence[Sample]) -> Profiles:
        """Embed the camera's crops of the cohort again, where the profiles have one."""
        if profiles.cohort is None:
            return profiles
        drawn = np.sort(np.random.default_rng(self.seed).permutation(len(crops))[:MOST_OF_COHORT])
        kept = [crops[row] for row in drawn.tolist()]
        vectors = torch.from_numpy(self._embed(kept, replace(profiles, cohort=None)))
        own = SiteCohort((self.camera,) * len(kept), tuple(cohort_camera(one) for one in kept), vectors)
        return replace(profiles, cohort=join_cohorts(self.profiles.cohort, own))

    def _embed(self, samples: Sequence[Sample], profiles: Profiles) -> FloatArray:
        network = self.network.with_profiles(profiles)
        return embed(network, samples, workers=self.workers, progress=self.progress).vectors
