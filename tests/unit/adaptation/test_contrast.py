"""The memory, the losses and the crops of a step of the cluster contrast, against loops that follow the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.adaptation import contrast
from reid.adaptation.contrast import Assignments, Memory, crops_a_camera, draw_step, unit_means

CROPS, WIDTH, CLUSTERS, CAMERAS = 60, 8, 6, 3


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def crops() -> tuple[np.ndarray, Assignments, np.ndarray]:
    """Vectors, six clusters in two groups of which two show one person, and cameras."""
    random = np.random.default_rng(3)
    labels = random.integers(-1, CLUSTERS, CROPS)
    groups = np.array([0, 0, 0, 0, 1, 1])
    persons = np.array([0, 1, 2, 3, 0, 5])  # clusters 0 and 4 are joined across light
    cameras = random.integers(0, CAMERAS, CROPS) + np.where(labels >= 4, CAMERAS, 0)
    return unit(random.normal(size=(CROPS, WIDTH))), Assignments(labels, groups, persons), cameras


def slow_loss(
    vectors: np.ndarray, memory: Memory, assigned: Assignments, labels: np.ndarray, cameras: np.ndarray
) -> float:
    """The formulas of both losses, crop by crop."""
    centroids, proxies = memory.centroids.numpy().astype(float), memory.proxies.numpy().astype(float)
    cluster_of, camera_of = memory.proxy_cluster.numpy(), memory.proxy_camera.numpy()
    first, second = [], []
    for f, k, c in zip(vectors.astype(float), labels, cameras, strict=True):
        logits = {j: f @ centroids[j] / 0.05 for j in range(CLUSTERS) if assigned.groups[j] == assigned.groups[k]}
        first.append(np.log(sum(np.exp(value) for value in logits.values())) - logits[k])
        partners = [j for j in range(CLUSTERS) if assigned.persons[j] == assigned.persons[k]]
        known_groups = {assigned.groups[j] for j in partners}
        positives, negatives = [], []
        for p in range(len(proxies)):
            score = f @ proxies[p] / 0.07
            if cluster_of[p] in partners:
                positives += [score] if camera_of[p] != c else []
            elif assigned.groups[cluster_of[p]] in known_groups:
                negatives.append(score)
        if positives:
            total = np.log(sum(np.exp(v) for v in positives + sorted(negatives)[-contrast.HARD_PROXIES :]))
            second.append(np.mean([total - v for v in positives]))
    return float(np.mean(first) + 0.5 * np.mean(second))


@pytest.mark.parametrize("hard", [2, 50])
def test_the_loss_follows_the_formulas(crops, hard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "HARD_PROXIES", hard)
    vectors, assigned, cameras = crops
    memory, rows = Memory(vectors, assigned, cameras), np.flatnonzero(assigned.labels >= 0)
    labels, seen_by = assigned.labels[rows], cameras[rows]
    found = memory.loss(*map(torch.from_numpy, (vectors[rows], labels, seen_by)))
    assert found.item() == pytest.approx(slow_loss(vectors[rows], memory, assigned, labels, seen_by), rel=1e-5)
    blind = Assignments(
        assigned.labels, assigned.groups * 0, assigned.persons
    )  # groups that are not kept to themselves
    assert slow_loss(vectors[rows], memory, blind, labels, seen_by) != pytest.approx(found.item(), rel=1e-3)


def test_without_cameras_there_is_no_proxy_term(crops) -> None:
    vectors, assigned, _ = crops
    assigned = Assignments(assigned.labels, assigned.groups, np.arange(CLUSTERS))
    memory, rows = Memory(vectors, assigned, np.zeros(CROPS, np.int64)), np.flatnonzero(assigned.labels >= 0)
    embeddings = torch.from_numpy(vectors[rows]).requires_grad_()
    labels = torch.from_numpy(assigned.labels[rows])
    loss = memory.proxy_loss(embeddings, labels, torch.zeros(len(rows), dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert not embeddings.grad.any()


def test_the_memory_moves_row_by_row(crops) -> None:
    vectors, assigned, cameras = crops
    memory = Memory(vectors, assigned, cameras)
    rows = np.flatnonzero(assigned.labels == 2)[:3]
    expected = memory.centroids[2].clone().double()
    for vector in vectors[rows]:
        expected = 0.8 * expected + 0.2 * torch.from_numpy(vector)
        expected = expected / expected.norm()
    others = memory.centroids[[0, 1, 3, 4, 5]].clone()
    memory.update(*(torch.from_numpy(values[rows]) for values in (vectors, assigned.labels, cameras)))
    torch.testing.assert_close(memory.centroids[2].double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(memory.centroids[[0, 1, 3, 4, 5]], others)
    own = memory.proxy_cluster == 2
    moved = {int(camera) for camera in cameras[rows]}
    fresh = Memory(vectors, assigned, cameras)
    changed = (memory.proxies != fresh.proxies).any(1)
    assert set(memory.proxy_camera[own & changed].tolist()) == moved
    assert not (changed & ~own).any()


def test_unit_means_are_means_of_their_rows() -> None:
    random = np.random.default_rng(0)
    vectors, numbers = unit(random.normal(size=(20, 4))), random.integers(-1, 3, 20)
    for number, mean in enumerate(unit_means(vectors, numbers, 3)):
        expected = vectors[numbers == number].mean(0)
        np.testing.assert_allclose(mean, expected / np.linalg.norm(expected), atol=1e-6)


def test_a_step_has_clusters_of_every_group_and_whole_domains() -> None:
    random = np.random.default_rng(1)
    cameras = np.tile(np.repeat(np.arange(4), 6), 20)
    labels = np.repeat(np.arange(20), 24)
    groups = (np.arange(20) >= 18).astype(np.int64)  # the second group has two clusters
    assigned = Assignments(labels, groups, np.arange(20))
    rows = draw_step(assigned, cameras, cameras, random)
    assert len(np.unique(rows)) == len(rows)
    assert (np.diff(cameras[rows]) >= 0).all()
    clusters, counts = np.unique(labels[rows], return_counts=True)
    assert set(clusters) >= {18, 19}
    assert len(clusters) == contrast.CLUSTERS_A_STEP + 2
    assert set(counts) == {4 * crops_a_camera(4)}
    again = draw_step(assigned, cameras, cameras, np.random.default_rng(1))
    assert np.array_equal(rows, again)


def test_a_domain_with_few_crops_is_left_out_of_a_step() -> None:
    labels, cameras = np.zeros(11, np.int64), np.array([0] * 8 + [1] * 3)
    rows = draw_step(
        Assignments(labels, np.zeros(1, np.int64), np.zeros(1, np.int64)), cameras, cameras, np.random.default_rng(0)
    )
    assert len(rows) == 0  # two crops of each camera are too few for statistics
    rows = draw_step(
        Assignments(labels[:8], np.zeros(1, np.int64), np.zeros(1, np.int64)),
        cameras[:8],
        cameras[:8],
        np.random.default_rng(0),
    )
    assert len(rows) == 4
