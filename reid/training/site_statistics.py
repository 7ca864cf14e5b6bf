"""With whose statistics a trained network meets the cameras of a site, and how well it does there.

A policy makes from a checkpoint and a site's unlabelled crops the checkpoint that is scored; the identities of the
crops are never looked at.  Nothing here knows trainings or tables.
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

Policy = Callable[[Checkpoint, Sequence[Sample]], Checkpoint]


def kept(checkpoint: Checkpoint, _pool: Sequence[Sample]) -> Checkpoint:
    """The network as training left it; every domain of the site must be one that it knows."""
    return checkpoint


def measured(checkpoint: Checkpoint, pool: Sequence[Sample]) -> Checkpoint:
    """Statistics measured on the site's unlabelled crops, per domain of the network.

    A network without domains gets one set for each kind of object: AdaBN (Li et al. 2016).
    """
    return checkpoint.with_profiles(
        calibrate_checkpoint(checkpoint, pool, domain_fields=checkpoint.domain_fields or ("category",))
    )


class _AllDomains(nn.Module):
    """Answers with what all domains of a network say, so that no image needs a label."""

    def __init__(self, network: nn.Module, equal: bool) -> None:
        super().__init__()
        self.network, self.equal = network, equal

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> embeddings (B, D) of unit length."""
        weights = torch.ones(len(images), len(domains_of(self.network))) if self.equal else None
        return mixture(self.network, images, weights)


def _of_all(checkpoint: Checkpoint, name: str) -> Checkpoint:
    network = _AllDomains(checkpoint.network, equal=name == "ensemble").eval()
    return replace(
        checkpoint, network=network, domain_fields=(), domains=(), fingerprint=f"{checkpoint.fingerprint}-{name}"
    )


def mixed(checkpoint: Checkpoint, _pool: Sequence[Sample]) -> Checkpoint:
    """Every image in all domains of the training, weighed by likeness (Segu et al. 2020); no crops needed."""
    return _of_all(checkpoint, "mixture")


def ensemble(checkpoint: Checkpoint, _pool: Sequence[Sample]) -> Checkpoint:
    """Every image in all domains of the training, with equal weight (DSON, Seo et al. 2020); no crops needed."""
    return _of_all(checkpoint, "ensemble")


STATISTICS: dict[str, Policy] = {"kept": kept, "measured": measured, "mixture": mixed, "ensemble": ensemble}


def meet(
    checkpoint: Checkpoint,
    policy: Policy,
    samples: Sequence[Sample],
    provenance: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Score the queries and gallery of a site; its rows of split "train" are the crops that ``policy`` may use.

    ``provenance`` is stamped on the report; ``progress`` is called with the images embedded.
    """
    ready = policy(checkpoint, [sample for sample in samples if sample.split is Split.TRAIN])
    asked = [sample for sample in samples if sample.split is not Split.TRAIN]
    return evaluate(embed(ready, asked, progress=progress), provenance=provenance)
