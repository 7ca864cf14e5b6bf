"""Resizing with a gradient: the pixels of Pillow, and the gradient of the two matrix products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from reid.data.transforms import INTERPOLATIONS, EvaluationTransform
from reid.robustness.differentiable_resize import network_input, resize, resize_matrix


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(64, 32), (201, 77), (40, 90), (16, 8), (64, 31), (7, 3)])
def test_the_pixels_are_those_of_pillow(interpolation: str, size: tuple[int, int]) -> None:
    transform = EvaluationTransform(64, 32, interpolation=interpolation)
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = transform.resize(Image.fromarray(image)).float()
    found = resize(torch.from_numpy(image).permute(2, 0, 1).float()[None], transform)[0]
    different = (found - expected).abs()
    assert different.max() <= 1
    assert (different > 0).float().mean() < 5e-3  # ties are rounded in other ways


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_rows_sum_to_one(interpolation: str) -> None:
    assert torch.allclose(resize_matrix(50, 17, interpolation).sum(1), torch.ones(17), atol=1e-6)


def test_an_image_of_the_right_size_stays_bit_for_bit() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 4)).float()
    assert torch.equal(resize(images, EvaluationTransform(8, 4)), images)


def test_the_gradient_is_in_grey_levels_of_the_file() -> None:
    """A gradient by normalised pixels has another unit: epsilon of such an attack is wrong by 255 times the std."""
    transform = EvaluationTransform(4, 2)
    images = torch.full((1, 3, 8, 4), 100.0, requires_grad=True)
    network_input(images, transform).sum().backward()
    per_channel = images.grad.sum((0, 2, 3))
    expected = torch.tensor([8 / (255 * std) for std in transform.std])
    assert torch.allclose(per_channel, expected, rtol=1e-4)
