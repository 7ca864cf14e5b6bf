"""Searching a gallery with one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reid.data.transforms import EvaluationTransform
from reid.errors import DataError, GalleryError
from reid.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.records import Modality, Sample
from reid.retrieval.embed import embed
from reid.retrieval.gallery import Gallery
from reid.retrieval.search import rows_that_may_answer, search_image

VISIBLE, INFRARED = Modality.VISIBLE, Modality.INFRARED


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    torch.manual_seed(0)
    spec = NetworkSpec("osnet_x0_25")
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_checkpoint(path, Embedder(spec), spec, EvaluationTransform(height=32, width=16), (), (), {})
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    random = np.random.default_rng(0)
    rows = []
    for i in range(8):
        Image.fromarray(random.integers(0, 256, (40, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        modality, category = (INFRARED, "person") if i >= 4 else (VISIBLE, "vehicle" if i == 3 else "person")
        rows.append(Sample(folder / f"{i}.png", f"id{i}", f"c{i % 4}", modality, category))
    return tuple(rows)


@pytest.fixture(scope="module")
def gallery(checkpoint, samples):
    return Gallery.build(embed(checkpoint, samples))


def test_an_image_finds_itself_by_path_or_in_memory(checkpoint, gallery, samples):
    for image in (samples[2].path, Image.open(samples[2].path), Image.open(samples[2].path).convert("RGBA")):
        answers = search_image(checkpoint, gallery, image, k=3)
        assert len(answers) == 3
        assert (answers[0].row, answers[0].sample) == (2, samples[2])
        assert answers[0].score == pytest.approx(1, abs=1e-5)
        assert answers[0].score >= answers[1].score >= answers[2].score


def test_the_query_camera_does_not_answer_across_cameras(checkpoint, gallery, samples):
    answers = search_image(checkpoint, gallery, samples[2].path, camera="c2", k=99, cross_camera=True)
    assert {answer.row for answer in answers} == {0, 1, 3, 4, 5, 7}
    everything = search_image(checkpoint, gallery, samples[2].path, camera="", k=99, cross_camera=True)
    assert len(everything) == 8


def test_only_the_chosen_modalities_and_categories_answer(checkpoint, gallery, samples):
    infrared = search_image(checkpoint, gallery, samples[2].path, k=99, modalities=[INFRARED])
    assert {answer.row for answer in infrared} == {4, 5, 6, 7}
    vehicles = search_image(checkpoint, gallery, samples[2].path, k=99, categories=["vehicle"])
    assert [answer.row for answer in vehicles] == [3]
    with pytest.raises(GalleryError, match="none of the 8"):
        search_image(checkpoint, gallery, samples[2].path, modalities=[INFRARED], categories=["vehicle"])


def test_rows_that_may_answer(samples):
    keep = rows_that_may_answer(samples, other_than_camera="c1", modalities=[VISIBLE], categories=["person"])
    assert np.flatnonzero(keep).tolist() == [0, 2]
    assert rows_that_may_answer(samples).all()
    assert rows_that_may_answer([]).shape == (0,)


def test_an_unreadable_image_is_an_error(checkpoint, gallery, tmp_path):
    (tmp_path / "no.jpg").write_bytes(b"no")
    for path in (tmp_path / "no.jpg", Path("nowhere.jpg")):
        with pytest.raises(DataError, match=path.name):
            search_image(checkpoint, gallery, path)


def test_a_gallery_of_other_weights_does_not_answer(checkpoint, gallery, samples):
    other = Gallery.build(type(gallery.embeddings)(gallery.samples, gallery.embeddings.vectors, "beef"))
    with pytest.raises(GalleryError, match="beef"):
        search_image(checkpoint, other, samples[0].path)
