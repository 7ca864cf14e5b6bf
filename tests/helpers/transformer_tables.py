"""The key names and shapes of published transformers: TransReID, CLIP-ReID and SOLIDER.

Written down from the projects' state dictionaries, without the package's own networks.
"""

from __future__ import annotations

from helpers.published_tables import Shapes, batch_norm, linear

IDENTITIES = 11


def pair(key: str, channels: int) -> Shapes:
    return {f"{key}.weight": (channels,), f"{key}.bias": (channels,)}


def vit_block(key: str, width: int, hidden: int, *, qkv_bias: bool = True) -> Shapes:
    """A block with the names of timm, which TransReID has too."""
    shapes = pair(f"{key}.norm1", width) | linear(f"{key}.attn.qkv", width, 3 * width)
    if not qkv_bias:
        del shapes[f"{key}.attn.qkv.bias"]
    shapes |= linear(f"{key}.attn.proj", width, width) | pair(f"{key}.norm2", width)
    return shapes | linear(f"{key}.mlp.fc1", width, hidden) | linear(f"{key}.mlp.fc2", hidden, width)


def transreid(
    width: int = 384,
    depth: int = 12,
    hidden: int = 1536,
    *,
    patches: int,
    cameras: int = 0,
    jpm: bool = False,
    qkv_bias: bool = True,
) -> Shapes:
    """TransReID; the first three values are those of its DeiT-S."""
    shapes: Shapes = {"base.cls_token": (1, 1, width), "base.pos_embed": (1, patches + 1, width)}
    if cameras:
        shapes["base.sie_embed"] = (cameras, 1, width)
    shapes |= {"base.patch_embed.proj.weight": (width, 3, 16, 16), "base.patch_embed.proj.bias": (width,)}
    for number in range(depth):
        shapes |= vit_block(f"base.blocks.{number}", width, hidden, qkv_bias=qkv_bias)
    shapes |= pair("base.norm", width) | linear("base.fc", width, 1000)
    if jpm:
        for branch in ("b1", "b2"):
            shapes |= vit_block(f"{branch}.0", width, hidden, qkv_bias=qkv_bias) | pair(f"{branch}.1", width)
    for end in ["", "_1", "_2", "_3", "_4"] if jpm else [""]:
        shapes |= {f"classifier{end}.weight": (IDENTITIES, width)} | batch_norm(f"bottleneck{end}", width)
    return shapes


def clip_reid(*, patches: int, cameras: int = 0) -> Shapes:
    """CLIP-ReID with ViT-B/16; of its text encoder, which is left out, two tensors stand for all."""
    width = 768
    shapes: Shapes = {"cv_embed": (cameras, width)} if cameras else {}
    shapes |= {
        "image_encoder.class_embedding": (width,),
        "image_encoder.positional_embedding": (patches + 1, width),
        "image_encoder.proj": (width, 512),
        "image_encoder.conv1.weight": (width, 3, 16, 16),
    }
    shapes |= pair("image_encoder.ln_pre", width) | pair("image_encoder.ln_post", width)
    for number in range(12):
        key = f"image_encoder.transformer.resblocks.{number}"
        shapes |= {f"{key}.attn.in_proj_weight": (3 * width, width), f"{key}.attn.in_proj_bias": (3 * width,)}
        shapes |= linear(f"{key}.attn.out_proj", width, width) | pair(f"{key}.ln_1", width)
        shapes |= linear(f"{key}.mlp.c_fc", width, 4 * width) | linear(f"{key}.mlp.c_proj", 4 * width, width)
        shapes |= pair(f"{key}.ln_2", width)
    for end, channels in (("", width), ("_proj", 512)):
        shapes |= {f"classifier{end}.weight": (IDENTITIES, channels)} | batch_norm(f"bottleneck{end}", channels)
    return shapes | {"prompt_learner.cls_ctx": (IDENTITIES, 4, 512), "text_encoder.text_projection": (512, 512)}


def clip_resnet(*, patches: int) -> Shapes:
    """CLIP-ReID with the ResNet-50 of CLIP."""
    root = "image_encoder"
    shapes: Shapes = {}
    for number, (inputs, outputs) in enumerate(((3, 32), (32, 32), (32, 64)), 1):
        shapes |= {f"{root}.conv{number}.weight": (outputs, inputs, 3, 3)} | batch_norm(f"{root}.bn{number}", outputs)
    channels = 64
    for stage, (inner, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            key = f"{root}.layer{stage}.{block}"
            sizes = ((inner, channels, 1), (inner, inner, 3), (4 * inner, inner, 1))
            for number, (outputs, inputs, side) in enumerate(sizes, 1):
                shapes |= {f"{key}.conv{number}.weight": (outputs, inputs, side, side)}
                shapes |= batch_norm(f"{key}.bn{number}", outputs)
            if block == 0:
                shapes |= {f"{key}.downsample.0.weight": (4 * inner, channels, 1, 1)}
                shapes |= batch_norm(f"{key}.downsample.1", 4 * inner)
            channels = 4 * inner
    shapes[f"{root}.attnpool.positional_embedding"] = (patches + 1, 2048)
    for name, outputs in (("k", 2048), ("q", 2048), ("v", 2048), ("c", 1024)):
        shapes |= linear(f"{root}.attnpool.{name}_proj", 2048, outputs)
    for end, channels in (("", 2048), ("_proj", 1024)):
        shapes |= {f"classifier{end}.weight": (IDENTITIES, channels)} | batch_norm(f"bottleneck{end}", channels)
    return shapes | {"prompt_learner.cls_ctx": (IDENTITIES, 4, 512), "text_encoder.text_projection": (512, 1024)}


def solider(
    prefix: str = "base.",
    width: int = 96,
    depths: tuple[int, ...] = (2, 2, 6, 2),
    heads: tuple[int, ...] = (3, 6, 12, 24),
    *,
    controller: bool = True,
) -> Shapes:
    """SOLIDER's Swin; the default values are those of Swin-T."""
    shapes: Shapes = {f"{prefix}patch_embed.projection.weight": (width, 3, 4, 4)}
    shapes |= {f"{prefix}patch_embed.projection.bias": (width,)} | pair(f"{prefix}patch_embed.norm", width)
    for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        channels = width * 2**stage
        for number in range(depth):
            key = f"{prefix}stages.{stage}.blocks.{number}"
            attention = f"{key}.attn.w_msa"
            shapes |= pair(f"{key}.norm1", channels) | pair(f"{key}.norm2", channels)
            shapes |= {f"{attention}.relative_position_bias_table": (169, count)}
            shapes |= {f"{attention}.relative_position_index": (49, 49)}
            shapes |= linear(f"{attention}.qkv", channels, 3 * channels)
            shapes |= linear(f"{attention}.proj", channels, channels)
            shapes |= linear(f"{key}.ffn.layers.0.0", channels, 4 * channels)
            shapes |= linear(f"{key}.ffn.layers.1", 4 * channels, channels)
        if stage < 3:
            key = f"{prefix}stages.{stage}.downsample"
            shapes |= pair(f"{key}.norm", 4 * channels) | {f"{key}.reduction.weight": (2 * channels, 4 * channels)}
        shapes |= pair(f"{prefix}norm{stage}", channels)
        for letter in "wb" if controller else "":
            shapes |= linear(f"{prefix}semantic_embed_{letter}.{stage}", 2, width * 2 ** min(stage + 1, 3))
    if prefix == "base.":
        shapes |= {"classifier.weight": (IDENTITIES, 8 * width)} | batch_norm("bottleneck", 8 * width)
    return shapes
