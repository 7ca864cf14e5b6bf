"""Embeddings in shards are those of one pass, and what is damaged or of other work is never taken for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import small_checkpoints
from reid.errors import ConfigError, DataError
from reid.models.checkpoint import Checkpoint
from reid.records import Sample
from reid.retrieval import embedding_shards
from reid.retrieval.embed import embed
from reid.retrieval.embedding_shards import EmbeddingShards, remove_shard_files


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    network = small_checkpoints.plain_network()
    transform = dataclasses.replace(small_checkpoints.TRANSFORM, height=32, width=16)
    return Checkpoint(network, small_checkpoints.SPEC, transform, (), (), "f00d", "test")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    folder, random = tmp_path_factory.mktemp("crops"), np.random.default_rng(0)
    for number in range(150):
        Image.fromarray(random.integers(0, 255, (32, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tuple(Sample(folder / f"{number}.png", str(number)) for number in range(150))


def test_shards_in_any_order_give_the_bits_of_one_pass(
    checkpoint: Checkpoint, samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = EmbeddingShards(tmp_path / "shards", samples, 64)
    shards.open("f00d")
    assert shards.count == 3
    assert shards.missing("f00d") == [0, 1, 2]
    for number in (2, 0):
        shards.write(number, checkpoint)
    assert shards.missing("f00d") == [1]
    assert shards.missing("f00d", [0, 2]) == shards.missing("f00d", []) == []
    with pytest.raises(DataError, match="000001"):
        shards.merge("f00d")
    again = EmbeddingShards(tmp_path / "shards", samples, 64)
    again.open("f00d")
    again.write(1, checkpoint)
    expected = embed(checkpoint, samples)
    merged = again.merge("f00d")
    assert merged.samples == expected.samples
    assert merged.vectors.tobytes() == expected.vectors.tobytes()


def test_a_damaged_shard_and_one_of_another_network_are_missing(
    checkpoint: Checkpoint, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    shards = EmbeddingShards(tmp_path / "shards", samples[:130], 64)
    for number in range(3):
        shards.write(number, checkpoint)
    content = bytearray(shards.path(1).read_bytes())
    content[-1] ^= 1
    shards.path(1).write_bytes(content)
    assert shards.missing("f00d") == [1]
    assert shards.missing("cafe") == [0, 1, 2]


@pytest.mark.parametrize("changed", ["samples", "rows", "fingerprint"])
def test_shards_of_other_work_are_refused(samples: tuple[Sample, ...], tmp_path: Path, changed: str) -> None:
    EmbeddingShards(tmp_path / "shards", samples, 64).open("f00d")
    other = EmbeddingShards(
        tmp_path / "shards", samples[1:] if changed == "samples" else samples, 128 if changed == "rows" else 64
    )
    with pytest.raises(ConfigError, match=changed):
        other.open("cafe" if changed == "fingerprint" else "f00d")


def test_shards_begin_at_whole_batches(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    for rows in (0, 63, 100):
        with pytest.raises(ConfigError, match=str(rows)):
            EmbeddingShards(tmp_path, samples, rows)


def test_only_files_of_shards_are_removed(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "000000.safetensors").touch()
    remove_shard_files(folder)  # without a plan the folder is somebody else's
    assert (folder / "000000.safetensors").exists()
    EmbeddingShards(folder, samples, 64).open("f00d")
    (folder / "notes.txt").touch()
    remove_shard_files(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    EmbeddingShards(folder, samples, 64).open("f00d")
    remove_shard_files(folder)
    assert not folder.exists()
    assert embedding_shards.BATCH == 64
