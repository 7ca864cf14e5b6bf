"""What the demo makes, keeps and makes again, and what its galleries answer."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.app import query as asking
from reid.app import world as preparing
from reid.app.query import Query, Switches, Verdict, ask
from reid.app.world import World, prepare
from reid.config import differences, load_config, parse_config
from reid.errors import DataError, WeightsError
from reid.models.checkpoint import load_checkpoint
from reid.records import Modality, Sample, Split
from reid.retrieval.gallery import Gallery

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def galleries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared") / "galleries"


@pytest.fixture(scope="module")
def world(tiny_street: Path, galleries: Path, camera_weights: Path, plain_weights: Path) -> World:
    return prepare(tiny_street, galleries, camera_weights, plain_weights)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of what is embedded from now on."""
    titles: list[str] = []
    build, embed = preparing.build_gallery, preparing.embed_samples
    monkeypatch.setattr(preparing, "build_gallery", lambda *a: titles.append("gallery") or build(*a))
    monkeypatch.setattr(preparing, "embed_samples", lambda *a: titles.append("queries") or embed(*a))
    return titles


def test_the_world_holds_both_sites_under_both_norms(world: World) -> None:
    assert [site.name for site in world.sites] == ["street-a", "street-b"]
    assert [norm.title for norm in world.norms] == ["Camera BN", "Plain BN"]
    assert world.kinds == ("person", "vehicle")
    assert len(world.queries) == 2 * 6 * 6
    camera, plain = world.norms
    assert plain.checkpoint.domains == ()
    known = {f"{kind}/{site}{number}" for kind in ("person", "vehicle") for site in "ab" for number in range(1, 7)}
    assert set(camera.checkpoint.domains) == known, "the cameras of street-b were calibrated"
    assert set(camera.gallery.samples) == {s for site in world.sites for s in site.samples if s.split is Split.GALLERY}
    assert world.site_of[world.queries[-1][1].path] == "street-b"


def test_a_second_start_embeds_nothing(
    world: World, embedded: list[str], tiny_street: Path, galleries: Path, camera_weights: Path, plain_weights: Path
) -> None:
    again = prepare(tiny_street, galleries, camera_weights, plain_weights)
    assert embedded == []
    for old, new in zip(world.norms, again.norms, strict=True):
        assert new.checkpoint.fingerprint == new.gallery.fingerprint == old.checkpoint.fingerprint
        np.testing.assert_array_equal(new.rows.vectors, old.rows.vectors)
        np.testing.assert_array_equal(new.queries.vectors, old.queries.vectors)


def test_other_weights_build_their_gallery_again(
    world: World,
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
    again = prepare(tiny_street, copy, camera_weights, tmp_path / "other.safetensors")
    assert embedded == ["queries", "gallery"], "of plain BN only"
    assert "street-plain: made from other weights or data" in capsys.readouterr().err
    assert again.norms[0].checkpoint.fingerprint == world.norms[0].checkpoint.fingerprint
    assert again.norms[1].checkpoint.fingerprint != world.norms[1].checkpoint.fingerprint


@pytest.mark.parametrize("damage", ["manifest", "network", "queries"])
def test_other_data_or_damage_builds_them_again(
    world: World,
    embedded: list[str],
    tiny_street: Path,
    galleries: Path,
    camera_weights: Path,
    plain_weights: Path,
    tmp_path: Path,
    damage: str,
) -> None:
    copy, data = shutil.copytree(galleries, tmp_path / "galleries"), tiny_street
    if damage == "manifest":
        data = shutil.copytree(tiny_street, tmp_path / "street")
        manifest = data / "street-a" / "manifest.csv"
        manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    elif damage == "network":
        next((copy / "street").glob("data-*.network.safetensors")).write_bytes(b"damaged")
    else:
        (copy / "street" / "queries.safetensors").unlink()
    prepare(data, copy, camera_weights, plain_weights)
    assert embedded == ["queries", "gallery"] * (2 if damage == "manifest" else 1)


def test_who_was_erased_stays_erased(
    world: World,
    embedded: list[str],
    tiny_street: Path,
    galleries: Path,
    camera_weights: Path,
    plain_weights: Path,
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(galleries, tmp_path / "galleries")
    gone = world.queries[0][1].identity
    assert Gallery.open(copy / "street").erase(gone)
    again = prepare(tiny_street, copy, camera_weights, plain_weights)
    assert embedded == []
    outcomes = ask(again, Query(world.queries[0][1], "street-a"), Switches(answers=50))
    assert outcomes[0].first_right is None
    assert outcomes[0].average_precision is None
    assert outcomes[1].first_right is not None
    assert gone not in {answer.sample.identity for answer, _ in outcomes[0].answers}


@pytest.mark.parametrize("name", ["street", "small-camera", "small-plain"])
def test_the_shipped_weights_say_how_to_train_them_again(name: str) -> None:
    checkpoint = load_checkpoint(ROOT / "demo" / "weights" / f"{name}.safetensors")
    experiment = parse_config(tomllib.loads(checkpoint.extra["experiment"]), name)
    assert preparing._kinds(checkpoint, ()) == experiment.data.categories
    committed = "street" if name == "street" else name.replace("small", "street-small").replace("plain", "batch")
    again = load_config(ROOT / "scripts" / "experiments" / f"{committed}.toml")
    found = [line for line in differences(again, experiment) if not line.startswith("norm.domain_fields")]
    assert not found  # norm.domain_fields is filled in from the data


def test_the_demo_prepares_with_the_shipped_weights(tiny_street: Path, tmp_path: Path) -> None:
    world = prepare(tiny_street, tmp_path / "galleries")
    assert world.norms[0].title == "Camera BN"
    assert len(world.norms) > 1
    assert {"person/a1", "person/b1"} <= set(world.norms[0].checkpoint.domains)


def test_an_experiment_of_another_version_does_not_stop_the_demo() -> None:
    checkpoint = load_checkpoint(ROOT / "demo" / "weights" / "street.safetensors")
    older = 'data = { domains = ["person"] }\ntrain = { forgotten = 3 }'
    assert preparing._kinds(replace(checkpoint, extra={"experiment": older}), ()) == ("person",)


def test_missing_weights_are_an_error(tiny_street: Path, tmp_path: Path, camera_weights: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.safetensors"):
        prepare(tiny_street, tmp_path, tmp_path / "none.safetensors", camera_weights)


def test_a_missing_street_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[object] = []
    monkeypatch.setattr(preparing, "make_street", lambda out, plan: made.append((out, plan)) or [])
    preparing.find_or_make(tmp_path / "new", None)
    preparing.find_or_make(tmp_path / "new", 30)
    assert made == [(tmp_path / "new", preparing.StreetPlan()), (tmp_path / "new", preparing.StreetPlan.of(30))]
    assert preparing.StreetPlan.of(120) == preparing.StreetPlan()


def test_a_folder_of_ones_own_is_taken_as_it_is(tiny_street: Path) -> None:
    manifests = [tiny_street.resolve() / site / "manifest.csv" for site in ("street-a", "street-b")]
    assert preparing.find_or_make(tiny_street) == manifests


def test_data_without_queries_is_an_error(tmp_path: Path, tiny_street: Path, camera_weights: Path) -> None:
    (tmp_path / "site").mkdir()
    rows = (tiny_street / "street-a" / "manifest.csv").read_text().splitlines()
    (tmp_path / "site" / "manifest.csv").write_text("\n".join(row for row in rows if ",query," not in row))
    with pytest.raises(DataError, match="query"):
        prepare(tmp_path, tmp_path / "galleries", camera_weights, camera_weights)


def sample(identity: str, camera: str, name: str = "x") -> Sample:
    return Sample(Path(name), identity, camera)


@pytest.mark.parametrize(
    ("query", "answer", "verdict"),
    [
        (sample("p", "a"), sample("p", "b", "y"), Verdict.RIGHT),
        (sample("p", "a"), sample("q", "b", "y"), Verdict.WRONG),
        (sample("p", "a"), sample("q", "a", "y"), Verdict.WRONG),
        (sample("p", "a"), sample("p", "a", "y"), Verdict.SAME_CAMERA),
        (sample("", "a"), sample("p", "a", "y"), Verdict.UNKNOWN),
        (sample("p", "a"), sample("", "b", "y"), Verdict.UNKNOWN),
        (sample("", "a"), sample("", "a", "y"), Verdict.UNKNOWN),
        (sample("p", ""), sample("p", "", "y"), Verdict.RIGHT),
        (sample("p", ""), sample("p", "", "x"), Verdict.SAME_CAMERA),
    ],
)
def test_verdicts_follow_the_market_rule(query: Sample, answer: Sample, verdict: Verdict) -> None:
    assert asking.judge(query, answer) is verdict


@pytest.mark.parametrize("cross_camera", [True, False])
def test_place_and_precision_are_those_of_the_shown_ranking(world: World, cross_camera: bool) -> None:
    """Counted by hand over the complete ranking: what the rule leaves out takes no place."""
    for site, query in world.queries[::7]:
        switches = Switches(cross_camera=cross_camera, site=site.name, answers=1000)
        for outcome in ask(world, Query(query, site.name), switches):
            assert len(outcome.answers) == outcome.rows
            verdicts = [verdict for _, verdict in outcome.answers if verdict is not Verdict.SAME_CAMERA]
            places = [place for place, verdict in enumerate(verdicts, 1) if verdict is Verdict.RIGHT]
            assert outcome.first_right == places[0]
            precision = np.mean([i / place for i, place in enumerate(places, 1)])
            assert outcome.average_precision == pytest.approx(precision, abs=1e-6)


def test_switches_decide_who_may_answer(world: World) -> None:
    site, query = next((site, s) for site, s in world.queries if s.modality is Modality.INFRARED)
    asked = Query(query, site.name)

    def answers(**switches: object) -> list[Sample]:
        outcomes = ask(world, asked, Switches(answers=1000, **switches))
        assert outcomes[0].rows == outcomes[1].rows == len(outcomes[0].answers)
        return [answer.sample for answer, _ in outcomes[0].answers]

    everyone = answers(cross_camera=False)
    assert {s.category for s in everyone} == {query.category}
    assert {world.site_of[s.path] for s in everyone} == {"street-a", "street-b"}
    assert {world.site_of[s.path] for s in answers(site="street-b")} == {"street-b"}
    assert query.camera in {s.camera for s in everyone}
    assert query.camera not in {s.camera for s in answers(cross_camera=True)}
    assert {s.modality for s in answers(modality=Modality.VISIBLE)} == {Modality.VISIBLE}
    assert len(ask(world, asked, Switches(answers=3))[0].answers) == 3


def test_no_row_that_may_answer_is_one_clear_line(world: World) -> None:
    unknown_domain = replace(world.queries[0][1], category="bicycle")
    with pytest.raises(DataError, match="no picture in the gallery fits these switches"):
        ask(world, Query(unknown_domain, "street-a"), Switches())


def test_an_upload_answers_like_its_file(world: World) -> None:
    site, query = world.queries[5]
    with Image.open(query.path) as picture:
        sent = Query(replace(query, identity="", path=Path("sent")), site.name, picture.convert("RGB"))
    known, unknown = (ask(world, asked, Switches()) for asked in (Query(query, site.name), sent))
    for one, other in zip(known, unknown, strict=True):
        assert [answer for answer, _ in one.answers] == [answer for answer, _ in other.answers]
        assert {verdict for _, verdict in other.answers} == {Verdict.UNKNOWN}
        assert other.average_precision is None


def test_scores_of_a_site_count_its_own_rows_only(world: World) -> None:
    for site in world.sites:
        report = world.norms[0].report(site)
        assert report.protocol == site.name
        directions = {result.direction for result in report.results if result.category == "person"}
        assert "visible->infrared" in directions
        assert len(directions) == 4
        result = report["person", "visible->visible"]
        assert (result.metrics.queries, result.metrics.gallery) == (16, 16)


@pytest.mark.parametrize("kind", ["text", "empty", "cut off", "bomb", "many pixels"])
def test_bad_uploads_are_one_line_without_our_paths(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "secret-name.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut off":
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "bomb":
        Image.new("1", (20_000, 20_000)).save(path)
    else:
        Image.new("1", (6000, 6000)).save(path)
    with pytest.raises(DataError) as caught:
        asking.read_upload(path)
    assert "\n" not in str(caught.value)
    assert "secret-name" not in str(caught.value)
    assert "picture" in str(caught.value)


def test_a_good_upload_is_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20))
    exif = picture.getexif()
    exif[274] = 6  # turned by a quarter
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert asking.read_upload(tmp_path / "a.jpg").size == (20, 40)
