"""The table of corruptions: identity at severity 0, order of severities, repeatable draws, infrared images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reid.data.corruptions.corruption_types import (
    COLOUR_ONLY,
    CORRUPTIONS,
    SEVERITIES,
    Corruption,
    CorruptionPlan,
    corrupt_image,
)
from reid.errors import ConfigError
from reid.records import Modality, Sample

PUBLISHED = """
gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness contrast
elastic_transform pixelate jpeg_compression speckle_noise gaussian_blur spatter saturate rain
"""
# Mud is another corruption than water, less and more saturation are two; the maps of fog and ice are compared instead.
WITHOUT_ORDER = {"spatter", "saturate", "fog", "frost"}


def person(height: int = 61, width: int = 33) -> Image.Image:
    """A figure of three colours before a wall, with some texture."""
    pixels = np.full((height, width, 3), (150, 140, 120), np.float64)
    pixels[height // 8 : height // 2, width // 4 : -width // 4] = (180, 60, 50)
    pixels[height // 2 :, width // 4 : -width // 4] = (40, 50, 90)
    pixels += np.random.default_rng(0).normal(0, 6, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def distance(one: Image.Image, other: Image.Image) -> float:
    return float(np.square(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean())


def test_the_names_are_those_of_the_benchmark() -> None:
    assert sorted(CORRUPTIONS) == sorted(PUBLISHED.split())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_0_leaves_the_image_as_it_is(name: str) -> None:
    assert distance(corrupt_image(person(), Corruption(name, 0)), person()) == 0


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - WITHOUT_ORDER))
def test_a_larger_severity_changes_the_image_more(name: str) -> None:
    figure = person(211, 101)  # of a small one, what pixelate changes depends on where its few blocks end

    def change(severity: int) -> float:
        found = [corrupt_image(figure, Corruption(name, severity), seed) for seed in range(6)]
        return float(np.mean([distance(image, figure) for image in found]))

    changes = [change(severity) for severity in SEVERITIES]
    assert changes[0] > 0
    assert max(changes[:2]) < changes[4]
    assert np.corrcoef(SEVERITIES, changes)[0, 1] > 0.7


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_result_follows_from_the_image_and_the_seed(name: str) -> None:
    image = person()
    before = image.tobytes()
    first, again = (corrupt_image(image, Corruption(name, 3), 5) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert image.tobytes() == before
    assert (first.mode, first.size) == ("RGB", image.size)


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - COLOUR_ONLY))
@pytest.mark.parametrize("severity", SEVERITIES)
def test_an_infrared_image_stays_grey(name: str, severity: int) -> None:
    grey = person().convert("L").convert("RGB")
    found = np.asarray(corrupt_image(grey, Corruption(name, severity), 1, Modality.INFRARED))
    assert np.ptp(found, axis=2).max() == 0
    assert distance(Image.fromarray(found), grey) > 0


def test_an_infrared_image_has_no_colour_to_change() -> None:
    with pytest.raises(ConfigError):
        corrupt_image(person(), Corruption("saturate", 1), 0, Modality.INFRARED)
    with pytest.raises(ConfigError):
        CorruptionPlan(("saturate",)).draw(person(), Modality.INFRARED)
    drawn = {CorruptionPlan(seed=seed).draw(person(), Modality.INFRARED).name for seed in range(300)}
    assert drawn == set(CORRUPTIONS) - COLOUR_ONLY


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(CORRUPTIONS)),
    severity=st.sampled_from(SEVERITIES),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    value=st.sampled_from([None, 0, 255]),
)
def test_any_size_and_any_content(name: str, severity: int, size: tuple[int, int], value: int | None) -> None:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)) if value is None else np.full(
        (size[1], size[0], 3), value
    )  # fmt: skip
    found = corrupt_image(Image.fromarray(values.astype(np.uint8)), Corruption(name, severity))
    assert found.size == size


def test_types_and_severities_are_drawn_evenly_and_independently() -> None:
    drawn = [CorruptionPlan(seed=seed).draw(person(), Modality.VISIBLE) for seed in range(2000)]
    names, severities = Counter(one.name for one in drawn), Counter(one.severity for one in drawn)
    assert set(names) == set(CORRUPTIONS)
    assert min(names.values()) > 60  # 100 wanted
    assert max(names.values()) < 140
    assert min(severities.values()) > 330  # 400 wanted
    pairs = Counter(drawn)
    assert len(pairs) == 100


def test_images_draw_on_their_own() -> None:
    plan = CorruptionPlan()
    images = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in range(200)]
    assert len({plan.draw(image, Modality.VISIBLE) for image in images}) > 60
    changed = plan.apply(Sample(Path("1.png")), images[0])
    assert changed.tobytes() == corrupt_image(images[0], plan.draw(images[0], Modality.VISIBLE)).tobytes()


@pytest.mark.parametrize("wrong", [{"names": ("sleet",)}, {"severity": 6}, {"severity": -1}, {"seed": -1}])
def test_wrong_plans_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        CorruptionPlan(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_an_unknown_corruption_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        corrupt_image(person(), Corruption("sleet", 1))
    assert "sleet" in str(caught.value)
    assert "rain" in str(caught.value)
