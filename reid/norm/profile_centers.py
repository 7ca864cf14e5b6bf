"""Combine the centers of two profiles: the vectors that are subtracted from the embeddings of each domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reid.errors import WeightsError

if TYPE_CHECKING:
    from reid.norm.profiles import Profiles


def merge_centers(ours: Profiles, theirs: Profiles) -> Tensor | None:
    """Merge the centers of profiles of different images.

    A domain that both have gets the mean over the images of both.  This is exact only where the network is the same for
    both, so it is refused where the domain also has statistics, which change the embeddings.

    Args:
        ours: Profiles of one network.
        theirs: Profiles of the same network.

    Returns:
        (G, D): the centers of the domains of ``ours``, then of the other domains of ``theirs``; a domain that is not
        centered has zeros.  None where neither is centered.

    Raises:
        WeightsError: If both have the statistics and the center of a domain, or the dimensions differ.
    """
    common = [name for name in ours.domains if name in theirs.domains]
    if ours.centers is None and theirs.centers is None:
        return None
    _check_dimensions(ours, theirs)
    if common and ours.mean:
        raise WeightsError(
            f"profiles: both have the statistics and the center of {common[0]}, and a center depends on the statistics;"
            ' calibrate it on the crops of both, or take the later file with "reid cameras merge --replace"'
        )
    rows = {**rows_of_centers(ours, theirs), **rows_of_centers(theirs, ours)}
    for name in common:
        first, second = (profiles.images[profiles.domains.index(name)] for profiles in (ours, theirs))
        total = rows_of_centers(ours, theirs)[name] * first + rows[name] * second
        rows[name] = total / max(first + second, 1)
    return torch.stack(list(rows.values()))


def replace_centers(old: Profiles, new: Profiles) -> Tensor | None:
    """Return the centers of the domains of ``old`` that ``new`` lacks, then those of ``new``; None where none is."""
    if old.centers is None and new.centers is None:
        return None
    _check_dimensions(old, new)
    kept = {name: row for name, row in rows_of_centers(old, new).items() if name not in new.domains}
    return torch.stack(list({**kept, **rows_of_centers(new, old)}.values()))


def rows_of_centers(profiles: Profiles, other: Profiles) -> dict[str, Tensor]:
    """Return the center (D,) of each domain by name; zeros of the length of the other's where there are none."""
    centers = profiles.centers
    if centers is None:
        like = other.centers if other.centers is not None else torch.zeros(0, 0)
        centers = like.new_zeros(len(profiles.domains), like.shape[1])
    return dict(zip(profiles.domains, centers, strict=True))


def _check_dimensions(ours: Profiles, theirs: Profiles) -> None:
    sizes = {profiles.centers.shape[1] for profiles in (ours, theirs) if profiles.centers is not None}
    if len(sizes) > 1:
        raise WeightsError(f"profiles: centers of {' and '.join(map(str, sorted(sizes)))} numbers are of two networks")
