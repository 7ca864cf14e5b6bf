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
from torch.nn import functional

from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, WeightsError, unknown_name
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.model_card import card_of
from reid.models.networks.backbones import BACKBONES
from reid.models.runtime import RUNTIMES, UNCALIBRATED, RuntimeNetwork, read_files
from reid.models.weights.families import COLOURS, recognise
from reid.models.weights.tensor_tables import Table, digest, load_strictly, packed, read_table, table_of, unpacked
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
from reid.norm.tensor_file import write_table
from reid.norm.unseen_domains import UNKNOWN_DOMAIN, UNSEEN_DOMAIN_ANSWERS, answer
from reid.old_names import current_fields, fields_in_files

FORMAT = "reid-weights-1"
SMALLEST, LARGEST = 32, 2048  # pixels of a side that images may be brought to by hand
FINGERPRINT_LENGTH = 16  # hex digits
BUILT_IN = "built in"  # pooling and neck of a model that another program runs
UNSEEN_KEY = "unseen"  # key of the free text: the policy for unknown cameras
REFUSED = "error"  # the policy for unknown cameras of a network that has none
PRIOR = "prior"  # key of the free text: what profiles were drawn towards
BASE = "base"  # key of the free text: fingerprint of the weights before any profiles were installed


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network ready for use.

    ``network`` is an :class:`Embedder` (a :class:`RuntimeNetwork` where another program runs it) in evaluation
    mode, its norms converted when ``domain_fields`` is not empty.  These are the fields of a sample that name its
    normalization domain, ``domains`` the domains in the order of their indices.  ``fingerprint`` changes with
    anything that changes embeddings; ``weights`` is the fingerprint before any profiles were installed.
    ``source`` is the file, ``extra`` its free text.  ``unseen`` says what becomes of images of a domain it does not
    know: a policy of :data:`reid.norm.unseen_domains.UNSEEN_DOMAIN_ANSWERS`.
    """

    network: nn.Module
    spec: NetworkSpec
    transform: EvaluationTransform
    domain_fields: tuple[str, ...]
    domains: tuple[str, ...]
    fingerprint: str
    source: str
    weights: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    unseen: str = REFUSED

    @property
    def runtime(self) -> str:
        """What runs the network, its version and precision, such as "OpenVINO 2026.4.1 float32"; "" for torch."""
        return self.network.ran if isinstance(self.network, RuntimeNetwork) else ""

    @property
    def unknown_domain(self) -> int | None:
        """Label of images of an unknown domain; None where there is no policy for them but to refuse."""
        return None if self.unseen == REFUSED else UNKNOWN_DOMAIN

    def with_profiles(self, profiles: Profiles) -> Checkpoint:
        """The same weights with the statistics of ``profiles`` in place of, or beside, its own domains."""
        if self.runtime:
            raise WeightsError(f"{self.source}: has no use for profiles, {UNCALIBRATED}")
        if self.domain_fields and profiles.domain_fields != self.domain_fields:
            raise WeightsError(
                f"{self.source}: its domains are named by {'/'.join(self.domain_fields)}, those of the profiles by"
                f" {'/'.join(profiles.domain_fields)}; calibrate again with these weights"
            )
        if profiles.weights not in ("", self.weights, self.fingerprint):
            raise WeightsError(
                f"{self.source}: these are weights {self.weights}, the profiles were measured on"
                f" {profiles.weights}; calibrate again with these weights, or give the --size they were measured at"
            )
        changed = self._changed(network=install(self.network, profiles), domain_fields=profiles.domain_fields)
        return replace(changed, extra={**self.extra, PRIOR: profiles.prior}) if profiles.prior else changed

    def with_domains(self, domains: Sequence[str]) -> Checkpoint:
        """The same weights that also know the domains ``domains``, each with the mixture of all known statistics."""
        network = self.network
        for name in domains:
            network = add_domain(network, name)
        return self._changed(network=network)

    def with_unseen(self, policy: str) -> Checkpoint:
        """The same weights that answer for images of domains they do not know by ``policy``: "nearest" or "mixture".

        Nothing changes where the network has no domains.  ConfigError for a policy that is not known.
        """
        if policy not in UNSEEN_DOMAIN_ANSWERS:
            raise ConfigError(unknown_name("policy for an unknown domain", policy, UNSEEN_DOMAIN_ANSWERS))
        return self._changed(unseen=policy) if self.domain_fields else self

    def with_flip(self) -> Checkpoint:
        """The same weights, whose embeddings are the mean over a picture and its mirror image."""
        return self._changed(transform=replace(self.transform, flip=True))

    def _changed(self, **changes: Any) -> Checkpoint:
        """These weights with something else about them, and so another fingerprint."""
        new = replace(self, **changes)
        made = _checkpoint(new.network, new.spec, new.transform, new.domain_fields, new.source, new.unseen)
        return replace(made, weights=self.weights, extra=self.extra)

    def save(self, path: Path) -> None:
        """Write everything that :func:`load_checkpoint` needs to answer with the same fingerprint."""
        extra = {**self.extra, BASE: self.weights}
        if self.unseen != REFUSED:
            extra[UNSEEN_KEY] = self.unseen
        save_checkpoint(path, self.network, self.spec, self.transform, self.domain_fields, self.domains, extra)

    def embed(self, images: Tensor, labels: Tensor | int | None = None) -> Tensor:
        """Embeddings (B, D) float32 of unit length of prepared images (B, 3, H, W) float32.

        ``labels`` (B,) int64, or one int for all, index ``domains`` or are ``unknown_domain``; None where the
        network has no domains.
        Where the transform says "flip": the mean of the unit vectors of an image and of its mirror image,
        brought to unit length.  Raises WeightsError where any is not finite.
        """
        with torch.inference_mode():
            embeddings = self._answer(images, labels)
            if self.transform.flip:
                embeddings = functional.normalize(embeddings + self._answer(images.flip(-1), labels), dim=1)
        if not embeddings.isfinite().all():
            raise WeightsError(
                f"{self.source}: gives numbers that are not finite; its training diverged, or its statistics are of"
                " pictures without contrast: train it again, or calibrate it on other crops"
            )
        return embeddings

    def _answer(self, images: Tensor, labels: Tensor | int | None) -> Tensor:
        if labels is not None and self.unknown_domain is not None:
            return answer(self.network, images, labels, self.unseen)
        outputs: Tensor = Given(self.network)(images, labels)
        return outputs


def save_checkpoint(
    path: Path,
    network: nn.Module,
    spec: NetworkSpec,
    transform: EvaluationTransform,
    domain_fields: Sequence[str],
    domains: Sequence[str],
    extra: Mapping[str, str],
) -> None:
    """Write a network, plain or converted, to a safetensors file that :func:`load_checkpoint` needs no help with.

    ``domain_fields`` and ``domains`` as in :class:`Checkpoint`; ``extra`` is free text kept beside the weights.
    """
    named = bool(domain_fields) or SYSTEMS[system_of(network)].guesses
    if tuple(domains) != domains_of(network) or named != bool(domains):
        raise ConfigError(
            f"saving {path}: the network has the domains {list(domains_of(network))},"
            f" not {list(domains)} named by {list(domain_fields)}"
        )
    tensors = table_of(network)
    header = {
        "spec": asdict(spec),
        "transform": transform.to_dict(),
        "by": fields_in_files(domain_fields),
        "names": list(domains),
        "affine": _affine_of(network),
        "system": system_of(network),
        "digest": digest(tensors),
    }
    metadata = {"format": FORMAT, "network": json.dumps(header), "extra": json.dumps(dict(extra))}
    write_table(path, packed(tensors), metadata)


def load_checkpoint(path: Path, backbone: str | None = None, *, size: tuple[int, int] | None = None) -> Checkpoint:
    """Read a checkpoint of ours, or published weights of ``backbone``; WeightsError when they do not fit.

    A model that another program runs (``.onnx``, or ``.xml`` with its ``.bin``) is told by its suffix.
    ``size`` (height, width) in pixels replaces the size images are brought to, which is the one of
    training for our files and, for others, the one their family is trained with.
    """
    if size is not None and not all(SMALLEST <= pixels <= LARGEST for pixels in size):
        raise ConfigError(
            f"size: expected height and width of {SMALLEST} to {LARGEST} pixels, got {size[0]} x {size[1]}"
        )
    if path.suffix.lower() in RUNTIMES:
        return _exported(path, backbone, size)
    tensors, metadata = read_table(path)
    if "format" in metadata and metadata["format"].startswith("reid-"):
        checkpoint = _ours(path, tensors, metadata, backbone)
    else:
        checkpoint = _published(path, tensors, backbone)
    if size is None:
        return checkpoint
    transform = replace(checkpoint.transform, height=size[0], width=size[1])
    resized = _checkpoint(
        checkpoint.network, checkpoint.spec, transform, checkpoint.domain_fields, checkpoint.source, checkpoint.unseen
    )
    return replace(resized, extra=checkpoint.extra)


def _checkpoint(
    network: nn.Module,
    spec: NetworkSpec,
    transform: EvaluationTransform,
    domain_fields: Sequence[str],
    source: str,
    unseen: str = REFUSED,
) -> Checkpoint:
    domains = domains_of(network)
    parts = [
        asdict(spec),
        transform.to_dict(),
        fields_in_files(domain_fields),
        list(domains),
        digest(table_of(network)),
    ]
    if system_of(network) != "batch":
        parts.append(system_of(network))
    if unseen != REFUSED:
        parts.append({UNSEEN_KEY: unseen})
    text = json.dumps(parts, sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]
    return Checkpoint(
        network.eval(), spec, transform, tuple(domain_fields), domains, fingerprint, source, fingerprint, {}, unseen
    )


def _ours(path: Path, tensors: Table, metadata: Mapping[str, str], backbone: str | None) -> Checkpoint:
    """Build what the header says and fill it."""
    if metadata["format"] != FORMAT:
        raise WeightsError(f'{path}: expected weights ("{FORMAT}"), got a file of kind "{metadata["format"]}"')
    try:
        header: dict[str, Any] = json.loads(metadata["network"])
        extra: dict[str, str] = json.loads(metadata["extra"])
        spec = NetworkSpec(**header["spec"])
        transform = EvaluationTransform.from_dict(header["transform"])
        domains, affine, expected = (header[key] for key in ("names", "affine", "digest"))
        domain_fields = current_fields(header["by"])
        system = header.get("system", "batch")  # files from before there were others have no such key
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise WeightsError(f"{path}: the header of this weights file is damaged ({error!r})") from error
    if backbone is not None and backbone != spec.backbone:
        raise WeightsError(f'{path}: these weights are of backbone "{spec.backbone}", not "{backbone}"')
    tensors = unpacked(tensors)
    if digest(tensors) != expected:
        raise WeightsError(f"{path}: damaged, its tensors are not those that were saved; copy the file again")
    is_run_elsewhere = spec.backbone in RUNTIMES.values()
    network: nn.Module = RuntimeNetwork(spec.backbone, tensors, str(path)) if is_run_elsewhere else _build(spec)
    if domains or system != "batch":
        network = convert_norm(network, DomainPolicy("/".join(domain_fields), tuple(domains), affine, system))
    load_strictly(network, tensors, f"{path} into {spec.backbone}")
    checkpoint = _checkpoint(network, spec, transform, domain_fields, str(path), extra.pop(UNSEEN_KEY, REFUSED))
    return replace(checkpoint, weights=extra.pop(BASE, checkpoint.fingerprint), extra=extra)


def _published(path: Path, tensors: Table, backbone: str | None) -> Checkpoint:
    """Weights of a family of :mod:`reid.models.weights.families`; classifiers are left out, as the free text says."""
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


def _exported(path: Path, backbone: str | None, size: tuple[int, int] | None) -> Checkpoint:
    """A model that another program runs; pooling and neck are in its graph."""
    kind = RUNTIMES[path.suffix.lower()]
    if backbone not in (None, kind):
        raise WeightsError(f'{path}: the network is in this file, it is not one of "{backbone}"; leave --backbone out')
    files, card = read_files(path), card_of(path)
    network = RuntimeNetwork(kind, {**files, "channels": torch.tensor(card.channels)}, str(path))
    try:
        transform = card.transform(network.size, size or (None, None))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return _checkpoint(network, NetworkSpec(kind, BUILT_IN, BUILT_IN), transform, (), str(path))


def _build(spec: NetworkSpec) -> Embedder:
    """An embedder whose random weights are about to be replaced: the random stream stays where it was."""
    with torch.random.fork_rng(devices=[]):
        return Embedder(spec)


def _affine_of(network: nn.Module) -> str:
    """ "domain" when each normalization domain has a scale and shift of its own, else "shared"."""
    layers = (module for module in network.modules() if isinstance(module, DomainBatchNorm))
    return "domain" if any(layer.affine == "domain" for layer in layers) else "shared"
