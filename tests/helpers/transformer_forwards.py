"""What the projects of published transformers compute, slowly: one head and one window at a time, from their own keys.

Every keyword changes a forward into a wrong one, which a test must be able to tell from the right one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from helpers.plain_forwards import norm
from helpers.published_tables import Table


def affine(table: Table, key: str, x: Tensor) -> Tensor:
    y = x @ table[f"{key}.weight"].T
    return y + table[f"{key}.bias"] if f"{key}.bias" in table else y


def layer_norm(table: Table, key: str, x: Tensor, eps: float) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    spread = (centered.square().mean(-1, keepdim=True) + eps).sqrt()
    return centered / spread * table[f"{key}.weight"] + table[f"{key}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def heads_of(qkv: Tensor, heads: int, scale: float | None, bias: Tensor | None = None) -> Tensor:
    """Mix tokens (B, N, C) from their joined queries, keys and values (B, N, 3 C), head by head."""
    width = qkv.shape[-1] // 3
    size = width // heads
    mixed = []
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        queries, keys, values = (qkv[..., part * width : (part + 1) * width][..., rows] for part in range(3))
        scores = queries @ keys.transpose(-1, -2) * (size**-0.5 if scale is None else scale)
        scores = scores if bias is None else scores + bias[..., head]
        mixed.append(torch.softmax(scores, -1) @ values)
    return torch.cat(mixed, -1)


def patches_of(images: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """Return the patches (B, N, C), row by row, each a product of its pixels with the kernels (C, 3, P, P)."""
    side = kernels.shape[-1]
    found = []
    for top in range(0, images.shape[2] - side + 1, stride):
        for left in range(0, images.shape[3] - side + 1, stride):
            pixels = images[:, :, top : top + side, left : left + side].flatten(1)
            found.append(pixels @ kernels.flatten(1).T)
    return torch.stack(found, 1)


def vit_block(table: Table, key: str, x: Tensor, heads: int, scale: float | None) -> Tensor:
    qkv = affine(table, f"{key}.attn.qkv", layer_norm(table, f"{key}.norm1", x, 1e-6))
    x = x + affine(table, f"{key}.attn.proj", heads_of(qkv, heads, scale))
    hidden = gelu(affine(table, f"{key}.mlp.fc1", layer_norm(table, f"{key}.norm2", x, 1e-6)))
    return x + affine(table, f"{key}.mlp.fc2", hidden)


def transreid(
    table: Table,
    images: Tensor,
    cameras: list[int] | None = None,
    *,
    stride: int = 16,
    heads: int = 6,
    scale: float | None = None,
    factor: float = 3.0,
    shift: int = 5,
    quarter: bool = True,
    shuffled: bool = True,
    everywhere: bool = True,
) -> Tensor:
    kernels = table["base.patch_embed.proj.weight"]
    patches = patches_of(images, kernels, stride) + table["base.patch_embed.proj.bias"]
    x = torch.cat((table["base.cls_token"].expand(len(images), 1, -1), patches), 1) + table["base.pos_embed"]
    for row, camera in enumerate(cameras or ()):
        tokens = slice(None) if everywhere else slice(1)
        x[row, tokens] += factor * table["base.sie_embed"][camera]
    depth = len([key for key in table if key.startswith("base.blocks.") and key.endswith("norm1.weight")])
    has_branches = "b1.0.norm1.weight" in table
    for number in range(depth - has_branches):
        x = vit_block(table, f"base.blocks.{number}", x, heads, scale)
    if not has_branches:
        return layer_norm(table, "base.norm", x, 1e-6)[:, 0]

    def branch(name: str, tokens: Tensor) -> Tensor:
        return layer_norm(table, f"{name}.1", vit_block(table, f"{name}.0", tokens, heads, scale), 1e-6)[:, 0]

    shifted = torch.cat((x[:, shift:], x[:, 1:shift]), 1) if shuffled else x[:, 1:]
    length = (x.shape[1] - 1) // 4
    if shuffled:
        if shifted.shape[1] % 2:
            shifted = torch.cat((shifted, shifted[:, -2:-1]), 1)
        first, second = shifted.chunk(2, 1)
        shifted = torch.stack([half[:, index] for index in range(first.shape[1]) for half in (first, second)], 1)
    features = [branch("b1", x)]
    for part in range(4):
        tokens = torch.cat((x[:, :1], shifted[:, part * length : (part + 1) * length]), 1)
        features.append(branch("b2", tokens) / (4 if quarter else 1))
    return torch.cat(features, 1)


def clip_reid(
    table: Table,
    images: Tensor,
    cameras: list[int] | None = None,
    *,
    stride: int = 16,
    factor: float = 1.0,
    everywhere: bool = False,
    quick: bool = True,
    projected: bool = True,
) -> Tensor:
    root = "image_encoder"
    patches = patches_of(images, table[f"{root}.conv1.weight"], stride)
    x = torch.cat((table[f"{root}.class_embedding"].expand(len(images), 1, -1), patches), 1)
    for row, camera in enumerate(cameras or ()):
        x[row, slice(None) if everywhere else slice(1)] += factor * table["cv_embed"][camera]
    x = layer_norm(table, f"{root}.ln_pre", x + table[f"{root}.positional_embedding"], 1e-5)
    for number in range(12):
        key = f"{root}.transformer.resblocks.{number}"
        y = layer_norm(table, f"{key}.ln_1", x, 1e-5)
        qkv = y @ table[f"{key}.attn.in_proj_weight"].T + table[f"{key}.attn.in_proj_bias"]
        x = x + affine(table, f"{key}.attn.out_proj", heads_of(qkv, 12, None))
        hidden = affine(table, f"{key}.mlp.c_fc", layer_norm(table, f"{key}.ln_2", x, 1e-5))
        x = x + affine(table, f"{key}.mlp.c_proj", quick_gelu(hidden) if quick else gelu(hidden))
    whole = layer_norm(table, f"{root}.ln_post", x, 1e-5)[:, 0]
    return torch.cat((whole, whole @ table[f"{root}.proj"]), 1) if projected else whole


def clip_resnet(
    table: Table, images: Tensor, *, strided: bool = False, last_stride: int = 1, from_mean: bool = True
) -> Tensor:
    """``strided`` convolutions in place of pooling, a coarse last stage and all tokens as queries are mistakes."""
    root = "image_encoder"

    def convolved(key: str, x: Tensor, number: int, stride: int = 1) -> Tensor:
        kernels = table[f"{key}.conv{number}.weight"]
        return norm(table, f"{key}.bn{number}", functional.conv2d(x, kernels, None, stride, kernels.shape[-1] // 2))

    x = images
    for number in (1, 2, 3):
        x = convolved(root, x, number, 2 if number == 1 else 1).relu()
    x = functional.avg_pool2d(x, 2)
    for stage, (blocks, halved) in enumerate(((3, 1), (4, 2), (6, 2), (3, last_stride)), 1):
        for block in range(blocks):
            key, stride = f"{root}.layer{stage}.{block}", halved if block == 0 else 1
            y = convolved(key, convolved(key, x, 1).relu(), 2, stride if strided else 1).relu()
            y = convolved(key, y if strided else functional.avg_pool2d(y, stride), 3)
            if f"{key}.downsample.0.weight" in table:
                x = functional.conv2d(functional.avg_pool2d(x, stride), table[f"{key}.downsample.0.weight"])
                x = norm(table, f"{key}.downsample.1", x)
            x = (x + y).relu()
    tokens = x.flatten(2).transpose(1, 2)
    positions = table[f"{root}.attnpool.positional_embedding"][: tokens.shape[1] + 1]
    tokens = torch.cat((tokens.mean(1, keepdim=True), tokens), 1) + positions
    qkv = torch.cat([affine(table, f"{root}.attnpool.{name}_proj", tokens) for name in "qkv"], -1)
    mixed = heads_of(qkv, 32, None)
    pooled = affine(table, f"{root}.attnpool.c_proj", mixed[:, 0] if from_mean else mixed.mean(1))
    return torch.cat((x.mean((2, 3)), pooled), 1)


def window_attention(table: Table, key: str, x: Tensor, heads: int, shift: int, masked: bool = True) -> Tensor:
    """Mix tokens (B, H, W, C): each window gathers its tokens from the map that is padded and turned by ``shift``."""
    size, height, width, channels = x.shape
    rows, columns = math.ceil(height / 7) * 7, math.ceil(width / 7) * 7
    padded = x.new_zeros(size, rows, columns, channels)
    padded[:, :height, :width] = x
    qkv = affine(table, f"{key}.qkv", padded)
    mixed = torch.zeros_like(padded)
    inside = [(i, j) for i in range(7) for j in range(7)]
    places = torch.tensor([[13 * (a - c + 6) + b - d + 6 for c, d in inside] for a, b in inside])
    bias = table[f"{key}.relative_position_bias_table"][places]  # (49, 49, heads)
    for top in range(0, rows, 7):
        for left in range(0, columns, 7):
            down, right = ([start + k[axis] + shift for k in inside] for axis, start in enumerate((top, left)))
            turned = torch.tensor([(r >= rows) * 2 + (c >= columns) for r, c in zip(down, right, strict=True)])
            r, c = torch.tensor(down) % rows, torch.tensor(right) % columns
            apart = (turned[:, None] != turned[None]) * -100.0 * masked
            mixed[:, r, c] = heads_of(qkv[:, r, c], heads, None, bias + apart[..., None])
    return affine(table, f"{key}.proj", mixed)[:, :height, :width]


def solider(
    table: Table,
    images: Tensor,
    *,
    prefix: str = "base.",
    heads: tuple[int, ...] = (3, 6, 12, 24),
    part: float | None = 0.2,
    masked: bool = True,
    by_columns: bool = False,
) -> Tensor:
    kernels = table[f"{prefix}patch_embed.projection.weight"]
    rows = patches_of(images, kernels, 4) + table[f"{prefix}patch_embed.projection.bias"]
    x = layer_norm(table, f"{prefix}patch_embed.norm", rows, 1e-5)
    x = x.view(len(images), images.shape[2] // 4, images.shape[3] // 4, -1)
    for stage, count in enumerate(heads):
        depth = len(
            [key for key in table if key.startswith(f"{prefix}stages.{stage}.") and key.endswith("norm1.weight")]
        )
        for number in range(depth):
            key = f"{prefix}stages.{stage}.blocks.{number}"
            y = layer_norm(table, f"{key}.norm1", x, 1e-5)
            x = x + window_attention(table, f"{key}.attn.w_msa", y, count, 3 * (number % 2), masked)
            hidden = gelu(affine(table, f"{key}.ffn.layers.0.0", layer_norm(table, f"{key}.norm2", x, 1e-5)))
            x = x + affine(table, f"{key}.ffn.layers.1", hidden)
        if stage == 3:
            break
        key = f"{prefix}stages.{stage}.downsample"
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, i::2, j::2] for i in range(2) for j in range(2)]
        corners = [corners[n] for n in (0, 2, 1, 3)] if by_columns else corners
        joined = torch.stack(corners, -1).flatten(3)  # the four values of a channel stand together
        x = layer_norm(table, f"{key}.norm", joined, 1e-5) @ table[f"{key}.reduction.weight"].T
        if part is not None:
            wanted = torch.tensor([part, 1 - part])
            scale, offset = (affine(table, f"{prefix}semantic_embed_{letter}.{stage}", wanted) for letter in "wb")
            x = x * torch.log1p(scale.exp()) + offset
    return layer_norm(table, f"{prefix}norm3", x, 1e-5).mean((1, 2))
