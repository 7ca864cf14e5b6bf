"""A learned vector for every domain, which a transformer adds to its tokens: the camera embedding of TransReID."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reid.errors import ConditionError
from reid.norm.condition import Condition, check_known_domains, current_condition
from reid.norm.domain_rows import NamedRows, copy_flags_and_hooks, fill_rows


class DomainEmbedding(NamedRows):
    """A vector (C,) for each of G domains; the layer gives each image the vector of its domain.

    It is no norm: it keeps no statistics, so nothing can be calibrated.  The domain comes from the condition
    (:mod:`reid.norm.condition`), as for the norms.  Source: the camera part of the side information embedding (SIE) of
    He et al., "TransReID", ICCV 2021, section 3.3.

    Args:
        width: C.
        domains: The names of the G domains; without names the layer has one vector for all images.

    Example:
        >>> from reid.norm import Given
        >>> layer = DomainEmbedding(2, ["door", "yard"])
        >>> _ = layer.vectors.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> Given(layer)(torch.zeros(3, 2), ["yard", "door", "yard"]).tolist()
        [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self, width: int, domains: Sequence[str]) -> None:
        super().__init__()
        self.width, self.domains = width, tuple(domains)
        self.vectors = nn.Parameter(torch.zeros(max(len(self.domains), 1), width))

    def extra_repr(self) -> str:
        return f"{self.width}, domains={len(self.domains)}"

    def forward(self, images: Tensor) -> Tensor:
        """Return the vectors (B, C) of the domains of B images, of which only the number and the order matter."""
        condition = current_condition() or Condition()
        check_known_domains(condition, self.domains)
        domain = condition.domain if self.domains else 0
        if domain is None or isinstance(domain, int):
            return self.vectors[domain or 0].expand(images.shape[0], -1)
        if len(domain) != len(images):
            raise ConditionError(
                f"this layer sees {len(images)} rows of {len(domain)} images; pass the domain as an int"
            )
        if domain.is_floating_point():
            return domain.to(self.vectors.dtype) @ self.vectors
        return self.vectors[domain]

    def take_rows(self, domains: Sequence[str], rows: Sequence[int | None]) -> DomainEmbedding:
        """Make a layer with other domains from rows of this one.

        Args:
            domains: The names of the new domains; without names the new layer has one vector.
            rows: For each new domain the row of this layer that it gets bit for bit, or None for the mean of all.
        """
        new = DomainEmbedding(self.width, domains)
        new.to(self.vectors.device, self.vectors.dtype)
        with torch.no_grad():
            fill_rows(new.vectors, self.vectors, rows, self.vectors.mean(0))
        copy_flags_and_hooks(new, self)
        return new

    def to_plain(self, domain: int) -> nn.Module:
        """Make a layer that gives every image the vector of one domain."""
        return self.take_rows((), [domain])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Order the rows of the state by name."""
        order = self.row_order(state_dict, prefix, args[-1])
        if order is None:
            return
        loaded = state_dict.get(prefix + "vectors")
        if loaded is not None and len(loaded) == len(order):
            state_dict[prefix + "vectors"] = loaded[order]
        super()._load_from_state_dict(state_dict, prefix, *args)
