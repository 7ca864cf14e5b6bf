"""The measurement of epochs: how well a network matches identities that the training does not learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from reid.data.loading import domain_indices
from reid.data.transforms import EvaluationTransform
from reid.errors import DataError
from reid.evaluation.labels import Labels
from reid.evaluation.metrics import NoMatchError, vector_metrics
from reid.norm import Given
from reid.norm.calibrate import device_of
from reid.records import Sample
from reid.training.crop_cache import CropSource
from reid.training.training_data import TrainingRows

BATCH = 128
MAP, RANK1 = "held_out_mAP", "held_out_rank1"  # keys of metrics.jsonl


@dataclass(frozen=True)
class HeldOutSet:
    """The N held-out crops and their labels.

    Attributes:
        crops: Images (N, 3, H, W) uint8.
        domain: The normalization domain (N,) int64 of each crop; None for plain batch normalization.
        labels: Every crop as a query for all others.
    """

    crops: Tensor
    domain: Tensor | None
    labels: Labels

    def measure(self, network: nn.Module, transform: EvaluationTransform) -> dict[str, float]:
        """Compute mAP and rank-1, fractions in 0..1, of a network with the statistics that it has now.

        Every crop is a query. Crops of its identity in its own camera are left out where identities stand in several
        cameras, and only the crop itself is left out where they do not.
        """
        was_training = network.training
        with torch.inference_mode():
            vectors = torch.cat(list(self._embed(network.eval(), transform))).numpy()
        network.train(was_training)
        metrics = vector_metrics(vectors, vectors, self.labels)
        return {MAP: metrics.mAP, RANK1: metrics.rank(1)}

    def _embed(self, network: nn.Module, transform: EvaluationTransform) -> Iterator[Tensor]:
        for start in range(0, len(self.crops), BATCH):
            rows = slice(start, start + BATCH)
            domain = None if self.domain is None else self.domain[rows]
            images, device = transform.normalise(self.crops[rows]), device_of(network)
            yield Given(network)(images.to(device), None if domain is None else domain.to(device)).cpu()


def load_held_out(samples: Sequence[Sample], rows: TrainingRows, source: CropSource) -> HeldOutSet | None:
    """Load held-out crops.

    Args:
        samples: The held-out samples; their domains are among those of ``rows``.
        rows: The rows of the training.
        source: Reads the crops.

    Returns:
        The crops and labels; None where there are no samples.

    Raises:
        DataError: No held-out crop has another crop to be found.
    """
    if not samples:
        return None
    domain = domain_indices(samples, rows.domain_fields, rows.domains) if rows.domain_fields else None
    held_out = HeldOutSet(source.load(samples, "reading held-out crops"), domain, leave_one_out_labels(samples))
    zeros = np.zeros((len(samples), 1), np.float32)
    try:
        vector_metrics(zeros, zeros, held_out.labels)
    except NoMatchError as error:
        raise DataError(f"data.held_out: {error}") from error
    return held_out


def leave_one_out_labels(samples: Sequence[Sample]) -> Labels:
    """Make labels in which every sample is a query for all others.

    Example:
        >>> from pathlib import Path
        >>> samples = [Sample(Path(f"{i}.jpg"), "anna") for i in range(2)]
        >>> leave_one_out_labels(samples).same_identity(0, 1)[2].tolist()
        [True, False]
    """
    identities = np.array([f"{sample.category}/{sample.identity}" for sample in samples])
    cameras = np.array([sample.camera for sample in samples])
    several = len({*zip(identities.tolist(), cameras.tolist(), strict=True)}) > len(set(identities.tolist()))
    if not several or "" in cameras:
        cameras = np.arange(len(samples)).astype(str)  # each crop has a camera of its own: only itself is left out
    return Labels(identities, identities, cameras, cameras)
