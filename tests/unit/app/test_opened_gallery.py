"""Any gallery opens: without queries, identities, cameras, network or rows, and while another program changes it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reid.app.data_preparation import prepare_data
from reid.app.gallery_counts import count_gallery
from reid.app.opened_gallery import open_served_gallery
from reid.app.query import NO_NETWORK, Query, SearchOptions, Verdict, answer_query
from reid.data.manifest import read_manifest
from reid.errors import ConfigError, DataError, GalleryError
from reid.models.checkpoint import load_checkpoint
from reid.pipeline import build_gallery
from reid.records import Embeddings, Sample, Split
from reid.retrieval.gallery import Gallery


@pytest.fixture(scope="module")
def samples(tiny_street: Path) -> tuple[Sample, ...]:
    every_sample = read_manifest(tiny_street / "street-a" / "manifest.csv")
    return tuple(s for s in every_sample if s.split is Split.GALLERY and s.category == "person")


@pytest.fixture(scope="module")
def folder(samples: tuple[Sample, ...], plain_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery as "reid index build" makes it, of crops without identities."""
    out = tmp_path_factory.mktemp("galleries") / "crops"
    build_gallery(load_checkpoint(plain_weights), [replace(s, identity="") for s in samples], out)
    return out


def test_a_gallery_without_queries_and_identities_offers_its_own_crops(
    folder: Path, samples: tuple[Sample, ...]
) -> None:
    data = open_served_gallery(folder)
    assert [site.name for site in data.sites] == ["crops"]
    assert data.query_crops.are_gallery_rows
    assert len(data.query_crops) == len(samples)
    counts = count_gallery(data)
    assert (counts.crops, counts.identities, counts.unlabelled) == (len(samples), 0, len(samples))
    number = int(data.query_crops.matching("crops", "person", samples[0].camera)[0])
    site, sample = data.query_crops.find(number)
    (outcome,) = answer_query(data, Query(sample, site, row=number), SearchOptions(cross_camera=False, answers=1000))
    assert number not in outcome.row_ids, "a crop is no answer to itself"
    assert len(outcome.answers) == len(samples) - 1
    assert {verdict for _, verdict in outcome.answers} <= {Verdict.UNKNOWN}
    assert outcome.first_right is None


def test_a_stored_vector_answers_like_the_image(folder: Path) -> None:
    data = open_served_gallery(folder)
    site, sample = data.query_crops.find(0)
    with_row, without = (
        answer_query(data, Query(sample, site, row=row), SearchOptions())[0].answers for row in (0, None)
    )
    assert [answer.sample for answer, _ in with_row] == [answer.sample for answer, _ in without]
    np.testing.assert_allclose(
        [answer.score for answer, _ in with_row], [answer.score for answer, _ in without], atol=1e-5
    )


def test_additions_and_erasures_of_other_programs_are_noticed(
    folder: Path, samples: tuple[Sample, ...], plain_weights: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "crops")
    gallery = Gallery.open(copy)
    gallery.remove(f"camera = '{samples[0].camera}'", forget=False)
    data = open_served_gallery(copy)
    before, state = len(data.query_crops), data.state
    assert samples[0].camera not in {sample.camera for sample in data.sites[0].cameras}
    rows = [row for row in samples if row.camera == samples[0].camera]
    added = Embeddings(tuple(rows), np.eye(len(rows), gallery.dimension, dtype=np.float32), gallery.fingerprint)
    Gallery.open(copy).add(added)
    assert data.state != state
    assert len(data.query_crops) == before + len(rows)
    assert samples[0].camera in {sample.camera for sample in data.sites[0].cameras}
    Gallery.open(copy).remove("category = 'person'")
    assert len(data.query_crops) == 0
    assert count_gallery(data).crops == 0


def test_a_gallery_without_a_network_searches_for_its_own_crops(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    vectors = np.eye(len(samples), 64, dtype=np.float32)
    Gallery.build(Embeddings(samples, vectors, "f00d")).save(tmp_path / "foreign")
    data = open_served_gallery(tmp_path / "foreign")
    site, sample = data.query_crops.find(3)
    assert answer_query(data, Query(sample, site, row=3), SearchOptions())[0].answers
    with pytest.raises(DataError) as caught:
        answer_query(data, Query(replace(sample, path=Path("sent")), site), SearchOptions())
    assert str(caught.value) == NO_NETWORK


def test_an_empty_gallery_opens(tmp_path: Path) -> None:
    Gallery.create(tmp_path / "new", "f00d", 8)
    data = open_served_gallery(tmp_path / "new")
    assert (len(data.query_crops), data.sites[0].cameras, count_gallery(data).crops) == (0, (), 0)


def test_a_missing_gallery_and_other_weights_are_errors(folder: Path, camera_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="none"):
        open_served_gallery(tmp_path / "none")
    with pytest.raises(ConfigError, match="--weights"):
        open_served_gallery(folder, camera_weights)


@pytest.mark.parametrize("kind", ["file", "folder", "without queries", "without identities", "turtles", "only train"])
def test_any_manifest_is_shown(tiny_street: Path, camera_weights: Path, tmp_path: Path, kind: str) -> None:
    rows = (tiny_street / "street-b" / "manifest.csv").read_text().splitlines()
    images = tiny_street / "street-b"
    header = rows[0].split(",")
    table = [dict(zip(header, row.split(","), strict=True)) for row in rows[1:] if ",vehicle," not in row]
    for row in table:
        row["path"] = str(images / row["path"])
        row["identity"] = "" if kind == "without identities" else row["identity"]
        row["category"] = "turtle" if kind == "turtles" else row.get("category", "person")
        row["split"] = "train" if kind == "only train" else row["split"]
    if kind in ("without queries", "turtles"):
        table = [row for row in table if row["split"] == "gallery"]  # without split train as well
    path = tmp_path / "mine" / ("manifest.csv" if kind != "file" else "crops.csv")
    path.parent.mkdir()
    columns = list(table[0])
    path.write_text("\n".join([",".join(columns), *(",".join(row[name] for name in columns) for row in table)]))
    given = path if kind == "file" else path.parent
    data = prepare_data(given, tmp_path / "galleries", camera_weights)
    again = prepare_data(given, tmp_path / "galleries", camera_weights)
    assert [one.title for one in again.galleries] == ["Camera BN"], "nothing is compared that nobody asked for"
    crops = data.query_crops
    assert len(crops)
    assert crops.categories == (("turtle",) if kind == "turtles" else ("person",))
    number = int(crops.matching("mine")[0])
    site, sample = crops.find(number)
    (outcome,) = answer_query(data, Query(sample, site), SearchOptions())
    assert outcome.answers
    assert (outcome.first_right is None) == (kind == "without identities")


def test_a_folder_of_something_else_is_one_clear_line(tmp_path: Path, camera_weights: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"manifest\.csv"):
        prepare_data(tmp_path, tmp_path / "galleries", camera_weights)
