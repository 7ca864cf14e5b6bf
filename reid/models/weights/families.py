"""Families of published weights: the key names of each project, its networks and its image preparation.

A file is recognised by its keys.  Known are torchreid, FastReID (ResNet, with IBN, GeM and non-local blocks), the
strong baseline and projects that build on it (AGW, the ResNets of TransReID), ResNets whose keys begin with
``backbone.``, IBN-Net (a and b), MegaDescriptor and MiewID for animals, torchvision and timm.  Transformers of
persons are in :mod:`reid.models.weights.transformer_families`.  A tensor that a network does not have keeps its own
name, so that the loader can name it in its error.  Features are taken after the neck, where the projects take them too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from reid.data.transforms import EvaluationTransform, Triple
from reid.errors import WeightsError
from reid.models.embedder import NetworkSpec
from reid.models.networks.backbone import Backbone
from reid.models.networks.backbones import PLUS
from reid.models.networks.resnet import RESNETS
from reid.models.networks.transformers import TRANSFORMERS
from reid.models.weights.tensor_tables import COUNTER, Table
from reid.models.weights.transformer_families import TransformerOrigin, recognise_transformer

COLOURS = "RGB"  # the order of channels in every family here
PUBLISHED_NAMES = {  # names of projects for networks that are known backbones with another neck or norm
    "resnet50_fc512": "resnet50",
    "resnet50_ibn": "resnet50+ibn",
    "resnet101_ibn": "resnet101+ibn",
    "resnet50_ibn_a": "resnet50+ibn",
    "resnet101_ibn_a": "resnet101+ibn",
    "resnet50_ibn_b": "resnet50+ibnb",
    "resnet101_ibn_b": "resnet101+ibnb",
}
MIEWID_SIDE = 440
ANIMAL_NETWORKS = {  # names of networks for animals -> the network in timm, and the side of its square images
    "megadescriptor_t_224": ("timm:swin_tiny_patch4_window7_224", 224),
    "megadescriptor_s_224": ("timm:swin_small_patch4_window7_224", 224),
    "megadescriptor_b_224": ("timm:swin_base_patch4_window7_224", 224),
    "megadescriptor_l_224": ("timm:swin_large_patch4_window7_224", 224),
    "megadescriptor_l_384": ("timm:swin_large_patch4_window12_384", 384),
    "miewid": ("timm:efficientnetv2_rw_m", MIEWID_SIDE),
}
SBS_SIZE = (384, 128)
HALF: Triple = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Family:
    """What the files of one project have in common.

    Args:
        name: The project.
        sign: A pattern that matches a key which only this family has.
        trunk: What stands before the names of the backbone's layers.
        renames: (pattern, replacement) from keys to ours; the first that matches counts.
        heads: A pattern that matches the keys of classifiers and of training.
        changes: The changes of its ResNets that no key shows.
        interpolation: How it resizes images.
    """

    name: str
    sign: str
    trunk: str
    renames: tuple[tuple[str, str], ...]
    heads: str
    changes: tuple[str, ...] = ()
    interpolation: str = "bilinear"

    @property
    def has_own_keys(self) -> bool:
        """Whether the project has names of its own, rather than those of the network."""
        return bool(self.sign)


FASTREID = Family(
    "fastreid",
    sign=r"heads\.",
    trunk="backbone.",
    renames=(
        (r"heads\.(?:bottleneck\.0|bnneck)\.", "neck."),  # the second until v1.0
        (r"heads\.pool_layer\.p$", "pooling.power"),
    ),
    heads=r"heads\.(?:weight$|classifier\.|cls_layer\.)|pixel_(?:mean|std)$",
    changes=("ceil",),
    interpolation="bicubic",
)
STRONG_BASELINE = Family(
    "strong baseline",
    sign=r"base\.",
    trunk="base.",
    renames=((r"bottleneck\.", "neck."), (r"global_pool\.p$", "pooling.power")),
    heads=r"classifier\.|base\.fc\.",
    changes=("bare",),  # its stem has no ReLU
)
WRAPPED = Family(
    "wrapped",
    sign=r"backbone\.",
    trunk="backbone.",
    renames=STRONG_BASELINE.renames,
    heads=r"classifier\.|backbone\.fc\.",
)
MIEWID = Family(
    "MiewID",
    sign=r"pooling\.p$",
    trunk="backbone.",
    renames=((r"bn\.", "neck."), (r"pooling\.p$", "pooling.power")),
    heads=r"final\.|fc\.|backbone\.classifier\.",
)
BARE = Family(
    "torchreid, torchvision or timm",
    sign="",
    trunk="",
    renames=((r"fc\.(?=[01]\.)", "neck."),),
    heads="",  # the backbone knows them
)
MEGADESCRIPTOR = replace(BARE, name="MegaDescriptor")  # timm's names, and an image preparation of its own
FAMILIES = (FASTREID, STRONG_BASELINE, MIEWID, WRAPPED, BARE)


@dataclass(frozen=True)
class Origin:
    """Where weights come from: their family, and the network that they belong to."""

    family: Family
    spec: NetworkSpec
    side: int = 0  # of square images, where the name of the network tells it
    cameras: tuple[str, ...] = ()  # none of these networks has a camera embedding

    def tensors_for(self, trunk: Backbone, tensors: Mapping[str, Tensor]) -> tuple[Table, tuple[str, ...]]:
        """Rename tensors to the names of an :class:`~reid.models.embedder.Embedder`.

        Args:
            trunk: The backbone of the embedder.
            tensors: The tensors of the file.

        Returns:
            The tensors by our names, and the keys that were left out because they belong to classifiers or training.

        Raises:
            WeightsError: If two tensors would have the same name.
        """
        ours: Table = {}
        left_out: list[str] = []
        if not self.family.has_own_keys:
            given, tensors = tensors, trunk.published(tensors)
            kept = {id(tensor) for tensor in tensors.values()}
            left_out += [key for key, tensor in given.items() if key not in tensors and id(tensor) not in kept]
        for key, tensor in tensors.items():
            if self._is_head(key, trunk):
                left_out.append(key)
                continue
            name = self._rename(key, trunk)
            if name in ours and not name.endswith(COUNTER):
                raise WeightsError(f"two tensors for {name}, the second is {key}; keep only one of them in the file")
            ours[name] = tensor
        return ours, tuple(left_out)

    def transform_of(self, trunk: Backbone, tensors: Mapping[str, Tensor]) -> EvaluationTransform:
        """Return the image preparation of the family, with the file's own mean and deviation where it has them.

        FastReID's stronger baseline (SBS) takes 384x128 pixels, everything else here 256x128.  AGW in FastReID has the
        same non-local blocks and takes 256x128, but nothing in its file distinguishes it from SBS.

        Raises:
            WeightsError: If the file's mean or deviation is not of three numbers.
        """
        if self.family is MEGADESCRIPTOR:
            return EvaluationTransform(self.side, self.side, HALF, HALF)
        if not self.family.has_own_keys:
            return trunk.transform
        transform = EvaluationTransform(interpolation=self.family.interpolation)
        if self.family is MIEWID:
            side = self.side or MIEWID_SIDE
            transform = replace(transform, height=side, width=side)
        if self.family is FASTREID and _has(tensors, r".*NL_\d"):
            transform = replace(transform, height=SBS_SIZE[0], width=SBS_SIZE[1])
        if "pixel_mean" in tensors and "pixel_std" in tensors:
            mean, std = (_pixels(tensors[key], key) for key in ("pixel_mean", "pixel_std"))
            transform = replace(transform, mean=mean, std=std)
        return transform

    def _is_head(self, key: str, trunk: Backbone) -> bool:
        if self.family.has_own_keys:
            return re.match(self.family.heads, key) is not None
        return key.startswith(trunk.heads)

    def _rename(self, key: str, trunk: Backbone) -> str:
        for pattern, replacement in self.family.renames:
            if re.match(pattern, key):
                return re.sub(pattern, replacement, key, count=1)
        if not key.startswith(self.family.trunk):
            return key
        inner = re.sub(r"^NL_(\d)\.(\d+)\.", r"layer\1.attention\2.", key.removeprefix(self.family.trunk))
        return f"backbone.{trunk.root}{inner}"


def recognise(
    tensors: Mapping[str, Tensor], backbone: str, size: tuple[int, int] | None = None
) -> Origin | TransformerOrigin:
    """Recognise published weights by their keys.

    Args:
        tensors: The tensors of the file; only keys and shapes matter.
        backbone: The backbone that the user names.  The changes of a ResNet ("+ibn", ...) follow from the keys and the
            family unless the user names some.
        size: Height and width of the images, where the user names them; a transformer's file does not state them.

    Returns:
        The family of the weights, and the network that they belong to.

    Raises:
        WeightsError: If they are FastReID's with reduced embeddings, which are not supported, or of another family
            than the name of the network.

    Example:
        >>> import torch
        >>> origin = recognise({"base.conv1.weight": torch.zeros(64, 3, 7, 7)}, "resnet50")
        >>> origin.family.name, origin.spec.backbone
        ('strong baseline', 'resnet50+bare')
    """
    if backbone.split(PLUS)[0] in TRANSFORMERS:
        return recognise_transformer(tensors, backbone, size)
    family = next(family for family in FAMILIES if _has(tensors, family.sign))
    named, side = ANIMAL_NETWORKS.get(backbone, (PUBLISHED_NAMES.get(backbone, backbone), 0))
    if side:
        family = _animal_family(backbone, family)
    if named in RESNETS or backbone in PUBLISHED_NAMES:
        found = _key_changes(tensors) + family.changes + _torchreid_changes(tensors, family)
        named = PLUS.join((named.split(PLUS)[0], *found))
    elif named == "mobilenet_v2" and _has(tensors, r"conv2\.0\.dwconv2\."):  # of torchreid and not of torchvision
        named = "mobilenetv2_x1_0" if tensors["conv1.conv.weight"].shape[0] == 32 else "mobilenetv2_x1_4"
    norm = tensors.get("heads.bottleneck.0.weight")
    if norm is not None and norm.ndim == 4:
        raise WeightsError(
            f"the head reduces {norm.shape[1]} features to {norm.shape[0]} by a convolution (EMBEDDING_DIM),"
            " which is not supported; FastReID's published weights without reduction are"
        )
    has_gem = _has(tensors, r"heads\.pool_layer\.p$|global_pool\.p$|pooling\.p$")
    return Origin(family, NetworkSpec(named, "gem" if has_gem else "average", _neck_of(tensors, family)), side)


def _animal_family(backbone: str, found: Family) -> Family:
    """Return the family that a network for animals has by its name, and refuse files with the keys of another."""
    expected, key = (MIEWID, "pooling.p") if backbone == "miewid" else (MEGADESCRIPTOR, "patch_embed.proj.weight")
    if found is not (MIEWID if expected is MIEWID else BARE):
        raise WeightsError(f'expected keys of {expected.name} such as "{key}", got those of {found.name}')
    return expected


def _neck_of(tensors: Mapping[str, Tensor], family: Family) -> str:
    if not family.has_own_keys:
        return "fc" if _has(tensors, r"fc\.0\.") else "none"
    return "bnneck" if any(re.sub(*family.renames[0], key) == "neck.weight" for key in tensors) else "none"


def _key_changes(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    signs = {"ibn": r".*\.bn1\.IN\.", "ibnb": r".*layer1\.\d+\.IN\.", "nonlocal": r".*NL_\d\."}
    return tuple(change for change, sign in signs.items() if _has(tensors, sign))


def _torchreid_changes(tensors: Mapping[str, Tensor], family: Family) -> tuple[str, ...]:
    """torchreid's ResNet-50 halves its resolution in the last stage, its ResNet-50-fc512 does not.

    Its classifier, by which it is recognised, has the name ``classifier``; torchvision's is ``fc``.
    """
    coarse = family is BARE and _has(tensors, r"classifier\.") and not _has(tensors, r"fc\.")
    return ("coarse",) if coarse else ()


def _has(tensors: Mapping[str, Tensor], pattern: str) -> bool:
    return any(re.match(pattern, key) for key in tensors)


def _pixels(tensor: Tensor, key: str) -> Triple:
    """Three numbers of 0..255 as fractions of 1."""
    values = [float(value) / 255 for value in tensor.flatten()]
    if len(values) != 3:
        raise WeightsError(f"{key}: expected three numbers, one a colour, got {len(values)}")
    return values[0], values[1], values[2]
