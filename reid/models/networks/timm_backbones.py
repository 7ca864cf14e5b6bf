"""Backbones of the package timm: convolutional networks with their map, and transformers with their pooled feature."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reid.data.transforms import INTERPOLATIONS, EvaluationTransform
from reid.errors import ConfigError, WeightsError
from reid.models.networks.backbone import Backbone
from reid.structured_text import shorten

TIMM_PREFIX = "timm:"
# How timm is asked for a transformer that takes images of any size; its releases have used both names.
ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})


class TokenBackbone(Backbone):
    """A transformer of timm, pooled as its publisher pools it: a map (B, C, 1, 1) of one position.

    Args:
        name: Its name in timm.
        model: The network of timm; it gives vectors (B, C).
    """

    def __init__(self, name: str, model: Any) -> None:
        heads, transform = _heads_of(model), _timm_transform(model.default_cfg)
        patch = max(int(side) for side in getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1)))
        height, width = (max(side // patch, 1) * patch for side in (transform.height, transform.width))
        sized = EvaluationTransform(height, width, transform.mean, transform.std, transform.interpolation)
        super().__init__({"model": model}, int(model.num_features), heads, "model.", sized)
        self.name, self.patch = name, patch

    def forward(self, images: Tensor) -> Tensor:
        """Compute the feature of normalised images (B, 3, H, W) float, as a map (B, ``channels``, 1, 1)."""
        if any(side % self.patch for side in images.shape[2:]):
            raise ConfigError(
                f'backbone "{TIMM_PREFIX}{self.name}": expected images whose sides are multiples of {self.patch}'
                f" pixels, got {images.shape[2]}x{images.shape[3]}; choose another --size"
            )
        vectors: Tensor = self.get_submodule("model")(images)
        return vectors[:, :, None, None]

    def published(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give tensors of older releases, and of the networks' own projects, the names that timm has for them today.

        Raises:
            WeightsError: If they are of another network.
        """
        model = self.get_submodule("model")
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if convert is None:
            return dict(tensors)
        try:
            return dict(convert(dict(tensors), model))
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise WeightsError(
                f"the tensors are not those of {TIMM_PREFIX}{self.name} ({shorten(str(error))})"
            ) from error


def build_timm(name: str) -> Backbone:
    """Build a network of timm without its classifier.

    Args:
        name: The name of the network in timm, without a prefix.

    Raises:
        ConfigError: timm is missing or has no such network, or the network takes images of one size only.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f'backbone "{TIMM_PREFIX}{name}" needs the package timm: run pip install "timm>=1.0.15,<2", '
            'or pip install ".[timm]" in a checkout'
        ) from error
    if not timm.is_model(name):  # also refuses names that timm would look up on a hub
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise ConfigError(f'timm has no model "{name}"; nearest: {", ".join(near) or "none"}')
    for option in ANY_SIZE:
        try:
            return TokenBackbone(name, timm.create_model(name, pretrained=False, num_classes=0, **option))
        except TypeError:  # a convolutional network knows neither
            continue
    net = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
    channels = _count_map_channels(name, net)
    return Backbone({"model": net}, channels, _heads_of(net), "model.", _timm_transform(net.default_cfg))


def _heads_of(net: Any) -> tuple[str, ...]:
    heads = net.default_cfg.get("classifier") or ()
    return tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))


def _timm_transform(published: Any) -> EvaluationTransform:
    """How timm prepares images for a network.  Their size stays ours, because crops of people are not square."""
    wanted = published.get("interpolation", "")
    known = wanted if wanted in INTERPOLATIONS else EvaluationTransform.interpolation
    return EvaluationTransform(mean=tuple(published["mean"]), std=tuple(published["std"]), interpolation=known)


def _count_map_channels(name: str, net: Any) -> int:
    """Run ``net`` once to count the channels of its feature map (B, C, h, w); ConfigError if it gives none."""
    net.eval()
    try:
        with torch.no_grad():
            shape = tuple(net(torch.zeros(1, 3, 96, 64)).shape)
    except (AssertionError, RuntimeError, ValueError) as error:  # how timm refuses an image size
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f'backbone "{TIMM_PREFIX}{name}" does not take images of any size ({reason}); choose another network'
        ) from error
    finally:
        net.train()
    channels = int(getattr(net, "head_hidden_size", None) or net.num_features)
    if len(shape) != 4 or shape[1] != channels:
        raise ConfigError(
            f'backbone "{TIMM_PREFIX}{name}": expected a feature map (B, {channels}, h, w), got {shape}; '
            "choose another network"
        )
    return channels
