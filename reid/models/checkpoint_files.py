"""The files that checkpoints are read from and written to.

Three kinds are read: files of ours (safetensors, with a header that describes the network), weights that other projects
published (tensors only), and models that another program runs (ONNX, OpenVINO).  Nothing is ever downloaded, and no
code in a file is ever run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, WeightsError
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.model_card import read_card
from reid.models.networks.backbones import BACKBONES
from reid.models.runtime import RUNTIMES, RuntimeNetwork, read_files
from reid.models.weights.families import COLOURS, recognise
from reid.models.weights.tensor_tables import Table, digest, load_strictly, packed, read_table, table_of, unpacked
from reid.norm import DomainBatchNorm, DomainPolicy, convert_norm, domains_of, system_of
from reid.norm.tensor_file import write_table
from reid.old_names import current_fields, fields_in_files
from reid.records import UnseenCameraPolicy

FORMAT = "reid-weights-1"
BUILT_IN = "built in"  # pooling and neck of a model that another program runs
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


def read_contents(path: Path, backbone: str | None, size: tuple[int, int] | None) -> CheckpointContents:
    """Read a file of any of the three kinds.

    Args:
        path: The file; its suffix distinguishes models that another program runs from files of tensors.
        backbone: The name of the backbone, which published weights need.
        size: Height and width that a model of any size takes; only models that another program runs use it.
    """
    if path.suffix.lower() in RUNTIMES:
        return _read_runtime_model(path, backbone, size)
    tensors, metadata = read_table(path)
    if metadata.get("format", "").startswith("reid-"):
        return _read_own_file(path, tensors, metadata, backbone)
    return _read_published_weights(path, tensors, backbone)


def write_contents(path: Path, contents: CheckpointContents) -> None:
    """Write a network and its header to a safetensors file that :func:`read_contents` reads without further help."""
    network, extra = contents.network, dict(contents.extra)
    if contents.unseen_camera_policy != UnseenCameraPolicy.ERROR:
        extra[UNSEEN_KEY] = contents.unseen_camera_policy
    tensors = table_of(network)
    header = {
        "spec": asdict(contents.spec),
        "transform": contents.transform.to_dict(),
        "by": fields_in_files(contents.domain_fields),
        "names": list(domains_of(network)),
        "affine": _affine_of(network),
        "system": system_of(network),
        "digest": digest(tensors),
    }
    texts = {"network": json.dumps(header), "extra": json.dumps(extra)}
    write_table(path, packed(tensors), {"format": FORMAT, **texts, "check": _checksum(texts)})


def _checksum(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256((metadata["network"] + metadata["extra"]).encode()).hexdigest()


def _read_own_file(path: Path, tensors: Table, metadata: Mapping[str, str], backbone: str | None) -> CheckpointContents:
    """Build the network that the header describes and fill it with the tensors."""
    if metadata["format"] != FORMAT:
        raise WeightsError(f'{path}: expected weights ("{FORMAT}"), got a file of kind "{metadata["format"]}"')
    try:
        if metadata.get("check") not in (None, _checksum(metadata)):  # version 0.1.0 wrote none
            raise ValueError("it is not what was written")
        header: dict[str, Any] = json.loads(metadata["network"])
        extra: dict[str, str] = json.loads(metadata["extra"])
        spec = NetworkSpec(**header["spec"])
        transform = EvaluationTransform.from_dict(header["transform"])
        domains, affine, expected = (header[key] for key in ("names", "affine", "digest"))
        domain_fields = current_fields(header["by"])
        system = header.get(
            "system", "batch"
        )  # the first files, from before there were other systems, have no such key
        policy = UnseenCameraPolicy(extra.pop(UNSEEN_KEY, UnseenCameraPolicy.ERROR))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise WeightsError(f"{path}: the header of this weights file is damaged ({error!r})") from error
    if backbone is not None and backbone != spec.backbone:
        raise WeightsError(f'{path}: these weights are of backbone "{spec.backbone}", not "{backbone}"')
    tensors = unpacked(tensors)
    if digest(tensors) != expected:
        raise WeightsError(f"{path}: damaged, its tensors are not those that were saved; copy the file again")
    is_runtime_model = spec.backbone in RUNTIMES.values()
    network: nn.Module = RuntimeNetwork(spec.backbone, tensors, str(path)) if is_runtime_model else _build(spec)
    if domains or system != "batch":
        network = convert_norm(network, DomainPolicy("/".join(domain_fields), tuple(domains), affine, system))
    load_strictly(network, tensors, f"{path} into {spec.backbone}")
    return CheckpointContents(network, spec, transform, tuple(domain_fields), policy, extra)


def _read_published_weights(path: Path, tensors: Table, backbone: str | None) -> CheckpointContents:
    """Weights of a family of :mod:`reid.models.weights.families`; the free text names the tensors that are left out."""
    if backbone is None:
        raise WeightsError(
            f"{path}: not written by reid, so it does not say which network it is of; name the backbone,"
            f" one of {', '.join(BACKBONES)}, timm:<name>"
        )
    try:
        origin = recognise(tensors, backbone)
        network = _build(origin.spec)
        ours, left_out = origin.tensors_for(network.backbone, tensors)
        transform = origin.transform_of(network.backbone, tensors)
    except WeightsError as error:
        raise WeightsError(f"{path} into {backbone}: {error}") from error
    load_strictly(network, ours, f"{path} into {backbone}")
    extra = {"family": origin.family.name, "colours": COLOURS, "left out": ", ".join(left_out)}
    return CheckpointContents(network, network.spec, transform, extra=extra)


def _read_runtime_model(path: Path, backbone: str | None, size: tuple[int, int] | None) -> CheckpointContents:
    """A model that another program runs; its pooling and neck are part of its graph."""
    runtime = RUNTIMES[path.suffix.lower()]
    if backbone not in (None, runtime):
        raise WeightsError(f'{path}: the network is in this file, it is not one of "{backbone}"; leave --backbone out')
    files, card = read_files(path), read_card(path)
    network = RuntimeNetwork(runtime, {**files, "channels": torch.tensor(card.channels)}, str(path))
    try:
        transform = card.transform(network.size, size or (None, None))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return CheckpointContents(network, NetworkSpec(runtime, BUILT_IN, BUILT_IN), transform)


def _build(spec: NetworkSpec) -> Embedder:
    """Build an embedder without moving the random stream, because its random weights are about to be replaced."""
    with torch.random.fork_rng(devices=[]):
        return Embedder(spec)


def _affine_of(network: nn.Module) -> str:
    """ "domain" when each normalization domain has a scale and shift of its own, else "shared"."""
    layers = (module for module in network.modules() if isinstance(module, DomainBatchNorm))
    return "domain" if any(layer.affine == "domain" for layer in layers) else "shared"
