"""End to end without any data set: cameras that differ by gain and offset, and what their statistics are worth.

An identity is a fixed smooth random pattern; a camera multiplies and shifts every channel.  A small network
is trained on four cameras and asked on two others.  Mean over three seeds; margins are far from the means.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.evaluation import market_metrics
from reid.norm import Given, calibrate, camera_batchnorm, convert_norm, domains_of, install
from reid.training import identity_loss

SEEDS = (0, 1, 2)
TRAIN_CAMERAS, ALL_CAMERAS = 4, 6
TRAIN_IDENTITIES, TEST_IDENTITIES, SHOTS = 60, 40, 4
STEPS, BATCH = 80, 48
NOISE_WITHOUT_SHIFT = 2.0  # else everybody would be found


class World:
    """Patterns of identities and looks of cameras, all from one seed; with ``shift`` 0 all cameras look alike."""

    def __init__(self, seed: int, shift: float = 1.0, noise: float = 0.5) -> None:
        self.noise = noise
        self.generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(TRAIN_IDENTITIES + TEST_IDENTITIES, 3, 4, 2, generator=self.generator)
        self.patterns = functional.interpolate(coarse, (16, 8), mode="bilinear")
        self.gain = torch.exp(0.8 * shift * torch.randn(ALL_CAMERAS, 3, 1, 1, generator=self.generator))
        self.offset = 2.0 * shift * torch.randn(ALL_CAMERAS, 3, 1, 1, generator=self.generator)

    def images(self, identities: Tensor, cameras: Tensor) -> Tensor:
        noise = self.noise * torch.randn(len(identities), 3, 16, 8, generator=self.generator)
        return (self.patterns[identities] + noise) * self.gain[cameras] + self.offset[cameras]


def small_network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide_in, wide_out in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(wide_in, wide_out, 3, padding=1), nn.BatchNorm2d(wide_out), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 2, 32), nn.BatchNorm1d(32))


def trained(world: World, seed: int, by_camera: bool) -> nn.Module:
    torch.manual_seed(seed)
    network: nn.Module = small_network()
    if by_camera:
        network = convert_norm(network, camera_batchnorm([str(c) for c in range(TRAIN_CAMERAS)]))
    head = nn.Linear(32, TRAIN_IDENTITIES)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=5e-3, fused=False)
    for _ in range(STEPS):
        identities = torch.randint(0, TRAIN_IDENTITIES, (BATCH,), generator=world.generator)
        cameras = torch.randint(0, TRAIN_CAMERAS, (BATCH,), generator=world.generator)
        logits = head(Given(network.train())(world.images(identities, cameras), cameras))
        optimizer.zero_grad()
        identity_loss(logits, identities, 0.0).backward()
        optimizer.step()
    return network.eval()


def calibrated(network: nn.Module, world: World) -> nn.Module:
    """Statistics of all six cameras, from unlabelled images of the training identities."""
    pool = [
        (world.images(torch.arange(TRAIN_IDENTITIES), torch.full((TRAIN_IDENTITIES,), c)), torch.full((60,), c))
        for c in range(ALL_CAMERAS)
    ]
    return install(network, calibrate(network, pool, [str(c) for c in range(ALL_CAMERAS)]))


def rank1(network: nn.Module, world: World, cameras: tuple[int, int], shift: int = 0) -> float:
    """Test identities seen by one camera, sought among those seen by another; ``shift`` mixes statistics up."""
    identities = (torch.arange(TEST_IDENTITIES) + TRAIN_IDENTITIES).repeat_interleave(SHOTS)
    vectors = []
    for camera in cameras:
        rows = torch.full((len(identities),), camera)
        label = (rows + shift) % ALL_CAMERAS if domains_of(network) else None
        with torch.inference_mode():
            vectors.append(functional.normalize(Given(network)(world.images(identities, rows), label)).numpy())
    names = identities.numpy()
    return market_metrics(
        *vectors,
        query_identities=names,
        gallery_identities=names,
        query_cameras=np.zeros(len(names), int),
        gallery_cameras=np.ones(len(names), int),
    ).rank(1)


@pytest.fixture(scope="module")
def scores() -> dict[str, float]:
    """Mean rank-1 over the seeds."""
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        world = World(seed)
        plain, camera = (trained(world, seed, by_camera) for by_camera in (False, True))
        adapted, own = calibrated(plain, world), calibrated(camera, world)
        for key, network, cameras, shift in (
            ("plain, seen", plain, (0, 1), 0),
            ("plain, unseen", plain, (4, 5), 0),
            ("adapted, unseen", adapted, (4, 5), 0),
            ("camera, seen", own, (0, 1), 0),
            ("camera, unseen", own, (4, 5), 0),
            ("camera, wrong statistics", own, (0, 1), 1),
        ):
            found.setdefault(key, []).append(rank1(network, world, cameras, shift))
    return {key: float(np.mean(values)) for key, values in found.items()}


def test_camera_statistics_beat_shared_ones_on_new_cameras(scores: dict[str, float]) -> None:
    assert scores["camera, unseen"] > scores["plain, unseen"] + 0.3, scores
    assert scores["camera, unseen"] > 0.8 * scores["camera, seen"], scores


def test_calibration_helps_a_plain_network_too(scores: dict[str, float]) -> None:
    assert scores["adapted, unseen"] > scores["plain, unseen"] + 0.15, scores


def test_the_wrong_cameras_statistics_collapse(scores: dict[str, float]) -> None:
    assert scores["camera, wrong statistics"] < 0.5 * scores["camera, seen"], scores


def test_without_a_shift_between_cameras_shared_statistics_lose_nothing() -> None:
    """What statistics per camera cost where there is nothing to gain: no more images a camera, and no fewer hits."""
    found: dict[str, list[float]] = {"plain": [], "camera": []}
    for seed in SEEDS:
        for key in found:
            world = World(seed, shift=0.0, noise=NOISE_WITHOUT_SHIFT)
            network = trained(world, seed, by_camera=key == "camera")
            network = calibrated(network, world) if key == "camera" else network
            found[key].append(rank1(network, world, (0, 1)))
    plain, camera = (float(np.mean(values)) for values in found.values())
    assert plain > camera - 0.05, found
    assert camera > plain - 0.15, found
