"""Published weights of transformers: the key names of TransReID, CLIP-ReID and SOLIDER, and what their shapes tell.

The features are taken before BNNeck, as all published configurations of the three projects take them.  A file does not
state the size of its images and the distance of its patches: they follow from the number of its positions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor

from reid.data.transforms import EvaluationTransform
from reid.errors import WeightsError
from reid.models.embedder import NetworkSpec
from reid.models.networks.backbone import Backbone
from reid.models.networks.transformers import (
    CLIP_FACTOR,
    CLIP_RESNET,
    TOKEN_SHAPES,
    TRANSREID_FACTOR,
    TransformerOptions,
    parse_transformer,
    transformer_name,
)
from reid.models.networks.vision_transformer import JIGSAW_SHIFT, PATCH
from reid.models.weights.tensor_tables import Table
from reid.structured_text import shorten

ROOT = "backbone.transformer."  # stands before the names of the network in an embedder
VECTORS = "cameras.vectors"
SQUARE_SHIFT = 8  # of the jigsaw patches in the configurations for vehicles, whose images are square
SIZES = ((256, 128), (384, 128), (256, 256), (224, 224), (384, 384))  # of published configurations
STRIDES = (16, 12, 14)
CAMERAS = {  # number of cameras -> the names in the data set that has so many
    6: "c{}",  # Market-1501
    8: "c{}",  # DukeMTMC-reID
    15: "c{:02}",  # MSMT17
    20: "c{:03}",  # VeRi-776
}


@dataclass(frozen=True)
class TransformerFamily:
    """What the files of one project have in common.

    Args:
        name: The project.
        sign: A key of every file, without what stands before it.
        prefix: A pattern of what may stand before the names of the network.
        renames: (pattern, replacement) from keys without the prefix to the names of our network; the first that
            matches counts.
        heads: A pattern that matches keys, the prefix included, which the features do not need.
        embedding: The key of the camera embedding; "" where it has none.
        factor: Multiplies the camera embedding in the published configurations.
    """

    name: str
    sign: str
    prefix: str
    renames: tuple[tuple[str, str], ...]
    heads: str
    embedding: str = ""
    factor: float = 1.0


TRANSREID = TransformerFamily(
    "TransReID",
    sign="pos_embed",
    prefix=r"base\.",
    renames=(
        (r"cls_token$", "class_token"),
        (r"pos_embed$", "positions"),
        (r"sie_embed$", VECTORS),
        (r"patch_embed\.proj\.", "patches."),
        (r"norm\.", "norms.0."),
        (r"b([12])\.0\.", "last.<>."),
        (r"b([12])\.1\.", "norms.<>."),
    ),
    heads=r"base\.(?:fc|head)\.|classifier(?:_\d)?\.|bottleneck(?:_\d)?\.",
    embedding="base.sie_embed",
    factor=TRANSREID_FACTOR,
)
CLIP_REID = TransformerFamily(
    "CLIP-ReID",
    sign="class_embedding",
    prefix=r"image_encoder\.",
    renames=(
        (r"class_embedding$", "class_token"),
        (r"positional_embedding$", "positions"),
        (r"cv_embed$", VECTORS),
        (r"conv1\.", "patches."),
        (r"ln_pre\.", "norm_pre."),
        (r"ln_post\.", "norms.0."),
        (r"proj$", "projection"),
        (r"transformer\.resblocks\.(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
        (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"blocks.\1.attn.qkv."),
        (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"blocks.\1.attn.proj."),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"blocks.\1.mlp.fc1."),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"blocks.\1.mlp.fc2."),
    ),
    heads=r"(?:classifier|bottleneck)(?:_proj)?\.|prompt_learner\.|text_encoder\.",
    embedding="cv_embed",
    factor=CLIP_FACTOR,
)
CLIP_REID_RESNET = TransformerFamily(
    "CLIP-ReID",
    sign="attnpool.positional_embedding",
    prefix=r"image_encoder\.",
    renames=(),
    heads=CLIP_REID.heads + r"|cv_embed$",  # its ResNet has no use for a camera embedding
)
SOLIDER = TransformerFamily(
    "SOLIDER",
    sign="patch_embed.projection.weight",
    prefix=r"(?:base\.|backbone\.|)",
    renames=(
        (r"patch_embed\.projection\.", "patches."),
        (r"patch_embed\.norm\.", "patch_norm."),
        (r"stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.", r"stages.\1.\2.attn."),
        (r"stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.0\.0\.", r"stages.\1.\2.mlp.fc1."),
        (r"stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.1\.", r"stages.\1.\2.mlp.fc2."),
        (r"stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
        (r"stages\.(\d+)\.downsample\.", r"merging.\1."),
        (r"norm3\.", "norm."),
        (r"semantic_embed_w\.(\d+)\.", r"semantic.\1.scale."),
        (r"semantic_embed_b\.(\d+)\.", r"semantic.\1.shift."),
    ),
    # what is scaled behind the last stage is not used, and neither are the norms of the stages before it
    heads=r"(?:base\.|backbone\.|)(?:norm[012]\.|semantic_embed_[wb]\.3\.|.*\.relative_position_index$)"
    r"|classifier\.|bottleneck\.|head\.",
)


@dataclass(frozen=True)
class TransformerOrigin:
    """Where weights of a transformer come from: their family, their network and its cameras.

    Args:
        family: The project.
        spec: The network, with the options that the file and the user decide.
        cameras: The names of the cameras of its embedding; () where it has none.
        factor: Multiplies the camera embedding.
        views: Rows of the embedding for each camera.
    """

    family: TransformerFamily
    spec: NetworkSpec
    cameras: tuple[str, ...] = ()
    factor: float = 1.0
    views: int = 1

    def tensors_for(self, trunk: Backbone, tensors: Mapping[str, Tensor]) -> tuple[Table, tuple[str, ...]]:
        """Rename tensors to the names of an :class:`~reid.models.embedder.Embedder`.

        Args:
            trunk: The backbone of the embedder.
            tensors: The tensors of the file.

        Returns:
            The tensors by our names, and the keys that the features do not need.
        """
        own = trunk.state_dict()
        ours: Table = {}
        left_out: list[str] = []
        for key, tensor in tensors.items():
            name = self._rename(key)
            if re.match(self.family.heads, key) or (name is not None and self._is_unused(key, name, own)):
                left_out.append(key)
            elif name is None:
                ours[key] = tensor  # the loader names it in its error
            else:
                ours[ROOT + name] = self._reshape(name, tensor)
        return ours, tuple(left_out)

    def transform_of(self, trunk: Backbone, _tensors: Mapping[str, Tensor]) -> EvaluationTransform:
        """Return the image preparation of the published configurations; the tensors state none."""
        return trunk.transform

    def _rename(self, key: str) -> str | None:
        """Return the name in our network, or None where the key has another prefix."""
        branch = re.match(r"b[12]\.", key) if self.family is TRANSREID else None
        prefix = re.match(self.family.prefix, key)
        if key == self.family.embedding:
            return VECTORS
        if prefix is None and branch is None:
            return None
        inner = key if prefix is None else key[prefix.end() :]
        for pattern, replacement in self.family.renames:
            match = re.match(pattern, inner)
            if match and "<>" in replacement:  # counted from 0 here
                return replacement.replace("<>", str(int(match[1]) - 1)) + inner[match.end() :]
            if match:
                return match.expand(replacement) + inner[match.end() :]
        return inner

    def _is_unused(self, key: str, name: str, own: Mapping[str, Tensor]) -> bool:
        """Whether the features do not need it: a camera embedding of factor 0, what the jigsaw branches replace."""
        if name == VECTORS:
            return self.factor == 0
        if self.family is not TRANSREID or "transformer.last.0.norm1.weight" not in own:
            return False
        depth = sum(key.startswith("transformer.blocks.") and key.endswith("norm1.weight") for key in own)
        return key.startswith(("base.norm.", f"base.blocks.{depth}."))

    def _reshape(self, name: str, tensor: Tensor) -> Tensor:
        """Give a tensor the shape that our network has for it, where it holds as many numbers."""
        if name == "class_token":
            return tensor.reshape(-1)
        if name == "positions" and tensor.ndim == 3 and len(tensor) == 1:
            return tensor[0]
        if name == VECTORS:
            rows = tensor.reshape(len(tensor) // self.views, self.views, -1).mean(1)
            return rows.float() * self.factor
        return tensor


def recognise_transformer(
    tensors: Mapping[str, Tensor], backbone: str, size: tuple[int, int] | None = None
) -> TransformerOrigin:
    """Read what the keys and shapes of a transformer's weights tell.

    Args:
        tensors: The tensors of the file; only keys and shapes matter.
        backbone: A name of :data:`~reid.models.networks.transformers.TRANSFORMERS`; its options win over what the
            file suggests.
        size: Height and width of the images, where the user names them.

    Raises:
        WeightsError: If the file is of another family, or the size of its images does not follow from it.

    Example:
        >>> import torch
        >>> table = {"base.pos_embed": torch.zeros(1, 211, 384), "base.sie_embed": torch.zeros(6, 1, 384)}
        >>> origin = recognise_transformer(table, "transreid_deit_small")
        >>> origin.spec.backbone, origin.cameras[:2]
        ('transreid_deit_small+256x128+stride12+sie', ('c1', 'c2'))
    """
    trunk, options = parse_transformer(backbone)
    family = _family_of(trunk)
    if not any(re.fullmatch(family.prefix + re.escape(family.sign), key) for key in tensors):
        shown = ", ".join(shorten(key).strip("'") for key in list(tensors)[:3])
        raise WeightsError(f'expected keys of {family.name} such as "...{family.sign}", got {shown}, ...')
    if family is SOLIDER:
        return TransformerOrigin(family, NetworkSpec(_solider_name(trunk, options, tensors), neck="none"))
    if family is CLIP_REID_RESNET:
        found = _with_size(replace(options, stride=PATCH), _positions(tensors, family), size)
        name = transformer_name(trunk, replace(options, size=found.size))
        return TransformerOrigin(family, NetworkSpec(name, neck="none"))
    options = _with_size(options, _positions(tensors, family), size)
    if "b1.0.norm1.weight" in tensors and options.jigsaw is None:
        is_square = options.size is not None and options.size[0] == options.size[1]
        options = replace(options, jigsaw=SQUARE_SHIFT if is_square else JIGSAW_SHIFT)
    embedding = tensors.get(family.embedding)
    if embedding is None:
        return TransformerOrigin(family, NetworkSpec(transformer_name(trunk, options), neck="none"))
    factor = family.factor if options.camera_factor is None else options.camera_factor
    views = options.views or 1
    if len(embedding) % views or views < 1:
        raise WeightsError(f"{family.embedding}: its {len(embedding)} rows are not {views} views of each camera")
    spec = NetworkSpec(transformer_name(trunk, replace(options, camera_factor=factor)), neck="none")
    return TransformerOrigin(family, spec, camera_names(len(embedding) // views) if factor else (), factor, views)


def _family_of(trunk: str) -> TransformerFamily:
    if trunk == CLIP_RESNET:
        return CLIP_REID_RESNET
    if trunk not in TOKEN_SHAPES:
        return SOLIDER
    return CLIP_REID if TOKEN_SHAPES[trunk].is_clip else TRANSREID


def camera_names(count: int) -> tuple[str, ...]:
    """Name the cameras of an embedding as the data set with so many cameras does, or c1, c2, and so on.

    Example:
        >>> camera_names(15)[:2]
        ('c01', 'c02')
    """
    return tuple(CAMERAS.get(count, "c{}").format(number + 1) for number in range(count))


def _positions(tensors: Mapping[str, Tensor], family: TransformerFamily) -> int:
    """Return the number of patches: the positions without that of the class token."""
    name = r"pos_embed" if family is TRANSREID else r"(?:attnpool\.)?positional_embedding"
    table = next((tensor for key, tensor in tensors.items() if re.fullmatch(family.prefix + name, key)), None)
    if table is None or table.ndim < 2:
        raise WeightsError(f"expected a table of positions of {family.name}, got none")
    return int(table.shape[-2]) - 1


def _with_size(options: TransformerOptions, patches: int, size: tuple[int, int] | None) -> TransformerOptions:
    """Find the size and the stride that give so many patches; what the user names comes first."""
    named = options.size or size
    sizes, strides = [named] if named else list(SIZES), [options.stride] if options.stride else list(STRIDES)
    for stride, chosen in product(strides, sizes):
        if _count_patches(chosen, stride) == patches:
            return replace(options, size=chosen, stride=stride)
    tried = ", ".join(f"{height}x{width}" for height, width in sizes)
    raise WeightsError(
        f"its {patches} positions are not those of images of {tried} pixels with patches every"
        f" {', '.join(map(str, strides))} pixels; name the size and the stride of the training, as in"
        " --backbone NAME+320x160+stride16"
    )


def _count_patches(size: tuple[int, int], stride: int) -> int:
    return ((size[0] - PATCH) // stride + 1) * ((size[1] - PATCH) // stride + 1)


def _solider_name(trunk: str, options: TransformerOptions, tensors: Mapping[str, Tensor]) -> str:
    if any(key.endswith("fcneck.weight") for key in tensors):
        raise WeightsError("its features are reduced by a linear layer (REDUCE_FEAT_DIM), which is not supported")
    has_controller = any("semantic_embed_w." in key for key in tensors)
    return transformer_name(trunk, options if has_controller else replace(options, part=-1.0))
