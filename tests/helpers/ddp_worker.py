"""One process of the data-parallel test, and the cases that it shares with the single process.

``python ddp_worker.py RANK STORE OUT`` runs every case on its part of the batch, with gloo over loopback, and
saves the results of :func:`step`.  Each test of ``test_processes.py`` compares one case with the whole batch in one
process.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from reid.norm import DomainPolicy, Given, convert_norm
from reid.norm.convert import norm_layers

PROCESSES = 2
ROWS = 12  # of the whole batch; each process has the next ROWS / PROCESSES


class Residual(nn.Module):
    """ReLU(x + BN(conv(x))), as in a ResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def small_network(system: str = "batch", seed: int = 0) -> nn.Module:
    """Make a network (B, 3, H, W) -> (B, 8) with two norms of maps and a neck, whose statistics differ by domain."""
    torch.manual_seed(seed)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(8),
    )
    network = convert_norm(plain, DomainPolicy("camera", domains(system), system=system))
    state = network.state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_()
        elif key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif key.endswith("running_cov"):
            value.mul_(torch.rand(len(value), 1, 1, 1) + 0.5)
        elif key.endswith("alpha"):
            value.fill_(0.75)
    network.load_state_dict(state)
    return network.train()


def domains(system: str) -> tuple[str, ...]:
    """Name the domains of a system."""
    return ("a", "b") if system == "transnorm" else ("a", "b", "c")


def images(rows: int = ROWS, seed: int = 1) -> Tensor:
    """Draw images (rows, 3, 6, 5) whose offset and contrast differ."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, 3, 6, 5, generator=generator)
    return noise * torch.linspace(0.5, 2, rows)[:, None, None, None] + torch.linspace(-1, 1, rows)[:, None, None, None]


@dataclass(frozen=True)
class Case:
    """A network and the domain of its batch; ``sync``: its layers pool statistics over the processes."""

    domain: Any
    system: str = "batch"
    sync: bool = True
    compiled: bool = False


EVERYWHERE = (0, 1, 2, 0, 1, 2, 2, 1, 0, 0, 1, 2)
LACKING = (
    0,
    0,
    1,
    0,
    1,
    1,
    2,
    2,
    1,
    1,
    2,
    2,
)  # the first process has no image of domain 2, the second none of domain 0
TWO = (0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1)
WEIGHTS = torch.softmax(torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(2)), 1)
CASES = {
    "labels": Case(EVERYWHERE),
    "a domain that one process lacks": Case(LACKING),
    "one domain": Case(1),
    "weights": Case(WEIGHTS),
    "compiled": Case(LACKING, compiled=True),
    "DIAL": Case(LACKING, "dial"),
    "DSON": Case(LACKING, "dson"),
    "BIN": Case(LACKING, "bin"),
    "TransNorm": Case(TWO, "transnorm"),
    "whitening": Case(LACKING, "dwt"),
    "guessed domains": Case(None, "wbn"),
    "gated": Case(None, "gated"),
    "without synchronization": Case(LACKING, sync=False),
}


class Reductions(TorchDispatchMode):
    """Counts the all-reduces that are called inside the ``with``."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.calls += "allreduce" in name or "all_reduce" in name
        return func(*args, **(kwargs or {}))


def step(case: Case, rows: slice) -> dict[str, Any]:
    """Run one forward and backward pass over some rows of the batch, in the process group where there is one."""
    network = small_network(case.system)
    for layer in norm_layers(network).values():
        layer.sync = case.sync
    domain = torch.tensor(case.domain)[rows] if isinstance(case.domain, tuple) else case.domain
    domain = domain[rows] if isinstance(domain, Tensor) and domain.is_floating_point() else domain
    model: nn.Module = Given(network)
    if distributed.is_initialized():
        model = torch.compile(model, fullgraph=True, backend="aot_eager") if case.compiled else model
        model = DistributedDataParallel(model)
    direction = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(3))[rows]
    reductions = Reductions()
    with nullcontext() if case.compiled else reductions:  # torch compiles nothing inside a dispatch mode
        output = model(images()[rows], domain)
    (output * direction).sum().backward()
    return {
        "output": output.detach(),
        "gradients": {key: parameter.grad for key, parameter in network.named_parameters()},
        "buffers": dict(network.named_buffers()),
        "calls": reductions.calls,
    }


def main(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    share = ROWS // PROCESSES
    found = {name: step(case, slice(rank * share, (rank + 1) * share)) for name, case in CASES.items()}
    torch.save(found, Path(out))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
