"""What the application needs to run within seconds: a tiny street and two untrained networks."""

from __future__ import annotations

from pathlib import Path

import torch

from reid.data.street.generation import StreetPlan, generate
from reid.data.transforms import EvaluationTransform
from reid.models.checkpoint import save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import camera_batchnorm, convert_norm

TINY = StreetPlan(identities=4, train_identities=3, vehicles=2, train_vehicles=1, crops=2)
SPEC = NetworkSpec("osnet_x0_25", "average", "bnneck")


def make_tiny_street(out: Path) -> None:
    """Draw street-a and street-b, four test people each."""
    generate(out, TINY, workers=1)


def save_camera_weights(path: Path) -> None:
    """Save an untrained OSNet x0.25 with statistics for the cameras of street-a, people and vehicles."""
    torch.manual_seed(0)
    names = [f"{category}/a{number}" for category in ("person", "vehicle") for number in range(1, 7)]
    network = convert_norm(Embedder(SPEC), camera_batchnorm(names)).eval()
    save_checkpoint(path, network, SPEC, EvaluationTransform(64, 32), ("category", "camera"), names, {})


def save_plain_weights(path: Path) -> None:
    """Save the same kind of network with plain BatchNorm."""
    torch.manual_seed(0)
    save_checkpoint(path, Embedder(SPEC).eval(), SPEC, EvaluationTransform(64, 32), (), (), {})


def page_arguments(street: Path, camera: Path, plain: Path, galleries: Path) -> list[str]:
    """Return the options of the application that show these data and weights."""
    values = {"--data": street, "--galleries": galleries, "--weights": camera, "--plain": plain}
    return [word for name, path in values.items() for word in (name, str(path))]


def make_tiny_page(folder: Path) -> list[str]:
    """Make data and weights in ``folder``, and return the options of the application that shows them."""
    street, camera, plain = folder / "street", folder / "camera.safetensors", folder / "plain.safetensors"
    make_tiny_street(street)
    save_camera_weights(camera)
    save_plain_weights(plain)
    return page_arguments(street, camera, plain, folder / "galleries")
