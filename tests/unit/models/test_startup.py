"""Loading a network imports only what it needs: start-up time is part of the interface."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SHIPPED = Path(__file__).parents[3] / "demo" / "weights" / "street.safetensors"
SLOW = ("torchvision", "sympy", "torch._dynamo", "timm")  # modules that take longer to import than a network to load
PROGRAM = """
import sys
from pathlib import Path
import torch
before = set(sys.modules)
from reid.models.checkpoint import load_checkpoint
checkpoint = load_checkpoint(Path(sys.argv[1]))
height, width = checkpoint.transform.height, checkpoint.transform.width
checkpoint.embed(torch.zeros(1, 3, height, width), 0 if checkpoint.domains else None)
sys.stdout.write(" ".join(set(sys.modules) - before))
"""


@pytest.mark.parametrize("weights", ["shipped", "osnet"])
def test_a_checkpoint_loads_without_slow_modules(weights: str, camera_weights: Path) -> None:
    path = SHIPPED if weights == "shipped" else camera_weights
    result = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True)
    imported = set(result.stdout.split())
    assert "reid.models.checkpoint" in imported
    assert not imported & set(SLOW)
