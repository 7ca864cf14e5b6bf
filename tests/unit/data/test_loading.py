"""Batches hold every image once and in order, whatever the number of threads, with the domain that its name says."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reid.data import loading
from reid.data.images import read_image
from reid.data.loading import domain_indices, load_batches, load_crops
from reid.data.transforms import EvaluationTransform
from reid.errors import ConditionError, ConfigError, DataError
from reid.records import Modality, Sample

TRANSFORM = EvaluationTransform(16, 8)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(11):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (20 + i, 9, 3), dtype=np.uint8)).save(path)
        modality = Modality.INFRARED if i % 3 == 2 else Modality.VISIBLE
        found.append(Sample(path, f"p{i // 2}", f"c{i % 3}", modality))
    return found


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_batches_hold_every_sample_once_in_order(samples: list[Sample], workers: int, batch_size: int) -> None:
    names = ["c2", "c0", "c1"]
    batches = list(
        load_batches(
            samples, TRANSFORM, domain_fields=["camera"], domains=names, batch_size=batch_size, workers=workers
        )
    )
    assert [len(batch.samples) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [sample for batch in batches for sample in batch.samples] == samples
    domain = torch.cat([batch.domain for batch in batches if batch.domain is not None])
    assert domain.dtype == torch.int64
    assert [names[i] for i in domain] == [sample.camera for sample in samples]
    images = torch.cat([batch.images for batch in batches])
    one_by_one = [TRANSFORM.normalise(TRANSFORM.resize(read_image(s.path))[None]) for s in samples]
    assert torch.equal(images, torch.cat(one_by_one))


def test_without_domain_fields_there_is_no_domain(samples: list[Sample]) -> None:
    assert all(batch.domain is None for batch in load_batches(samples, TRANSFORM, batch_size=4))


def test_no_samples_give_no_batches() -> None:
    assert list(load_batches([], TRANSFORM)) == []
    assert load_crops([], TRANSFORM).shape == (0, 3, 16, 8)


def test_batch_size_is_checked_at_once(samples: list[Sample]) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        load_batches(samples, TRANSFORM, batch_size=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_load_crops(samples: list[Sample], workers: int) -> None:
    done: list[int] = []
    crops = load_crops(samples, TRANSFORM, workers=workers, progress=done.append)
    assert (crops.dtype, crops.shape) == (torch.uint8, (11, 3, 16, 8))
    assert torch.equal(crops, torch.stack([TRANSFORM.resize(read_image(s.path)) for s in samples]))
    assert sum(done) == 11


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_stops_the_load(samples: list[Sample], workers: int) -> None:
    samples[6].path.write_bytes(samples[6].path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"6\.png"):
        list(load_batches(samples, TRANSFORM, batch_size=2, workers=workers))
    assert loading_threads() == 0


def test_leaving_early_ends_the_threads(samples: list[Sample]) -> None:
    batches = load_batches(samples, TRANSFORM, batch_size=2, workers=3)
    next(batches)
    assert loading_threads() > 0
    batches.close()  # type: ignore[attr-defined]
    assert loading_threads() == 0


def loading_threads() -> int:
    return sum(thread.name.startswith("reid-load") for thread in threading.enumerate())


def test_at_most_two_batches_are_read_ahead(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    """So the memory in use does not grow with the number of samples."""
    read: list[Path] = []

    def spy(path: Path, *how: object) -> Image.Image:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(loading, "read_image", spy)
    batches = load_batches(samples * 20, TRANSFORM, batch_size=4, workers=2)
    for number in range(1, 6):
        next(batches)
        assert 4 * number <= len(read) <= 4 * number + 8
    batches.close()  # type: ignore[attr-defined]


def test_domain_indices(samples: list[Sample]) -> None:
    names = ["person/infrared", "person/visible"]
    indices = domain_indices(samples, ("category", "modality"), names)
    assert indices.dtype == torch.int64
    assert indices.tolist() == [1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1]
    assert domain_indices(samples, (), ()).tolist() == [0] * 11


def test_an_unknown_domain_lists_the_known_ones_and_two_remedies(samples: list[Sample]) -> None:
    with pytest.raises(ConditionError) as caught:
        load_batches(samples, TRANSFORM, domain_fields=("camera",), domains=("c0", "c2"))  # before any image is read
    message = str(caught.value)
    assert message.startswith('camera "c1" is unknown to these weights; known: c0, c2;')
    assert 'run "reid calibrate' in message
    assert "--unseen-camera prior" in message
    assert str(samples[1].path) in message
    assert "\n" not in message


def test_an_empty_camera_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConditionError, match=r"a\.png: the camera is empty"):
        domain_indices([Sample(tmp_path / "a.png")], ("camera",), ("c0",))


def test_the_first_twelve_of_many_known_names_are_shown(samples: list[Sample]) -> None:
    with pytest.raises(ConditionError, match=r"n11, .*40") as caught:
        domain_indices(samples, ("camera",), [f"n{i}" for i in range(40)])
    assert "n12" not in str(caught.value)


def test_images_are_uint8_where_they_are_not_normalised(samples: list[Sample]) -> None:
    whole = torch.cat([batch.images for batch in load_batches(samples, TRANSFORM, batch_size=4)])
    raw = torch.cat([batch.images for batch in load_batches(samples, TRANSFORM, batch_size=4, is_normalised=False)])
    assert raw.dtype == torch.uint8
    assert torch.equal(TRANSFORM.normalise(raw), whole)


def test_a_changed_image_is_resized_as_fast_as_another(samples: list[Sample]) -> None:
    """With a change the image itself is needed, without one its pixels are enough; both are resized alike."""
    options = {"fast": True, "is_normalised": False}
    plain = next(load_batches(samples, TRANSFORM, **options))  # type: ignore[arg-type]
    changed = next(load_batches(samples, TRANSFORM, change=lambda _, image: image, **options))  # type: ignore[arg-type]
    assert torch.equal(plain.images, changed.images)
