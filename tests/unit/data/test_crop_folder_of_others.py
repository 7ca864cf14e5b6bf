"""Folders of others: levels that are not clear, links, folders for nobody, infrared cameras, times with a zone."""

from __future__ import annotations

import os
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.data import folder_layouts
from reid.data.crop_folder import InitResult, init_manifest
from reid.data.file_times import read_time
from reid.data.manifest import read_manifest


def put_files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def rows(found: InitResult) -> list[tuple[str, str]]:
    """Return (identity, camera) of the rows of the gallery, as the manifest on the disk has them."""
    samples = read_manifest(found.manifest)
    assert samples == found.samples
    return [(sample.identity, sample.camera) for sample in samples if sample.split == "gallery"]


@pytest.mark.parametrize("name", ["cam{}", "Camera {}", "c{}", "cctv-{}", "CH0{}", "IPCam{}", "camera_{}_north"])
def test_folders_of_cameras_without_people(name: str, tmp_path: Path) -> None:
    found = init_manifest(put_files(tmp_path, *(f"{name.format(number)}/{number}.jpg" for number in range(1, 7))))
    assert rows(found) == sorted(("", name.format(number)) for number in range(1, 7))
    (line,) = [line for line in found.lines() if "assumed" in line]
    assert "each folder is one camera" in line
    assert "{identity}/*" in line


@pytest.mark.parametrize(
    ("names", "pattern", "other"),
    [
        (["anna/cam1/1.jpg", "bo/cam2/1.jpg"], "{identity}/{camera}/*", "{camera}/{identity}/*"),
        (["a/x/1.jpg", "b/x/1.jpg", "c/y/1.jpg"], "{camera}/{identity}/*", "{identity}/{camera}/*"),
        (["cam1/anna/1.jpg", "cam2/anna/1.jpg"], "{camera}/{identity}/*", ""),
        (["train/7/1.jpg", "query/8/1.jpg"], "{split}/{identity}/*", ""),
        (["train/cam1/1.jpg", "gallery/cam2/1.jpg"], "{split}/{camera}/*", "{split}/{identity}/*"),
        (["infrared/7/1.jpg", "visible/7/1.jpg"], "{modality}/{identity}/*", ""),
        (["anna/1.jpg", "bo/1.jpg"], "{identity}/*", ""),
        ([f"{name}/{i}.jpg" for name in ("north", "south") for i in range(20)], "{identity}/*", "{camera}/*"),
    ],
)
def test_what_the_levels_mean(names: list[str], pattern: str, other: str, tmp_path: Path) -> None:
    found = init_manifest(put_files(tmp_path, *names))
    assert found.pattern == pattern
    assumed = [line for line in found.lines() if "assumed" in line]
    assert [other in line for line in assumed] == ([True] if other else [])


def test_the_user_is_asked_only_where_it_is_not_clear(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def choose(layouts):
        asked.append([layout.pattern for layout in layouts])
        return layouts[-1]

    found = init_manifest(put_files(tmp_path, "cam1/1.jpg", "cam2/2.jpg"), choose=choose)
    assert (found.pattern, asked) == ("{identity}/*", [["{camera}/*", "{identity}/*"]])
    init_manifest(put_files(tmp_path / "x", "cam1/anna/1.jpg"), choose=choose)
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["unknown", "Junk", "-1", "nan", "unlabeled", "distractors"])
def test_folders_that_are_nobody(name: str, tmp_path: Path) -> None:
    found = init_manifest(put_files(tmp_path, "c1/anna/1.jpg", f"c1/{name}/1.jpg", f"c1/{name}/2.jpg"))
    assert sorted(rows(found)) == [("", "c1"), ("", "c1"), ("anna", "c1")]
    assert any(name in line and line.startswith("2 images") for line in found.lines())


def test_names_in_two_forms_of_unicode_are_one_person(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "Zoé") for form in ("NFC", "NFD")]
    found = init_manifest(put_files(tmp_path, f"c1/{names[0]}/1.jpg", f"c2/{names[1]}/1.jpg"))
    assert rows(found) == [(names[0], "c1"), (names[0], "c2")]
    assert sum(sample.split == "query" for sample in found.samples) == 2
    assert all(sample.path.exists() for sample in found.samples)


def test_endings_of_images_and_of_others(tmp_path: Path) -> None:
    found = init_manifest(put_files(tmp_path, *(f"a/{i}{e}" for i, e in enumerate([".jfif", ".jpe", ".JPG", ".heic"]))))
    assert len(rows(found)) == 3
    assert any(".heic (1)" in line for line in found.lines())


def test_links_are_followed_and_loops_are_named(tmp_path: Path) -> None:
    """Also links of cameras and people; a link to nothing is named."""
    put_files(tmp_path / "elsewhere", "anna/1.jpg", "2.jpg")
    crops = put_files(tmp_path / "crops", "c1/anna/1.jpg")
    (crops / "c2").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/2.jpg").unlink()
    (crops / "c1/bo").symlink_to(tmp_path / "elsewhere/anna", target_is_directory=True)
    (crops / "c1/again").symlink_to(crops, target_is_directory=True)
    (crops / "c1/above").symlink_to(tmp_path, target_is_directory=True)
    (crops / "c1/anna/gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    found = init_manifest(crops)
    assert rows(found) == [("anna", "c1"), ("bo", "c1"), ("anna", "c2")]
    left_out = [line for line in found.lines() if line.startswith("left out")]
    assert any("c1/again" in line for line in left_out)
    assert any("c1/above" in line for line in left_out)
    assert any("gone.jpg" in line for line in left_out)


def test_folders_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(tmp_path, "c1/anna/1.jpg", "c2/anna/1.jpg")
    listdir = os.listdir

    def guarded(folder: Path) -> list[str]:
        if Path(folder).name == "c2":
            raise PermissionError(13, os.strerror(13))
        return listdir(folder)

    monkeypatch.setattr(folder_layouts.os, "listdir", guarded)
    found = init_manifest(tmp_path)
    assert rows(found) == [("anna", "c1")]
    assert any("c2" in line and "Permission" in line for line in found.lines())


def test_infrared_cameras_are_noticed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for camera in ("day", "night"):
        for number in range(3):
            path = tmp_path / camera / "anna" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            colours = Image.fromarray(rng.integers(0, 256, (4, 2, 3), dtype=np.uint8))
            image = colours if camera == "day" else colours.convert("L").convert("RGB")
            image.resize((64, 128)).save(path)
    (line,) = [line for line in init_manifest(tmp_path).lines() if line.startswith("grey")]
    assert "night" in line
    assert "day" not in line


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("20240531-162000", datetime(2024, 5, 31, 16, 20)),
        ("2024-05-31_16-20-00", datetime(2024, 5, 31, 16, 20)),
        ("t20240531162000", datetime(2024, 5, 31, 16, 20)),
        ("2024-05-31T16:20:00Z", datetime(2024, 5, 31, 16, 20, tzinfo=UTC)),
        ("20240531T162000Z", datetime(2024, 5, 31, 16, 20, tzinfo=UTC)),
        ("2024-05-31_16-20-00Z", datetime(2024, 5, 31, 16, 20, tzinfo=UTC)),
        ("2024-05-31_16-20-00+02", datetime(2024, 5, 31, 16, 20, tzinfo=timezone(timedelta(hours=2)))),
        ("20240531162000+0230", datetime(2024, 5, 31, 16, 20, tzinfo=timezone(timedelta(hours=2, minutes=30)))),
        ("2024-05-31_16-20-00-05:00", datetime(2024, 5, 31, 16, 20, tzinfo=timezone(timedelta(hours=-5)))),
        ("2024-05-31_04-20-00 PM", datetime(2024, 5, 31, 16, 20)),
        ("20240531-042000PM", datetime(2024, 5, 31, 16, 20)),
        ("2024-05-31 12.00.00 am", datetime(2024, 5, 31, 0, 0)),
        ("2024-05-31 at 4.20.00 PM", datetime(2024, 5, 31, 16, 20)),
        ("2024-05-31_16-20-00.250", datetime(2024, 5, 31, 16, 20, 0, 250_000)),
        ("2024-05-31", datetime(2024, 5, 31)),
    ],
)
def test_times_keep_their_meaning(text: str, time: datetime) -> None:
    found = read_time(text)
    assert found == time
    assert found.tzinfo == time.tzinfo or found.utcoffset() == time.utcoffset()


@pytest.mark.parametrize(
    "text",
    ["20240531-162000 CET", "20240531-162000PM", "000451", "20241331-162000", "20240531-162000_x", "2024053116200"],
)
def test_times_that_cannot_be_understood(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the caller words the message
        read_time(text)
