"""Embed crops by every choice of levels, so that the choices can be compared.

Statistics and centers flatter the crops that they were measured on.  So the crops of each camera are divided into two
halves, and each half is embedded with what was measured on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reid.errors import DataError
from reid.models.calibration import replace_domains
from reid.norm import Profiles
from reid.records import FloatArray, IntArray, Sample
from reid.retrieval.camera_measurement import CameraMeasurement, Crops
from reid.retrieval.normalization_choice import (
    AS_IT_IS,
    CameraLevels,
    CandidateVectors,
    NameArray,
    camera_pairs,
)

FEWEST = 16  # crops of a camera that is compared with others
MOST, MOST_IN_ALL = 512, 6144  # crops of a camera, and of all cameras together, that are compared
MOST_PAIRS = 300  # pairs of cameras that are compared
BLOCK = 8  # crops in a row, by time and name, that may show the same object
HALVES = (0, 1)


@dataclass(frozen=True, eq=False)
class ComparedCrops:
    """The crops of several cameras that are compared.

    Attributes:
        crops: All crops of each compared camera, in the order of time and name.
        pairs: The pairs of cameras that are compared; none where fewer than two have enough crops.
        samples: The N drawn crops.
        cameras: (N,) the camera of each drawn crop.
        groups: (N,) int64; crops of one group may show the same object.
        halves: (N,) int64, 0 or 1.
    """

    crops: Crops
    pairs: list[tuple[str, str]]
    samples: list[Sample]
    cameras: NameArray
    groups: IntArray
    halves: IntArray

    def of_half(self, half: int) -> tuple[IntArray, list[Sample]]:
        """Return the rows of one half of the drawn crops, and their samples."""
        rows = np.flatnonzero(self.halves == half)
        return rows, [self.samples[row] for row in rows.tolist()]


def draw_compared(crops: Crops, seed: int = 0) -> ComparedCrops:
    """Draw crops of the cameras that can be compared, and divide them into two halves.

    Crops that stand together by time and name stay in one half, because they may show the same object.

    Args:
        crops: The crops of each camera.
        seed: Decides which crops are drawn where there are many.
    """
    enough = {name: rows for name, rows in crops.items() if len(rows) >= FEWEST}
    pairs = camera_pairs(list(enough), MOST_PAIRS, seed)
    compared = {name: _in_order(enough[name]) for name in sorted({name for pair in pairs for name in pair})}
    most = max(FEWEST, min(MOST, MOST_IN_ALL // max(len(compared), 1)))
    random = np.random.default_rng(seed)
    samples, cameras, blocks = [], [], [np.zeros((0, 2), np.int64)]
    for number, (name, rows) in enumerate(compared.items()):
        drawn = np.sort(random.permutation(len(rows))[:most])
        samples += [rows[row] for row in drawn.tolist()]
        cameras += [name] * len(drawn)
        blocks.append(np.stack([np.full(len(drawn), number), _blocks(rows)[drawn]], axis=1))
    numbers = np.concatenate(blocks)  # (N, 2): camera, block
    groups = np.unique(numbers, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return ComparedCrops(compared, pairs, samples, np.array(cameras, dtype=np.str_), groups, numbers[:, 1] % 2)


def vectors_by_halves(measurement: CameraMeasurement, compared: ComparedCrops, own: Profiles | None) -> FloatArray:
    """Embed the drawn crops of each half with statistics of the other half.

    Args:
        measurement: The network.
        compared: The crops.
        own: The statistics that the network uses for the cameras now; None where it has one set for all.

    Returns:
        (N, D) float32 of unit length.
    """
    found: FloatArray | None = None
    for half in HALVES:
        others = {name: crops_outside_half(compared, name, half) for name in compared.crops}
        measured = measurement.statistics(others)
        rows, samples = compared.of_half(half)
        vectors = measurement.vectors(samples, measured if own is None else replace_domains(own, measured))
        found = np.empty((len(compared.samples), vectors.shape[1]), np.float32) if found is None else found
        found[rows] = vectors
    if found is None:
        raise DataError("calibration: got no crops to compare")
    return found


def crops_outside_half(compared: ComparedCrops, camera: str, half: int) -> list[Sample]:
    """Return all crops of a camera that are not of a half, to measure on what that half is judged by."""
    rows = compared.crops[camera]
    return [row for row, block in zip(rows, _blocks(rows).tolist(), strict=True) if block % 2 != half]


def candidate_vectors(compared: ComparedCrops, plain: FloatArray, calibrated: FloatArray | None) -> CandidateVectors:
    """Collect the vectors of the drawn crops by every choice of levels.

    Args:
        compared: The crops.
        plain: (N, D) vectors of the network as it is.
        calibrated: (N, D) vectors with statistics of the other half; None where the network keeps none.
    """
    vectors = {AS_IT_IS: plain, CameraLevels(centering=True): _centered_by_halves(plain, compared)}
    if calibrated is not None:
        vectors[CameraLevels(statistics=True)] = calibrated
        vectors[CameraLevels(True, True)] = _centered_by_halves(calibrated, compared)
    return CandidateVectors(compared.cameras, compared.groups, vectors)


def _in_order(crops: Sequence[Sample]) -> list[Sample]:
    """Sort crops by time and name, so that those of one object stand together."""
    return sorted(crops, key=lambda s: (s.time.timestamp() if s.time is not None else 0.0, str(s.path)))


def _blocks(crops: Sequence[Sample]) -> IntArray:
    """Number the crops (N,) of a camera in blocks; blocks of even and of odd numbers are the two halves."""
    size = max(1, min(BLOCK, len(crops) // 4))
    return np.arange(len(crops), dtype=np.int64) // size


def _centered_by_halves(vectors: FloatArray, compared: ComparedCrops) -> FloatArray:
    """Center the vectors (N, D) of each camera and half with the mean of the other half."""
    found = vectors.copy()
    for name in np.unique(compared.cameras):
        for half in HALVES:
            rows, others = (
                np.flatnonzero((compared.cameras == name) & (compared.halves == which)) for which in (half, 1 - half)
            )
            if len(others):
                moved = vectors[rows] - vectors[others].mean(axis=0)
                found[rows] = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), np.float32(1e-6))
    return found
