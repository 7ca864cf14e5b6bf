"""What tests of the application share."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from PIL import Image
from starlette.testclient import TestClient

from helpers.served_galleries import Served, make_gallery, serve_gallery
from reid.app import accounts
from reid.data.manifest import read_manifest
from reid.records import Sample, Split


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash passwords with the least work; the real parameters are tested in test_accounts.py."""
    monkeypatch.setattr(accounts, "_HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    accounts._hash_of_nobody.cache_clear()


@pytest.fixture(scope="module")
def samples(tiny_street: Path) -> tuple[Sample, ...]:
    every_sample = read_manifest(tiny_street / "street-a" / "manifest.csv")
    return tuple(s for s in every_sample if s.split is Split.GALLERY and s.category == "person")


@pytest.fixture(scope="module")
def built(samples: tuple[Sample, ...], plain_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gallery(samples, plain_weights, tmp_path_factory.mktemp("built") / "shop")


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "galleries" / "shop"))


@pytest.fixture
def served(folder: Path, tmp_path: Path) -> Served:
    return serve_gallery(folder, tmp_path / "state")


@pytest.fixture
def client(served: Served) -> TestClient:
    return served.client()


@pytest.fixture
def picture() -> bytes:
    """A picture that no crop of the gallery equals."""
    image, out = Image.linear_gradient("L").resize((32, 64)).convert("RGB"), io.BytesIO()
    image.putpixel((3, 3), (255, 0, 0))
    image.save(out, "PNG")
    return out.getvalue()
