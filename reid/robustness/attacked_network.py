"""A checkpoint as an attack sees it: pixels go in, vectors come out, and the gradient leads back to the pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError, ConfigError
from reid.models.checkpoint import Checkpoint
from reid.models.embedder import Embedder
from reid.norm import Given
from reid.norm.unseen_domains import answer
from reid.robustness.differentiable_resize import network_input


class VectorsBeforeScaling(nn.Module):
    """An embedder whose vectors have not been scaled to unit length: at the clean image, only their length changes.

    Args:
        embedder: The embedder; it is shared, not copied.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor) -> Tensor:
        """Compute vectors (B, D) float32 of any length."""
        vectors: Tensor = self.embedder.neck(self.embedder.features(images))
        return vectors.float()


class AttackedNetwork:
    """What computes the vectors of images, with a gradient.

    Image preparation, statistics of the cameras, unseen-camera policy, mirrored images and centers are those of the
    checkpoint.  So an attack on it is a white-box attack on the whole path from the file to the embedding.

    Args:
        checkpoint: The network.

    Raises:
        ConfigError: Another program than PyTorch runs the network, or it does not run layer by layer in float32.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        check_gradients(checkpoint)
        self.checkpoint = checkpoint
        self._network = VectorsBeforeScaling(checkpoint.network).eval()  # type: ignore[arg-type]
        self._given = Given(self._network)
        self.device = torch.device(checkpoint.execution.device)

    def vectors(self, images: Tensor, domain: Tensor | None) -> Tensor:
        """Compute vectors whose direction is the embedding.

        Args:
            images: (B, 3, H, W) float, whole numbers in 0..255, of any size.
            domain: (B,) int64 index of each image's domain; None where the network has none.

        Returns:
            (B, D) float32 of any length.
        """
        checkpoint = self.checkpoint
        prepared = network_input(images.to(self.device), checkpoint.transform)
        found = self._run(prepared, domain)
        if checkpoint.transform.flip:
            found = functional.normalize(found) + functional.normalize(self._run(prepared.flip(-1), domain))
        if checkpoint.centers is None:
            return found
        table = checkpoint.centers.vectors
        rows = torch.cat([table, table.mean(0, keepdim=True)]).to(found)  # -1, an unknown domain: the mean of all
        if domain is None:
            raise ConditionError(
                f"{checkpoint.source}: its embeddings are centered, so it needs the camera of each image"
            )
        center = rows[domain.to(rows.device)]
        return torch.where(center.any(1, keepdim=True), functional.normalize(found) - center, found)

    def _run(self, images: Tensor, domain: Tensor | None) -> Tensor:
        checkpoint = self.checkpoint
        if not checkpoint.has_statistics:
            domain = None
        if domain is not None:
            domain = domain.to(self.device)
            if checkpoint.unknown_domain is not None:
                return answer(self._network, images, domain, checkpoint.unseen_camera_policy)
        found: Tensor = self._given(images, domain)
        return found


def check_gradients(checkpoint: Checkpoint) -> None:
    """Refuse a network that has no gradient.

    Raises:
        ConfigError: Another program than PyTorch runs it, or it does not run layer by layer in float32.
    """
    if checkpoint.runtime:
        raise ConfigError(
            f"{checkpoint.source}: {checkpoint.runtime} runs this network, which gives no gradients; attack the weights"
            " that it was exported from, and name this file with --target-weights to see the transfer"
        )
    execution = checkpoint.execution
    if execution.runtime != "eager" or execution.precision != "float32":
        raise ConfigError(
            f"attack: gradients need the runtime eager in float32, not {execution.runtime} in {execution.precision};"
            " leave --runtime and --precision out"
        )
