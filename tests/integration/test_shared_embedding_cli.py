"""``reid embed`` in two processes and on a local Ray cluster gives the bits of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import process_group, small_checkpoints
from reid.cli import main
from reid.retrieval.embed import load_embeddings


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command without the name of its file; one image is listed twice."""
    folder, random = tmp_path_factory.mktemp("crops"), np.random.default_rng(0)
    rows = ["path,identity,camera,split"]
    for number in range(140):
        Image.fromarray(random.integers(0, 255, (32, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{number % 9},a1,gallery")
    rows.append("3.png,3,a1,query")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    weights = small_checkpoints.save_network(folder, small_checkpoints.plain_network())
    return ["embed", "--data", str(folder / "manifest.csv"), "--weights", str(weights), "--size", "64", "32"]


def run(words: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "e.safetensors"
    assert run([*words, "--out", str(out)]) == 0
    torch.set_num_threads(before)
    return out


def assert_same(path: Path, whole: Path) -> None:
    found, expected = load_embeddings(path), load_embeddings(whole)
    assert found.samples == expected.samples
    assert found.fingerprint == expected.fingerprint
    assert found.vectors.tobytes() == expected.vectors.tobytes()
    assert not path.with_name(f"{path.name}.shards").exists()


def test_two_processes_share_the_shards(words: list[str], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    ends = process_group.finish(process_group.start([*words, "--out", out, "--shard-rows", 64], 2, tmp_path))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert ends[0][1].startswith(f"{out}\t141 vectors")
    assert ends[1][1] == ""
    assert_same(out, whole)


def test_an_interrupted_command_continues_at_the_missing_shards(
    words: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reid.retrieval.embedding_shards import EmbeddingShards

    out, write, written = tmp_path / "e.safetensors", EmbeddingShards.write, list[int]()

    def stop_at_the_second(shards: EmbeddingShards, number: int, *given: object, **named: object) -> None:
        if len(written) == 1:
            raise OSError(28, "No space left on device", "disk")
        written.append(number)
        write(shards, number, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(EmbeddingShards, "write", stop_at_the_second)
    command = [*words, "--out", str(out), "--shard-rows", "64"]
    assert run(command) == 1
    assert written == [0]
    assert not out.exists()

    def note(shards: EmbeddingShards, number: int, *given: object, **named: object) -> None:
        written.append(number)
        write(shards, number, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(EmbeddingShards, "write", note)
    assert run(command) == 0
    assert written == [0, 1, 2]
    assert_same(out, whole)


def test_a_local_ray_cluster_gives_the_same_bits(words: list[str], whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="the extra ray is not installed")
    out = tmp_path / "e.safetensors"
    (end,) = process_group.finish(
        process_group.start([*words, "--out", out, "--shard-rows", 64, "--engine", "ray"], 1, tmp_path), timeout=400
    )
    assert end[0] == 0, end
    assert_same(out, whole)


def test_workers_need_ray(words: list[str], tmp_path: Path) -> None:
    assert run([*words, "--out", str(tmp_path / "e.safetensors"), "--workers", "2"]) == 1
