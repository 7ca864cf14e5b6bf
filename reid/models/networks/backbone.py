"""The class of all backbones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from reid.data.transforms import EvaluationTransform


class Backbone(nn.Module):
    """Layers that run one after the other, with the names that their publisher gave them.

    Args:
        layers: The layers by name.
        channels: C of the feature map.
        heads: How keys begin that a published weights file may have and this network has no use for.
        root: What stands before a published key in the keys of this network.
        transform: Prepares images as the publisher did.
    """

    def __init__(
        self,
        layers: dict[str, nn.Module],
        channels: int,
        heads: tuple[str, ...],
        root: str = "",
        transform: EvaluationTransform | None = None,
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.channels = channels
        self.heads = heads
        self.root = root
        self.transform = transform or EvaluationTransform()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the feature map (B, ``channels``, h, w) of normalised images (B, 3, H, W) float."""
        for layer in self.children():
            images = layer(images)
        return images

    def published(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give published tensors the names that the layers have, without ``root``; most have them already."""
        return dict(tensors)
