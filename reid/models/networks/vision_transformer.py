"""Vision transformers of person re-identification: TransReID with its camera embedding and jigsaw patches, CLIP-ReID.

Both are the network of Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, with patches that may overlap.
They differ in where the camera embedding is added, in their activation and in what they take as the feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConfigError
from reid.norm.domain_embedding import DomainEmbedding

PATCH = 16  # pixels of a side of a patch
JIGSAW_SHIFT = 5  # TransReID shifts its patches by one less
JIGSAW_GROUPS = 2  # and interleaves so many parts
JIGSAW_PARTS = 4  # of which each becomes a feature
FIRST_CAMERA = "c1"  # the domain of an embedding whose cameras are not named yet


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., NeurIPS 2017, equation 1) of tokens (B, N, C).

    Args:
        width: C.
        heads: The number of heads, each of C / ``heads`` channels.
        scale: Factor of the products of queries and keys; None for 1 / sqrt(C / heads).
        qkv_bias: Whether queries, keys and values have a bias.
    """

    def __init__(self, width: int, heads: int, scale: float | None = None, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        size, tokens, width = x.shape
        queries, keys, values = self.qkv(x).view(size, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        output: Tensor = self.proj(mixed.transpose(1, 2).reshape(size, tokens, width))
        return output


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, for every token by itself."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), activation(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(self.act(self.fc1(x)))
        return output


@dataclass(frozen=True)
class TokenShape:
    """The sizes and the variant of a vision transformer.

    Args:
        width: Channels of a token.
        depth: Number of blocks.
        heads: Number of heads.
        hidden: Channels between the linear layers of a block.
        scale: Factor of the attention; None for 1 / sqrt(width / heads).
        qkv_bias: Whether queries, keys and values have a bias.
        projection: Channels of CLIP's projection; 0 for TransReID, which has none.
    """

    width: int
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    scale: float | None = None
    qkv_bias: bool = True
    projection: int = 0

    @property
    def is_clip(self) -> bool:
        """Whether it is the image encoder of CLIP."""
        return self.projection > 0

    @property
    def eps(self) -> float:
        """What its layer norms add to the variance."""
        return 1e-5 if self.is_clip else 1e-6


class TransformerBlock(nn.Module):
    """A block with the norms before its attention and its feed-forward layers."""

    def __init__(self, shape: TokenShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.attn = Attention(shape.width, shape.heads, shape.scale, shape.qkv_bias)
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.mlp = FeedForward(shape.width, shape.hidden, QuickGELU if shape.is_clip else nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


class VisionTransformer(nn.Module):
    """TransReID (He et al., ICCV 2021), or the image encoder of CLIP-ReID (Li et al., AAAI 2023).

    TransReID adds the camera embedding to all tokens; its feature is the class token, and with the jigsaw patch module
    (JPM) also a fourth of the class token of each of four groups of patches.  CLIP-ReID adds the embedding to the class
    token; its feature is the class token and the projected class token.  Both are taken before BNNeck, as the published
    configurations take them.

    Args:
        shape: The sizes and the variant.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        stride: Distance of two patches in pixels; patches overlap where it is below 16.
        has_cameras: Whether it has a camera embedding.
        jigsaw: The shift of the jigsaw patches; 0 where it has none.
    """

    def __init__(
        self, shape: TokenShape, height: int, width: int, stride: int, has_cameras: bool = False, jigsaw: int = 0
    ) -> None:
        super().__init__()
        rows, columns = ((side - PATCH) // stride + 1 for side in (height, width))
        self.shape, self.size, self.jigsaw = shape, (height, width), jigsaw
        self.patches = nn.Conv2d(3, shape.width, PATCH, stride, bias=not shape.is_clip)
        self.class_token = nn.Parameter(torch.zeros(shape.width))
        self.positions = nn.Parameter(torch.zeros(1 + rows * columns, shape.width))
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        self.cameras = DomainEmbedding(shape.width, (FIRST_CAMERA,)) if has_cameras else None
        self.norm_pre = nn.LayerNorm(shape.width, eps=shape.eps) if shape.is_clip else nn.Identity()
        self.blocks = nn.ModuleList(TransformerBlock(shape) for _ in range(shape.depth - (jigsaw > 0)))
        branches = 1 + (jigsaw > 0)  # of the last block: one for the whole image, one for its parts
        self.last = nn.ModuleList(TransformerBlock(shape) for _ in range(branches if jigsaw else 0))
        self.norms = nn.ModuleList(nn.LayerNorm(shape.width, eps=shape.eps) for _ in range(branches))
        self.projection = nn.Parameter(torch.zeros(shape.width, shape.projection)) if shape.is_clip else None
        if self.projection is not None:
            nn.init.normal_(self.projection, std=shape.width**-0.5)
        self.channels = shape.width * (1 + (JIGSAW_PARTS if jigsaw else 0)) + shape.projection

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features of normalised images (B, 3, H, W) float, as a map (B, C, 1, 1) of one position."""
        if tuple(images.shape[2:]) != self.size:
            raise ConfigError(
                f"this transformer has positions for images of {self.size[0]}x{self.size[1]} pixels, got"
                f" {images.shape[2]}x{images.shape[3]}; leave --size out"
            )
        tokens = self._embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        features = self._jigsaw_features(tokens) if self.jigsaw else self._features(tokens)
        return features[:, :, None, None]

    def _embed(self, images: Tensor) -> Tensor:
        """Turn images into the class token and the tokens of the patches, (B, 1 + N, C)."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        first = self.class_token.expand(images.shape[0], 1, -1)
        if self.cameras is None:
            tokens = torch.cat((first, patches), 1) + self.positions
        else:
            camera = self.cameras(images)[:, None]
            if self.shape.is_clip:
                tokens = torch.cat((first + camera, patches), 1) + self.positions
            else:
                tokens = torch.cat((first, patches), 1) + self.positions + camera
        embedded: Tensor = self.norm_pre(tokens)
        return embedded

    def _features(self, tokens: Tensor) -> Tensor:
        whole: Tensor = self.norms[0](tokens[:, 0])
        return whole if self.projection is None else torch.cat((whole, whole @ self.projection), 1)

    def _jigsaw_features(self, tokens: Tensor) -> Tensor:
        """Compute the features of the whole image and, divided by four, of four groups of shuffled patches."""
        first, patches = tokens[:, :1], tokens[:, 1:]
        length = patches.shape[1] // JIGSAW_PARTS
        order = jigsaw_order(patches.shape[1], self.jigsaw)
        features = [self.norms[0](self.last[0](tokens)[:, 0])]
        for part in range(JIGSAW_PARTS):
            chosen = patches[:, order[part * length : (part + 1) * length]]
            local = self.norms[1](self.last[1](torch.cat((first, chosen), 1))[:, 0])
            features.append(local / JIGSAW_PARTS)
        return torch.cat(features, 1)


def jigsaw_order(patches: int, shift: int) -> list[int]:
    """Return the order of the patches in the jigsaw patch module: shifted, then taken from two halves in turn.

    Where their number is odd, the last but one of the shifted patches is taken twice, as TransReID does.

    Args:
        patches: N.
        shift: The number in TransReID's configuration; the patches are shifted by one less.

    Example:
        >>> jigsaw_order(8, 3)
        [2, 6, 3, 7, 4, 0, 5, 1]
    """
    shifted = [(index + shift - 1) % patches for index in range(patches)]
    if patches % JIGSAW_GROUPS:
        shifted.append(shifted[-2])
    half = len(shifted) // JIGSAW_GROUPS
    return [shifted[group * half + index] for index in range(half) for group in range(JIGSAW_GROUPS)]
