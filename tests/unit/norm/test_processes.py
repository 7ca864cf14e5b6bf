"""A network on two processes is compared with the same network on the whole batch in one process.

The wrong variants that these tests catch: statistics of one process only, and statistics of DIAL that are mixed before
they are summed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.ddp_worker import (
    CASES,
    PROCESSES,
    small_network,
    step,
)
from helpers.deployment import STATISTICS, close
from reid.norm.convert import norm_layers

# Two processes


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Run two processes; return the results of each in every case."""
    folder = tmp_path_factory.mktemp("processes")
    worker = Path(__file__).parents[2] / "helpers" / "ddp_worker.py"
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "USE_LIBUV": "0"}
    outs = [folder / f"{rank}.pt" for rank in range(PROCESSES)]
    running = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(folder / "store"), str(out)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * PROCESSES, outputs
    return [torch.load(out, weights_only=True) for out in outs]


def compare(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    """Compare outputs, gradients and buffers of all processes with those of one process on the whole batch."""
    close(torch.cat([part["output"] for part in parts]), whole["output"], 1e-3)
    for part in parts:
        for key, expected in whole["gradients"].items():
            if expected is not None:  # DDP gives the mean over processes
                scale = float(expected.abs().max()) + 1
                close(part["gradients"][key] * PROCESSES / scale, expected / scale, 1e-3)
        for key, expected in whole["buffers"].items():
            if key.endswith(STATISTICS):
                close(part["buffers"][key], expected, 1e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.sync])
def test_two_processes_compute_what_one_does(name: str, found: list[dict[str, Any]]) -> None:
    """There is exactly one all-reduce for each layer."""
    whole = step(CASES[name], slice(None))
    compare([part[name] for part in found], whole)
    layers = len(norm_layers(small_network(CASES[name].system)))
    if not CASES[name].compiled:
        assert [part[name]["calls"] for part in found] == [layers] * PROCESSES
    assert whole["calls"] == 0


def test_processes_that_do_not_synchronize_are_refused(found: list[dict[str, Any]]) -> None:
    name = "without synchronization"
    assert [part[name]["calls"] for part in found] == [0] * PROCESSES
    with pytest.raises(AssertionError):
        compare([part[name] for part in found], step(CASES[name], slice(None)))
