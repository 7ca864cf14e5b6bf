"""A checkpoint as an attack sees it: the embeddings of the program, from the pixels of a file, with a gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from helpers.small_checkpoints import CAMERAS, camera_network, plain_network, save_network
from reid.data.loading import domain_indices
from reid.data.manifest import read_manifest
from reid.errors import ConditionError, ConfigError
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.embedding_centers import EmbeddingCenters
from reid.models.execution import Execution
from reid.records import Modality, Sample
from reid.retrieval.embed import embed
from reid.robustness.attack_methods import AttackPlan
from reid.robustness.attacked_folder import write_attacked
from reid.robustness.attacked_network import AttackedNetwork
from reid.robustness.perturbation_ball import change_of


def drawn_samples(folder: Path, count: int = 4) -> list[Sample]:
    """Crops of several sizes, of two cameras; the last is infrared."""
    random, found = np.random.default_rng(0), []
    for number in range(count):
        size = ((80, 37), (64, 32), (51, 40))[number % 3]
        small = random.integers(0, 256, (8, 4, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize(size[::-1])
        path = folder / f"{number}.png"
        infrared = number == count - 1
        (image.convert("L") if infrared else image).save(path)
        modality = Modality.INFRARED if infrared else Modality.VISIBLE
        found.append(Sample(path, str(number // 2), CAMERAS[number % 2], modality))
    return found


def checkpoints(folder: Path) -> dict[str, Checkpoint]:
    plain = load_checkpoint(save_network(folder, plain_network()))
    cameras = load_checkpoint(save_network(folder, camera_network(), ("camera",), CAMERAS))
    table = torch.randn(2, 128, generator=torch.Generator().manual_seed(2)) / 40
    return {
        "plain": plain,
        "flipped": plain.with_flip(),
        "cameras": cameras,
        "nearest": cameras.with_unseen_camera_policy("nearest"),
        "centered": replace(cameras, centers=EmbeddingCenters(("camera",), CAMERAS, table)),
    }


@pytest.mark.parametrize("name", ["plain", "flipped", "cameras", "nearest", "centered"])
def test_vectors_point_where_the_embeddings_do(tmp_path: Path, name: str) -> None:
    checkpoint, samples = checkpoints(tmp_path)[name], drawn_samples(tmp_path)
    if name == "nearest":
        samples[0] = Sample(samples[0].path, "0", "unknown")
    expected = embed(checkpoint, samples).vectors
    network = AttackedNetwork(checkpoint)
    for row, sample in enumerate(samples):
        pixels = torch.from_numpy(np.array(Image.open(sample.path).convert("RGB"))).permute(2, 0, 1)[None].float()
        domain = None
        if checkpoint.domain_fields:
            domain = domain_indices([sample], checkpoint.domain_fields, checkpoint.domains, checkpoint.unknown_domain)
        pixels.requires_grad_()
        vectors = network.vectors(pixels, domain)
        cosine = functional.cosine_similarity(vectors, torch.from_numpy(expected[row : row + 1]))
        assert cosine.item() > 0.9999
        vectors.norm().backward()
        assert bool(pixels.grad.isfinite().all())


@pytest.mark.parametrize("name", ["plain", "cameras", "centered"])
def test_attacked_files_move_the_embeddings_of_the_program(tmp_path: Path, name: str) -> None:
    checkpoint, samples = checkpoints(tmp_path)[name], drawn_samples(tmp_path)
    plan = AttackPlan(epsilon=12, steps=6)
    manifest = write_attacked(checkpoint, samples, range(len(samples)), tmp_path / "out", plan)
    changed = read_manifest(manifest)
    noise = AttackPlan(optimizer="random", epsilon=12, steps=2)
    noisy = read_manifest(write_attacked(checkpoint, samples, range(len(samples)), tmp_path / "noise", noise))
    before, after, by_chance = (embed(checkpoint, rows).vectors for rows in (samples, changed, noisy))
    assert bool(((before * after).sum(1) < (before * by_chance).sum(1)).all())
    for sample, attacked in zip(samples, changed, strict=True):
        clean, dirty = (
            torch.from_numpy(np.array(Image.open(one.path).convert("RGB"))).permute(2, 0, 1)[None]
            for one in (sample, attacked)
        )
        assert change_of(clean, dirty, "linf").item() <= 12
        assert (attacked.identity, attacked.camera, attacked.modality) == (
            sample.identity,
            sample.camera,
            sample.modality,
        )
    grey = np.array(Image.open(changed[-1].path))
    assert (grey == grey[:, :, :1]).all()


def test_an_interrupted_attack_continues_to_the_same_files(tmp_path: Path) -> None:
    checkpoint, samples = checkpoints(tmp_path)["plain"], drawn_samples(tmp_path, 7)
    plan = AttackPlan("self", "pgd", "l2", 6, 2)
    first = write_attacked(checkpoint, samples, range(7), tmp_path / "first", plan)
    write_attacked(checkpoint, samples, range(7), tmp_path / "second", plan)
    (tmp_path / "second" / "manifest.csv").unlink()
    for name in ("0.png.png", "4.png.png"):
        (tmp_path / "second" / "images" / name).unlink()
    second = write_attacked(checkpoint, samples, range(7), tmp_path / "second", plan)
    assert first.read_bytes() == second.read_bytes()
    for path in (tmp_path / "first" / "images").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / "images" / path.name).read_bytes()


def test_a_folder_of_another_attack_is_refused(tmp_path: Path) -> None:
    checkpoint, samples = checkpoints(tmp_path)["plain"], drawn_samples(tmp_path, 2)
    write_attacked(checkpoint, samples, [0], tmp_path / "out", AttackPlan(steps=1))
    for plan, rows in ((AttackPlan(steps=2), [0]), (AttackPlan(steps=1), [0, 1])):
        with pytest.raises(ConfigError):
            write_attacked(checkpoint, samples, rows, tmp_path / "out", plan)


def test_an_unknown_camera_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    checkpoint, samples = checkpoints(tmp_path)["cameras"], drawn_samples(tmp_path, 2)
    unknown = Sample(samples[1].path, "1", "yard")
    with pytest.raises(ConditionError):
        write_attacked(checkpoint, [samples[0], unknown], [0, 1], tmp_path / "out", AttackPlan(steps=1))
    assert not (tmp_path / "out").exists()
    known = checkpoint.with_unseen_camera_policy("nearest")
    write_attacked(known, [samples[0], unknown], [0, 1], tmp_path / "out", AttackPlan(steps=1))


def test_universal_noise_is_one_for_all(tmp_path: Path) -> None:
    checkpoint = checkpoints(tmp_path)["plain"]
    samples = [sample for sample in drawn_samples(tmp_path, 9) if sample.modality is Modality.VISIBLE]
    plan = AttackPlan(epsilon=10, steps=2, universal=True)
    write_attacked(checkpoint, samples, range(8), tmp_path / "out", plan)
    images = [np.array(Image.open(path), np.int16) for path in sorted((tmp_path / "out" / "images").iterdir())]
    clean = [np.array(Image.open(sample.path).convert("RGB"), np.int16) for sample in samples]
    changes = [a - b for a, b in zip(images, clean, strict=True) if a.shape == images[0].shape]
    inside = [(b > 30) & (b < 225) for b in clean if b.shape == images[0].shape]
    both = inside[0] & inside[1]
    assert both.any()
    assert (changes[0][both] == changes[1][both]).all()


def test_networks_without_a_gradient_are_refused(tmp_path: Path) -> None:
    plain = checkpoints(tmp_path)["plain"]
    with pytest.raises(ConfigError):
        AttackedNetwork(plain.with_execution(Execution(runtime="folded")))
    with pytest.raises(ConfigError):
        AttackedNetwork(plain.with_execution(Execution(precision="bfloat16")))
