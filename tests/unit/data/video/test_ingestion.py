"""An ingest as a whole, with a detector that knows the truth: what is cut out, what is listed, what is refused.

Ways to be wrong that are told apart: crops of other frames or places, one track for two people, times by the number
of the look instead of the frame, a second run that lists rows again or overwrites labels, readable by others.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.walking_people import RATE, SIZE, TWO, Walk, box, film, picture
from reid.data.loading import Progress
from reid.data.manifest import read_manifest
from reid.data.video import Settings, ingest, open_film
from reid.data.video.frames import Pixels
from reid.data.video.ingestion import Ingested, cutout
from reid.data.video.video_folder import FOUND, SETTINGS
from reid.errors import ConfigError, DataError
from reid.records import FloatArray, Modality

PLAN = Settings("north", start=datetime(2024, 5, 31, 16, 20), min_score=0.5, max_crops=4)


class Oracle:
    """A detector that is told where people are; it sees each frame once, in order, from frame ``begin`` on."""

    name, min_score = "oracle", 0.5

    def __init__(self, walks: Sequence[Walk] = TWO, begin: int = 0, every: int = 1, fail: int = -1) -> None:
        self.walks, self.number, self.every, self.fail = walks, begin, every, fail

    def __call__(self, pixels: Pixels) -> FloatArray:
        if self.number == self.fail:
            raise KeyboardInterrupt
        found = [box(walk, self.number) for walk in self.walks]
        self.number += self.every
        rows = [(*place, 0.9) for place in found if place]
        return np.array(rows, np.float32).reshape(-1, 5)


@contextmanager
def quiet(_title: str, _total: int) -> Iterator[Progress]:
    yield lambda _done: None


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("film") / "street.avi")


def run(
    video: Path, out: Path, plan: Settings = PLAN, append_to: Path | None = None, oracle: Oracle | None = None
) -> Ingested:
    finder = oracle or Oracle(every=plan.every)
    return ingest(open_film(video), finder, out, plan, bar=quiet, append_to=append_to)


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_shows(crop: Path, walk: Walk, number: int) -> None:
    """The crop is the part of frame ``number`` in which ``walk`` is."""
    place = box(walk, number)
    assert place is not None
    truth = cutout(picture(TWO, number), place, 0.0)
    with Image.open(crop) as image:
        pixels = np.asarray(image)
    assert pixels.shape == truth.shape
    assert np.abs(pixels.astype(float) - truth).mean() < 8.0


def test_crops_show_who_was_there(video: Path, tmp_path: Path) -> None:
    result = run(video, tmp_path / "crops")
    listed = rows(result.manifest)
    assert (result.frames, result.looked, result.crops, result.tracks, result.added) == (40, 40, 8, 2, 8)
    assert [row["path"] for row in listed] == [
        f"{track:05d}_{frame:07d}.jpg"
        for track, frames in ((1, (0, 13, 26, 39)), (2, (5, 15, 24, 34)))
        for frame in frames
    ]
    for row in listed:
        track, frame = (int(part) for part in Path(row["path"]).stem.split("_"))
        assert_shows(tmp_path / "crops" / row["path"], TWO[track - 1], frame)
        with pytest.raises(AssertionError):
            assert_shows(tmp_path / "crops" / row["path"], TWO[2 - track], max(5, min(frame, 34)))
        with pytest.raises(AssertionError):
            assert_shows(tmp_path / "crops" / row["path"], TWO[track - 1], frame - 4 if frame > 20 else frame + 4)
        assert row["time"] == f"2024-05-31T16:20:0{frame / RATE:.3f}"
    assert len({row["track"] for row in listed}) == 2
    assert {row["track"][-5:] for row in listed} == {"00001", "00002"}


def test_the_manifest_is_one_of_this_program(video: Path, tmp_path: Path) -> None:
    plan = Settings("yard 2", Modality.INFRARED, min_score=0.5)
    samples = read_manifest(run(video, tmp_path / "crops", plan).manifest)
    assert len(samples) == 20
    assert {(s.camera, s.identity, str(s.modality), s.category, str(s.split)) for s in samples} == {
        ("yard 2", "", "infrared", "person", "gallery")
    }
    assert samples[0].time == datetime(1970, 1, 1)


def test_every_third_frame_at_its_own_time(video: Path, tmp_path: Path) -> None:
    listed = rows(run(video, tmp_path / "crops", Settings("north", every=3, min_score=0.5, max_crops=99)).manifest)
    frames = [int(row["path"][6:13]) for row in listed]
    assert set(frames) == set(range(0, 40, 3))
    assert all(row["time"].endswith(f":0{frame / RATE:.3f}") for row, frame in zip(listed, frames, strict=True))


def test_an_interrupted_run_goes_on_to_the_same_bytes(video: Path, tmp_path: Path) -> None:
    run(video, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(video, tmp_path / "crops", oracle=Oracle(fail=17))
    assert not (tmp_path / "crops" / "manifest.csv").exists()
    run(video, tmp_path / "crops", oracle=Oracle(begin=17))  # frames before were looked at
    assert contents(tmp_path / "crops") == whole


@pytest.mark.parametrize("lost", ["line", "tail", "crops", "manifest", "part"])
def test_whatever_was_cut_off_is_made_again(lost: str, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "crops"
    run(video, out)
    whole = contents(out)
    begin = 40
    if lost == "line":  # the power failed within a line
        (out / FOUND).write_bytes(whole[FOUND][: whole[FOUND].index(b'{"frame":21') + 15])
        begin = 21
    elif lost == "tail":
        (out / FOUND).write_bytes(whole[FOUND][: whole[FOUND].index(b'{"frame":30')] + b"\0" * 300)
        begin = 30
    elif lost == "crops":
        (out / "00001_0000013.jpg").unlink()
        (out / "manifest.csv").unlink()
    elif lost == "manifest":
        (out / "manifest.csv").unlink()
    else:
        (out / ".00001_0000013.jpg.part").write_bytes(b"half")
    run(video, out, oracle=Oracle(begin=begin, fail=41))
    assert contents(out) == whole


def test_a_second_run_changes_nothing_not_even_labels(video: Path, tmp_path: Path) -> None:
    manifest = run(video, tmp_path / "crops").manifest
    labelled = manifest.read_text().replace(",,north", ",anna,north")
    manifest.write_text(labelled)
    result = run(video, tmp_path / "crops", oracle=Oracle(fail=0))  # nothing is looked at again
    assert (result.crops, result.added) == (8, 0)
    assert manifest.read_text() == labelled


def test_several_cameras_in_one_manifest(video: Path, tmp_path: Path) -> None:
    other = film(tmp_path / "other.avi", TWO[:1], 20)
    manifest = run(video, tmp_path / "data" / "north").manifest
    before = manifest.read_bytes()
    plan = Settings("south", min_score=0.5, max_crops=4)
    for again in (False, True):
        result = run(other, tmp_path / "data" / "south", plan, manifest, Oracle(TWO[:1]))
        assert result.added == (0 if again else 4)
    assert manifest.read_bytes().startswith(before)
    assert not (tmp_path / "data" / "south" / "manifest.csv").exists()
    samples = read_manifest(manifest)
    assert [s.camera for s in samples] == ["north"] * 8 + ["south"] * 4
    assert all(s.path.is_file() for s in samples)
    assert len({row["track"] for row in rows(manifest)}) == 3  # the first track of each film is another
    shutil.move(tmp_path / "data", tmp_path / "moved")
    assert all(s.path.is_file() for s in read_manifest(tmp_path / "moved" / "north" / "manifest.csv"))


def test_columns_in_another_order_are_kept(video: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "all.csv"
    manifest.write_text("track,time,split,domain,modality,camera,identity,path\nt,,gallery,person,,west,,a.jpg")
    run(video, tmp_path / "crops", append_to=manifest)
    lines = manifest.read_text().splitlines()
    assert lines[1] == "t,,gallery,person,,west,,a.jpg"
    assert lines[2].endswith("00001,2024-05-31T16:20:00.000,gallery,person,visible,north,,crops/00001_0000000.jpg")


def test_manifests_that_cannot_be_added_to(video: Path, tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("path,identity,split\na.jpg,,gallery\n")
    for name, words in {
        "few.csv": "expected those of an ingest",
        "t.parquet": "a CSV manifest",
        "no.csv": "no such",
    }.items():
        with pytest.raises((ConfigError, DataError), match=words):
            run(video, tmp_path / "crops", append_to=tmp_path / name)
    assert not (tmp_path / "crops").exists()  # told before work is spent


def test_another_film_or_other_settings_are_refused(video: Path, tmp_path: Path) -> None:
    run(video, tmp_path / "crops")
    whole = contents(tmp_path / "crops")
    with pytest.raises(ConfigError, match=r"with --max-crops-per-track 4, not 5; choose another --out"):
        run(video, tmp_path / "crops", Settings("north", start=PLAN.start, max_crops=5))
    with pytest.raises(ConfigError, match=r"to look at one frame of 1, not of 2 \(--every, --fps\); choose another"):
        run(video, tmp_path / "crops", replace(PLAN, every=2))
    other = film(tmp_path / "other.avi", TWO[:1], 20)
    with pytest.raises(ConfigError, match=r"of street\.avi, not of this film"):
        run(other, tmp_path / "crops")
    renamed = tmp_path / "renamed.avi"
    shutil.copy(video, renamed)
    run(renamed, tmp_path / "crops")  # the same film
    assert contents(tmp_path / "crops") == whole
    (tmp_path / "crops" / SETTINGS).write_text("{}")
    with pytest.raises(ConfigError, match="damaged"):
        run(video, tmp_path / "crops")


def test_a_folder_of_something_else_is_refused(video: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(ConfigError, match=r'holds "thesis\.doc" and is no ingest'):
        run(video, tmp_path)
    with pytest.raises(ConfigError, match="this is a file"):
        run(video, tmp_path / "thesis.doc")


def test_two_at_a_time_are_refused(video: Path, tmp_path: Path) -> None:
    class Second(Oracle):
        def __call__(self, pixels: Pixels) -> FloatArray:
            with pytest.raises(ConfigError, match="another ingest is at work"):
                run(video, tmp_path / "crops")
            return super().__call__(pixels)

    assert run(video, tmp_path / "crops", oracle=Second()).crops == 8


def test_only_the_owner_may_read(video: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run(video, tmp_path / "crops")
    finally:
        os.umask(before)
    assert (tmp_path / "crops").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "crops").iterdir()} == {0o600}


def test_nobody_found_is_said(video: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"oracle found nobody in 40 frames \(--min-score 0\.5, --min-height 64"):
        run(video, tmp_path / "none", oracle=Oracle(()))
    with pytest.raises(DataError, match=r"boxes scores 0\.90 and is at most 1\d\d pixels tall; try lower bounds"):
        run(video, tmp_path / "tall", Settings("north", min_height=500.0))
    assert not (tmp_path / "none" / "manifest.csv").exists()


def test_a_film_that_is_cut_off_is_doubted(video: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.avi"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    result = run(cut, tmp_path / "crops")
    assert 20 <= result.frames < 30
    doubt = f"the file announces {open_film(cut).count} frames, {result.frames} can be read: it is cut off or damaged"
    assert doubt in result.lines()
    assert not any("cut off" in line for line in run(video, tmp_path / "whole").lines())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"camera": "a/b"}, "without slashes"),
        ({"camera": ""}, "expected a name"),
        ({"camera": " a"}, "expected a name"),
        ({"every": 0}, "--every: expected 1 or more"),
        ({"min_score": float("nan")}, "--min-score"),
        ({"margin": -0.1}, "--margin: expected 0 or more"),
        ({"max_crops": 0}, "--max-crops-per-track: expected 1 or more"),
    ],
)
def test_settings_out_of_range(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Settings(**{"camera": "north", **change})


def test_a_cutout_and_its_margin() -> None:
    pixels = np.arange(SIZE[0] * SIZE[1] * 3, dtype=np.int64).reshape(*SIZE, 3).astype(np.uint8)
    assert np.array_equal(cutout(pixels, (10.5, 20.0, 29.5, 60.0), 0.0), pixels[20:60, 10:30])
    assert np.array_equal(cutout(pixels, (10.0, 20.0, 30.0, 60.0), 0.5), pixels[0:80, 0:40])
    assert np.array_equal(cutout(pixels, (310.0, 230.0, 320.0, 240.0), 1.0), pixels[220:, 300:])


def test_the_list_of_what_was_found_is_readable(video: Path, tmp_path: Path) -> None:
    run(video, tmp_path / "crops")
    lines = [json.loads(line) for line in io.StringIO((tmp_path / "crops" / FOUND).read_text())]
    assert [line.get("frame") for line in lines] == [*range(40), None]
    assert lines[-1] == {"frames": 40}
    assert [len(line["boxes"]) for line in lines[:-1]] == [sum(n in walk.frames for walk in TWO) for n in range(40)]
