"""The losses of a re-identification network: on logits, on distances, on similarities.

Functions of tensors only; they know nothing of networks, schedules or files.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Margin = float | Literal["soft"]

_SMALLEST_SQUARE = 1e-12  # keeps the gradient of the square root finite where two features are equal


def identity_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy against smoothed labels, mean over the batch; a scalar >= 0.

    ``logits`` (B, I) float over I training identities; ``targets`` (B,) int64 in 0..I-1;
    ``smoothing`` e in [0, 1): the target distribution is (1 - e) on the right identity plus e / I
    on every one (Szegedy et al. 2016, "Rethinking the Inception architecture", section 7).
    """
    return functional.cross_entropy(logits, targets, label_smoothing=smoothing)


def batch_hard_triplet(
    features: Tensor, identities: Tensor, margin: Margin, modalities: Tensor | None = None
) -> Tensor:
    """Batch-hard triplet loss, mean over the anchors that have a positive and a negative; a scalar >= 0.

    For each anchor a: p(a) is its largest Euclidean distance to a feature of the same identity, n(a) its
    smallest to one of another; the loss is max(0, margin + p(a) - n(a)), or log(1 + exp(p(a) - n(a))) for
    margin "soft" (Hermans et al. 2017, "In defense of the triplet loss", equation 5 and section 3.2).

    ``features`` (B, C) float; ``identities`` (B,) int64.  With ``modalities`` (B,) int64 only features of
    another modality than the anchor's count as positives; anchors that have none take any positive.
    Without any usable anchor the loss is 0 and its gradient too.
    """
    distances = _distances(features)  # (B, B)
    same = identities[:, None] == identities[None, :]  # (B, B): [i, j] anchor i, candidate j
    positives = same & ~torch.eye(len(identities), dtype=torch.bool, device=same.device)
    if modalities is not None:
        across = positives & (modalities[:, None] != modalities[None, :])
        positives = torch.where(across.any(1, keepdim=True), across, positives)
    usable = positives.any(1) & ~same.all(1)  # (B,)
    farthest = distances.masked_fill(~positives, -torch.inf).amax(1)
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    gap = torch.where(usable, farthest - nearest, torch.zeros_like(farthest))
    losses = functional.softplus(gap) if margin == "soft" else functional.relu(gap + margin)
    return (losses * usable).sum() / usable.sum().clamp(min=1)


def contrastive_loss(
    embeddings: Tensor, identities: Tensor, modalities: Tensor | None = None, temperature: float = 0.1
) -> Tensor:
    """Supervised contrastive loss, mean over the anchors that have a positive and a negative; a scalar >= 0.

    Every anchor chooses among its candidates by a softmax of their cosine similarities over
    ``temperature`` > 0; its loss is the mean negative log-probability of its positives, the candidates
    of its own identity (Khosla et al. 2020, "Supervised contrastive learning", equation 2).

    ``embeddings`` (B, D) float of any length but 0; ``identities`` (B,) int64.  Candidates are all other
    images; with ``modalities`` (B,) int64 only those of another modality, which makes the loss the
    cross-modality search itself: an easy positive or a hard negative of the anchor's own kind of light
    cannot hide how far the modalities are apart.  Without any usable anchor the loss is 0.
    """
    embeddings = functional.normalize(embeddings)
    candidates = ~torch.eye(len(identities), dtype=torch.bool, device=identities.device)
    if modalities is not None:
        candidates = modalities[:, None] != modalities[None, :]
    positives = candidates & (identities[:, None] == identities[None, :])  # (B, B): [i, j] anchor i, candidate j
    usable = positives.any(1) & (candidates & ~positives).any(1)
    scores = (embeddings @ embeddings.T / temperature).masked_fill(~candidates, -torch.inf)
    # Rows without a candidate would be NaN; they are not usable, so any finite row serves.
    scores = torch.where(usable[:, None], scores, torch.zeros_like(scores))
    surprise = -functional.log_softmax(scores, dim=1)
    losses = surprise.masked_fill(~positives, 0.0).sum(1) / positives.sum(1).clamp(min=1)
    return (losses * usable).sum() / usable.sum().clamp(min=1)


def _distances(features: Tensor) -> Tensor:
    """Euclidean distances (B, B) between all rows, by one matrix product."""
    centred = features - features.mean(0).detach()  # distances stay; the squares below cancel less
    squares = centred.square().sum(1)
    squared = squares[:, None] + squares[None, :] - 2.0 * centred @ centred.T
    return squared.clamp(min=_SMALLEST_SQUARE).sqrt()
