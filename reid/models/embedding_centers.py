"""Centering as the last step of a network: subtract from each embedding the center of its camera or other domain.

:mod:`reid.retrieval.centering` computes the centers.  A checkpoint keeps them beside its network, so that they belong
to its fingerprint and to its files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reid.errors import ConditionError, DataError, WeightsError
from reid.norm import Profiles
from reid.old_names import fields_in_files

SHORTEST = 1e-6  # length of a centered embedding from which it has a direction


@dataclass(frozen=True, eq=False)
class EmbeddingCenters:
    """The vector that is subtracted from the embeddings of each of G domains.

    Args:
        domain_fields: The fields of a sample that name its domain.
        domains: The names of the domains.
        vectors: (G, D) float32; a row of zeros subtracts nothing.

    Example:
        >>> centers = EmbeddingCenters(("camera",), ("door", "yard"), torch.tensor([[0.0, 0.0], [0.6, 0.0]]))
        >>> unit = torch.tensor([[0.6, 0.8], [0.6, 0.8]])
        >>> centers.subtract(unit, torch.tensor([0, 1])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 1.0]]
    """

    domain_fields: tuple[str, ...]
    domains: tuple[str, ...]
    vectors: Tensor

    def subtract(self, embeddings: Tensor, domain: Tensor | int) -> Tensor:
        """Subtract from each embedding the center of its domain, and scale the result to unit length.

        Args:
            embeddings: (B, D) float32.
            domain: The domain of each image, (B,) int64, or one int for all; a negative index stands for an unknown
                domain, which gets the mean of all centers.

        Returns:
            (B, D) float32 of unit length; unchanged where the center is zero.

        Raises:
            WeightsError: If the embeddings have another dimension than the centers.
            DataError: If an embedding equals its center.
        """
        if embeddings.shape[1] != self.vectors.shape[1]:
            raise WeightsError(
                f"profiles: centers of {self.vectors.shape[1]} numbers do not fit embeddings of"
                f" {embeddings.shape[1]}; calibrate again with these weights"
            )
        rows = torch.cat([self.vectors, self.vectors.mean(0, keepdim=True)]).to(embeddings)
        index = torch.as_tensor(domain, device=embeddings.device).expand(len(embeddings)).clamp_min(-1)
        center = rows[index]  # -1: the mean of all
        moved = embeddings - center
        if bool((moved.norm(dim=1) < SHORTEST).any()):
            raise DataError(
                "centering: the embedding of an image equals the center of its camera, so nothing is left of it when"
                " the center is subtracted; look whether the center was measured on copies of this picture"
            )
        return torch.where(center.any(1, keepdim=True), functional.normalize(moved), embeddings)

    def spread(self, domains: Sequence[str]) -> EmbeddingCenters:
        """Return centers of exactly these domains: known ones keep theirs, new ones get the mean of all."""
        known = dict(zip(self.domains, self.vectors, strict=True))
        mean = self.vectors.mean(0)
        vectors = torch.stack([known.get(name, mean) for name in domains])
        return replace(self, domains=tuple(domains), vectors=vectors)

    def only_of(self, domains: Sequence[str]) -> EmbeddingCenters:
        """Return centers of exactly these domains: known ones keep theirs, the others subtract nothing."""
        known = dict(zip(self.domains, self.vectors, strict=True))
        zero = torch.zeros_like(self.vectors[0])
        return replace(self, domains=tuple(domains), vectors=torch.stack([known.get(name, zero) for name in domains]))

    def updated(self, newer: EmbeddingCenters) -> EmbeddingCenters:
        """Return the centers of both; those of the newer replace those of the same domains.

        Raises:
            WeightsError: If the centers have other dimensions.
        """
        if newer.vectors.shape[1] != self.vectors.shape[1]:
            raise WeightsError(
                f"profiles: centers of {newer.vectors.shape[1]} numbers do not fit those of {self.vectors.shape[1]};"
                " they are of two networks"
            )
        rows = dict(zip(self.domains, self.vectors, strict=True)) | dict(zip(newer.domains, newer.vectors, strict=True))
        return replace(self, domains=tuple(rows), vectors=torch.stack(list(rows.values())))

    def fingerprint_part(self) -> dict[str, Any]:
        """Return what tells these centers from others, as plain values."""
        return {
            "centering": fields_in_files(self.domain_fields),
            "names": list(self.domains),
            "digest": hashlib.sha256(self.vectors.contiguous().numpy().tobytes()).hexdigest(),
        }


def subtract_centers(
    centers: EmbeddingCenters,
    embeddings: Tensor,
    domain: Tensor | int | None,
    unknown_domain: int | None,
    source: str,
) -> Tensor:
    """Center the embeddings of a network.

    Args:
        centers: The centers of its domains.
        embeddings: (B, D) float32.
        domain: The domain of each image, or one for all.
        unknown_domain: The index of an unknown domain; None where the network refuses such images.
        source: The file of the network, for messages.

    Raises:
        ConditionError: The domain is not given, or unknown and refused.
    """
    if domain is None:
        raise ConditionError(f"{source}: its embeddings are centered, so it needs the camera of each image")
    if unknown_domain is None and bool((torch.as_tensor(domain) < 0).any()):
        raise ConditionError(f"{source}: has no center of an unknown camera; known: {', '.join(centers.domains)}")
    return centers.subtract(embeddings, domain)


def with_centers_of(profiles: Profiles, known: EmbeddingCenters | None) -> EmbeddingCenters | None:
    """Return the centers of a network after profiles were installed.

    Args:
        profiles: The profiles.
        known: The centers of before.  Those of domains that get statistics, but no center, are given up: they were
            measured on embeddings that the network does not compute any more.

    Returns:
        The centers; None where nothing is subtracted.

    Raises:
        WeightsError: If the centers have other dimensions.
    """
    if profiles.centers is not None:
        newer = EmbeddingCenters(profiles.domain_fields, profiles.domains, profiles.centers)
        return newer if known is None else known.updated(newer)
    if known is None:
        return None
    left = [name for name in known.domains if name not in set(profiles.domains)]
    kept = known.only_of(left).only_of(known.domains) if left else None
    return kept if kept is not None and bool(kept.vectors.any()) else None
