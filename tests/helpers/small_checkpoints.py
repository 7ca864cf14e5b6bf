"""Small checkpoints for tests: an OSNet x0.25 with lively statistics, plain or with cameras, and files of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reid.data.transforms import EvaluationTransform
from reid.errors import WeightsError
from reid.models.checkpoint import load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import Given, camera_batchnorm, convert_norm

SPEC = NetworkSpec("osnet_x0_25", "gem", "bnneck")
TRANSFORM = EvaluationTransform(height=64, width=32, interpolation="bicubic")
IMAGES = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(1))
DOMAIN = torch.tensor([0, 1, 1, 0])
CAMERAS = ("a1", "a2")


def randomize_norms(network: nn.Module) -> nn.Module:
    """Give the network statistics and affines that differ between channels and between domains."""
    for key, tensor in network.state_dict().items():
        if key.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif key.endswith(("running_var", "bn.weight")):
            tensor.uniform_(0.7, 1.4)
        elif key.endswith("num_batches_tracked"):
            tensor.fill_(5)
    return network.eval()


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    return randomize_norms(Embedder(SPEC))


def camera_network() -> nn.Module:
    """A network with statistics for ``CAMERAS``."""
    return randomize_norms(convert_norm(plain_network(), camera_batchnorm(CAMERAS)))


def save_network(
    folder: Path, network: nn.Module, domain_fields: tuple[str, ...] = (), domains: tuple[str, ...] = ()
) -> Path:
    """Save a network of ``SPEC`` as w.safetensors in a folder."""
    path = folder / "w.safetensors"
    save_checkpoint(path, network, SPEC, TRANSFORM, domain_fields, domains, {"seed": "3"})
    return path


def outputs(network: nn.Module, domain: Tensor | None) -> Tensor:
    """What the network gives for ``IMAGES``."""
    with torch.inference_mode():
        return Given(network)(IMAGES, domain)


def load_error(path: Path, backbone: str | None = None) -> str:
    """The message of the error that loading raises: one line that names the file."""
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(path, backbone)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message
