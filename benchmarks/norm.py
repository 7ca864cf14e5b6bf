"""What normalization by camera costs: a training step and inference against plain BatchNorm2d and the naive loop.

    python benchmarks/norm.py [--backbone resnet50] [--cameras 1 6 15] [--batch 60] [--rounds 7] [--json FILE]

All variants run in one process, in turn, on the same batch; the ratios are medians over the rounds.
"ours" sorts the rows by camera at the door; "any order" is what layers do with labels that nobody sorted, as on an
accelerator or in a compiled graph.  "loop" gives each camera's rows to a BatchNorm2d of its own, layer by layer
(index, normalize, scatter).  "folded" is the network of one camera, its statistics folded into the convolutions:
inference only, and without mixed cameras.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from reid.models.networks.backbones import build_backbone
from reid.norm import DomainBatchNorm, Given, camera_batchnorm, convert_norm, extract
from reid.norm.condition import Condition, current_condition, given
from reid.norm.convert import replace_modules

FOLDED = "folded"


class LoopNorm(nn.Module):
    """The naive way: for each camera pick its rows, normalize them, put them back."""

    def __init__(self, layer: DomainBatchNorm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(layer.channels) for _ in layer.domains)

    def forward(self, x: Tensor) -> Tensor:
        condition = current_condition()
        labels = None if condition is None else condition.domain
        if isinstance(labels, int):  # one camera only
            labels = torch.full((len(x),), labels)
        if not isinstance(labels, Tensor):
            raise SystemExit("the naive loop wants labels of rows")
        out = torch.empty_like(x)
        for camera, norm in enumerate(self.norms):
            rows = torch.nonzero(labels == camera)[:, 0]
            if len(rows):
                out[rows] = norm(x[rows])
        return out


class AnyOrder(nn.Module):
    """The network with its labels as they come."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        with given(Condition(labels)):
            features: Tensor = self.network(images)
        return features


def folded(network: nn.Module) -> nn.Module:
    """A plain network in evaluation with every BatchNorm folded into the convolution before it."""
    return fuse(copy.deepcopy(network).eval())


def variants(backbone: str, cameras: int) -> dict[str, nn.Module]:
    plain = build_backbone(backbone)
    ours = convert_norm(plain, camera_batchnorm([str(c) for c in range(cameras)]))
    loop = replace_modules(copy.deepcopy(ours), lambda _, m: LoopNorm(m) if isinstance(m, DomainBatchNorm) else None)
    networks = {
        "plain": Given(plain),
        "ours": Given(ours),
        "any order": AnyOrder(copy.deepcopy(ours)),
        "loop": Given(loop),
        FOLDED: Given(folded(extract(ours, "0"))),
    }
    return {name: network.to(memory_format=torch.channels_last) for name, network in networks.items()}


def train_step(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    network.train()
    network(images, labels).square().mean().backward()
    network.zero_grad(set_to_none=True)


def infer(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    network.eval()
    with torch.inference_mode():
        network(images, labels)


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(backbone: str, cameras: int, rounds: int, batch: int) -> list[dict[str, object]]:
    """One entry for training and inference: seconds of every variant and round, and median ratios to plain."""
    networks = variants(backbone, cameras)
    images = torch.randn(batch, 3, 128, 64).to(memory_format=torch.channels_last)
    labels = torch.randint(0, cameras, (batch,))
    entries: list[dict[str, object]] = []
    for mode, work in (("training step", train_step), ("inference", infer)):
        taking_part = {name: network for name, network in networks.items() if work is infer or name != FOLDED}
        times: dict[str, list[float]] = {name: [] for name in taking_part}
        for turn in range(rounds + 1):
            for name, network in taking_part.items():
                spent = seconds(partial(work, network, images, labels))
                if turn:  # the first round warms up
                    times[name].append(spent)
        ratios = {
            name: statistics.median(a / b for a, b in zip(times[name], times["plain"], strict=True)) for name in times
        }
        entries.append({"backbone": backbone, "cameras": cameras, "mode": mode, "ratio": ratios, "seconds": times})
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["resnet18", "resnet50", "osnet_x0_5"])
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 6, 15])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), batch {options.batch}, 128x64"
    )
    entries = []
    for backbone in options.backbone:
        for cameras in options.cameras:
            for entry in compare(backbone, cameras, options.rounds, options.batch):
                entries.append(entry)
                ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in entry["ratio"].items())  # type: ignore[attr-defined]
                print(f"{backbone:12} {cameras:3} cameras  {entry['mode']:14} {ratios}", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
