"""Checkpoints: a network with everything that is needed to use it again, in one file.

Ours are safetensors; the header says of which parts the network is built, which normalization domains it
knows and how images are prepared.  Other people's weights load too, if they say nothing but tensors and
the user says which backbone they belong to.  Nothing is ever downloaded and no code in a file is ever run.
A checkpoint knows nothing of galleries or data sets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, WeightsError
from reid.models.backbones import BACKBONES
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.families import COLOURS, recognise
from reid.models.weights import Table, digest, load_strictly, read_table, table_of
from reid.norm import (
    SYSTEMS,
    DomainBatchNorm,
    DomainPolicy,
    Given,
    Profiles,
    add_domain,
    convert_norm,
    domains_of,
    install,
    system_of,
)
from reid.norm.storing import write_table

FORMAT = "reid-weights-1"
SMALLEST, LARGEST = 32, 2048  # pixels of a side that images may be brought to by hand
FINGERPRINT_LENGTH = 16  # hex digits
BASE = "base"  # key of the free text: fingerprint of the weights before any profiles were installed


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network ready for use.

    ``network`` is an :class:`Embedder` in evaluation mode, its norms converted when ``by`` is not empty:
    ``by`` lists the fields of a sample that name its normalization domain, ``names`` the domains in the
    order of their indices.  ``fingerprint`` changes with anything that changes embeddings; ``weights`` is
    the fingerprint before any profiles were installed.  ``source`` is the file, ``extra`` its free text.
    """

    network: nn.Module
    spec: NetworkSpec
    transform: EvaluationTransform
    by: tuple[str, ...]
    names: tuple[str, ...]
    fingerprint: str
    source: str
    weights: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    def with_profiles(self, profiles: Profiles) -> Checkpoint:
        """The same weights with the statistics of ``profiles`` in place of, or beside, its own domains."""
        if self.by and profiles.by != self.by:
            raise WeightsError(
                f"{self.source}: its domains are named by {'/'.join(self.by)}, those of the profiles by"
                f" {'/'.join(profiles.by)}; calibrate again with these weights"
            )
        if profiles.weights not in ("", self.weights, self.fingerprint):
            raise WeightsError(
                f"{self.source}: these are weights {self.weights}, the profiles were measured on"
                f" {profiles.weights}; calibrate again with these weights"
            )
        new = _checkpoint(install(self.network, profiles), self.spec, self.transform, profiles.by, self.source)
        return replace(new, weights=self.weights, extra=self.extra)

    def with_domains(self, names: Sequence[str]) -> Checkpoint:
        """The same weights that also know the domains ``names``, each with the mixture of all known statistics."""
        network = self.network
        for name in names:
            network = add_domain(network, name)
        new = _checkpoint(network, self.spec, self.transform, self.by, self.source)
        return replace(new, weights=self.weights, extra=self.extra)

    def save(self, path: Path) -> None:
        """Write everything that :func:`load_checkpoint` needs to answer with the same fingerprint."""
        extra = {**self.extra, BASE: self.weights}
        save_checkpoint(path, self.network, self.spec, self.transform, self.by, self.names, extra)

    def embed(self, images: Tensor, labels: Tensor | int | None = None) -> Tensor:
        """Embeddings (B, D) float32 of unit length of prepared images (B, 3, H, W) float32.

        ``labels`` (B,) int64, or one int for all, index ``names``; None where the network has no domains.
        """
        with torch.inference_mode():
            embeddings: Tensor = Given(self.network)(images, labels)
        return embeddings


def save_checkpoint(
    path: Path,
    network: nn.Module,
    spec: NetworkSpec,
    transform: EvaluationTransform,
    by: Sequence[str],
    names: Sequence[str],
    extra: Mapping[str, str],
) -> None:
    """Write a network, plain or converted, to a safetensors file that :func:`load_checkpoint` needs no help with.

    ``by`` and ``names`` as in :class:`Checkpoint`; ``extra`` is free text kept beside the weights.
    """
    named = bool(by) or SYSTEMS[system_of(network)].guesses
    if tuple(names) != domains_of(network) or named != bool(names):
        raise ConfigError(
            f"saving {path}: the network has the domains {list(domains_of(network))},"
            f" not {list(names)} named by {list(by)}"
        )
    tensors = table_of(network)
    header = {
        "spec": asdict(spec),
        "transform": transform.to_dict(),
        "by": list(by),
        "names": list(names),
        "affine": _affine_of(network),
        "system": system_of(network),
        "digest": digest(tensors),
    }
    metadata = {"format": FORMAT, "network": json.dumps(header), "extra": json.dumps(dict(extra))}
    write_table(path, tensors, metadata)


def load_checkpoint(path: Path, backbone: str | None = None, *, size: tuple[int, int] | None = None) -> Checkpoint:
    """Read a checkpoint of ours, or published weights of ``backbone``; WeightsError when they do not fit.

    ``size`` (height, width) in pixels replaces the size images are brought to, which is the one of
    training for our files and, for others, the one their family is trained with.
    """
    if size is not None and not all(SMALLEST <= pixels <= LARGEST for pixels in size):
        raise ConfigError(
            f"size: expected height and width of {SMALLEST} to {LARGEST} pixels, got {size[0]} x {size[1]}"
        )
    tensors, metadata = read_table(path)
    if "format" in metadata and metadata["format"].startswith("reid-"):
        checkpoint = _ours(path, tensors, metadata, backbone)
    else:
        checkpoint = _published(path, tensors, backbone)
    if size is None:
        return checkpoint
    transform = replace(checkpoint.transform, height=size[0], width=size[1])
    resized = _checkpoint(checkpoint.network, checkpoint.spec, transform, checkpoint.by, checkpoint.source)
    return replace(resized, extra=checkpoint.extra)


def _checkpoint(
    network: nn.Module,
    spec: NetworkSpec,
    transform: EvaluationTransform,
    by: Sequence[str],
    source: str,
) -> Checkpoint:
    names = domains_of(network)
    parts = [asdict(spec), transform.to_dict(), list(by), list(names), digest(table_of(network))]
    if system_of(network) != "batch":
        parts.append(system_of(network))
    text = json.dumps(parts, sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]
    return Checkpoint(network.eval(), spec, transform, tuple(by), names, fingerprint, source, weights=fingerprint)


def _ours(path: Path, tensors: Table, metadata: Mapping[str, str], backbone: str | None) -> Checkpoint:
    """Build what the header says and fill it."""
    if metadata["format"] != FORMAT:
        raise WeightsError(f'{path}: expected weights ("{FORMAT}"), got a file of kind "{metadata["format"]}"')
    try:
        header: dict[str, Any] = json.loads(metadata["network"])
        extra: dict[str, str] = json.loads(metadata["extra"])
        spec = NetworkSpec(**header["spec"])
        transform = EvaluationTransform.from_dict(header["transform"])
        by, names, affine, expected = (header[key] for key in ("by", "names", "affine", "digest"))
        system = header.get("system", "batch")  # files from before there were others have no such key
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise WeightsError(f"{path}: the header of this weights file is damaged ({error!r})") from error
    if backbone is not None and backbone != spec.backbone:
        raise WeightsError(f'{path}: these weights are of backbone "{spec.backbone}", not "{backbone}"')
    if digest(tensors) != expected:
        raise WeightsError(f"{path}: damaged, its tensors are not those that were saved; copy the file again")
    network: nn.Module = _build(spec)
    if names or system != "batch":
        network = convert_norm(network, DomainPolicy("/".join(by), tuple(names), affine, system))
    load_strictly(network, tensors, f"{path} into {spec.backbone}")
    checkpoint = _checkpoint(network, spec, transform, by, str(path))
    return replace(checkpoint, weights=extra.pop(BASE, checkpoint.fingerprint), extra=extra)


def _published(path: Path, tensors: Table, backbone: str | None) -> Checkpoint:
    """Weights of a family of :mod:`reid.models.families`; classifiers are left out, as the free text says."""
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
    return replace(_checkpoint(network, network.spec, transform, (), str(path)), extra=extra)


def _build(spec: NetworkSpec) -> Embedder:
    """An embedder whose random weights are about to be replaced: the random stream stays where it was."""
    with torch.random.fork_rng(devices=[]):
        return Embedder(spec)


def _affine_of(network: nn.Module) -> str:
    """ "domain" when each normalization domain has a scale and shift of its own, else "shared"."""
    layers = (module for module in network.modules() if isinstance(module, DomainBatchNorm))
    return "domain" if any(layer.affine == "domain" for layer in layers) else "shared"
