"""Transformers of person re-identification by name: TransReID, CLIP-ReID with its ResNet, and SOLIDER.

A name says all that is needed to build the network, such as "transreid_vit_base+256x128+stride12+sie+jpm5":
the image size, the distance of the patches, a camera embedding and the jigsaw patches with their shift.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from reid.data.transforms import EvaluationTransform, Triple
from reid.errors import ConfigError
from reid.models.networks.clip_resnet import ClipResNet
from reid.models.networks.semantic_swin import SemanticSwin, SwinShape
from reid.models.networks.vision_transformer import JIGSAW_SHIFT, PATCH, TokenShape, VisionTransformer

HALF: Triple = (0.5, 0.5, 0.5)  # mean and deviation of the published configurations of transformers
MAX_PIXELS = 1024  # of a side
SEMANTIC_PART = 0.2  # SOLIDER's for re-identification
TRANSREID_FACTOR, CLIP_FACTOR = 3.0, 1.0  # of the camera embedding in the published configurations
TOKEN_SHAPES = {
    "transreid_vit_base": TokenShape(768),
    "transreid_vit_small": TokenShape(768, depth=8, heads=8, hidden=2304, scale=768**-0.5, qkv_bias=False),
    "transreid_deit_small": TokenShape(384, heads=6, hidden=1536),
    "clipreid_vit_b16": TokenShape(768, projection=512),
}
SWIN_SHAPES = {
    "solider_swin_tiny": SwinShape(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "solider_swin_small": SwinShape(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "solider_swin_base": SwinShape(128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
CLIP_RESNET = "clipreid_rn50"
TRANSFORMERS = (*TOKEN_SHAPES, CLIP_RESNET, *SWIN_SHAPES)


@dataclass(frozen=True)
class TransformerOptions:
    """What stands behind a plus in the name of a transformer; None where it is not named.

    Args:
        size: "+HxW": height and width of the images in pixels.
        stride: "+strideN": the distance of two patches in pixels.
        camera_factor: "+sieX": the camera embedding is multiplied by X; 0 leaves it out.  "+sie" alone has the factor
            of the published configurations.
        views: "+viewsN": the camera embedding has N rows a camera, one for each viewpoint.
        jigsaw: "+jpmN": the shift of the jigsaw patches.  "+jpm" alone has the published shift, 5.
        part: "+semanticX": how much meaning SOLIDER's features carry, 0..1, or -1 for a network without controller.
    """

    size: tuple[int, int] | None = None
    stride: int | None = None
    camera_factor: float | None = None
    views: int | None = None
    jigsaw: int | None = None
    part: float | None = None


def _size(text: str) -> tuple[int, int]:
    height, width = (int(side) for side in text.split("x"))
    return height, width


# A pattern -> the option that it sets, and what reads its value.
OPTIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    r"(\d{2,4}x\d{2,4})": ("size", _size),
    r"stride(\d{1,2})": ("stride", int),
    r"sie()": ("camera_factor", lambda _: TRANSREID_FACTOR),
    r"sie(\d+(?:\.\d+)?)": ("camera_factor", float),
    r"views(\d{1,3})": ("views", int),
    r"jpm()": ("jigsaw", lambda _: JIGSAW_SHIFT),
    r"jpm(\d{1,3})": ("jigsaw", int),
    r"semantic(-1|0(?:\.\d+)?|1(?:\.0)?)": ("part", float),
}


def parse_transformer(name: str) -> tuple[str, TransformerOptions]:
    """Read the name of a transformer.

    Args:
        name: A name of :data:`TRANSFORMERS`, with options behind it.

    Returns:
        The name without options, and the options.

    Raises:
        ConfigError: If an option is unknown, named twice, or out of range.

    Example:
        >>> parse_transformer("transreid_vit_base+384x128+stride12+jpm")[1].stride
        12
    """
    trunk, *words = name.split("+")
    found: dict[str, object] = {}
    for word in words:
        matches = ((re.fullmatch(pattern, word), *option) for pattern, option in OPTIONS.items())
        match, key, read = next((one for one in matches if one[0]), (None, "", str))
        if match is None or key in found:
            raise ConfigError(
                f'backbone "{name}": "{word}" is {"named twice" if match else "no option"}; options are HEIGHTxWIDTH,'
                " strideN, sie, sieFACTOR, viewsN, jpm, jpmSHIFT, semanticPART"
            )
        found[key] = read(match[1])
        if word == "sie" and trunk.startswith("clipreid"):
            found[key] = CLIP_FACTOR
    options = replace(TransformerOptions(), **found)  # type: ignore[arg-type]
    for side in options.size or ():
        if not PATCH <= side <= MAX_PIXELS:
            raise ConfigError(f'backbone "{name}": expected sides of {PATCH} to {MAX_PIXELS} pixels, got {side}')
    if options.stride is not None and not 1 <= options.stride <= 2 * PATCH:
        raise ConfigError(f'backbone "{name}": expected a stride of 1 to {2 * PATCH} pixels, got {options.stride}')
    return trunk, options


def transformer_name(trunk: str, options: TransformerOptions) -> str:
    """Write the name of a network that :func:`build_transformer` builds, with what its weights decide.

    Example:
        >>> transformer_name("transreid_vit_base", TransformerOptions((256, 128), 16, camera_factor=3.0))
        'transreid_vit_base+256x128+stride16+sie'
    """
    words = [trunk]
    if trunk in SWIN_SHAPES:
        return f"{trunk}+semantic{_part(options):g}"
    if options.size is not None:
        words.append(f"{options.size[0]}x{options.size[1]}")
    if options.stride is not None:
        words.append(f"stride{options.stride}")
    if options.camera_factor:
        words.append("sie")
    if options.jigsaw:
        words.append(f"jpm{options.jigsaw}")
    return "+".join(words)


def build_transformer(name: str) -> tuple[nn.Module, int, EvaluationTransform]:
    """Build a transformer with random weights.

    Args:
        name: A name of :data:`TRANSFORMERS`, with options behind it.

    Returns:
        The network, which computes a map (B, C, h, w) of images; C; and the image preparation of its publisher.

    Raises:
        ConfigError: If an option is unknown, or the network does not take it.
    """
    trunk, options = parse_transformer(name)
    if trunk in SWIN_SHAPES:
        if options != TransformerOptions(part=options.part):
            raise ConfigError(f'backbone "{name}": {trunk} takes the option semanticPART only')
        swin = SemanticSwin(SWIN_SHAPES[trunk], _part(options))
        return swin, swin.channels, EvaluationTransform(384, 128, HALF, HALF)
    height, width = options.size or (256, 128)
    if trunk == CLIP_RESNET:
        if options != TransformerOptions(options.size):
            raise ConfigError(f'backbone "{name}": {trunk} takes the option HEIGHTxWIDTH only')
        network: VisionTransformer | ClipResNet = ClipResNet(height, width)
        return network, network.channels, EvaluationTransform(height, width)
    shape = TOKEN_SHAPES[trunk]
    if options.part is not None or (shape.is_clip and options.jigsaw):
        raise ConfigError(f'backbone "{name}": {trunk} does not take {"jpm" if options.jigsaw else "semantic"}')
    network = VisionTransformer(
        shape, height, width, options.stride or PATCH, bool(options.camera_factor), options.jigsaw or 0
    )
    return network, network.channels, EvaluationTransform(height, width, HALF, HALF)


def _part(options: TransformerOptions) -> float:
    return SEMANTIC_PART if options.part is None else options.part
