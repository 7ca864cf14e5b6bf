"""The header of a file of profiles: its types and bounds, checked before anything is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reid.structured_text import parse_json


class ProfileHeader(BaseModel):
    """What the header of a file of profiles tells.

    Attributes:
        domains: The names of the domains; in the file "names".
        images: How many images each domain was measured on.
        digest: The hash of the tensors.
        weights: The fingerprint of the weights that they belong to.
        domain_fields: The fields of a sample that name its domain; in the file "by".
        date: When they were measured; older files do not have it.
        prior: What they were shrunk toward; older files do not have it.
        levels: What each domain is normalized by; [] where nobody recorded it.
        score_norm: The normalization of scores to use by default; "" leaves it open.
        choice: How the levels were chosen.
        cohort: For each domain, category and camera of the crops of its cohort.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    domains: list[str] = Field(alias="names")
    images: list[Annotated[int, Field(ge=0, le=2**53)]]
    digest: str
    weights: str
    domain_fields: list[Literal["camera", "modality", "category", "domain"]] = Field(alias="by")
    date: str = ""
    prior: str = ""
    levels: list[str] = Field(default_factory=list)
    score_norm: Literal["", "none", "csls", "snorm"] = ""
    choice: str = ""
    cohort: list[list[str]] = Field(default_factory=list)


def parse_profile_header(text: str, tensors: Mapping[str, Tensor]) -> ProfileHeader:
    """Read the header of a file of profiles and check that the tensors have a row for each domain.

    Args:
        text: The JSON of the header.
        tensors: The tensors of the file.

    Raises:
        ValueError: If it is no JSON, or a value is missing, has another type or does not fit the tensors.
    """
    header = ProfileHeader.model_validate(parse_json(text))
    count = len(header.domains)
    if len(set(header.domains)) != count or len(header.images) != count or len(header.levels) not in (0, count):
        raise ValueError("expected distinct names and one number of images for each")
    for key, tensor in tensors.items():
        if tensor.ndim < 2 or len(tensor) != count or not tensor.is_floating_point():
            raise ValueError(f"{key}: expected numbers in {count} rows, got {tuple(tensor.shape)} {tensor.dtype}")
    return header
