"""Checkpoints: a network with everything that is needed to use it again.

A checkpoint keeps the weights, the image preparation, the normalization domains and a fingerprint together.
:mod:`reid.models.checkpoint_files` reads and writes its files.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, WeightsError
from reid.models.checkpoint_files import CheckpointContents, fingerprint_of, read_contents, write_contents
from reid.models.embedder import NetworkSpec
from reid.models.embedding_centers import EmbeddingCenters, subtract_centers, with_centers_of
from reid.models.execution import STORED, USUAL, Execution, find_device
from reid.models.profile_checks import check_profiles, measured_words
from reid.models.runners import RunnerOf
from reid.models.runtime import RuntimeNetwork
from reid.models.widths import NarrowWidth
from reid.norm import SYSTEMS, Profiles, add_domain, domains_of, install, system_of
from reid.norm.site_cohort import SiteCohort, join_cohorts
from reid.norm.unseen_domains import UNKNOWN_DOMAIN, check_policy
from reid.records import UnseenCameraPolicy

MIN_SIDE, MAX_SIDE = 32, 2048  # pixels of a side that a user may ask images to be resized to
SCORE_NORM = "score norm"  # key of the free text: the normalization of scores that profiles recommend
LEVELS = "camera levels"  # key of the free text: what each camera is normalized by
PRIOR = "prior"  # key of the free text: the prior that profiles were shrunk toward
BASE = "base"  # key of the free text: fingerprint of the weights before any profiles were installed


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network ready for use.

    Args:
        network: An :class:`~reid.models.embedder.Embedder`, or a :class:`~reid.models.runtime.RuntimeNetwork` where
            another program runs it, in evaluation mode; its norms are converted when ``domain_fields`` is not empty.
        spec: The names of the parts that the network is built of.
        transform: The image preparation.
        domain_fields: The fields of a sample that name its normalization domain.
        domains: The names of the domains in the order of their indices.
        fingerprint: A hash that changes with anything that changes embeddings.
        source: The file that the network was read from.
        weights: The fingerprint before any profiles were installed.
        extra: Free text that is kept beside the weights.
        unseen_camera_policy: What the network does with images of a camera, or other domain, that it does not know.
        centers: What is subtracted from the embeddings of each of ``domains``; None where nothing is.
        cohort: Embeddings of crops of the cameras, with which scores are normalized where a gallery lacks a camera.
        execution: Where and how the network runs; see :meth:`with_execution`.
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
    unseen_camera_policy: UnseenCameraPolicy = UnseenCameraPolicy.ERROR
    centers: EmbeddingCenters | None = None
    cohort: SiteCohort | None = None
    execution: Execution = USUAL
    runner: RunnerOf = field(init=False, repr=False, default_factory=RunnerOf)

    @property
    def has_statistics(self) -> bool:
        """Whether the network has numbers of its own for each domain (statistics, embeddings); centers are none."""
        return bool(domains_of(self.network))

    @property
    def score_norm(self) -> str:
        """The normalization of scores that the profiles recommend: "csls", "snorm", "none", or "" for no advice."""
        return self.extra.get(SCORE_NORM, "")

    @property
    def runtime(self) -> str:
        """What runs the network, with version and precision, such as "OpenVINO 2026.4.1 float32"; "" for torch."""
        return self.network.runtime if isinstance(self.network, RuntimeNetwork) else ""

    @property
    def unknown_domain(self) -> int | None:
        """The index that stands for an image of an unknown domain; None where such images are refused."""
        return None if self.unseen_camera_policy == UnseenCameraPolicy.ERROR else UNKNOWN_DOMAIN

    def with_profiles(self, profiles: Profiles) -> Checkpoint:
        """Install the statistics and the centers of some domains, in place of or beside those that the network has.

        Args:
            profiles: Statistics and centers that were measured with these weights.

        Returns:
            A checkpoint of the same weights with another fingerprint; this one does not change.

        Raises:
            WeightsError: They come from other weights, name domains by other fields, or do not fit the network.
        """
        check_profiles(self, profiles)
        changes: dict[str, Any] = {}
        if profiles.mean:
            changes |= {"network": install(self.network, profiles), "domain_fields": profiles.domain_fields}
        if profiles.mean or profiles.centers is not None:
            changes["centers"] = with_centers_of(profiles, self.centers)
        words = {PRIOR: profiles.prior, SCORE_NORM: profiles.score_norm, LEVELS: profiles.levels_text()}
        kept = self.extra if not changes else {key: text for key, text in self.extra.items() if key != LEVELS}
        extra = {**kept, **{key: text for key, text in words.items() if text}, **measured_words(self.extra, profiles)}
        cohort = join_cohorts(self.cohort, profiles.cohort, stale=profiles.domains if changes else ())
        return replace(self._with_changes(**changes), extra=extra, cohort=cohort)

    def with_network(self, network: nn.Module, domain_fields: Sequence[str], extra: Mapping[str, str]) -> Checkpoint:
        """Replace the network by one with other weights, such as the result of an adaptation.

        Args:
            network: A network of the same spec, plain or converted.
            domain_fields: The fields of a sample that name its domains; () for a plain network.
            extra: Free text to keep beside the weights, in place of the present one.

        Returns:
            A checkpoint with a fingerprint of its own; profiles of the old weights do not fit it.
        """
        contents = replace(self._contents(), network=network, domain_fields=tuple(domain_fields), extra=extra)
        return replace(_assemble(contents, self.source, self.execution), extra=extra)

    def with_domains(self, domains: Sequence[str]) -> Checkpoint:
        """Add domains that nobody has measured; each gets the mixture of all known statistics.

        Args:
            domains: Names of the new domains.

        Returns:
            A checkpoint of the same weights that knows these domains too.
        """
        network = self.network
        for name in domains if self.has_statistics else ():
            network = add_domain(network, name)
        centers = None if self.centers is None else self.centers.spread([*self.domains, *domains])
        return self._with_changes(network=network, centers=centers)

    def with_unseen_camera_policy(self, policy: str) -> Checkpoint:
        """Choose what the network does with images of unknown cameras.

        Args:
            policy: An :class:`~reid.records.UnseenCameraPolicy`, or its name; "calibrate" needs images, so it is not
                a choice here (see :func:`reid.models.calibration.calibrate_checkpoint`).

        Returns:
            A checkpoint of the same weights; this one where the network has no domains.

        Raises:
            ConfigError: If the policy is not known, or is "nearest" and no domain has statistics.
        """
        check_policy(self.network, policy, self.source)
        return self._with_changes(unseen_camera_policy=UnseenCameraPolicy(policy)) if self.domain_fields else self

    def with_flip(self) -> Checkpoint:
        """Return a checkpoint that embeds an image as the mean over the image and its mirror image."""
        return self._with_changes(transform=replace(self.transform, flip=True))

    def with_execution(self, execution: Execution) -> Checkpoint:
        """Move the network to a device, and choose its precision and what runs it.

        Args:
            execution: What is wanted; "auto" becomes the best device there is.

        Returns:
            A checkpoint of the same weights; precision and decoder may change the fingerprint.

        Raises:
            ConfigError: The device is not there, or another program runs the network and this asks for more.
        """
        execution, network = find_device(execution, self.runtime), self.network
        if execution.device != self.execution.device:
            network = copy.deepcopy(network).to(execution.device)
        moved = replace(self, network=network, execution=execution)
        if execution.fingerprint_parts() == self.execution.fingerprint_parts():
            return moved
        return replace(moved, fingerprint=fingerprint_of(moved._contents(), execution))

    def save(self, path: Path, widths: Mapping[str, NarrowWidth] | None = None) -> None:
        """Write what :func:`load_checkpoint` needs to return the same checkpoint, and other widths of the network."""
        extra = {**self.extra, BASE: self.weights}
        if self.execution.fingerprint_parts():
            extra[STORED] = f"{self.execution.precision} {self.execution.decoder}"
        _write(path, replace(self._contents(), extra=extra), domains_of(self.network), widths)

    def embed(self, images: Tensor, domain: Tensor | int | None = None) -> Tensor:
        """Compute the embeddings of prepared images.

        Where the transform has "flip", an embedding is the mean of the unit vectors of an image and of its mirror
        image, scaled to unit length.

        Args:
            images: (B, 3, H, W), float32 prepared by ``transform``, or uint8 only resized.
            domain: The domain of each image, an index into ``domains`` or ``unknown_domain``: (B,) int64, or one int
                for all images; None where the network has no domains.

        Returns:
            (B, D) float32 on the CPU, rows of unit length.

        Raises:
            WeightsError: If a number is not finite, or the runtime gives other embeddings than the eager network.
            ConditionError: If the network has domains and the images have none, or an unknown one that it refuses.
        """
        runner = self.runner.get(self)
        with torch.inference_mode():
            embeddings = runner.run(images, domain)
            if self.transform.flip:
                embeddings = functional.normalize(embeddings + runner.run(images.flip(-1), domain), dim=1)
            embeddings = embeddings.float().cpu()
            if self.centers is not None:
                embeddings = subtract_centers(self.centers, embeddings, domain, self.unknown_domain, self.source)
        if not embeddings.isfinite().all():
            raise WeightsError(
                f"{self.source}: gives numbers that are not finite; its training diverged, or its statistics are of"
                " images without contrast: train it again, or calibrate it on other crops"
            )
        return embeddings

    def _with_changes(self, **changes: Any) -> Checkpoint:
        """These weights with something else about them, and so another fingerprint."""
        changed = _assemble(replace(self._contents(), **changes), self.source, self.execution)
        return replace(changed, weights=self.weights, extra=self.extra, cohort=self.cohort)

    def _contents(self) -> CheckpointContents:
        fields = self.domain_fields if self.has_statistics else ()
        return CheckpointContents(
            self.network, self.spec, self.transform, fields, self.unseen_camera_policy, self.extra, self.centers
        )


def save_checkpoint(
    path: Path,
    network: nn.Module,
    spec: NetworkSpec,
    transform: EvaluationTransform,
    domain_fields: Sequence[str],
    domains: Sequence[str],
    extra: Mapping[str, str],
) -> None:
    """Write a network, plain or converted, to a safetensors file.

    Args:
        path: The file to write; :func:`load_checkpoint` reads it without further help.
        network: The network that ``spec`` describes, converted where it has domains.
        spec: The names of its parts.
        transform: Its image preparation.
        domain_fields: The fields of a sample that name its domain; () for a plain network.
        domains: The names of its domains in the order of their indices.
        extra: Free text to keep beside the weights.

    Raises:
        ConfigError: If the network does not have these domains.

    Example:
        See :func:`load_checkpoint`.
    """
    contents = CheckpointContents(network, spec, transform, tuple(domain_fields), extra=extra)
    _write(path, contents, domains)


def load_checkpoint(path: Path, backbone: str | None = None, *, size: tuple[int, int] | None = None) -> Checkpoint:
    """Read a network from a file of ours, from published weights, or from a model that another program runs.

    Args:
        path: A file of ours, published weights, or a model (``.onnx``, or ``.xml`` with its ``.bin``).
        backbone: What published weights are of, as :func:`~reid.models.networks.backbones.build_backbone` names it.
        size: Height and width in pixels of images, in place of those of the training or of the family of the weights.

    Returns:
        The checkpoint; published weights have no domains.

    Raises:
        WeightsError: If the file is missing, damaged, holds code, or does not fit the network.
        ConfigError: If the backbone or the size cannot be used.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from reid.models.embedder import Embedder
        >>> spec = NetworkSpec("osnet_x0_25")
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "weights.safetensors"
        ...     save_checkpoint(path, Embedder(spec), spec, EvaluationTransform(64, 32), (), (), {"seed": "0"})
        ...     checkpoint = load_checkpoint(path)
        >>> checkpoint.embed(torch.zeros(2, 3, 64, 32)).shape
        torch.Size([2, 128])
        >>> checkpoint.extra
        {'seed': '0'}
    """
    if size is not None and not all(MIN_SIDE <= pixels <= MAX_SIDE for pixels in size):
        raise ConfigError(
            f"size: expected height and width of {MIN_SIDE} to {MAX_SIDE} pixels, got {size[0]} x {size[1]}"
        )
    contents = read_contents(path, backbone, size)
    extra = dict(contents.extra)
    base = extra.pop(BASE, None)
    if size is not None:
        base = None  # profiles were measured at another size
        contents = replace(contents, transform=replace(contents.transform, height=size[0], width=size[1]))
    checkpoint = _assemble(contents, str(path))
    return replace(checkpoint, weights=checkpoint.fingerprint if base is None else base, extra=extra)


def _assemble(contents: CheckpointContents, source: str, execution: Execution = USUAL) -> Checkpoint:
    """A checkpoint with its fingerprint and without free text."""
    centers = contents.centers
    fields, domains = contents.domain_fields, domains_of(contents.network)
    if centers is not None and domains:
        centers = centers.only_of(domains)
    elif centers is not None:
        fields, domains = centers.domain_fields, centers.domains
    contents = replace(contents, centers=centers)
    fingerprint = fingerprint_of(contents, execution)
    return Checkpoint(
        contents.network.eval(),
        contents.spec,
        contents.transform,
        fields,
        domains,
        fingerprint,
        source,
        weights=fingerprint,
        unseen_camera_policy=contents.unseen_camera_policy,
        centers=centers,
        execution=execution,
    )


def _write(
    path: Path, contents: CheckpointContents, domains: Sequence[str], widths: Mapping[str, NarrowWidth] | None = None
) -> None:
    network, domain_fields = contents.network, contents.domain_fields
    has_domains = bool(domain_fields) or SYSTEMS[system_of(network)].guesses
    if tuple(domains) != domains_of(network) or has_domains != bool(domains):
        raise ConfigError(
            f"saving {path}: the network has the domains {list(domains_of(network))},"
            f" not {list(domains)} named by {list(domain_fields)}"
        )
    write_contents(path, contents, widths)
