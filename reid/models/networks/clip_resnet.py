"""The ResNet-50 of CLIP as CLIP-ReID has it: three convolutions at its beginning, and attention at its end.

Source: Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021, section 2.4;
the last stage keeps its resolution, as in Li et al., "CLIP-ReID", AAAI 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConfigError

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 1))  # inner channels, blocks, stride
WIDTH, HEADS, PROJECTED = 2048, 32, 1024
STEP = 16  # pixels of a side for one position of the map


class ClipBottleneck(nn.Module):
    """A bottleneck block whose resolution is halved by average pooling, in the block and in its shortcut."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
        has_shortcut = stride > 1 or channels != 4 * inner
        shortcut = (nn.Conv2d(channels, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner))
        self.downsample = nn.Sequential(*shortcut) if has_shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        if self.stride > 1:
            x, y = functional.avg_pool2d(x, self.stride), functional.avg_pool2d(y, self.stride)
        output: Tensor = (self.bn3(self.conv3(y)) + self.downsample(x)).relu()
        return output


class AttentionPooling(nn.Module):
    """Pool a map (B, C, h, w) by attention from its mean to all positions and the mean itself: (B, ``PROJECTED``)."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(1 + positions, WIDTH))
        nn.init.normal_(self.positional_embedding, std=WIDTH**-0.5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.c_proj = nn.Linear(WIDTH, PROJECTED)

    def forward(self, feature_map: Tensor) -> Tensor:
        tokens = feature_map.flatten(2).transpose(1, 2)
        tokens = torch.cat((tokens.mean(1, keepdim=True), tokens), 1) + self.positional_embedding
        size = tokens.shape[0]
        queries, keys, values = (
            layer(part).view(size, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer, part in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        pooled: Tensor = self.c_proj(mixed.transpose(1, 2).reshape(size, WIDTH))
        return pooled


class ClipResNet(nn.Module):
    """CLIP-ReID's ResNet-50; its feature is the mean of the last map and what attention pools of it.

    Args:
        height: Height of the images in pixels.
        width: Width of the images in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        channels = 64
        for number, (inner, blocks, stride) in enumerate(STAGES, 1):
            first = ClipBottleneck(channels, inner, stride)
            others = (ClipBottleneck(4 * inner, inner, 1) for _ in range(blocks - 1))
            self.add_module(f"layer{number}", nn.Sequential(first, *others))
            channels = 4 * inner
        self.attnpool = AttentionPooling((height // STEP) * (width // STEP))
        self.channels = WIDTH + PROJECTED

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features of normalised images (B, 3, H, W) float, as a map (B, C, 1, 1) of one position."""
        if tuple(images.shape[2:]) != self.size:
            raise ConfigError(
                f"this network has positions for images of {self.size[0]}x{self.size[1]} pixels, got"
                f" {images.shape[2]}x{images.shape[3]}; leave --size out"
            )
        x = images
        for number in (1, 2, 3):
            x = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(x)).relu()
        x = functional.avg_pool2d(x, 2)
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return torch.cat((x.mean((2, 3)), self.attnpool(x)), 1)[:, :, None, None]
