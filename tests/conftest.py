"""What several tests share: a tiny street and an untrained network that knows its cameras."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from helpers.tiny_page import make_tiny_street, save_camera_weights, save_plain_weights

# pytorch-metric-learning imports this module of faiss, which replaces methods of every index of the process by ones
# that know no search parameters.  Galleries need them, and what is compared with that library needs no faiss.
sys.modules.setdefault("faiss.contrib.torch_utils", ModuleType("faiss.contrib.torch_utils"))


@pytest.fixture(scope="session")
def tiny_street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with street-a and street-b, four test people each."""
    out = tmp_path_factory.mktemp("tiny") / "street"
    make_tiny_street(out)
    return out


@pytest.fixture(scope="session")
def camera_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained OSNet x0.25 with statistics for the cameras of street-a, people and vehicles."""
    path = tmp_path_factory.mktemp("weights") / "camera.safetensors"
    save_camera_weights(path)
    return path


@pytest.fixture(scope="session")
def plain_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kind of network with plain BatchNorm."""
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    save_plain_weights(path)
    return path
