"""The crops that a network adapts to: their pixels in memory, their cameras and groups, and never an identity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reid.data.loading import Progress, load_crops
from reid.data.transforms import EvaluationTransform
from reid.errors import DataError
from reid.records import IntArray, Sample, domain_of


@dataclass(frozen=True, eq=False)
class SiteCrops:
    """N crops of one or several sites, ready to be embedded and trained on again and again.

    Attributes:
        samples: The records, with an empty identity.
        pixels: (N, 3, H, W) uint8, resized but not normalised.
        domain_fields: The fields of a sample that name its normalization domain; () for a network without domains.
        domains: The names of the domains in the order of their indices.
        domain: (N,) int64, the normalization domain of each crop; all 0 without domains.
        camera_names: The names of the cameras; one empty name where no camera is known.
        cameras: (N,) int64, the camera of each crop, an index into ``camera_names``.
        group_names: The names of the groups that are clustered by themselves, such as "person visible".
        groups: (N,) int64, the group of each crop, an index into ``group_names``.
    """

    samples: tuple[Sample, ...]
    pixels: Tensor
    domain_fields: tuple[str, ...]
    domains: tuple[str, ...]
    domain: Tensor
    camera_names: tuple[str, ...]
    cameras: IntArray
    group_names: tuple[str, ...]
    groups: IntArray

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def has_cameras(self) -> bool:
        """Whether the cameras of the crops are known."""
        return self.camera_names != ("",)

    def cameras_of(self, group: int) -> IntArray:
        """Return the indices of the cameras that a group has crops of, in increasing order."""
        return np.unique(self.cameras[self.groups == group])


def without_identities(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return copies of samples whose identity is empty, so that nothing behind this point can look at one.

    Example:
        >>> without_identities([Sample("1.jpg", identity="anna", camera="door")])[0].identity
        ''
    """
    return tuple(_with(sample, identity="") for sample in samples)


def with_camera(sample: Sample, camera: str) -> Sample:
    """Return a copy of a sample with another name of its camera."""
    return _with(sample, camera=camera)


def _with(sample: Sample, **changes: str) -> Sample:
    names = ("path", "identity", "camera", "modality", "category", "split", "time", "track")
    return Sample(**{**{name: getattr(sample, name) for name in names}, **changes})


def choose_domain_fields(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Choose the fields that name the domains of a network that has none yet.

    Args:
        samples: The crops of the site.

    Returns:
        ("camera",); ("modality", "camera") where one camera records in visible and in infrared light, because the two
        need statistics of their own; () where no camera is known.

    Raises:
        DataError: Some crops name a camera and others do not.

    Example:
        >>> choose_domain_fields([Sample("1.jpg", camera="door"), Sample("2.jpg", camera="door", modality="infrared")])
        ('modality', 'camera')
    """
    unnamed = [sample for sample in samples if not sample.camera]
    if unnamed and len(unnamed) < len(samples):
        raise DataError(
            f"{unnamed[0].path}: the camera is empty, but other crops name theirs; fill in the camera of all"
            f" {len(unnamed):,} such crops, or of none"
        )
    if unnamed:
        return ()
    modalities = defaultdict(set)
    for sample in samples:
        modalities[sample.camera].add(sample.modality)
    return ("modality", "camera") if any(len(found) > 1 for found in modalities.values()) else ("camera",)


def read_site(
    samples: Sequence[Sample],
    transform: EvaluationTransform,
    domain_fields: Sequence[str],
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> SiteCrops:
    """Read the crops of a site into memory.

    Args:
        samples: The crops; their identities are not looked at.
        transform: The image preparation of the network.
        domain_fields: The fields of a sample that name its domain; () for a network without domains.
        workers: Threads that decode ahead.
        progress: Is called with 1 after each image.

    Returns:
        The crops with their domains, cameras and groups.

    Raises:
        DataError: An image cannot be read.
    """
    rows = without_identities(samples)
    return arrange(rows, load_crops(rows, transform, workers=workers, progress=progress), domain_fields)


def arrange(samples: Sequence[Sample], pixels: Tensor, domain_fields: Sequence[str]) -> SiteCrops:
    """Name the domains, cameras and groups of crops whose pixels (N, 3, H, W) uint8 are in memory."""
    domains, domain = _numbered([domain_of(sample, domain_fields) for sample in samples])
    camera_names, cameras = _numbered([sample.camera for sample in samples])
    group_names, groups = _numbered([f"{sample.category} {sample.modality}" for sample in samples])
    return SiteCrops(
        tuple(samples),
        pixels,
        tuple(domain_fields),
        domains if domain_fields else (),
        torch.from_numpy(domain),
        camera_names,
        cameras,
        group_names,
        groups,
    )


def joined(first: SiteCrops, second: SiteCrops) -> SiteCrops:
    """Join the crops of two sites of the same domain fields; those of the first come first."""
    samples = first.samples + second.samples
    together = arrange(samples, torch.cat([first.pixels, second.pixels]), first.domain_fields)
    names = first.group_names + tuple(f"labelled {name}" for name in second.group_names)
    groups = np.concatenate([first.groups, second.groups + len(first.group_names)])
    return replace(together, group_names=names, groups=groups)


def _numbered(names: Sequence[str]) -> tuple[tuple[str, ...], IntArray]:
    """Number names alphabetically."""
    distinct = sorted(set(names))
    index = {name: i for i, name in enumerate(distinct)}
    return tuple(distinct), np.array([index[name] for name in names], np.int64)
