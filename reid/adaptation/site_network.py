"""The network that is adapted: statistics of each domain are measured in place, and embeddings come from memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.adaptation.site_crops import SiteCrops
from reid.data.loading import Progress
from reid.errors import ConfigError, WeightsError
from reid.models.calibration import can_be_calibrated
from reid.models.checkpoint import Checkpoint
from reid.norm import (
    Given,
    Profiles,
    calibrate,
    camera_batchnorm,
    convert_norm,
    domain_batchnorm,
    domains_of,
    extract,
    mixes_domains,
)
from reid.norm.calibrate import device_of
from reid.norm.convert import norm_layers, take_rows
from reid.records import FloatArray, IntArray

BATCH_SIZE = 128  # images of one domain whose batch statistics are merged into its profile
EMBEDDED_AT_ONCE = 64
SINGLE_DOMAIN = "all"  # the only domain of a network while it adapts to crops without cameras


class SiteNetwork:
    """A trainable copy of a network whose normalization domains are those of the site.

    Attributes:
        network: The copy; without BatchNorm it has no domains.
        profiles: The statistics that were measured last; None without BatchNorm.

    Args:
        checkpoint: The network; it stays as it is.
        crops: The crops of the site.
        sites: (G,) int64, the site of each domain; the domains of a site get a scale and shift of their own.  None
            leaves the scales and shifts as they are.
    """

    def __init__(self, checkpoint: Checkpoint, crops: SiteCrops, *, sites: Tensor | None = None) -> None:
        self.transform, self.crops = checkpoint.transform, crops
        self._fields, self._sites = crops.domain_fields, sites
        self._has_statistics = can_be_calibrated(checkpoint)
        self.network: nn.Module = copy.deepcopy(checkpoint.network)
        self.profiles: Profiles | None = None
        if self._has_statistics:
            self.network = _with_domains_of(checkpoint, crops.domains or (SINGLE_DOMAIN,), sites is not None)

    @property
    def has_statistics(self) -> bool:
        """Whether the network has BatchNorm, and so statistics of each domain."""
        return self._has_statistics

    def measure(self, seed: int = 0, progress: Progress | None = None, keep: Sequence[str] = ()) -> None:
        """Measure the statistics of every domain on all crops, with the weights of now, and use them from now on.

        Args:
            seed: Decides the order of the crops.
            progress: Is called with the number of images of each batch.
            keep: The names of norm layers that keep the statistics that they have.

        Raises:
            DataError: A domain has a single crop.
        """
        if not self._has_statistics:
            return
        domains = domains_of(self.network)
        random = np.random.default_rng(seed)
        batches = self._measuring_batches(random, progress)
        self.profiles = calibrate(self.network, batches, domains, domain_fields=self._fields or ("camera",))
        for name, layer in norm_layers(self.network).items():
            statistics = self.profiles.statistics(name)
            for row in range(len(domains)) if name not in keep else ():
                layer.set_statistics(row, statistics, row)

    def _measuring_batches(
        self, random: np.random.Generator, progress: Progress | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one domain in random order, or of all where the domains share statistics."""
        domain = self.crops.domain.numpy()
        together = mixes_domains(self.network)
        for part in [np.arange(len(domain))] if together else [np.flatnonzero(domain == d) for d in np.unique(domain)]:
            rows = random.permutation(part)
            for batch in np.array_split(rows, -(-len(rows) // BATCH_SIZE)):
                yield self.images(batch), self.crops.domain[batch]
                if progress is not None:
                    progress(len(batch))

    def images(self, rows: IntArray) -> Tensor:
        """Prepare the crops at some rows, (B, 3, H, W) float32."""
        images = self.transform.normalise(self.crops.pixels[torch.from_numpy(rows)])
        return images.contiguous(memory_format=torch.channels_last)

    def run(self, images: Tensor, domain: Tensor) -> Tensor:
        """Embed prepared images (B, 3, H, W) of domains (B,) int64; return (B, D) float32 unit rows on the CPU."""
        device = device_of(self.network)
        output: Tensor = Given(self.network)(images.to(device), domain.to(device) if self._has_statistics else None)
        return output.cpu()

    def embed(self, progress: Progress | None = None) -> FloatArray:
        """Embed all crops with the measured statistics; return (N, D) float32 unit rows.

        Raises:
            WeightsError: A number is not finite.
        """
        self.network.eval()
        order = np.argsort(self.crops.domain.numpy(), kind="stable")
        parts = []
        with torch.inference_mode():
            for start in range(0, len(order), EMBEDDED_AT_ONCE):
                rows = order[start : start + EMBEDDED_AT_ONCE]
                images, domain = self.images(rows), self.crops.domain[torch.from_numpy(rows)]
                vectors = self.run(images, domain)
                if self.transform.flip:
                    vectors = functional.normalize(vectors + self.run(images.flip(-1), domain), dim=1)
                parts.append(vectors)
                if progress is not None:
                    progress(len(rows))
        embedded = torch.cat(parts).numpy()
        if not np.isfinite(embedded).all():
            raise WeightsError(
                "adapt: the network gives numbers that are not finite; the crops may have no contrast, or the weights"
                " are damaged"
            )
        vectors_in_order = np.empty_like(embedded)
        vectors_in_order[order] = embedded
        return vectors_in_order

    def tie_affine(self) -> None:
        """Give the domains of a site one gradient, so that a scale and shift of their own stays one for the site."""
        if self._sites is None:
            return
        rows_of_sites = [torch.nonzero(self._sites == site).flatten() for site in torch.unique(self._sites)]
        for layer in norm_layers(self.network).values():
            for parameter in layer.parameters(recurse=False):
                if parameter.grad is not None and parameter.dim() == 2:
                    for rows in rows_of_sites:
                        parameter.grad[rows] = parameter.grad[rows].sum(0)

    def to_checkpoint(self, checkpoint: Checkpoint, extra: Mapping[str, str]) -> Checkpoint:
        """Make a checkpoint of the network as it is now.

        Args:
            checkpoint: The one that the adaptation started from.
            extra: Free text for the new one.

        Returns:
            A checkpoint with a copy of the network, the domains of the site and a fingerprint of its own.
        """
        network = copy.deepcopy(self.network).eval()
        if self._has_statistics and not self._fields:
            network = extract(network, SINGLE_DOMAIN)
        return checkpoint.with_network(network, self._fields if self._has_statistics else (), extra)


def _with_domains_of(checkpoint: Checkpoint, domains: tuple[str, ...], own_affine: bool) -> nn.Module:
    """A copy with just these domains; one that the network does not know gets the mixture of all that it knows."""
    known = domains_of(checkpoint.network)
    if not known:
        policy = (domain_batchnorm if own_affine else camera_batchnorm)(domains)
        return convert_norm(checkpoint.network, policy)
    if not norm_layers(checkpoint.network):
        raise ConfigError(
            f"{checkpoint.source}: {checkpoint.spec.backbone} has no BatchNorm, so it keeps no statistics to adapt;"
            " center its embeddings per camera instead, with --normalize"
        )
    rows = [known.index(name) if name in known else None for name in domains]
    return take_rows(checkpoint.network, domains, rows)
