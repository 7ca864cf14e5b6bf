"""The files that checkpoints are read from and written to.

Three kinds are read: files of ours (safetensors, with a header that describes the network), weights that other projects
published (tensors only), and models that another program runs (ONNX, OpenVINO).  Nothing is ever downloaded, and no
code in a file is ever run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, WeightsError
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.embedding_centers import EmbeddingCenters
from reid.models.execution import USUAL, Execution
from reid.models.header import DomainNames, Header, check_domain_count, check_network_size, parse_extra, parse_header
from reid.models.model_card import read_card
from reid.models.networks.backbones import BACKBONES
from reid.models.networks.transformers import TRANSFORMERS
from reid.models.runtime import RUNTIMES, RuntimeNetwork, program_of, read_files
from reid.models.weights.families import ANIMAL_NETWORKS, COLOURS, recognise
from reid.models.weights.tensor_tables import Table, digest, load_strictly, packed, read_table, table_of, unpacked
from reid.models.widths import NarrowWidth, check_single_width, select_width, tensors_of_widths
from reid.norm import DomainBatchNorm, DomainPolicy, convert_norm, domains_of, extract, system_of
from reid.norm.convert import take_rows
from reid.norm.tensor_file import write_table
from reid.old_names import fields_in_files
from reid.records import UnseenCameraPolicy
from reid.structured_text import shorten

FORMAT = "reid-weights-1"
BUILT_IN = "built in"  # pooling and neck of a model that another program runs
# What fills a tensor with random numbers. Other initialisers of PyTorch call one of the last two.
RANDOM_FILLS = (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.uniform_, Tensor.normal_)
CENTERS = "embedding.centers"  # name of the tensor of centers, beside those of the network
FINGERPRINT_LENGTH = 16  # hex digits
UNSEEN_KEY = "unseen"  # key of the free text: the policy for unknown cameras


@dataclass(frozen=True, eq=False)
class CheckpointContents:
    """What a file of weights holds: the fields of a :class:`~reid.models.checkpoint.Checkpoint` without its hashes."""

    network: nn.Module
    spec: NetworkSpec
    transform: EvaluationTransform
    domain_fields: tuple[str, ...] = ()
    unseen_camera_policy: UnseenCameraPolicy = UnseenCameraPolicy.ERROR
    extra: Mapping[str, str] = field(default_factory=dict)
    centers: EmbeddingCenters | None = None


def read_contents(path: Path, backbone: str | None, size: tuple[int, int] | None) -> CheckpointContents:
    """Read a file of any of the three kinds.

    Args:
        path: The file; its suffix distinguishes models that another program runs from files of tensors.
        backbone: The name of the backbone, which published weights need.
        size: Height and width that a model of any size takes, for models that another program runs, and for
            transformers, whose files do not state it.
    """
    if program_of(path) is not None:
        check_single_width(str(path))
        return _read_runtime_model(path, backbone, size)
    tensors, metadata = read_table(path)
    if metadata.get("format", "").startswith("reid-"):
        return _read_own_file(path, tensors, metadata, backbone)
    check_single_width(str(path))
    return _read_published_weights(path, tensors, backbone, size)


def write_contents(path: Path, contents: CheckpointContents, widths: Mapping[str, NarrowWidth] | None = None) -> None:
    """Write a network and its header to a safetensors file that :func:`read_contents` reads without further help."""
    network, extra = contents.network, dict(contents.extra)
    if contents.unseen_camera_policy != UnseenCameraPolicy.ERROR:
        extra[UNSEEN_KEY] = contents.unseen_camera_policy
    tensors, centers = table_of(network), contents.centers
    if centers is not None:
        tensors[CENTERS] = centers.vectors.contiguous()
    tensors |= tensors_of_widths(widths or {})
    header = {
        "spec": contents.spec.to_dict(),
        "transform": contents.transform.to_dict(),
        "by": fields_in_files(contents.domain_fields),
        "names": list(domains_of(network)),
        "affine": _affine_of(network),
        "system": system_of(network),
        "digest": digest(tensors),
    }
    if centers is not None:
        header["centering"] = {"by": fields_in_files(centers.domain_fields), "names": list(centers.domains)}
    if widths:
        header["widths"] = {name: dict(width.channels) for name, width in widths.items()}
    texts = {"network": json.dumps(header), "extra": json.dumps(extra)}
    write_table(path, packed(tensors), {"format": FORMAT, **texts, "check": _checksum(texts)})


def widths_in_file(path: Path) -> tuple[float, ...]:
    """Return the widths that a file of weights holds, the widest first; (1.0,) for a file of one width."""
    if program_of(path) is not None:
        return (1.0,)
    _, metadata = read_table(path)
    is_own = metadata.get("format") == FORMAT
    return (1.0, *(float(name) for name in parse_header(metadata["network"]).widths)) if is_own else (1.0,)


def fingerprint_of(contents: CheckpointContents, execution: Execution = USUAL) -> str:
    """Return a hash that changes with anything that changes embeddings."""
    parts = [
        contents.spec.to_dict(),
        contents.transform.to_dict(),
        fields_in_files(contents.domain_fields),
        list(domains_of(contents.network)),
        digest(table_of(contents.network)),
    ]
    # what most networks do not have is left out, so that older fingerprints stay valid
    if system_of(contents.network) != "batch":
        parts.append(system_of(contents.network))
    if contents.unseen_camera_policy != UnseenCameraPolicy.ERROR:
        parts.append({UNSEEN_KEY: contents.unseen_camera_policy})
    if contents.centers is not None:
        parts.append(contents.centers.fingerprint_part())
    if execution.fingerprint_parts():
        parts.append(execution.fingerprint_parts())
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]


def _checksum(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256((metadata["network"] + metadata["extra"]).encode()).hexdigest()


def _read_own_file(path: Path, tensors: Table, metadata: Mapping[str, str], backbone: str | None) -> CheckpointContents:
    """Build the network that the header describes and fill it with the tensors."""
    if metadata["format"] != FORMAT:
        raise WeightsError(f'{path}: expected weights ("{FORMAT}"), got a file of kind "{metadata["format"]}"')
    try:
        if metadata.get("check") not in (None, _checksum(metadata)):  # version 0.1.0 wrote none
            raise ValueError("it is not what was written")
        header = parse_header(metadata["network"])
        extra = parse_extra(metadata["extra"])
        policy = UnseenCameraPolicy(extra.pop(UNSEEN_KEY, UnseenCameraPolicy.ERROR))
    except (KeyError, ValueError, ConfigError) as error:
        raise WeightsError(f"{path}: the header of this weights file is damaged ({shorten(str(error))})") from error
    spec, transform, domains, domain_fields = header.spec, header.transform, header.domains, header.domain_fields
    if backbone is not None and backbone != spec.backbone:
        raise WeightsError(f'{path}: these weights are of backbone "{spec.backbone}", not "{backbone}"')
    tensors = unpacked(tensors)
    if digest(tensors) != header.digest:
        raise WeightsError(f"{path}: damaged, its tensors are not those that were saved; copy the file again")
    centers = _take_centers(path, header.centering, tensors)
    spec, tensors = _select_width(path, header, tensors)
    is_runtime_model = spec.backbone in RUNTIMES.values()
    numbers = sum(tensor.numel() for tensor in tensors.values())
    try:
        network: nn.Module = (
            RuntimeNetwork(spec.backbone, tensors, str(path)) if is_runtime_model else _build(spec, numbers)
        )
        check_domain_count(network, len(domains), numbers)
        if domains_of(network):
            network = _with_cameras(network, domains)
        elif domains or header.system != "batch":
            policy_of_norm = DomainPolicy("/".join(domain_fields), domains, header.affine, header.system)
            network = convert_norm(network, policy_of_norm)
    except ConfigError as error:
        raise WeightsError(f"{path}: its header does not fit: {error}") from error
    load_strictly(network, tensors, f"{path} into {spec.backbone}")
    return CheckpointContents(network, spec, transform, domain_fields, policy, extra, centers)


def _select_width(path: Path, header: Header, tensors: Table) -> tuple[NetworkSpec, Table]:
    """What the network of the wanted width is built of, and its tensors."""
    numbers = sum(tensor.numel() for tensor in tensors.values())
    return select_width(header.spec, header.widths, tensors, str(path), lambda: _build(header.spec, numbers))


def _take_centers(path: Path, named: DomainNames | None, tensors: Table) -> EmbeddingCenters | None:
    """Take the centers out of the tensors of a file; None where the header names none."""
    if named is None:
        return None
    vectors = tensors.pop(CENTERS, torch.zeros(0))
    if vectors.ndim != 2 or len(vectors) != len(named.domains) or not vectors.is_floating_point():
        raise WeightsError(
            f"{path}: the header of this weights file is damaged (centers of {len(named.domains)} domains, got"
            f" {tuple(vectors.shape)})"
        )
    return EmbeddingCenters(named.domain_fields, named.domains, vectors)


def _with_cameras(network: nn.Module, cameras: Sequence[str]) -> nn.Module:
    """Give the camera embedding of a network that was just built a row for each of these cameras."""
    if not cameras:  # one vector for all images
        return extract(network, domains_of(network)[0])
    return take_rows(network, tuple(cameras), [None] * len(cameras))


def _read_published_weights(
    path: Path, tensors: Table, backbone: str | None, size: tuple[int, int] | None
) -> CheckpointContents:
    """Weights of a family of :mod:`reid.models.weights.families`; the free text names the tensors that are left out."""
    if backbone is None:
        raise WeightsError(
            f"{path}: not written by reid, so it does not say which network it is of; name the backbone,"
            f" one of {', '.join((*BACKBONES, *TRANSFORMERS, *ANIMAL_NETWORKS))}, timm:<name>"
        )
    try:
        origin = recognise(tensors, backbone, size)
        embedder = _build_for(origin.spec, tensors)
        ours, left_out = origin.tensors_for(embedder.backbone, tensors)
        transform = origin.transform_of(embedder.backbone, tensors)
    except WeightsError as error:
        raise WeightsError(f"{path} into {backbone}: {error}") from error
    network = _with_cameras(embedder, origin.cameras) if origin.cameras else embedder
    load_strictly(network, ours, f"{path} into {backbone}")
    extra = {"family": origin.family.name, "colours": COLOURS, "left out": ", ".join(left_out)}
    fields = ("camera",) if origin.cameras else ()
    return CheckpointContents(network, origin.spec, transform, fields, extra=extra)


def _read_runtime_model(path: Path, backbone: str | None, size: tuple[int, int] | None) -> CheckpointContents:
    """A model that another program runs; its pooling and neck are part of its graph."""
    runtime = program_of(path) or ""
    if backbone not in (None, runtime):
        raise WeightsError(f'{path}: the network is in this file, it is not one of "{backbone}"; leave --backbone out')
    files, card = read_files(path), read_card(path)
    network = RuntimeNetwork(runtime, {**files, "channels": torch.tensor(card.channels)}, str(path))
    try:
        transform = card.transform(network.size, size or (None, None))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return CheckpointContents(network, NetworkSpec(runtime, BUILT_IN, BUILT_IN), transform)


def _build(spec: NetworkSpec, numbers: int) -> Embedder:
    """Build an embedder with arbitrary weights, all of which the caller must replace; the random stream stays.

    A network that needs far more than the ``numbers`` of its file is refused before it takes memory.
    """
    check_network_size(spec, numbers)
    with torch.random.fork_rng(devices=[]), _WithoutRandomWeights():
        return Embedder(spec)


def _build_for(spec: NetworkSpec, tensors: Table) -> Embedder:
    """Build an embedder for the tensors of a published file, of which a network that is far larger is refused."""
    numbers = sum(tensor.numel() for tensor in tensors.values())
    try:
        check_network_size(spec, numbers)
    except ConfigError as error:
        raise WeightsError(str(error)) from error
    return _build(spec, numbers)


class _WithoutRandomWeights(TorchFunctionMode):
    """Leave weights as they lie in memory where PyTorch would draw them at random.

    Drawing them, or even setting them to 0, takes longer than reading them from a file.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in RANDOM_FILLS:
            return func(*args, **kwargs)
        return args[0] if args else kwargs["tensor"]


def _affine_of(network: nn.Module) -> str:
    """ "domain" when each normalization domain has a scale and shift of its own, else "shared"."""
    layers = (module for module in network.modules() if isinstance(module, DomainBatchNorm))
    return "domain" if any(layer.affine == "domain" for layer in layers) else "shared"
