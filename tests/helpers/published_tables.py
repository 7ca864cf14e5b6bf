"""Tables of tensors with the key names and shapes that other projects publish, filled with random numbers.

Written down from the networks' tables in the papers and the projects' key names, without the package's own
networks, so that a test can check those against them.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
Table = dict[str, Tensor]

RESNET50 = ((64, 3), (128, 4), (256, 6), (512, 3))  # inner channels, blocks
MOBILENET = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
OSNET = (64, 256, 384, 512)
# the last scale of what is added to a shortcut, and the factors of a non-local block, a product of three
RESIDUAL_ENDS = ("bn3.weight", "W.1.weight", "W.0.weight", "g.weight", "theta.weight", "phi.weight")


def filled(shapes: Shapes, seed: int = 0) -> Table:
    """Fill tensors with different random numbers that neither grow nor vanish on their way through a network."""
    generator = torch.Generator().manual_seed(seed)
    table = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            table[key] = torch.tensor(7)
        elif key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
            table[key] = torch.rand(shape, generator=generator) + 0.5
        elif len(shape) <= 1:
            table[key] = torch.randn(shape, generator=generator) * 0.2
        else:
            fan = torch.Size(shape[1:]).numel()
            table[key] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
        if key.endswith(RESIDUAL_ENDS):
            table[key] *= 0.3
    return table


def blank(shapes: Shapes) -> Table:
    """Tensors of these shapes that take no memory and no time, for tests about keys."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def batch_norm(key: str, channels: int) -> Shapes:
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{key}.{name}": (channels,) for name in names} | {f"{key}.num_batches_tracked": ()}


def instance_norm(key: str, channels: int) -> Shapes:
    return {f"{key}.weight": (channels,), f"{key}.bias": (channels,)}


def linear(key: str, inputs: int, outputs: int) -> Shapes:
    return {f"{key}.weight": (outputs, inputs), f"{key}.bias": (outputs,)}


def fc_neck(inputs: int) -> Shapes:
    return linear("fc.0", inputs, 512) | batch_norm("fc.1", 512)


def resnet50(prefix: str = "", *, ibn: str = "", attention: bool = False) -> Shapes:
    """``ibn`` "a" or "b", the two positions of instance norms."""
    stem = instance_norm if ibn == "b" else batch_norm
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7)} | stem("bn1", 64)
    inputs = 64
    for stage, (inner, blocks) in enumerate(RESNET50, 1):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            shapes |= {f"{at}.conv1.weight": (inner, inputs, 1, 1)}
            if ibn == "a" and stage < 4:
                shapes |= instance_norm(f"{at}.bn1.IN", inner // 2) | batch_norm(f"{at}.bn1.BN", inner // 2)
            else:
                shapes |= batch_norm(f"{at}.bn1", inner)
            shapes |= {f"{at}.conv2.weight": (inner, inner, 3, 3)} | batch_norm(f"{at}.bn2", inner)
            shapes |= {f"{at}.conv3.weight": (4 * inner, inner, 1, 1)} | batch_norm(f"{at}.bn3", 4 * inner)
            if block == 0:
                shapes |= {f"{at}.downsample.0.weight": (4 * inner, inputs, 1, 1)}
                shapes |= batch_norm(f"{at}.downsample.1", 4 * inner)
            if ibn == "b" and stage < 3 and block == blocks - 1:
                shapes |= instance_norm(f"{at}.IN", 4 * inner)
            inputs = 4 * inner
    if attention:
        for stage, count, channels in ((2, 2, 512), (3, 3, 1024)):
            for number in range(count):
                shapes |= _non_local(f"NL_{stage}.{number}", channels)
    return {prefix + key: shape for key, shape in shapes.items()}


def _non_local(at: str, channels: int) -> Shapes:
    shapes: Shapes = {}
    for name in ("g", "theta", "phi"):
        shapes |= {f"{at}.{name}.weight": (1, channels, 1, 1), f"{at}.{name}.bias": (1,)}
    shapes |= {f"{at}.W.0.weight": (channels, 1, 1, 1), f"{at}.W.0.bias": (channels,)}
    return shapes | batch_norm(f"{at}.W.1", channels)


def mobilenet(width: float = 1.0) -> Shapes:
    inputs = int(32 * width)
    shapes: Shapes = {"conv1.conv.weight": (inputs, 3, 3, 3)} | batch_norm("conv1.bn", inputs)
    for stage, (expansion, base, blocks) in enumerate(MOBILENET, 2):
        outputs = int(base * width)
        for block in range(blocks):
            at, inner = f"conv{stage}.{block}", inputs * expansion
            shapes |= {f"{at}.conv1.conv.weight": (inner, inputs, 1, 1)} | batch_norm(f"{at}.conv1.bn", inner)
            shapes |= {f"{at}.dwconv2.conv.weight": (inner, 1, 3, 3)} | batch_norm(f"{at}.dwconv2.bn", inner)
            shapes |= {f"{at}.conv3.0.weight": (outputs, inner, 1, 1)} | batch_norm(f"{at}.conv3.1", outputs)
            inputs = outputs
    top = int(1280 * max(width, 1))
    return shapes | {"conv9.conv.weight": (top, inputs, 1, 1)} | batch_norm("conv9.bn", top)


def osnet(kind: str) -> Shapes:
    """OSNet x1.0: "plain", "ibn" (instance norm in the stem and behind the blocks of conv2) or "ain"."""
    stem = batch_norm if kind == "plain" else instance_norm
    shapes: Shapes = {"conv1.conv.weight": (OSNET[0], 3, 7, 7)} | stem("conv1.bn", OSNET[0])
    inside = {"conv2.0", "conv2.1", "conv3.1", "conv4.0"} if kind == "ain" else set()
    for stage, (inputs, outputs) in enumerate(pairwise(OSNET), 2):
        for block in range(2):
            at = f"conv{stage}.{block}"
            shapes |= _os_block(at, outputs if block else inputs, outputs, listed=kind == "ain", bare=at in inside)
            if at in inside or (kind == "ibn" and stage == 2):
                shapes |= instance_norm(f"{at}.IN", outputs)
        if stage < 4:
            at = f"pool{stage}.0" if kind == "ain" else f"conv{stage}.2.0"
            shapes |= {f"{at}.conv.weight": (outputs, outputs, 1, 1)} | batch_norm(f"{at}.bn", outputs)
    return shapes | {"conv5.conv.weight": (512, 512, 1, 1)} | batch_norm("conv5.bn", 512)


def lite_layers(at: str, *, listed: bool) -> list[list[str]]:
    """Key beginnings of the lite convolutions of a block, stream by stream."""
    if listed:
        return [[f"{at}.conv2.{t}.layers.{i}" for i in range(t + 1)] for t in range(4)]
    return [[f"{at}.conv2a"]] + [[f"{at}.conv2{n}.{i}" for i in range(t)] for t, n in ((2, "b"), (3, "c"), (4, "d"))]


def _os_block(at: str, inputs: int, outputs: int, *, listed: bool, bare: bool) -> Shapes:
    inner = outputs // 4
    shapes: Shapes = {f"{at}.conv1.conv.weight": (inner, inputs, 1, 1)} | batch_norm(f"{at}.conv1.bn", inner)
    for layer in (layer for stream in lite_layers(at, listed=listed) for layer in stream):
        shapes |= {f"{layer}.conv1.weight": (inner, inner, 1, 1), f"{layer}.conv2.weight": (inner, 1, 3, 3)}
        shapes |= batch_norm(f"{layer}.bn", inner)
    for name, sizes in (("fc1", (inner // 16, inner)), ("fc2", (inner, inner // 16))):
        shapes |= {f"{at}.gate.{name}.weight": (*sizes, 1, 1), f"{at}.gate.{name}.bias": (sizes[0],)}
    shapes |= {f"{at}.conv3.conv.weight": (outputs, inner, 1, 1)}
    if not bare:
        shapes |= batch_norm(f"{at}.conv3.bn", outputs)
    if inputs != outputs:
        shapes |= {f"{at}.downsample.conv.weight": (outputs, inputs, 1, 1)}
        shapes |= batch_norm(f"{at}.downsample.bn", outputs)
    return shapes
