"""The street is a function of its plan, keeps other files safe, and has infrared light of its own."""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.data.street.contact_sheet import contact_sheet
from reid.data.street.generation import COLUMNS, StreetPlan, generate
from reid.data.street.geometry import CameraView, Capsule
from reid.data.street.materials import LUMINANCE, SurfaceMaterial, draw_infrared
from reid.data.street.people import draw_person
from reid.data.street.random_draws import generator
from reid.data.street.render import Figure, Light, render
from reid.data.street.street_cameras import SITES
from reid.errors import DataError

TINY = StreetPlan(seed=3, identities=2, train_identities=1, vehicles=1, train_vehicles=1, crops=2)


def files(out: Path, suffix: str = "") -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob(f"*{suffix}")) if p.is_file()}


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "tiny"
    generate(out, TINY, workers=1)
    return out


def test_two_processes_write_the_same_bytes_as_one(tiny: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", TINY, workers=2)
    assert files(tmp_path / "again") == files(tiny)


def test_a_larger_plan_contains_the_smaller_one(tiny: Path, tmp_path: Path) -> None:
    larger = StreetPlan(
        seed=3, identities=3, train_identities=2, vehicles=2, train_vehicles=1, crops=3, sites=("street-a",)
    )
    generate(tmp_path / "larger", larger, workers=1)
    small, large = files(tiny / "street-a", ".jpg"), files(tmp_path / "larger" / "street-a", ".jpg")
    assert len(large) > len(small) > 0
    assert {name: large.get(name) for name in small} == small


def test_another_seed_draws_other_images(tiny: Path, tmp_path: Path) -> None:
    plan = StreetPlan(
        seed=4, identities=1, train_identities=0, vehicles=1, train_vehicles=0, crops=2, sites=("street-a",)
    )
    generate(tmp_path / "other", plan, workers=1)
    here, there = files(tiny / "street-a", ".jpg"), files(tmp_path / "other" / "street-a", ".jpg")
    shared = here.keys() & there.keys()
    assert len(shared) == 24  # 2 objects, 6 cameras, 2 crops
    assert not [name for name in shared if here[name] == there[name]]


def test_manifest_has_the_columns_the_counts_and_the_images(tiny: Path) -> None:
    for site in SITES:
        manifest = tiny / site / "manifest.csv"
        assert manifest.read_text().splitlines()[0] == ",".join(COLUMNS)
        found = rows(manifest)
        count = Counter((row["category"], row["split"]) for row in found)
        assert count == {
            ("person", "train"): 12, ("person", "query"): 12, ("person", "gallery"): 12,
            ("vehicle", "train"): 12, ("vehicle", "query"): 6, ("vehicle", "gallery"): 6,
        }  # fmt: skip
        assert {row["path"] for row in found} == set(files(tiny / site, ".jpg"))
        infrared = {camera.name for camera in SITES[site] if camera.infrared}
        assert len(infrared) == 2
        for row in found:
            assert (row["modality"] == "infrared") == (row["camera"] in infrared)
            assert datetime.fromisoformat(row["time"]).microsecond == 0


def test_time_lies_in_the_hours_of_the_camera(tiny: Path) -> None:
    for site, cameras in SITES.items():
        hours = {camera.name: camera.hours for camera in cameras}
        for row in rows(tiny / site / "manifest.csv"):
            time = datetime.fromisoformat(row["time"])
            low, high = hours[row["camera"]]
            assert low - 0.01 <= time.hour + time.minute / 60 + time.second / 3600 <= high + 0.01


def test_identities_are_disjoint_between_train_and_test_and_between_sites(tiny: Path) -> None:
    sets: dict[tuple[str, bool], set[str]] = {}
    for site in SITES:
        for row in rows(tiny / site / "manifest.csv"):
            sets.setdefault((site, row["split"] == "train"), set()).add(row["identity"])
    names = [name for found in sets.values() for name in found]
    assert len(sets) == 4
    assert len(names) == len(set(names)) == 10


def test_crops_have_two_sizes_and_infrared_ones_are_grey(tiny: Path) -> None:
    for row in rows(tiny / "street-a" / "manifest.csv"):
        with Image.open(tiny / "street-a" / row["path"]) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert pixels.shape[:2] == ((128, 64) if row["category"] == "person" else (96, 128))
        colour = np.abs(pixels[..., 0] - pixels[..., 2]).mean()
        assert colour == 0 if row["modality"] == "infrared" else colour > 0.5


def test_an_interrupted_run_continues_to_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "broken"

    def stop(done: int, total: int) -> None:
        if done > total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(out, TINY, workers=1, progress=stop)
    assert not list(out.rglob("manifest.csv"))
    assert 0 < len(files(out, ".jpg")) < len(files(tiny, ".jpg"))
    generate(out, TINY, workers=1)
    assert files(out) == files(tiny)


def test_a_complete_street_is_not_changed(tiny: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    calls: list[int] = []
    manifests = generate(tiny, TINY, workers=1, progress=lambda done, _: calls.append(done))
    assert manifests == [tiny / site / "manifest.csv" for site in TINY.sites]
    assert not calls
    assert before == {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="street") as caught:
        generate(tmp_path, TINY, workers=1)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_street_of_another_seed_is_refused(tiny: Path) -> None:
    before = files(tiny)
    with pytest.raises(DataError, match="another plan"):
        generate(tiny, StreetPlan(seed=99, identities=2, vehicles=1), workers=1)
    assert files(tiny) == before


def test_an_unknown_site_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"street-c.*street-a"):
        StreetPlan(sites=("street-c",))


def _lit(material: SurfaceMaterial, light: Light) -> np.ndarray:
    ball = Capsule((0, 0, -0.1), (0, 0, 0.1), 0.3, 0.3, "stuff")
    view = CameraView((0.0, -10.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (-0.02, 0.02, -0.02, 0.02))
    drawn = render(view, [Figure([ball], {"stuff": material})], light, (8, 8))
    assert drawn.cover.all()
    return drawn.light


def test_visible_and_infrared_reflectance_are_independent() -> None:
    grey = SurfaceMaterial((0.1, 0.1, 0.1), 0.1)
    bright = SurfaceMaterial((0.1, 0.1, 0.1), 0.5)
    white = SurfaceMaterial((0.7, 0.7, 0.7), 0.1)
    day, lamp = Light(), Light(lamp=1.0)
    assert np.array_equal(_lit(grey, day), _lit(bright, day))
    assert _lit(bright, lamp).mean() > 2 * _lit(grey, lamp).mean()
    assert np.array_equal(_lit(grey, lamp), _lit(white, lamp))
    assert _lit(white, day).mean() > 2 * _lit(grey, day).mean()
    assert (_lit(grey, day).shape[0], _lit(grey, lamp).shape[0]) == (3, 1)


def test_a_garment_always_has_the_same_infrared_reflectance() -> None:
    for index in range(6):
        first, second = (draw_person(7, "street-a", "test", index).slots() for _ in range(2))
        assert first == second
    shades = {draw_person(7, "street-a", "test", index).top.material.infrared for index in range(40)}
    assert len(shades) > 20


def test_about_half_of_the_infrared_follows_from_brightness_and_fabric() -> None:
    tops = [draw_person(0, "street-a", "test", 4 * index + 3).top.material for index in range(600)]
    fabrics = sorted({top.fabric for top in tops})
    light = np.array([sum(w * c for w, c in zip(LUMINANCE, top.colour, strict=True)) for top in tops]) ** (1 / 2.2)
    known = np.stack([light, *(np.array([top.fabric == fabric for top in tops], float) for fabric in fabrics)], axis=1)
    display = np.array([top.infrared for top in tops]) ** (1 / 2.2)
    weights = np.linalg.lstsq(known, display, rcond=None)[0]
    explained = 1 - np.var(display - known @ weights) / np.var(display)
    assert 0.4 < explained < 0.75


def test_infrared_reflectance_is_a_fraction() -> None:
    drawn = [draw_infrared(generator(0, "test", i), (0.9, 0.9, 0.9), "synthetic") for i in range(200)]
    assert 0 < min(drawn) < max(drawn) <= 1


def test_some_neighbours_are_look_alikes() -> None:
    def pairs(share: str) -> int:
        found = 0
        for block in range(60):
            first, second = (draw_person(0, "street-a", "test", 4 * block + member) for member in (0, 1))
            same_clothes = first.top == second.top
            found += same_clothes and (first.body == second.body) == (share == "twin")
        return found

    assert 4 <= pairs("uniform") <= 25
    assert 4 <= pairs("twin") <= 25


def test_near_twins_carry_different_bags() -> None:
    twins = 0
    for block in range(60):
        first, second = (draw_person(0, "street-a", "test", 4 * block + member) for member in (0, 1))
        if first.top == second.top and first.body == second.body:
            twins += 1
            assert first.carried.kind != second.carried.kind
    assert twins


def test_contact_sheet_shows_people_above_vehicles(tiny: Path) -> None:
    sheet = contact_sheet(tiny, rows=3)
    assert sheet.size == (6 * 128 + 5 * 4, 128 + 128 + 96 + 2 * 4)
    with Image.open(tiny / "street-a/images/query/person/a-person-0000_a1_0.jpg") as image:
        assert np.array_equal(np.asarray(sheet.crop((32, 0, 96, 128))), np.asarray(image.convert("RGB")))
    with Image.open(tiny / "street-a/images/query/vehicle/a-vehicle-0000_a2_0.jpg") as image:
        assert np.array_equal(np.asarray(sheet.crop((132, 264, 260, 360))), np.asarray(image.convert("RGB")))
    stream = io.BytesIO()
    sheet.save(stream, format="PNG")


def test_contact_sheet_without_a_street_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reid synth"):
        contact_sheet(tmp_path)


def test_contact_sheet_of_a_street_of_version_0_1_0(tiny: Path, tmp_path: Path) -> None:
    """Its manifests call the column of the category "domain"."""
    street = Path(shutil.copytree(tiny, tmp_path / "old"))
    manifest = street / "street-a" / "manifest.csv"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("category", "domain", 1), encoding="utf-8")
    assert contact_sheet(street, rows=3).tobytes() == contact_sheet(tiny, rows=3).tobytes()
