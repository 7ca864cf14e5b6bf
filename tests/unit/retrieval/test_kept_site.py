"""The crops of the site's cameras that a gallery keeps: used by searches, and reached by erasures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.random_embeddings import random_rows
from helpers.small_checkpoints import plain_network, save_network
from reid.errors import GalleryError
from reid.models.checkpoint import load_checkpoint
from reid.norm.site_cohort import SiteCohort
from reid.pipeline import gallery_checkpoint
from reid.records import Embeddings, Sample
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.exchange import merge_galleries
from reid.retrieval.gallery import Gallery
from reid.retrieval.kept_site import network_files, read_site
from reid.retrieval.normalized_search import normalized_gallery, search_normalized


@pytest.fixture
def site(tmp_path):
    """A gallery with forty crops of the door and two of the yard, whose network knows forty more of the yard."""
    random = np.random.default_rng(0)
    vectors = random_rows(random, 42, 16)
    samples = tuple(Sample(Path(f"{i}.jpg"), f"id{i % 7}", "door" if i < 40 else "yard") for i in range(42))
    cohort = np.concatenate([vectors[[3, 40]], random_rows(random, 40, 16)])
    cameras = ("person/door",) + ("person/yard",) * 41
    loaded = load_checkpoint(save_network(tmp_path, plain_network()))
    checkpoint = replace(loaded, cohort=SiteCohort(("",) * 42, cameras, torch.from_numpy(cohort)))
    gallery = Gallery.build(Embeddings(samples, vectors, checkpoint.fingerprint))
    gallery.save(tmp_path / "g", network_files(checkpoint))
    return tmp_path / "g", checkpoint, cohort


def test_the_network_of_a_gallery_has_its_crops_again(site):
    folder, checkpoint, cohort = site
    found = gallery_checkpoint(folder)
    assert found.fingerprint == checkpoint.fingerprint
    assert found.cohort.cameras == checkpoint.cohort.cameras
    np.testing.assert_allclose(found.cohort.vectors, cohort, atol=1e-3)


def test_a_search_normalizes_scores_of_a_camera_that_the_gallery_lacks(site):
    folder, checkpoint, _ = site
    gallery, vectors = Gallery.open(folder), random_rows(np.random.default_rng(1), 1, 16)
    query = Sample(Path("query.jpg"), camera="yard")
    found = search_normalized(gallery, vectors, [query], 5, fingerprint=checkpoint.fingerprint)
    rows = CohortRows.of_table(gallery.table, gallery.rows.vectors())
    prepared = normalized_gallery(gallery)
    yard = prepared.statistics.cameras.index("person/yard")
    assert int(prepared.statistics.counts[yard]) == 43
    row = int(found.ranking.rows[0, 0])
    both = CohortRows.joined(rows, read_site(folder))
    crops = both.vectors[both.cameras == "person/yard"]
    nearest = [np.sort(side @ crops.T)[-3:].mean() for side in (vectors[0], rows.vectors[row])]
    near_door = np.sort(vectors[0] @ both.vectors[:40].T)[-3:].mean()
    assert nearest[1] == pytest.approx(prepared.toward(yard).mean[row], abs=1e-4)
    expected = 2 * float(vectors[0] @ rows.vectors[row]) - near_door - nearest[1]
    assert found.ranking.scores[0, 0] == pytest.approx(expected, abs=1e-4)


def test_an_erasure_takes_out_the_crops_of_erased_rows(site):
    folder, _, cohort = site
    mark = cohort[0].astype(np.float16).tobytes()
    assert any(mark in path.read_bytes() for path in folder.iterdir())
    Gallery.open(folder).erase("id3")  # of row 3
    assert not any(mark in path.read_bytes() for path in folder.iterdir())
    assert len(read_site(folder).cameras) == 41


def test_a_copy_keeps_them_and_a_damaged_file_is_refused(site, tmp_path):
    folder, _, _ = site
    merge_galleries(tmp_path / "copy", [folder])
    assert len(read_site(tmp_path / "copy").cameras) == 42
    (file,) = folder.glob("*.site.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(GalleryError, match=file.name):
        normalized_gallery(Gallery.open(folder))
    with pytest.raises(GalleryError, match=file.name):
        Gallery.open(folder).verify()


def test_another_network_brings_its_own_or_none(site):
    folder, checkpoint, _ = site
    Gallery.open(folder).save(folder, network_files(replace(checkpoint, cohort=None)))
    assert read_site(folder) is None
