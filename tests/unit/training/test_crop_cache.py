"""Crops in a mapped file are those in memory, and a file of other images is never taken for them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reid.config import parse_config
from reid.data.transforms import EvaluationTransform
from reid.errors import DataError
from reid.models.checkpoint import load_checkpoint
from reid.records import Sample
from reid.training import crop_cache
from reid.training.crop_cache import CropSource, cached_if_large, crop_bytes, crops_digest
from reid.training.training_run import train

TRANSFORM = EvaluationTransform(8, 4)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    random = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(random.integers(0, 255, (9, 5, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return [Sample(tmp_path / f"{number}.png", str(number)) for number in range(5)]


def test_mapped_crops_are_those_in_memory(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop_cache, "BLOCK", 2)
    expected = CropSource(TRANSFORM, 1).load(samples)
    source = CropSource(TRANSFORM, 1, folder=tmp_path / "cache")
    assert torch.equal(source.load(samples), expected)
    (file,) = (tmp_path / "cache").iterdir()
    written = file.stat().st_mtime_ns
    again = source.load(samples)
    assert torch.equal(again, expected)
    assert file.stat().st_mtime_ns == written
    again[:] = 0  # stays in this process
    assert torch.equal(source.load(samples), expected)


def test_another_image_size_or_order_has_a_file_of_its_own(samples: list[Sample]) -> None:
    digests = {crops_digest(samples, TRANSFORM), crops_digest(samples, EvaluationTransform(4, 8))}
    digests.add(crops_digest(samples[::-1], TRANSFORM))
    os.utime(samples[0].path, ns=(1, 1))
    digests.add(crops_digest(samples, TRANSFORM))
    assert len(digests) == 4


def test_a_damaged_file_is_refused(samples: list[Sample], tmp_path: Path) -> None:
    source = CropSource(TRANSFORM, 1, folder=tmp_path / "cache")
    source.load(samples)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DataError, match=file.name):
        source.load(samples)


def test_an_unreadable_image_leaves_no_file(samples: list[Sample], tmp_path: Path) -> None:
    samples[3].path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png"):
        CropSource(TRANSFORM, 1, folder=tmp_path / "cache").load(samples)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_only_crops_that_do_not_fit_into_memory_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CropSource(TRANSFORM, 1)
    monkeypatch.setattr(crop_cache, "free_memory", lambda: 2 * crop_bytes(10, TRANSFORM))
    assert cached_if_large(source, 10, tmp_path).folder is None
    assert cached_if_large(source, 11, tmp_path).folder == tmp_path
    named = CropSource(TRANSFORM, 1, folder=tmp_path / "own")
    assert cached_if_large(named, 11, tmp_path) == named
    monkeypatch.setattr(crop_cache, "free_memory", lambda: None)
    assert cached_if_large(source, 11, tmp_path).folder is None


def test_a_training_whose_crops_do_not_fit_gives_the_same_weights(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{sample.path},{number // 2},train" for number, sample in enumerate(samples[:4])]
    (tmp_path / "m.csv").write_text("path,identity,split\n" + "\n".join(rows) + "\n", encoding="utf-8")
    recipe = {"epochs": 1, "identities_per_batch": 2, "images_per_identity": 2, "visits": 1, "threads": 1}
    table = {"data": {"manifests": [str(tmp_path / "m.csv")], "size": [32, 16]}, "train": recipe}
    experiment = parse_config(table, "test")
    whole = load_checkpoint(train(experiment, tmp_path / "whole"))
    monkeypatch.setattr(crop_cache, "free_memory", lambda: 1)
    said: list[str] = []
    mapped = load_checkpoint(train(experiment, tmp_path / "mapped", say=said.append))
    assert mapped.fingerprint == whole.fingerprint
    assert "half of the free memory" in said[0]
    assert not list((tmp_path / "mapped").glob("*.npy"))
    train(experiment, tmp_path / "third", cache=tmp_path / "crops")
    assert len(list((tmp_path / "crops").glob("*.npy"))) == 1
