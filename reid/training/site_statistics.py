"""Which statistics a trained network uses at a site, and how well it does there.

A policy takes a checkpoint and the unlabelled crops of a site and returns the checkpoint that is scored. It never looks
at the identities of the crops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from reid.data.loading import Progress
from reid.evaluation import Report, evaluate
from reid.models.calibration import calibrate_checkpoint
from reid.models.checkpoint import Checkpoint
from reid.norm import domains_of
from reid.norm.unseen_domains import mixture
from reid.records import Sample, Split
from reid.retrieval.embed import embed

StatisticsPolicy = Callable[[Checkpoint, Sequence[Sample]], Checkpoint]


def keep_statistics(checkpoint: Checkpoint, _crops: Sequence[Sample]) -> Checkpoint:
    """Return the network as training left it; it must know every domain of the site."""
    return checkpoint


def measure_statistics(checkpoint: Checkpoint, crops: Sequence[Sample]) -> Checkpoint:
    """Measure the statistics on the unlabelled crops of the site, for each domain of the network.

    A network without domains gets one set of statistics for each category: AdaBN (Li et al. 2016).
    """
    return checkpoint.with_profiles(
        calibrate_checkpoint(checkpoint, crops, domain_fields=checkpoint.domain_fields or ("category",))
    )


def mix_domains(checkpoint: Checkpoint, _crops: Sequence[Sample]) -> Checkpoint:
    """Embed every image in all domains of the training, weighed by likeness (Segu et al. 2020); needs no crops."""
    return _use_all_domains(checkpoint, "mixture")


def average_domains(checkpoint: Checkpoint, _crops: Sequence[Sample]) -> Checkpoint:
    """Embed every image in all domains of the training with equal weight (DSON, Seo et al. 2020); needs no crops."""
    return _use_all_domains(checkpoint, "ensemble")


STATISTICS: dict[str, StatisticsPolicy] = {
    "kept": keep_statistics,
    "measured": measure_statistics,
    "mixture": mix_domains,
    "ensemble": average_domains,
}


class _AllDomains(nn.Module):
    """Combine the answers of all domains of a network, so that no image needs a domain."""

    def __init__(self, network: nn.Module, equal: bool) -> None:
        super().__init__()
        self.network, self.equal = network, equal

    def forward(self, images: Tensor) -> Tensor:
        """Compute embeddings (B, D) of unit length of images (B, 3, H, W)."""
        weights = torch.ones(len(images), len(domains_of(self.network))) if self.equal else None
        return mixture(self.network, images, weights)


def _use_all_domains(checkpoint: Checkpoint, name: str) -> Checkpoint:
    network = _AllDomains(checkpoint.network, equal=name == "ensemble").eval()
    return replace(
        checkpoint, network=network, domain_fields=(), domains=(), fingerprint=f"{checkpoint.fingerprint}-{name}"
    )


def evaluate_site(
    checkpoint: Checkpoint,
    policy: StatisticsPolicy,
    samples: Sequence[Sample],
    provenance: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Score a network on the queries and the gallery of a site.

    Args:
        checkpoint: The trained network.
        policy: Chooses the statistics; a value of :data:`STATISTICS`.
        samples: All rows of the site. The policy may use those of split "train".
        provenance: Is stamped on the report.
        progress: Is called with the number of images that were embedded.
    """
    ready = policy(checkpoint, [s for s in samples if s.split is Split.TRAIN and not s.generated])
    scored = [sample for sample in samples if sample.split is not Split.TRAIN]
    return evaluate(embed(ready, scored, progress=progress), provenance=provenance)
