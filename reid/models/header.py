"""The header of our weights files: its types and bounds, checked before anything is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from torch import nn

from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.networks.timm_backbones import TIMM_PREFIX
from reid.models.networks.transformers import TRANSFORMERS
from reid.norm.domain_embedding import DomainEmbedding
from reid.old_names import current_fields
from reid.structured_text import parse_json, shorten

MAX_SIDE = 4096  # pixels; images are held in memory at this size
MAX_CHANNELS, MAX_GROUPS = 2**16, 2**12  # of a group that was pruned, and how many groups a file may name
MAX_WIDTHS = 64
SLACK = 8  # so many times the numbers of a file may be built at first; few networks build more than they keep

Name = Annotated[str, StringConstraints(max_length=200)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Counts = dict[Name, Annotated[int, Field(ge=1, le=MAX_CHANNELS)]]
Triple = Annotated[list[Finite], Field(min_length=3, max_length=3)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Spec(_Part):
    model_config = ConfigDict(extra="forbid")

    backbone: Name
    pooling: Name = "average"
    neck: Name = "bnneck"
    channels: Counts = Field(default={}, max_length=MAX_GROUPS)


class _Transform(_Part):
    model_config = ConfigDict(extra="forbid")

    height: Side = 256
    width: Side = 128
    mean: Triple | None = None
    std: Triple | None = None
    interpolation: Name = "bilinear"
    flip: bool = False


class _Centering(_Part):
    model_config = ConfigDict(extra="forbid")

    by: list[Literal["camera", "modality", "category", "domain"]] = Field(min_length=1)
    names: list[str] = Field(min_length=1)


class _Fields(_Part):
    spec: _Spec
    transform: _Transform
    by: list[Literal["camera", "modality", "category", "domain"]]
    names: list[str]
    affine: Literal["shared", "domain"]
    system: Name = "batch"  # the first files, from before there were other systems, have no such key
    digest: Name
    centering: _Centering | None = None  # only where embeddings are centered
    widths: dict[Name, Counts] = Field(default={}, max_length=MAX_WIDTHS)  # only in files of several widths


_EXTRA: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str], config=ConfigDict(strict=True))


@dataclass(frozen=True)
class DomainNames:
    """The names of domains, and the fields of a sample that name them."""

    domain_fields: tuple[str, ...]
    domains: tuple[str, ...]


@dataclass(frozen=True)
class Header:
    """What the header of a weights file tells about its network.

    Args:
        spec: The names of the parts of the network.
        transform: Its image preparation.
        domain_fields: The fields of a sample that name its domain.
        domains: The names of its domains in the order of their indices.
        affine: "shared" or "domain", see :class:`~reid.norm.DomainPolicy`.
        system: The normalization system.
        digest: The hash of the tensors.
        centering: The domains whose embeddings are centered; None where none are.
        widths: The channels of each width beside the widest, by its name.
    """

    spec: NetworkSpec
    transform: EvaluationTransform
    domain_fields: tuple[str, ...]
    domains: tuple[str, ...]
    affine: str
    system: str
    digest: str
    centering: DomainNames | None = None
    widths: dict[str, dict[str, int]] = field(default_factory=dict)


def parse_header(text: str) -> Header:
    """Read the header of a weights file.

    Args:
        text: The JSON under the key "network" of the file's metadata.

    Raises:
        ConfigError: If it is no JSON, or a value is missing, has another type or is out of bounds; in one line.
    """
    fields = _validated(_Fields.model_validate, text)
    centering = fields.centering
    if centering is not None and len(set(centering.names)) != len(centering.names):
        raise ConfigError(f"centering: expected distinct names, got {shorten(centering.names)}")
    transform = {key: value for key, value in fields.transform.model_dump().items() if value is not None}
    spec = fields.spec
    return Header(
        NetworkSpec(spec.backbone, spec.pooling, spec.neck, tuple(spec.channels.items())),
        EvaluationTransform.from_dict(transform),
        current_fields(fields.by),
        tuple(fields.names),
        fields.affine,
        fields.system,
        fields.digest,
        None if centering is None else DomainNames(current_fields(centering.by), tuple(centering.names)),
        fields.widths,
    )


def parse_extra(text: str) -> dict[str, str]:
    """Read the free text of a weights file.

    Args:
        text: The JSON under the key "extra" of the file's metadata.

    Raises:
        ConfigError: If it is no JSON, or no table of text.

    Example:
        >>> parse_extra('{"seed": "3"}')
        {'seed': '3'}
    """
    return dict(_validated(_EXTRA.validate_python, text))


def check_domain_count(network: nn.Module, domains: int, numbers: int) -> None:
    """Refuse more domains than a file can hold statistics of, before any are made.

    Args:
        network: The network without domains.
        domains: How many the header names.
        numbers: How many numbers the tensors of the file have.

    Raises:
        ConfigError: If the statistics would need far more numbers.
    """
    channels = sum(
        int(layer.num_features)
        for layer in network.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.SyncBatchNorm)
    )
    channels += sum(layer.width for layer in network.modules() if isinstance(layer, DomainEmbedding))
    if domains * channels > SLACK * numbers:
        raise ConfigError(f"it names {domains} domains, and the file has too few numbers for their statistics")


def check_network_size(spec: NetworkSpec, numbers: int) -> None:
    """Refuse a transformer or a network of timm with far more parameters than its file has numbers.

    It is refused before it takes memory.  The other networks are bounded: the largest takes 200 MB.

    Raises:
        ConfigError: If the network would need far more numbers.
    """
    if not spec.backbone.startswith((TIMM_PREFIX, *TRANSFORMERS)):
        return
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            needed = sum(parameter.numel() for parameter in Embedder(spec).parameters())
    except (NotImplementedError, RuntimeError):  # some networks compute with their first values
        return
    if needed > SLACK * numbers:
        raise ConfigError(f"{spec.backbone} has {needed:,} parameters, and the file only {numbers:,} numbers")


def _validated(validate: Any, text: str) -> Any:
    try:
        return validate(parse_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:3]) or "header"
        raise ConfigError(f"{key}: {first['msg']}, got {shorten(first['input'])}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
