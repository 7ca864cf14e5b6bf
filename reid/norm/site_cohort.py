"""Embeddings of crops of each camera, with which scores are normalized where a gallery has no crops of the camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SiteCohort:
    """Embeddings of M crops without names.

    Args:
        domains: (M,) the normalization domain of each crop.
        cameras: (M,) its category and camera, "person/door".
        vectors: (M, D) of unit length.

    Example:
        >>> cohort = SiteCohort(("door", "yard"), ("person/door", "person/yard"), torch.eye(2))
        >>> cohort.of_domains(["yard"]).cameras
        ('person/yard',)
    """

    domains: tuple[str, ...]
    cameras: tuple[str, ...]
    vectors: Tensor

    def of_domains(self, domains: Sequence[str]) -> SiteCohort:
        """Return the crops of some domains."""
        rows = [row for row, name in enumerate(self.domains) if name in set(domains)]
        return SiteCohort(
            tuple(self.domains[row] for row in rows), tuple(self.cameras[row] for row in rows), self.vectors[rows]
        )

    def replaced_by(self, newer: SiteCohort | None) -> SiteCohort:
        """Return the crops of both; a domain that both have is taken from the newer."""
        if newer is None:
            return self
        kept = self.of_domains([name for name in self.domains if name not in set(newer.domains)])
        vectors = torch.cat([kept.vectors, newer.vectors.to(kept.vectors)]) if len(kept.domains) else newer.vectors
        return SiteCohort(kept.domains + newer.domains, kept.cameras + newer.cameras, vectors)

    def packed(self, domains: Sequence[str]) -> tuple[Tensor, list[list[str]]]:
        """Return a table (G, R, D) float16, a row for each domain, filled up with zeros, and the cameras of each."""
        rows_of = [[row for row, own in enumerate(self.domains) if own == name] for name in domains]
        table = torch.zeros(len(domains), max(map(len, rows_of), default=0), self.vectors.shape[1], dtype=torch.float16)
        for number, rows in enumerate(rows_of):
            table[number, : len(rows)] = self.vectors[rows].half()
        return table, [[self.cameras[row] for row in rows] for rows in rows_of]

    @classmethod
    def unpacked(cls, domains: Sequence[str], table: Tensor, cameras: Sequence[Sequence[str]]) -> SiteCohort:
        """Return the cohort that :meth:`packed` was called on, with vectors of unit length again.

        Raises:
            ValueError: If the table does not fit the cameras.
        """
        if table.ndim != 3 or len(cameras) != len(domains) or any(len(names) > table.shape[1] for names in cameras):
            raise ValueError("cohort: the table does not fit the cameras")
        parts = [part[: len(names)].float() for part, names in zip(table, cameras, strict=True)]
        vectors = torch.nn.functional.normalize(torch.cat(parts))
        owners = tuple(name for name, names in zip(domains, cameras, strict=True) for _ in names)
        return cls(owners, tuple(camera for names in cameras for camera in names), vectors)


def join_cohorts(older: SiteCohort | None, newer: SiteCohort | None, stale: Sequence[str] = ()) -> SiteCohort | None:
    """Return the crops of two cohorts, either of which may be missing.

    Args:
        older: Crops of before; those of domains that the newer has as well are left out.
        newer: Crops of now.
        stale: Domains whose embeddings have changed, so that the older crops of them are left out.
    """
    if older is not None and stale:
        older = older.of_domains([name for name in older.domains if name not in set(stale)])
        older = older if older.domains else None
    return newer if older is None else older.replaced_by(newer)
