"""The measurement on held-out identities, compared with average precision by sorting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from reid.data.transforms import EvaluationTransform
from reid.errors import DataError
from reid.records import Sample
from reid.training.crop_cache import CropSource
from reid.training.held_out import MAP, RANK1, HeldOutSet, leave_one_out_labels, load_held_out
from reid.training.training_data import TrainingRows

TRANSFORM = EvaluationTransform(8, 8)


class Colour(nn.Module):
    """Embeds an image as its mean colour."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(images.mean((2, 3)))


def write_crops(folder: Path, cameras: tuple[str, ...]) -> list[Sample]:
    random, found = np.random.default_rng(0), []
    for identity in range(4):
        colour = random.integers(0, 255, 3)
        for shot, camera in enumerate(cameras):
            path = folder / f"{identity}-{shot}.png"
            pixels = np.clip(colour + random.normal(0, 60, 3), 0, 255) + np.zeros((8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            found.append(Sample(path, str(identity), camera))
    return found


def average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = right[order]
    ranks = np.flatnonzero(hits) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


@pytest.mark.parametrize("cameras", [("a", "a", "b"), ("", "", ""), ("a", "a", "a")])
def test_scores_are_those_of_each_crop_against_all_others(tmp_path: Path, cameras: tuple[str, ...]) -> None:
    samples = write_crops(tmp_path, cameras)
    held_out = load_held_out(samples, TrainingRows(tuple(samples), ()), CropSource(TRANSFORM, 1))
    assert held_out is not None
    network = Colour().train()
    found = held_out.measure(network, TRANSFORM)
    assert network.training
    vectors = Colour()(TRANSFORM.normalise(held_out.crops)).numpy()
    scores, several = vectors @ vectors.T, len(set(cameras)) > 1
    precisions = []
    for query, sample in enumerate(samples):
        out = np.array(
            [
                other.identity == sample.identity and (other.camera == sample.camera if several else other is sample)
                for other in samples
            ]
        )
        right = np.array([other.identity == sample.identity for other in samples])[~out]
        if right.any():
            precisions.append(average_precision(scores[query][~out], right))
    assert found[MAP] == pytest.approx(np.mean(precisions))
    assert 0 <= found[RANK1] <= 1


def test_without_samples_there_is_nothing_to_measure() -> None:
    assert load_held_out([], TrainingRows((), ()), CropSource(TRANSFORM, 1)) is None


def test_crops_without_a_second_one_are_refused(tmp_path: Path) -> None:
    samples = [sample for sample in write_crops(tmp_path, ("", "")) if sample.path.name.endswith("-0.png")]
    with pytest.raises(DataError, match="held_out"):
        load_held_out(samples, TrainingRows(tuple(samples), ()), CropSource(TRANSFORM, 1))


def test_domains_reach_the_network(tmp_path: Path) -> None:
    samples = write_crops(tmp_path, ("a", "b"))
    held_out = load_held_out(samples, TrainingRows(tuple(samples), ("camera",)), CropSource(TRANSFORM, 1))
    assert held_out is not None
    assert held_out.domain is not None
    assert held_out.domain.tolist() == [0, 1] * 4


def test_one_category_is_no_answer_for_another() -> None:
    samples = [Sample(Path("1.jpg"), "x", category="person"), Sample(Path("2.jpg"), "x", category="vehicle")]
    assert leave_one_out_labels(samples).same_identity(0, 2)[1].tolist() == [0, 1]
    assert HeldOutSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, leave_one_out_labels(samples))
