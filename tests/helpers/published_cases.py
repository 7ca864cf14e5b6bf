"""Published weights of every family: their tensors, and what their projects compute with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from helpers import plain_forwards as plain
from helpers import published_tables as tables
from helpers.published_tables import Table, blank
from reid.models.embedder import NetworkSpec

Fill = Callable[[tables.Shapes], Table]
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


def fastreid(fill: Fill = blank, *, ibn: bool = False, strong: bool = False, old: bool = False) -> Table:
    """FastReID's keys; ``old`` as in its releases of v0.1.1, whose neck was renamed but for the counter."""
    neck = tables.batch_norm("heads.bottleneck.0", 2048)
    shapes = tables.resnet50("backbone.", ibn=ibn, attention=strong) | neck
    table = fill(shapes | {"heads.classifier.weight" if old else "heads.weight": (11, 2048)})
    if strong:
        table["heads.pool_layer.p"] = torch.tensor([2.5])
    if old:
        table["heads.bnneck.num_batches_tracked"] = table.pop("heads.bottleneck.0.num_batches_tracked")
        table |= {"pixel_mean": MEAN.view(1, 3, 1, 1), "pixel_std": STD.view(1, 3, 1, 1)}
    return table


def baseline(fill: Fill, prefix: str, *, attention: bool = False) -> Table:
    shapes = tables.resnet50(prefix, attention=attention) | tables.batch_norm("bottleneck", 2048)
    table = fill(shapes | {"classifier.weight": (11, 2048)})
    return table | ({"global_pool.p": torch.tensor([3.5])} if attention else {})


def bare(shapes: tables.Shapes, channels: int, head: str = "classifier") -> Callable[[Fill], Table]:
    return lambda fill: fill(shapes | tables.linear(head, channels, 11))


def fastreid_forward(table: Table, images: Tensor, *, mean: bool = False, neck: bool = True, **ways: bool) -> Tensor:
    feature_map = plain.resnet50(table, images, "backbone.", **{"ceil": True, **ways})
    power = table.get("heads.pool_layer.p", torch.ones(1))
    pooled = feature_map.mean((2, 3)) if mean else plain.gem(power, feature_map)
    return plain.norm(table, "heads.bottleneck.0", pooled) if neck else pooled


def baseline_forward(table: Table, images: Tensor, *, neck: bool = True, **ways: bool) -> Tensor:
    prefix = "base." if "base.conv1.weight" in table else "backbone."
    feature_map = plain.resnet50(table, images, prefix, **{"relu": prefix == "backbone.", **ways})
    pooled = plain.gem(table.get("global_pool.p", torch.ones(1)), feature_map)
    return plain.norm(table, "bottleneck", pooled) if neck else pooled


def torchreid_resnet(table: Table, images: Tensor, last_stride: int = 2, *, neck: bool = True) -> Tensor:
    pooled = plain.resnet50(table, images, last_stride=last_stride).mean((2, 3))
    return plain.fc_neck(table, pooled) if neck and "fc.0.weight" in table else pooled


def torchreid_osnet(table: Table, images: Tensor, *, neck: bool = True, late: bool | None = None) -> Tensor:
    pooled = plain.osnet(table, images, late=late).mean((2, 3))
    return plain.fc_neck(table, pooled) if neck else pooled


class Case:
    """A published file: its table, what its project computes, ways to compute it wrongly, and what we call it."""

    def __init__(
        self,
        make: Callable[[Fill], Table],
        forward: Callable[..., Tensor],
        backbone: str,
        spec: NetworkSpec,
        *wrong: dict,
    ) -> None:
        self.make = cache(make)  # tens of millions of random numbers; the tests copy what they change
        self.forward, self.backbone, self.spec, self.wrong = forward, backbone, spec, wrong


OSNET_SHAPES = {kind: tables.osnet(kind) | tables.fc_neck(512) for kind in ("plain", "ibn", "ain")}
CASES = {
    "torchreid resnet50": Case(
        bare(tables.resnet50(), 2048),
        torchreid_resnet,
        "resnet50",
        NetworkSpec("resnet50+coarse", neck="none"),
        {"last_stride": 1},
    ),
    "torchreid resnet50_fc512": Case(
        bare(tables.resnet50() | tables.fc_neck(2048), 512),
        lambda *a, **k: torchreid_resnet(*a, **{"last_stride": 1, **k}),
        "resnet50_fc512",
        NetworkSpec("resnet50", neck="fc"),
        {"last_stride": 2},
    ),
    "torchreid mobilenetv2": Case(
        bare(tables.mobilenet(), 1280),
        lambda table, images: plain.mobilenet(table, images).mean((2, 3)),
        "mobilenetv2_x1_0",
        NetworkSpec("mobilenetv2_x1_0", neck="none"),
    ),
    "torchreid mobilenetv2 x1.4": Case(
        bare(tables.mobilenet(1.4), 1792),
        lambda table, images: plain.mobilenet(table, images).mean((2, 3)),
        "mobilenet_v2",
        NetworkSpec("mobilenetv2_x1_4", neck="none"),
    ),
    "torchreid osnet": Case(
        bare(OSNET_SHAPES["plain"], 512),
        torchreid_osnet,
        "osnet_x1_0",
        NetworkSpec("osnet_x1_0", neck="fc"),
        {"neck": False},
    ),
    "torchreid osnet_ibn": Case(
        bare(OSNET_SHAPES["ibn"], 512),
        torchreid_osnet,
        "osnet_ibn_x1_0",
        NetworkSpec("osnet_ibn_x1_0", neck="fc"),
        {"late": False},
    ),
    "torchreid osnet_ain": Case(
        bare(OSNET_SHAPES["ain"], 512),
        torchreid_osnet,
        "osnet_ain_x1_0",
        NetworkSpec("osnet_ain_x1_0", neck="fc"),
        {"late": True},
    ),
    "FastReID BoT": Case(
        fastreid,
        fastreid_forward,
        "resnet50",
        NetworkSpec("resnet50+ceil"),
        {"ceil": False},
        {"relu": False},
        {"last_stride": 2},
        {"neck": False},
    ),
    "FastReID SBS with IBN": Case(
        lambda fill: fastreid(fill, ibn="a", strong=True),
        fastreid_forward,
        "resnet50",
        NetworkSpec("resnet50+ibn+nonlocal+ceil", "gem"),
        {"swapped": True},
        {"early": True},
        {"mean": True},
    ),
    "FastReID v0.1.1": Case(
        lambda fill: fastreid(fill, ibn="a", old=True),
        fastreid_forward,
        "resnet50_ibn",
        NetworkSpec("resnet50+ibn+ceil"),
        {"ceil": False},
    ),
    "strong baseline": Case(
        lambda fill: baseline(fill, "base."),
        baseline_forward,
        "resnet50",
        NetworkSpec("resnet50+bare"),
        {"relu": True},
        {"neck": False},
    ),
    "AGW": Case(
        lambda fill: baseline(fill, "base.", attention=True),
        baseline_forward,
        "resnet50",
        NetworkSpec("resnet50+nonlocal+bare", "gem"),
        {"early": True},
    ),
    "behind backbone.": Case(
        lambda fill: baseline(fill, "backbone."),
        baseline_forward,
        "resnet50",
        NetworkSpec("resnet50"),
        {"relu": False},
    ),
    "torchvision resnet50, last stage finer": Case(
        bare(tables.resnet50(), 2048, "fc"),
        lambda *a, **k: torchreid_resnet(*a, **{"last_stride": 1, **k}),
        "resnet50",
        NetworkSpec("resnet50", neck="none"),
        {"last_stride": 2},
    ),
    "IBN-Net resnet50_ibn_a, last stage finer": Case(
        bare(tables.resnet50(ibn="a"), 2048, "fc"),
        lambda table, images, **k: plain.resnet50(table, images, **k).mean((2, 3)),
        "resnet50",
        NetworkSpec("resnet50+ibn", neck="none"),
        {"swapped": True},
    ),
    "IBN-Net resnet50_ibn_b, last stage finer": Case(
        bare(tables.resnet50(ibn="b"), 2048, "fc"),
        lambda table, images, **k: plain.resnet50(table, images, **k).mean((2, 3)),
        "resnet50",
        NetworkSpec("resnet50+ibnb", neck="none"),
        {"before_sum": True},
    ),
}


# tensors of one shape: the forward with the two exchanged must differ from the network that has them right
EXCHANGED = {
    "FastReID SBS with IBN": (
        ("backbone.NL_3.0.W.0.weight", "backbone.NL_3.1.W.0.weight"),
        ("backbone.NL_2.1.g.weight", "backbone.NL_2.1.phi.weight"),
        ("backbone.layer1.0.bn1.IN.weight", "backbone.layer1.0.bn1.BN.weight"),
        ("heads.bottleneck.0.bias", "heads.bottleneck.0.running_mean"),
    ),
    "AGW": (("bottleneck.weight", "bottleneck.running_var"),),
    "torchreid osnet_ain": (
        ("conv4.1.conv2.3.layers.0.bn.weight", "conv4.1.conv2.3.layers.1.bn.weight"),
        ("conv2.1.IN.bias", "conv2.0.IN.bias"),
    ),
    "torchreid osnet_ibn": (("conv2.0.IN.weight", "conv2.1.IN.weight"),),
    "IBN-Net resnet50_ibn_b, last stage finer": (("layer1.2.IN.weight", "layer1.2.IN.bias"),),
    "torchreid mobilenetv2": (("conv5.2.conv1.conv.weight", "conv5.3.conv1.conv.weight"),),
}
