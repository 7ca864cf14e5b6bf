"""What the application computes at its first start, uses again, and computes anew when weights or data change."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reid.app import data_preparation
from reid.app.data_preparation import prepare_data
from reid.app.query import Query, SearchOptions, answer_query
from reid.app.served_data import ServedData
from reid.config import differences, load_config, parse_config
from reid.errors import WeightsError
from reid.models.checkpoint import load_checkpoint
from reid.records import Split
from reid.retrieval.application_galleries import APPLICATION_GALLERIES
from reid.retrieval.erasure import erase_identity, lift_erasure
from reid.retrieval.gallery import Gallery

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def galleries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared") / "galleries"


@pytest.fixture(scope="module")
def data(tiny_street: Path, galleries: Path, camera_weights: Path, plain_weights: Path) -> ServedData:
    return prepare_data(tiny_street, galleries, camera_weights, plain_weights)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List what is embedded from now on."""
    titles: list[str] = []
    build, embed = data_preparation.build_gallery, data_preparation.embed_samples
    monkeypatch.setattr(data_preparation, "build_gallery", lambda *a: titles.append("gallery") or build(*a))
    monkeypatch.setattr(data_preparation, "embed_samples", lambda *a: titles.append("queries") or embed(*a))
    return titles


def test_both_sites_are_served_with_both_networks(data: ServedData) -> None:
    assert [site.name for site in data.sites] == ["street-a", "street-b"]
    assert [served.title for served in data.galleries] == ["Camera BN", "Plain BN"]
    assert data.query_crops.categories == ("person", "vehicle")
    assert len(data.query_crops) == 2 * 6 * 6
    camera, plain = data.galleries
    assert plain.checkpoint.domains == ()
    known = {
        f"{category}/{site}{number}" for category in ("person", "vehicle") for site in "ab" for number in range(1, 7)
    }
    assert set(camera.checkpoint.domains) == known, "the cameras of street-b were calibrated"
    assert set(camera.gallery.samples) == {s for site in data.sites for s in site.samples if s.split is Split.GALLERY}
    assert data.site_of(data.query_crops.find(71)[1]) == "street-b"


def test_a_second_start_embeds_nothing(
    data: ServedData, embedded: list[str], tiny_street: Path, galleries: Path, camera_weights: Path, plain_weights: Path
) -> None:
    again = prepare_data(tiny_street, galleries, camera_weights, plain_weights)
    assert embedded == []
    for old, new in zip(data.galleries, again.galleries, strict=True):
        assert new.checkpoint.fingerprint == new.gallery.fingerprint == old.checkpoint.fingerprint
        np.testing.assert_array_equal(new.embeddings.vectors, old.embeddings.vectors)
        np.testing.assert_array_equal(new.queries.vectors, old.queries.vectors)


def test_other_weights_build_their_gallery_again(
    data: ServedData,
    embedded: list[str],
    tiny_street: Path,
    galleries: Path,
    camera_weights: Path,
    plain_weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = shutil.copytree(galleries, tmp_path / "galleries")
    loaded = load_checkpoint(plain_weights)
    transform = replace(loaded.transform, mean=(0.4, 0.4, 0.4))
    replace(loaded, transform=transform).save(tmp_path / "other.safetensors")
    again = prepare_data(tiny_street, copy, camera_weights, tmp_path / "other.safetensors")
    assert embedded == ["queries", "gallery"], "of plain BN only"
    assert "galleries/street-plain: " in capsys.readouterr().err
    assert again.galleries[0].checkpoint.fingerprint == data.galleries[0].checkpoint.fingerprint
    assert again.galleries[1].checkpoint.fingerprint != data.galleries[1].checkpoint.fingerprint


@pytest.mark.parametrize("damage", ["manifest", "network", "queries", "flipped bit"])
def test_other_data_or_damage_builds_them_again(
    data: ServedData,
    embedded: list[str],
    tiny_street: Path,
    galleries: Path,
    camera_weights: Path,
    plain_weights: Path,
    tmp_path: Path,
    damage: str,
) -> None:
    copy, street = shutil.copytree(galleries, tmp_path / "galleries"), tiny_street
    if damage == "manifest":
        street = shutil.copytree(tiny_street, tmp_path / "street")
        manifest = street / "street-a" / "manifest.csv"
        manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    elif damage == "network":
        next((copy / "street").glob("data-*.network.safetensors")).write_bytes(b"damaged")
    elif damage == "queries":
        (copy / "street" / "queries.safetensors").unlink()
    else:
        content = bytearray((copy / "street" / "queries.safetensors").read_bytes())
        content[-9] ^= 1
        (copy / "street" / "queries.safetensors").write_bytes(content)
    prepare_data(street, copy, camera_weights, plain_weights)
    assert embedded == ["queries", "gallery"] * (2 if damage == "manifest" else 1)


def test_an_erased_identity_stays_erased(
    data: ServedData,
    embedded: list[str],
    tiny_street: Path,
    galleries: Path,
    camera_weights: Path,
    plain_weights: Path,
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(galleries, tmp_path / "galleries")
    identity = data.query_crops.find(0)[1].identity
    assert Gallery.open(copy / "street").erase(identity)
    again = prepare_data(tiny_street, copy, camera_weights, plain_weights)
    assert embedded == []
    outcomes = answer_query(again, Query(data.query_crops.find(0)[1], "street-a"), SearchOptions(answers=50))
    assert outcomes[0].first_right is None
    assert outcomes[0].average_precision is None
    assert outcomes[1].first_right is None, "the other gallery is derived from the same data"
    for outcome in outcomes:
        assert identity not in {answer.sample.identity for answer, _ in outcome.answers}
    assert identity not in {sample.identity for sample in again.query_crops.table.samples}


def test_a_running_application_notices_an_erasure(
    data: ServedData,
    tiny_street: Path,
    galleries: Path,
    camera_weights: Path,
    plain_weights: Path,
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(galleries, tmp_path / "galleries")
    running = prepare_data(tiny_street, copy, camera_weights, plain_weights)
    query = running.query_crops.find(0)[1]
    assert answer_query(running, Query(query, "street-a"), SearchOptions())[0].first_right is not None
    assert running.query_crops.find(0)
    erase_identity(copy / "street-plain", query.identity, query.category)
    for outcome in answer_query(running, Query(query, "street-a"), SearchOptions(answers=50)):
        assert outcome.first_right is None
        assert query.identity not in {answer.sample.identity for answer, _ in outcome.answers}
    assert running.query_crops.find(0) is None
    for served in running.galleries:
        assert query.identity not in {sample.identity for sample in (*served.queries.samples, *served.gallery.samples)}


def test_an_erased_identity_does_not_come_back_with_other_data_until_it_is_lifted(
    data: ServedData,
    embedded: list[str],
    tiny_street: Path,
    galleries: Path,
    camera_weights: Path,
    plain_weights: Path,
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(galleries, tmp_path / "galleries")
    street = shutil.copytree(tiny_street, tmp_path / "street")
    prepare_data(street, copy, camera_weights, plain_weights)
    identity = data.query_crops.find(0)[1].identity
    erase_identity(copy / "street", identity)
    with (street / "street-b" / "manifest.csv").open("a") as manifest:
        manifest.write("\n")  # an unrelated change
    embedded.clear()
    again = prepare_data(street, copy, camera_weights, plain_weights)
    assert embedded == ["queries", "gallery"] * 2
    for served in again.galleries:
        assert identity not in {sample.identity for sample in (*served.queries.samples, *served.gallery.samples)}
    assert len(lift_erasure(copy / "street", identity)) == 2
    lifted = prepare_data(street, copy, camera_weights, plain_weights)
    assert all(identity in {sample.identity for sample in one.gallery.samples} for one in lifted.galleries)


def test_the_application_keeps_its_galleries_where_an_erasure_looks_for_them() -> None:
    titles = ["Camera BN", "Plain BN", *data_preparation.compared_weights()]
    assert tuple(map(data_preparation._folder_name, titles)) == APPLICATION_GALLERIES


@pytest.mark.parametrize("name", ["street", "small-camera", "small-plain"])
def test_the_shipped_weights_hold_their_experiment(name: str) -> None:
    checkpoint = load_checkpoint(ROOT / "demo" / "weights" / f"{name}.safetensors")
    experiment = parse_config(tomllib.loads(checkpoint.extra["experiment"]), name)
    assert data_preparation._trained_categories(checkpoint, ()) == experiment.data.categories
    committed = "street" if name == "street" else name.replace("small", "street-small").replace("plain", "batch")
    again = load_config(ROOT / "scripts" / "experiments" / f"{committed}.toml")
    found = [line for line in differences(again, experiment) if not line.startswith("norm.domain_fields")]
    assert not found  # norm.domain_fields is filled in from the data


def test_the_application_starts_with_the_shipped_weights(tiny_street: Path, tmp_path: Path) -> None:
    data = prepare_data(tiny_street, tmp_path / "galleries")
    assert data.galleries[0].title == "Camera BN"
    assert len(data.galleries) > 1
    assert {"person/a1", "person/b1"} <= set(data.galleries[0].checkpoint.domains)


def test_an_experiment_of_another_version_is_read() -> None:
    checkpoint = load_checkpoint(ROOT / "demo" / "weights" / "street.safetensors")
    older = 'data = { domains = ["person"] }\ntrain = { forgotten = 3 }'
    assert data_preparation._trained_categories(replace(checkpoint, extra={"experiment": older}), ()) == ("person",)


def test_missing_weights_are_an_error(tiny_street: Path, tmp_path: Path, camera_weights: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.safetensors"):
        prepare_data(tiny_street, tmp_path, tmp_path / "none.safetensors", camera_weights)


def test_a_missing_street_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plans: list[object] = []
    monkeypatch.setattr(data_preparation, "make_street", lambda out, plan: plans.append((out, plan)) or [])
    data_preparation.find_or_make_manifests(tmp_path / "new", None)
    data_preparation.find_or_make_manifests(tmp_path / "new", 30)
    assert plans == [
        (tmp_path / "new", data_preparation.StreetPlan()),
        (tmp_path / "new", data_preparation.StreetPlan.of(30)),
    ]
    assert data_preparation.StreetPlan.of(120) == data_preparation.StreetPlan()


def test_a_folder_with_manifests_is_taken_as_it_is(tiny_street: Path) -> None:
    manifests = [tiny_street.resolve() / site / "manifest.csv" for site in ("street-a", "street-b")]
    assert data_preparation.find_or_make_manifests(tiny_street) == manifests


def test_scores_of_a_site_count_its_own_rows_only(data: ServedData) -> None:
    for site in data.sites:
        report = data.galleries[0].score_site(site)
        assert report.protocol == site.name
        directions = {result.direction for result in report.results if result.category == "person"}
        assert "visible->infrared" in directions
        assert len(directions) == 4
        result = report["person", "visible->visible"]
        assert (result.metrics.queries, result.metrics.gallery) == (16, 16)
