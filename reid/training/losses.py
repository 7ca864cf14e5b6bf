"""The loss functions of a training: on identities, on unlabelled images, and on maps of layers.

They are functions of tensors. The table in :mod:`reid.training.objective` gives each of them a name and a weight.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from reid.errors import ConfigError

Margin = float | Literal["soft"]

_SMALLEST_SQUARE = 1e-12  # keeps the gradient of the square root finite where two features are equal
_LARGEST_SQUARE = 88.0  # of a difference of distances, so that its exponential is a float32
_VARIANCE_FLOOR = 1e-5  # of an instance normalization: a channel without variance in an image becomes 0


def identity_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Compute the cross-entropy against smoothed labels (Szegedy et al. 2016, "Rethinking Inception", section 7).

    The target distribution of an image is 1 - smoothing on its own identity plus smoothing / I on every identity.

    Args:
        logits: Scores (B, I) float of the I identities of the training.
        targets: The identity (B,) int64 of each image, 0..I-1.
        smoothing: A number in [0, 1).

    Returns:
        The mean over the batch, a scalar >= 0.

    Example:
        >>> loss = identity_loss(torch.zeros(2, 4), torch.tensor([0, 3]), smoothing=0.1)
        >>> round(loss.item(), 4)  # four identities of equal score: log 4
        1.3863
    """
    return functional.cross_entropy(logits, targets, label_smoothing=smoothing)


def batch_hard_triplet(
    features: Tensor, identities: Tensor, margin: Margin, modalities: Tensor | None = None
) -> Tensor:
    """Compute the batch-hard triplet loss (Hermans et al. 2017, equation 5 and section 3.2).

    For each anchor, p is the largest Euclidean distance to a feature of the same identity and n is the smallest
    distance to a feature of another identity. The loss of the anchor is max(0, margin + p - n), or
    log(1 + exp(p - n)) for the margin "soft".

    Args:
        features: Features (B, C) float.
        identities: The identity (B,) int64 of each feature.
        margin: A distance, or "soft".
        modalities: The modality (B,) int64 of each feature. If it is given, only features of another modality than
            the anchor's count as positives; an anchor that has none takes any positive.

    Returns:
        The mean over the anchors that have a positive and a negative, a scalar >= 0. Without such an anchor the loss
        and its gradient are 0.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [5.0]])
        >>> batch_hard_triplet(features, torch.tensor([0, 0, 1]), margin=4.5).item()  # (0.5 + 1.5) / 2
        1.0
    """
    distances = _euclidean_distances(features)  # (B, B)
    same = identities[:, None] == identities[None, :]  # (B, B): [i, j] anchor i, candidate j
    positives, usable = _positives(identities, modalities)
    farthest = distances.masked_fill(~positives, -torch.inf).amax(1)
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    gap = torch.where(usable, farthest - nearest, torch.zeros_like(farthest))
    losses = functional.softplus(gap) if margin == "soft" else functional.relu(gap + margin)
    return (losses * usable).sum() / usable.sum().clamp(min=1)


def weighted_triplet(
    features: Tensor, identities: Tensor, modalities: Tensor | None = None, *, squared: bool = False
) -> Tensor:
    """Compute the weighted regularization triplet (Ye et al. 2021, "AGW"), or its squared form (Ye et al. 2021, "CAJ").

    With the Euclidean distances d of an anchor, p = sum of softmax(d) d over its positives and n = sum of softmax(-d) d
    over its negatives. The loss of the anchor is log(1 + exp(p - n)). The squared form puts the square of p - n with
    the sign of p - n in its place, at most 88 and at least -88. There is no margin.

    Args:
        features: Features (B, C) float.
        identities: The identity (B,) int64 of each feature.
        modalities: The modality (B,) int64 of each feature, as for :func:`batch_hard_triplet`.
        squared: Whether to use the squared form.

    Returns:
        The mean over the anchors that have a positive and a negative, a scalar >= 0. Without such an anchor it is 0.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [3.0]])
        >>> loss = weighted_triplet(features, torch.tensor([0, 0, 1]))  # gaps of -2 and -1
        >>> round(loss.item(), 4)
        0.2201
    """
    distances = _euclidean_distances(features)
    positives, usable = _positives(identities, modalities)
    negatives = identities[:, None] != identities[None, :]
    gap = _weighted_mean(distances, distances, positives) - _weighted_mean(distances, -distances, negatives)
    if squared:
        gap = (gap * gap.abs()).clamp(-_LARGEST_SQUARE, _LARGEST_SQUARE)
    return (functional.softplus(gap) * usable).sum() / usable.sum().clamp(min=1)


def contrastive_loss(
    embeddings: Tensor, identities: Tensor, modalities: Tensor | None = None, temperature: float = 0.1
) -> Tensor:
    """Compute the supervised contrastive loss (Khosla et al. 2020, equation 2).

    Every anchor chooses among its candidates by a softmax of their cosine similarities over the temperature. Its loss
    is the mean negative log-probability of its positives, which are the candidates of its own identity.

    Args:
        embeddings: Embeddings (B, D) float of any length but 0.
        identities: The identity (B,) int64 of each embedding.
        modalities: The modality (B,) int64 of each embedding. Without it, all other images of the batch are
            candidates. With it, only images of another modality are candidates, so that the loss is the
            cross-modality search itself: an easy positive or a hard negative of the anchor's own modality cannot hide
            how far the modalities are from each other.
        temperature: A number > 0.

    Returns:
        The mean over the anchors that have a positive and a negative, a scalar >= 0. Without such an anchor it is 0.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
        >>> loss = contrastive_loss(embeddings, torch.tensor([0, 0, 1]), temperature=1.0)
        >>> round(loss.item(), 4)  # log(1 + exp(-1))
        0.3133
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


def entropy_loss(logits: Tensor) -> Tensor:
    """Compute the mean entropy of the softmax of each row, in nats.

    DIAL trains it on unlabelled images of the target (Carlucci et al. 2017). The identities of another site are not
    those of the training. For re-identification the candidates should therefore be images or centres of the site
    itself (similarities over a temperature), and not the classes of a classifier.

    Args:
        logits: Scores (B, K) float of K candidates; -inf excludes a candidate.

    Returns:
        A scalar between 0 and log K.

    Example:
        >>> round(entropy_loss(torch.zeros(3, 4)).item(), 4)  # log 4
        1.3863
    """
    surprise = functional.log_softmax(logits, 1)
    probability = surprise.exp()
    return -(probability * surprise.masked_fill(probability == 0, 0.0)).sum(1).mean()


def consensus_loss(first: Tensor, second: Tensor) -> Tensor:
    """Compute the min-entropy consensus of two views of the same images (Roy et al., CVPR 2019, "MEC").

    With p and q, the softmax of the two views, the loss of an image is the minimum over the candidates k of
    -(log p_k + log q_k) / 2. It does not fix the candidate on which the two views agree, so it needs another loss
    beside it. For the choice of the candidates, see :func:`entropy_loss`.

    Args:
        first: Scores (B, K) float of K candidates in the first view.
        second: Scores (B, K) float in the second view, row for row.

    Returns:
        The mean over the images, a scalar >= 0. It is 0 if both views are certain of the same candidate.

    Raises:
        ConfigError: The two views have different shapes.

    Example:
        >>> first, second = torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]])
        >>> consensus_loss(first, second).item()
        250.0
    """
    if first.shape != second.shape:
        raise ConfigError(
            "consensus_loss: expected two views of the same images,"
            f" got logits {tuple(first.shape)} and {tuple(second.shape)}"
        )
    agreed = functional.log_softmax(first, 1) + functional.log_softmax(second, 1)
    return -agreed.amax(1).mean() / 2


def isw_loss(maps: Tensor, mask: Tensor, margin: float = 0.0) -> Tensor:
    """Compute the loss of instance selective whitening (Choi et al., CVPR 2021, "RobustNet").

    The channels of each image are first brought to mean 0 and variance 1, so that gain and offset of a channel do not
    matter. With S, the covariances of an image, and n, the number of covariances in the mask, the loss of the image is
    max(0, sum over the mask of |S| - margin) / n.

    Args:
        maps: Maps (B, C, H, W) float of any layer.
        mask: The covariances to remove, (C, C) bool, strictly upper triangular; see
            :func:`~reid.training.style_covariances.covariance_mask`. The mask of all of them,
            ``torch.ones(C, C).triu(1) > 0``, gives instance whitening.
        margin: The sum of covariances that costs nothing.

    Returns:
        The mean over the images, a scalar >= 0. It is exactly 0 for an empty mask.

    Raises:
        ConfigError: The mask does not fit the maps, or the maps have fewer than two positions.

    Example:
        >>> channel = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
        >>> maps = torch.stack([channel, channel])[None]  # two equal channels
        >>> round(isw_loss(maps, torch.ones(2, 2).triu(1) > 0).item(), 3)  # n / (n - 1) of four positions
        1.333
    """
    channels = maps.shape[1]
    if mask.dtype != torch.bool or mask.shape != (channels, channels):
        raise ConfigError(
            f"isw_loss: expected a bool mask ({channels}, {channels}) for maps of {channels} channels,"
            f" got {str(mask.dtype).removeprefix('torch.')} {tuple(mask.shape)}"
        )
    excess = (instance_covariances(maps).abs() * mask).sum((1, 2)) - margin
    return functional.relu(excess).mean() / mask.sum().clamp(min=1)


def instance_covariances(maps: Tensor) -> Tensor:
    """Compute the covariances of the channels over the positions of each image, after instance normalization.

    Args:
        maps: Maps (B, C, H, W) of at least two positions.

    Returns:
        Covariances (B, C, C), computed in float32 at least, also under autocast.

    Raises:
        ConfigError: The maps have fewer than two positions.
    """
    positions = maps.shape[2] * maps.shape[3]
    if positions < 2:
        raise ConfigError(
            f"instance covariances: expected maps of at least 2 positions, got {maps.shape[2]} x {maps.shape[3]};"
            " take an earlier layer or larger images"
        )
    with torch.autocast(maps.device.type, enabled=False):
        values = maps.flatten(2).to(torch.promote_types(maps.dtype, torch.float32))
        centred = values - values.mean(2, keepdim=True)
        z = centred * (centred.square().mean(2, keepdim=True) + _VARIANCE_FLOOR).rsqrt()
        return z @ z.mT / (positions - 1)


def _positives(identities: Tensor, modalities: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return which candidates (B, B) are positives of each anchor, and which anchors (B,) also have a negative."""
    same = identities[:, None] == identities[None, :]
    positives = same & ~torch.eye(len(identities), dtype=torch.bool, device=same.device)
    if modalities is not None:
        across = positives & (modalities[:, None] != modalities[None, :])
        positives = torch.where(across.any(1, keepdim=True), across, positives)
    return positives, positives.any(1) & ~same.all(1)


def _weighted_mean(distances: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
    """Average distances (B, B) by the softmax of scores over the chosen candidates of each row; 0 where none is."""
    lowest = torch.finfo(scores.dtype).min  # unlike -inf it leaves rows without a candidate finite
    weights = functional.softmax(scores.masked_fill(~chosen, lowest), dim=1)
    return (weights * distances * chosen).sum(1)


def _euclidean_distances(features: Tensor) -> Tensor:
    """Compute the distances (B, B) between all rows by one matrix product."""
    centred = features - features.mean(0).detach()  # distances stay; the squares below cancel less
    squares = centred.square().sum(1)
    squared = squares[:, None] + squares[None, :] - 2.0 * centred @ centred.T
    return squared.clamp(min=_SMALLEST_SQUARE).sqrt()
