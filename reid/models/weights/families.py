"""Families of published weights: what each project calls its tensors, what its networks do that the key names
do not say, and how it prepares images.

A file is recognised by its keys.  Known are torchreid, FastReID (ResNet, with IBN, GeM and non-local blocks),
the strong baseline and its heirs (AGW, the ResNets of TransReID), ResNets behind ``backbone.``, IBN-Net (both
kinds), torchvision and timm.  Nothing here reads files or fills networks; what has no place in a network keeps
its own name, so that the loader can name it in its complaint.  Features are taken where the projects take them
at test time: after the neck.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from reid.data.transforms import EvaluationTransform, Triple
from reid.errors import WeightsError
from reid.models.embedder import NetworkSpec
from reid.models.networks.backbones import PLUS, Backbone
from reid.models.networks.resnet import RESNETS
from reid.models.weights.tensor_tables import COUNTER, Table

COLOURS = "RGB"  # channel order of every family here
PUBLISHED_NAMES = {  # what projects call networks that are others' trunks with another neck or norm
    "resnet50_fc512": "resnet50",
    "resnet50_ibn": "resnet50+ibn",
    "resnet101_ibn": "resnet101+ibn",
    "resnet50_ibn_a": "resnet50+ibn",
    "resnet101_ibn_a": "resnet101+ibn",
    "resnet50_ibn_b": "resnet50+ibnb",
    "resnet101_ibn_b": "resnet101+ibnb",
}
SBS_SIZE = (384, 128)


@dataclass(frozen=True)
class Family:
    """What one project's files have in common.

    ``sign`` matches a key that only this family has, ``trunk`` the part of a key before the trunk's own
    names; ``places`` are (pattern, replacement) from keys to ours, the first that matches counts; keys that
    ``heads`` matches belong to classifiers or training.  ``changes`` of its ResNets are those that no key tells.
    """

    name: str
    sign: str
    trunk: str
    places: tuple[tuple[str, str], ...]
    heads: str
    changes: tuple[str, ...] = ()
    interpolation: str = "bilinear"


FASTREID = Family(
    "fastreid",
    sign=r"heads\.",
    trunk="backbone.",
    places=(
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
    places=((r"bottleneck\.", "neck."), (r"global_pool\.p$", "pooling.power")),
    heads=r"classifier\.|base\.fc\.",
    changes=("bare",),  # its stem has no ReLU
)
WRAPPED = Family(
    "wrapped",
    sign=r"backbone\.",
    trunk="backbone.",
    places=STRONG_BASELINE.places,
    heads=r"classifier\.|backbone\.fc\.",
)
BARE = Family(
    "torchreid, torchvision or timm",
    sign="",
    trunk="",
    places=((r"fc\.(?=[01]\.)", "neck."),),
    heads="",  # the backbone knows its own
)
FAMILIES = (FASTREID, STRONG_BASELINE, WRAPPED, BARE)


@dataclass(frozen=True)
class Origin:
    """Where weights come from: their family and the network they are for."""

    family: Family
    spec: NetworkSpec

    def tensors_for(self, trunk: Backbone, tensors: Mapping[str, Tensor]) -> tuple[Table, tuple[str, ...]]:
        """The tensors under the names of an Embedder with this ``trunk``, and the keys that were left out."""
        ours: Table = {}
        left_out: list[str] = []
        for key, tensor in tensors.items():
            if self._is_head(key, trunk):
                left_out.append(key)
                continue
            place = self._place(key, trunk)
            if place in ours and not place.endswith(COUNTER):
                raise WeightsError(f"two tensors for {place}, the second is {key}; keep only one of them in the file")
            ours[place] = tensor
        return ours, tuple(left_out)

    def transform_of(self, trunk: Backbone, tensors: Mapping[str, Tensor]) -> EvaluationTransform:
        """How the family prepares images; mean and deviation are the file's own where it keeps them.

        FastReID's stronger baseline (SBS) sees 384x128 pixels, everything else here 256x128.  AGW has the
        same non-local blocks and sees 256x128: nothing in its file says which of the two it is.
        """
        if self.family is BARE:
            return trunk.transform
        transform = EvaluationTransform(interpolation=self.family.interpolation)
        if self.family is FASTREID and _has(tensors, r".*NL_\d"):
            transform = replace(transform, height=SBS_SIZE[0], width=SBS_SIZE[1])
        if "pixel_mean" in tensors and "pixel_std" in tensors:
            mean, std = (_pixels(tensors[key], key) for key in ("pixel_mean", "pixel_std"))
            transform = replace(transform, mean=mean, std=std)
        return transform

    def _is_head(self, key: str, trunk: Backbone) -> bool:
        if self.family is not BARE:
            return re.match(self.family.heads, key) is not None
        return key.startswith(trunk.heads)

    def _place(self, key: str, trunk: Backbone) -> str:
        for pattern, replacement in self.family.places:
            if re.match(pattern, key):
                return re.sub(pattern, replacement, key, count=1)
        if not key.startswith(self.family.trunk):
            return key
        inner = re.sub(r"^NL_(\d)\.(\d+)\.", r"layer\1.attention\2.", key.removeprefix(self.family.trunk))
        return f"backbone.{trunk.root}{inner}"


def recognise(tensors: Mapping[str, Tensor], backbone: str) -> Origin:
    """The family of ``tensors`` and the network they are for, given what the user calls its backbone.

    A ResNet's changes ("+ibn", ...) are found from the keys and the family unless the user names some.
    Raises WeightsError for FastReID's reduced embeddings.
    """
    family = next(family for family in FAMILIES if _has(tensors, family.sign))
    named = PUBLISHED_NAMES.get(backbone, backbone)
    if named in RESNETS or backbone in PUBLISHED_NAMES:
        found = _key_changes(tensors) + family.changes + _torchreid_changes(tensors, family)
        named = PLUS.join((named.split(PLUS)[0], *found))
    elif named == "mobilenet_v2" and _has(tensors, r"conv2\.0\.dwconv2\."):  # torchreid's, not torchvision's
        named = "mobilenetv2_x1_0" if tensors["conv1.conv.weight"].shape[0] == 32 else "mobilenetv2_x1_4"
    norm = tensors.get("heads.bottleneck.0.weight")
    if norm is not None and norm.ndim == 4:
        raise WeightsError(
            f"the head reduces {norm.shape[1]} features to {norm.shape[0]} by a convolution (EMBEDDING_DIM),"
            " which is not supported; FastReID's published weights without reduction are"
        )
    has_gem = _has(tensors, r"heads\.pool_layer\.p$|global_pool\.p$")
    return Origin(family, NetworkSpec(named, "gem" if has_gem else "average", _neck(tensors, family)))


def _neck(tensors: Mapping[str, Tensor], family: Family) -> str:
    if family is BARE:
        return "fc" if _has(tensors, r"fc\.0\.") else "none"
    return "bnneck" if any(re.sub(*family.places[0], key) == "neck.weight" for key in tensors) else "none"


def _key_changes(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    signs = {"ibn": r".*\.bn1\.IN\.", "ibnb": r".*layer1\.\d+\.IN\.", "nonlocal": r".*NL_\d\."}
    return tuple(change for change, sign in signs.items() if _has(tensors, sign))


def _torchreid_changes(tensors: Mapping[str, Tensor], family: Family) -> tuple[str, ...]:
    """torchreid's ResNet-50 halves its resolution in the last stage, its ResNet-50-fc512 does not.

    Its sign is a head called ``classifier`` where torchvision says ``fc``.
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
