"""What several tests share: a tiny street and an untrained network that knows its cameras."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from reid.data.street.generation import StreetPlan, generate
from reid.data.transforms import EvaluationTransform
from reid.models.checkpoint import save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import camera_batchnorm, convert_norm

# pytorch-metric-learning imports this module of faiss, which replaces methods of every index of the process by ones
# that know no search parameters.  Galleries need them, and what is compared with that library needs no faiss.
sys.modules.setdefault("faiss.contrib.torch_utils", ModuleType("faiss.contrib.torch_utils"))

TINY = StreetPlan(identities=4, train_identities=3, vehicles=2, train_vehicles=1, crops=2)


@pytest.fixture(scope="session")
def tiny_street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with street-a and street-b, four test people each."""
    out = tmp_path_factory.mktemp("tiny") / "street"
    generate(out, TINY, workers=1)
    return out


@pytest.fixture(scope="session")
def camera_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained OSNet x0.25 with statistics for the cameras of street-a, people and vehicles."""
    torch.manual_seed(0)
    spec = NetworkSpec("osnet_x0_25", "average", "bnneck")
    names = [f"{domain}/a{number}" for domain in ("person", "vehicle") for number in range(1, 7)]
    network = convert_norm(Embedder(spec), camera_batchnorm(names)).eval()
    path = tmp_path_factory.mktemp("weights") / "camera.safetensors"
    save_checkpoint(path, network, spec, EvaluationTransform(64, 32), ("category", "camera"), names, {})
    return path


@pytest.fixture(scope="session")
def plain_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kind of network with plain BatchNorm."""
    torch.manual_seed(0)
    spec = NetworkSpec("osnet_x0_25", "average", "bnneck")
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    save_checkpoint(path, Embedder(spec).eval(), spec, EvaluationTransform(64, 32), (), (), {})
    return path
