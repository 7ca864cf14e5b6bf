"""Both transforms agree with slow versions for one image and keep their invariants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from reid.data.transforms import IMAGENET_MEAN, IMAGENET_STD, LUMA, EvaluationTransform, RandomNumbers, TrainTransform
from reid.errors import ConfigError, DataError

NOTHING = TrainTransform(flip=0, pad=0, brightness=0, contrast=0, saturation=0, gain=0, grey=0, erase=0)


def random_images(count: int, height: int = 24, width: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resize_agrees_with_pillow(interpolation: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 31, 3), dtype=np.uint8))
    transform = EvaluationTransform(40, 20, interpolation=interpolation)
    resized = transform.resize(image)
    assert (resized.dtype, resized.shape) == (torch.uint8, (3, 40, 20))
    expected = np.asarray(image.resize((20, 40), Image.Resampling[interpolation.upper()]))
    np.testing.assert_array_equal(resized.numpy().transpose(1, 2, 0), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 5))
def test_the_fast_resize_differs_from_pillow_by_one_at_most(height: int, width: int, seed: int) -> None:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    transform = EvaluationTransform(40, 20)
    fast, exact = transform.resize(image, fast=True), transform.resize(image)
    assert (fast.dtype, fast.shape, fast.is_contiguous()) == (torch.uint8, exact.shape, True)
    assert int((fast.int() - exact.int()).abs().max()) <= 1
    plain = torch.nn.functional.interpolate(exact.new_tensor(np.asarray(image)).permute(2, 0, 1)[None], (40, 20))
    if height > 80 and width > 40:  # the wrong way: without filtering it differs much more
        assert int((plain[0].int() - exact.int()).abs().max()) > 1


def test_other_interpolations_have_no_fast_way() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 31, 3), dtype=np.uint8))
    transform = EvaluationTransform(40, 20, interpolation="bicubic")
    assert torch.equal(transform.resize(image, fast=True), transform.resize(image))


def test_an_image_of_the_right_size_is_not_changed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    resized = EvaluationTransform(40, 20).resize(image)
    np.testing.assert_array_equal(resized.numpy().transpose(1, 2, 0), pixels)
    resized.zero_()
    np.testing.assert_array_equal(np.asarray(image), pixels)  # the tensor is a copy


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise_is_the_textbook_formula(dtype: torch.dtype) -> None:
    images = random_images(3).to(dtype)
    before = images.clone()
    result = EvaluationTransform(24, 12).normalise(images)
    mean, std = (np.array(v)[None, :, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), (images.numpy() / 255 - mean) / std, atol=2e-6)
    assert torch.equal(images, before)


def test_evaluation_transform_reads_back_from_json() -> None:
    transform = EvaluationTransform(128, 64, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "bicubic")
    assert EvaluationTransform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform
    assert EvaluationTransform.from_dict({}) == EvaluationTransform()
    with pytest.raises(ConfigError, match=r'"hight".*"height"'):
        EvaluationTransform.from_dict({"hight": 3})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"height": 0}, "height"),
        ({"interpolation": "linear"}, '"linear"'),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"mean": (0.5,)}, "mean"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean"),
    ],
)
def test_evaluation_transform_refuses_values_out_of_range(values: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        EvaluationTransform(**values)  # type: ignore[arg-type]


# --- training -----------------------------------------------------------------------------------


def augment_slowly(
    image: np.ndarray, row: dict[str, np.ndarray], pad: int, erase_colour: Sequence[float]
) -> np.ndarray:
    """Augment one uint8 image (3, H, W) with its random numbers, pixel by pixel."""
    _, height, width = image.shape
    padded = np.zeros((3, height + 2 * pad, width + 2 * pad))
    padded[:, pad : pad + height, pad : pad + width] = image
    moved = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            source = width - 1 - x if row["flip"] else x
            moved[:, y, x] = padded[:, y + row["top"], source + row["left"]]
    grey = sum(weight * moved[c].mean() for c, weight in enumerate(LUMA))
    gains = row["gains"]
    if all((moved[c] == moved[0]).all() for c in range(3)):
        gains = np.full(3, gains.mean())
    result = moved * gains[:, None, None]
    own_grey = sum(weight * result[c] for c, weight in enumerate(LUMA))
    result = row["saturation"] * result + (1 - row["saturation"]) * own_grey
    result = row["contrast"] * result + (1 - row["contrast"]) * grey
    result = np.clip(row["brightness"] * result, 0, 255)
    top, bottom, left, right = row["box"]
    for c in range(3):
        result[c, top:bottom, left:right] = erase_colour[c]
    return result


def numbers_of_image(numbers: RandomNumbers, i: int) -> dict[str, np.ndarray]:
    return {field.name: getattr(numbers, field.name)[i].numpy() for field in fields(numbers)}


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    pad=st.integers(0, 6),
    jitter=st.floats(0, 1),
    grey=st.floats(0, 1),
    size=st.tuples(st.integers(1, 20), st.integers(1, 12)),
)
def test_every_image_of_a_batch_agrees_with_the_slow_version(
    seed: int, pad: int, jitter: float, grey: float, size: tuple[int, int]
) -> None:
    transform = TrainTransform(0.5, pad, jitter, jitter, jitter, jitter, grey, 0.5)
    images = random_images(19, *size, seed)  # more than the transform recolours at once
    images[3] = images[3, :1]  # an image without colour
    result = transform(images, seeded(seed))
    numbers = transform.draw(images.shape, seeded(seed))
    assert (result.dtype, result.shape) == (torch.float32, images.shape)
    for i in range(len(images)):
        expected = augment_slowly(images[i].numpy(), numbers_of_image(numbers, i), pad, transform.erase_colour)
        np.testing.assert_allclose(result[i].numpy(), expected, atol=2e-3, rtol=0)


def test_a_transform_with_all_settings_zero_changes_nothing() -> None:
    images = random_images(5)
    before = images.clone()
    np.testing.assert_allclose(NOTHING(images, seeded()).numpy(), images.numpy(), atol=1e-4)
    assert torch.equal(images, before)


def test_the_input_is_not_changed() -> None:
    images = random_images(20)
    before = images.clone()
    TrainTransform()(images, seeded())
    assert torch.equal(images, before)


def test_only_the_generator_decides() -> None:
    images = random_images(6)
    torch.manual_seed(1)
    first = TrainTransform()(images, seeded(7))
    torch.manual_seed(2)
    assert torch.equal(first, TrainTransform()(images, seeded(7)))
    assert not torch.equal(first, TrainTransform()(images, seeded(8)))


def test_images_of_a_batch_get_different_random_numbers() -> None:
    images = random_images(1).expand(32, -1, -1, -1)
    result = TrainTransform()(images, seeded())
    assert len(torch.unique(result.flatten(1), dim=0)) == 32


@pytest.mark.parametrize("settings_of", [{}, {"flip": 0, "grey": 1, "erase": 0}, {"erase": 1, "pad": 0}])
def test_settings_do_not_change_how_many_numbers_are_drawn(settings_of: dict[str, float]) -> None:
    """So switching off one augmentation does not change later batches."""
    generator, reference = seeded(), seeded()
    TrainTransform(**settings_of)(random_images(4), generator)  # type: ignore[arg-type]
    TrainTransform()(random_images(4), reference)
    assert torch.equal(generator.get_state(), reference.get_state())


def test_shares_and_ranges_of_the_random_numbers() -> None:
    """Of 10,000 images the shares are within five standard deviations, and the ranges are kept and filled."""
    transform = TrainTransform(flip=0.3, pad=4, grey=0.1, erase=0.4)
    numbers = transform.draw((10000, 3, 128, 64), seeded())
    for share, probability in (
        (numbers.flip, 0.3),
        (numbers.saturation == 0, 0.1),
        (numbers.box.any(1), 0.4),
    ):
        assert abs(share.double().mean().item() - probability) < 5 * (probability * (1 - probability) / 10000) ** 0.5
    for positions in (numbers.top, numbers.left):
        assert positions.unique().tolist() == list(range(9))
        assert positions.bincount().min() > 900
    for factors, half in ((numbers.brightness, 0.2), (numbers.contrast, 0.15), (numbers.gains, 0.1)):
        assert 1 - half <= factors.min() < 1 - 0.98 * half
        assert 1 + 0.98 * half < factors.max() <= 1 + half
    assert numbers.gains.std(1).min() > 0  # each channel has its own


def test_erased_rectangles() -> None:
    transform = TrainTransform(erase=1)
    box = transform.draw((5000, 3, 128, 64), seeded()).box
    top, bottom, left, right = box.T
    assert top.min() == 0
    assert bottom.max() == 128
    assert left.min() == 0
    assert right.max() == 64
    assert (bottom > top).all()
    assert (right > left).all()
    share = ((bottom - top) * (right - left)).double() / (128 * 64)
    assert share.min() > 0.015
    assert 0.27 < share.max() < 0.31
    aspect = (bottom - top).double() / (right - left)
    assert 0.25 < aspect.min() < 0.4
    assert aspect.max() > 2.5


def test_an_image_without_colour_stays_without_colour() -> None:
    """An infrared crop is not tinted, a coloured one in the same batch is."""
    images = random_images(2)
    images[0] = images[0, :1]
    result = TrainTransform(flip=0, pad=0, gain=0.3, grey=0, erase=0)(images, seeded())
    assert torch.allclose(result[0, 0], result[0, 1], atol=1e-3)
    assert torch.allclose(result[0, 0], result[0, 2], atol=1e-3)
    assert not torch.allclose(result[1], images[1].float(), atol=5)


def test_values_stay_in_range() -> None:
    result = TrainTransform(brightness=1, contrast=1, saturation=1, gain=1)(random_images(40), seeded())
    assert result.min() >= 0
    assert result.max() <= 255


def test_an_empty_batch() -> None:
    assert TrainTransform()(random_images(0), seeded()).shape == (0, 3, 24, 12)


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 8, 4), torch.zeros(3, 8, 4, dtype=torch.uint8)])
def test_train_transform_refuses_other_tensors(images: torch.Tensor) -> None:
    with pytest.raises(DataError, match="uint8"):
        TrainTransform()(images, seeded())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"flip": 1.5}, r"flip .*1\.5"),
        ({"gain": -0.1}, "gain"),
        ({"pad": -1}, "pad"),
        ({"erase_area": (0.3, 0.1)}, "erase_area"),
        ({"erase_aspect": 0.0}, "erase_aspect"),
    ],
)
def test_train_transform_refuses_values_out_of_range(values: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        TrainTransform(**values)  # type: ignore[arg-type]


class CountOperators(TorchDispatchMode):
    """Counts the operators that torch runs."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_batch_takes_far_fewer_operators_than_its_images_one_by_one() -> None:
    """Except for erasing, which writes one rectangle for each image, a batch is changed as a whole."""
    images, transform = random_images(16), TrainTransform(erase=0)
    with CountOperators() as batch:
        transform(images, seeded())
    with CountOperators() as single:
        transform(images[:1], seeded())
    assert single.count > 0
    assert batch.count < 2 * single.count
